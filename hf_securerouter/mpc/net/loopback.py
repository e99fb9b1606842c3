# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How the roles of one machine find each other, in a folder that only their user can open.

The parties' link is TCP on the loopback interface; party 0 leaves its address and a token that both must prove to
hold. The dealer waits on a Unix socket in the same folder, whose permissions are all that it needs.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path

from ...errors import SecureRouterError
from .channel import Channel
from .ledger import Ledger
from .link import Link


_ADDRESS, _SOCKET = "parties.json", "dealer"
_POLL = 0.02


class RendezvousError(SecureRouterError):
    """A role did not come."""


def connect_parties(folder: Path, rank: int, ledger: Ledger, timeout: float) -> Link:
    """The link between the two parties of this machine.

    Args:
        folder (`Path`): Private to the user, the same for all roles.
        rank (`int`): 0 or 1.
        ledger (`Ledger`): Where the link counts.
        timeout (`float`): Seconds to wait for the other party, here and in every round.
    """
    path = folder / _ADDRESS
    if rank == 0:
        token = secrets.token_bytes(32)
        with Link.listen() as listener:
            part = path.with_suffix(".part")
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump({"address": listener.address, "token": token.hex()}, file)
            part.rename(path)
            return listener.accept(0, ledger=ledger, timeout=timeout, token=token)
    deadline = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > deadline:
            raise RendezvousError(f"party0 did not come within {timeout:g} seconds.")
        time.sleep(_POLL)
    found = json.loads(path.read_text())
    path.unlink()
    host, port = found["address"]
    return Link.connect((host, port), 1, ledger=ledger, timeout=timeout, token=bytes.fromhex(found["token"]))


def connect_dealer(folder: Path, rank: int, timeout: float) -> Channel:
    """A party's channel to the dealer."""
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
                raise RendezvousError(f"The dealer did not come within {timeout:g} seconds ({error}).") from error
            time.sleep(_POLL)
    channel = Channel(sock, "the dealer")
    channel.send({"kind": "hello", "rank": rank}, timeout=timeout)
    return channel


def accept_parties(folder: Path, timeout: float) -> tuple[Channel, Channel]:
    """The dealer's channels to P0 and P1."""
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
                raise RendezvousError(f"{missing} did not come within {timeout:g} seconds.") from error
            channel = Channel(sock, "a party")
            header, _ = channel.receive(timeout=timeout)
            rank = header.get("rank")
            if rank not in (0, 1) or rank in found:
                raise RendezvousError(f"Somebody came as party {rank!r}.")
            channel.peer = f"party{rank}"
            found[rank] = channel
    return found[0], found[1]


class _Shortened:
    """A short name for a folder while it is open: a Unix socket's path has at most 107 characters."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
