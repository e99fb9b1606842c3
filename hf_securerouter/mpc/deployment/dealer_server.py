# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The dealer as a server on a machine of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

from ...errors import SecureRouterError
from ..models.manifest import PARTIES
from ..net.channel import SMALL_HEADER, Channel
from ..net.counted_log import never_failing
from ..net.ledger import Ledger
from ..net.socket_stream import TlsStream
from ..net.sockets import HANDSHAKE, Address, check_seconds, format_address
from ..net.tls_listener import PendingConnections, TlsListener
from ..protocols.masked.memory import fit_batch
from ..protocols.masked.roles import MaskedDealer
from .key_watch import KeyWatch
from .role_folder import RoleFolder


Log = Callable[[str], None]


class DealerServer:
    """Deals to both parties until it is stopped.

    Args:
        folder (`RoleFolder`): The dealer's folder.
        listen (`tuple[str, int]`): The address at which the parties connect.
        timeout (`float`): Seconds to wait for the parties to connect, and to receive a message.
        log (callable): Takes a line of progress; never a secret.
        memory (`int`, *optional*): Bytes that the dealer may take, by which it limits the batches that it deals for;
            by default half of what is free.

    Raises:
        `SecureRouterValueError`: Not even the smallest batch fits into `memory`; or `timeout` is no time to wait.

    Example:
        ```python
        DealerServer(RoleFolder.load(path, "dealer"), ("0.0.0.0", 9000), 600.0, print).run()
        ```
    """

    def __init__(
        self, folder: RoleFolder, listen: Address, timeout: float, log: Log, memory: int | None = None
    ) -> None:
        timeout = check_seconds("timeout", timeout)
        self._folder, self._listen, self._timeout = folder, listen, timeout
        self._log = never_failing(log)
        manifest = folder.manifest
        self._batch = fit_batch(manifest, manifest.largest_batch, memory, ["dealer"]).batch
        self._pending = PendingConnections()
        self._dealer = MaskedDealer(folder.manifest, Ledger(), timeout)
        self._dealer.receive_weights(dict(folder.tensors()))

    def run(self) -> NoReturn:
        """Serve until stopped.

        Raises:
            `MeetingError`: A party did not connect within `timeout` seconds.
        """
        identity, log = self._folder.identity, self._log
        with KeyWatch(identity, log), TlsListener(identity, self._listen, PARTIES, self._enter, log) as listener:
            self._log(f"The dealer listens at {format_address(listener.address)}.")
            while True:
                first, second = self._pending.take(PARTIES, time.monotonic() + self._timeout)
                channels = _party(first, "party0"), _party(second, "party1")
                try:
                    for channel in channels:
                        channel.send({"kind": "welcome", "batch": self._batch}, timeout=HANDSHAKE)
                except SecureRouterError as error:
                    self._log(f"The parties have to connect again: {error}")
                    for channel in channels:
                        channel.close()
                    continue
                self._dealer.meet(channels)
                self._log("Both parties are here.")
                try:
                    self._dealer.serve()
                except SecureRouterError as error:
                    self._log(f"The parties have to connect again: {error}")
                finally:
                    self._dealer.leave()

    def _enter(self, role: str, stream: TlsStream) -> None:
        header, _ = _party(stream, role).receive(timeout=HANDSHAKE)
        self._pending.put(role, str(header.get("meeting")), stream)


def _party(stream: TlsStream, role: str) -> Channel:
    """To a party, which sends no tensors."""
    return Channel(stream, role, max_payload=0, max_header=SMALL_HEADER)
