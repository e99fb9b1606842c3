# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Connections between the roles of one machine, through a folder that only their user can open.

The parties' link is TCP on the loopback interface: party 0 writes its address and a token into the folder, and both
parties must prove to hold the token. The dealer listens on a Unix socket in the folder, whose permissions protect it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path

from ...errors import SecureRouterError
from ...files import write_atomically
from .channel import Channel
from .ledger import Ledger
from .link import Link, LinkError, Listener
from .sockets import HANDSHAKE


_ADDRESS, _SOCKET = "parties.json", "dealer"
_POLL = 0.02


class RendezvousError(SecureRouterError):
    """A role did not connect in time, or with a wrong rank."""


def connect_parties(folder: Path, rank: int, ledger: Ledger, timeout: float) -> Link:
    """Make the link between the two parties of this machine.

    Args:
        folder (`Path`): Private to the user, the same for all roles.
        rank (`int`): 0 or 1.
        ledger (`Ledger`): Counts the link's bytes and rounds.
        timeout (`float`): Seconds to wait for the other party, here and in every round.

    Raises:
        `RendezvousError`: Party 0 did not write its address in time (at party 1).
        `LinkError`: The other party did not connect in time, or the handshake failed.
    """
    path, deadline = folder / _ADDRESS, time.monotonic() + timeout
    if rank == 0:
        token = secrets.token_bytes(32)
        with Link.listen() as listener:
            with write_atomically(path, private=True) as temporary:
                temporary.write_text(json.dumps({"address": listener.address, "token": token.hex()}))
            return _accept(listener, ledger, timeout, deadline, token)
    while not path.exists():
        if time.monotonic() > deadline:
            raise RendezvousError(f"party0 did not listen within {timeout:g} seconds.")
        time.sleep(_POLL)
    found = json.loads(path.read_text())
    path.unlink()
    host, port = found["address"]
    return Link.connect((host, port), 1, ledger=ledger, timeout=timeout, token=bytes.fromhex(found["token"]))


def _accept(listener: Listener, ledger: Ledger, timeout: float, deadline: float, token: bytes) -> Link:
    """Party 0's end of the link. Other users of this machine can connect, and cannot prove to hold the token."""
    while True:
        left = deadline - time.monotonic()
        try:
            link = listener.accept(0, ledger=ledger, timeout=max(min(left, HANDSHAKE), 1e-3), token=token)
        except LinkError:
            if left < HANDSHAKE:
                raise
        else:
            link.timeout = timeout
            return link


def connect_dealer(folder: Path, rank: int, timeout: float) -> Channel:
    """Make a party's channel to the dealer.

    Raises:
        `RendezvousError`: The dealer did not listen within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _Shortened(folder) as short:
                sock.connect(f"{short}/{_SOCKET}")
            break
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise RendezvousError(f"The dealer did not listen within {timeout:g} seconds ({error}).") from error
            time.sleep(_POLL)
    channel = Channel(sock, "the dealer")
    channel.send({"kind": "hello", "rank": rank}, timeout=timeout)
    return channel


def accept_parties(folder: Path, timeout: float) -> tuple[Channel, Channel]:
    """Make the dealer's channels to P0 and P1.

    Raises:
        `RendezvousError`: A party did not connect within `timeout` seconds, or a process connected with a wrong rank.
        `ChannelError`: A process connected, but sent no frame with its rank within `timeout` seconds.
    """
    found: dict[int, Channel] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _Shortened(folder) as short:
        listener.bind(f"{short}/{_SOCKET}")
        listener.listen(2)
        listener.settimeout(timeout)
        while len(found) < 2:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                missing = " and ".join(f"party{rank}" for rank in (0, 1) if rank not in found)
                raise RendezvousError(f"{missing} did not connect within {timeout:g} seconds.") from error
            channel = Channel(sock, "a party")
            header, _ = channel.receive(timeout=timeout)
            rank = header.get("rank")
            if type(rank) is not int or rank not in (0, 1) or rank in found:  # in Python, True is 1
                raise RendezvousError(f"A process connected as party {rank!r}, which is no rank or is connected.")
            channel.peer = f"party{rank}"
            found[rank] = channel
    return found[0], found[1]


class _Shortened:
    """A short path to a folder, inside this context: a Unix socket's path has at most 107 characters."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
