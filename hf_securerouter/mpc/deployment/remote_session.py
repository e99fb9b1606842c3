# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A client of servers on other machines, from the client's folder. It connects to the two parties only."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import SecureRouterWarning
from ..net.channel import Channel, ChannelError
from ..net.sockets import Address
from ..net.tls import connect
from ..protocols import load_protocol
from ..sessions.session import Session, SessionError
from .role_folder import RoleFolder


class RemoteSession(Session):
    """Shares texts between the two parties and reconstructs the logits; a context manager.

    Args:
        folder (`RoleFolder`): The client's folder.
        party0 (`tuple[str, int]`), party1 (`tuple[str, int]`): The parties' addresses.
        timeout (`float`): Seconds to wait for the parties to connect, and for the answer to each input of a query.

    Example:
        ```python
        folder = RoleFolder.load(Path("client"), "client")
        with RemoteSession(folder, ("a.example", 9000), ("b.example", 9000)) as session:
            print(session(["first text", ("a text", "and its pair")]).labels)
        ```

    Raises:
        `MeetingError`: A party was not reached, has no key of this sharing, or differs in version or manifest.
        `SessionError`: A party did not answer in time, left, or reported an error; the session is over.
    """

    def __init__(self, folder: RoleFolder, party0: Address, party1: Address, timeout: float = 600.0) -> None:
        manifest = folder.manifest
        sharing = load_protocol(manifest.protocol).sharing(manifest)
        super().__init__(manifest, folder.client(), sharing, timeout, manifest.largest_batch)
        self._identity = folder.identity
        # Party 1 comes first: its share, a seed, then waits in its queue when party 0 takes up the query.
        self._addresses = {"party1": party1, "party0": party0}

    def _open(self) -> None:
        if warning := self._identity.own.warning():
            warnings.warn(warning, SecureRouterWarning)
        deadline = time.monotonic() + self.timeout
        for role, address in self._addresses.items():
            self._add(role, Channel(connect(address, role, self._identity, deadline), role))

    def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def _compare(self, batch: Mapping[str, Tensor], logits: Tensor, experts: list[int] | None) -> None:
        """Do nothing: a client does not have the model."""

    def _header(self, size: int) -> dict[str, Any]:
        return super()._header(size) | {"id": secrets.token_hex(16)}

    def _failure(self, role: str, event: Any) -> SessionError:
        if isinstance(event, ChannelError):
            return SessionError(f"{event} The session is over.")
        return SessionError(f"{role} gave no answer, and the session is over: {event[0].get('error', 'no reason')}")
