# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""TCP sockets: addresses, deadlines, and the options that every link sets."""

from __future__ import annotations

import ipaddress
import numbers
import resource
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from ...errors import SecureRouterError, SecureRouterValueError


Address = tuple[str, int]
T = TypeVar("T")

HANDSHAKE = 10.0  # seconds for a connection's TLS handshake and greeting


LONGEST = 1_000_000  # seconds of any wait, eleven days; those of the system end at 2^31 milliseconds


class MeetingError(SecureRouterError):
    """A role was not reached, did not connect in time, or has the wrong certificate."""


def check_seconds(name: str, value: float, least: float = 0.001) -> float:
    """Check a time to wait, before anything is started with it.

    Args:
        name (`str`): The argument's name.
        value (`float`): Its seconds, any real number, also one of NumPy.
        least (`float`): The shortest that has a meaning.

    Returns:
        `float`: The seconds. A number of NumPy is no JSON, and would lower the precision of a clock it is added to.

    Raises:
        `SecureRouterValueError`: `value` is no number, or not from `least` to `LONGEST`; nan and inf are not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= value <= LONGEST:
        raise SecureRouterValueError(
            f"`{name}` should be a number of seconds from {least:g} to {LONGEST}, got {value!r}."
        )
    return float(value)


def format_address(address: Address) -> str:
    """`HOST:PORT`, an IPv6 host in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """Host and port of `HOST:PORT`; an IPv6 host may be in brackets.

    Raises:
        `SecureRouterValueError`: `text` is not of this form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise SecureRouterValueError(f"{text!r} is not HOST:PORT.")
    return host, int(port)


def listen_at(address: Address, backlog: int | None = None) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Raises:
        `OSError`: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.create_server(address, family=family, backlog=backlog)


def connect_until(
    deadline: float, pause: float, attempt: Callable[[float], T], retried: tuple[type[Exception], ...]
) -> T:
    """Try to connect until it works.

    Args:
        deadline (`float`): When to give up, as `time.monotonic()` counts.
        pause (`float`): Seconds between two attempts.
        attempt (callable): Called with the seconds left; connects, or raises.
        retried (`tuple[type[Exception], ...]`): Errors after which `attempt` is repeated; others are raised at once.

    Returns:
        The result of `attempt`.

    Raises:
        One of `retried`: The error of the last attempt, when the deadline leaves no time for another attempt.
    """
    while True:
        try:
            return attempt(max(deadline - time.monotonic(), 1e-3))
        except retried:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)


def take_all_descriptors() -> None:
    """Let this process open as many files and sockets as the system allows it: a server has one for each connection,
    and the usual limit, 1,024, is of programs that have few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def send_at_once(sock: socket.socket) -> socket.socket:
    """Send small frames without delay (TCP_NODELAY)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def keep_alive(sock: socket.socket) -> socket.socket:
    """Send small frames without delay, and detect within 20 seconds that the other machine is gone."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
    ):
        sock.setsockopt(level, option, value)
    return send_at_once(sock)


def is_this_machine(sock: socket.socket) -> bool:
    """Whether the other end of a connected TCP socket is on this machine."""
    return ipaddress.ip_address(sock.getpeername()[0]).is_loopback
