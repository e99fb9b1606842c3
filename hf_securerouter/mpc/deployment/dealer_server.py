# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The dealer as a server on a machine of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NoReturn

from ...errors import SecureRouterError
from ..models.manifest import PARTIES
from ..net.channel import Channel
from ..net.ledger import Ledger
from ..net.socket_stream import TlsStream
from ..net.sockets import HANDSHAKE, Address, format_address
from ..net.tls_listener import PendingConnections, TlsListener
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

    Example:
        ```python
        DealerServer(RoleFolder.load(path, "dealer"), ("0.0.0.0", 9000), 600.0, print).run()
        ```
    """

    def __init__(self, folder: RoleFolder, listen: Address, timeout: float, log: Log) -> None:
        self._folder, self._listen, self._timeout, self._log = folder, listen, timeout, log
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
                self._dealer.meet((Channel(first, "party0"), Channel(second, "party1")))
                self._log("Both parties are here.")
                try:
                    self._dealer.serve()
                except SecureRouterError as error:
                    self._log(f"The parties have to connect again: {error}")
                finally:
                    self._dealer.leave()

    def _enter(self, role: str, stream: TlsStream) -> None:
        header, _ = Channel(stream, role, max_payload=0).receive(timeout=HANDSHAKE)
        self._pending.put(role, str(header.get("meeting")), stream)
