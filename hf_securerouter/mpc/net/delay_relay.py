# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A process that joins two network namespaces, and holds each packet between them back for a fixed time.

Run as a file by `delay.py`: `delay_relay.py SECONDS`, with a socket to the caller as its standard input. Only the
standard library is imported, since a process may leave its user namespace only while it has a single thread.
Namespaces and devices are anonymous: the kernel removes them when the last process that uses them ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path


DEVICE = "delay"
# Of party 0 and party 1, each in its own namespace. Loopback addresses, so that a link without TLS is allowed.
ADDRESSES = ("127.0.0.1", "127.0.0.2")

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8916, 0x891C, 0x8922
_LARGEST_PACKET = 65535
_BURST = 64

# TCP windows must not limit the bandwidth: they hold 30 ms (a round trip) at 1 GB/s, as the device's queue of 500
# packets does, and do not shrink while a connection is idle.
_SETTINGS = {
    f"conf/{DEVICE}/route_localnet": "1",
    "tcp_rmem": "4096 16777216 33554432",
    "tcp_wmem": "4096 4194304 33554432",
    "tcp_slow_start_after_idle": "0",
}


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_root_of_a_user_namespace() -> None:
    """Enter a new user namespace as its root, who may make network namespaces."""
    user, group = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def make_end(address: str) -> int:
    """Enter a new network namespace with one TUN device; return the descriptor that its packets pass through."""
    _unshare(_CLONE_NEWNET)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = DEVICE.encode()
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def ask(request: int, argument: bytes) -> None:
            fcntl.ioctl(control, request, struct.pack("16s24s", name, argument))

        ask(_SIOCSIFADDR, struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(address)))
        ask(_SIOCSIFNETMASK, struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton("255.0.0.0")))
        ask(_SIOCSIFMTU, struct.pack("i", _LARGEST_PACKET))
        ask(_SIOCSIFFLAGS, struct.pack("H", _IFF_UP))
    for setting, value in _SETTINGS.items():
        Path("/proc/sys/net/ipv4", setting).write_text(value)
    return device


def relay(ends: tuple[int, int], caller: socket.socket, seconds: float) -> None:
    """Carry packets both ways, each `seconds` after its arrival, until the caller closes its socket."""
    waiting: tuple[deque[tuple[float, bytes]], deque[tuple[float, bytes]]] = (deque(), deque())
    sources: list[int | socket.socket] = [*ends, caller]
    while True:
        due = min((queue[0][0] for queue in waiting if queue), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        ready, _, _ = select.select(sources, [], [], timeout)  # `poll` waits whole milliseconds
        if caller in ready:
            return
        for end, queue in zip(ends, waiting, strict=True):
            if end in ready:
                for packet in _read(end):
                    queue.append((time.monotonic() + seconds, packet))
        now = time.monotonic()
        for end, queue in zip(reversed(ends), waiting, strict=True):
            while queue and queue[0][0] <= now:
                os.write(end, queue.popleft()[1])


def _read(end: int) -> list[bytes]:
    """The packets that have arrived, at most `_BURST`, so that the other direction gets its turn."""
    packets: list[bytes] = []
    try:
        while len(packets) < _BURST:
            packets.append(os.read(end, _LARGEST_PACKET))
    except BlockingIOError:
        pass
    return packets


def main(seconds: float) -> int:
    """Make the namespaces, hand them to the caller and relay. The caller receives the namespaces' descriptors (network
    of party 0, of party 1 and, unless run by root, user), or an error text.

    Args:
        seconds (`float`): One-way delay.

    Returns:
        `int`: Exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C: it closes the socket
    caller = socket.socket(fileno=sys.stdin.fileno())
    spaces: list[int] = []
    ends: list[int] = []
    try:
        if os.geteuid() != 0:
            become_root_of_a_user_namespace()
            spaces.append(os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        for address in reversed(ADDRESSES):
            ends.insert(0, make_end(address))
            spaces.insert(0, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        caller.sendall(str(error).encode())
        return 1
    socket.send_fds(caller, [b"\0"], spaces)
    for space in spaces:
        os.close(space)
    relay((ends[0], ends[1]), caller, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
