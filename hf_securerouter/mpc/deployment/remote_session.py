# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A client of servers on other machines, from the client's folder. It connects to the two parties only.

A query that fails is asked again, with fresh shares and a new id: the servers never use masks twice, and neither does
the client, so that asking again tells nobody anything.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import warn
from ...known_arguments import refuses_unknown
from ...value_checks import check_integer
from ..net.channel import SMALL_HEADER, Channel, ChannelError
from ..net.cost import Cost
from ..net.sockets import Address
from ..net.tls import connect
from ..protocols import load_protocol
from ..protocols.masked.layout import logits_bytes
from ..sessions.session import Answer, Session, SessionError
from .role_folder import RoleFolder


RETRIES = 3  # times that a failed query is asked again


_LAST_WORD = 1.0  # seconds to wait for what a server said before it ended a connection


_LONGEST = 60.0  # seconds between two attempts at most


class RemoteSession(Session):
    """Shares texts between the two parties and reconstructs the logits; a context manager.

    Args:
        folder (`RoleFolder`): The client's folder.
        party0 (`tuple[str, int]`), party1 (`tuple[str, int]`): The parties' addresses.
        timeout (`float`): Seconds to wait for the parties to connect, and for the answer to each input of a query. A
            query that the servers are too busy for is asked again until then.
        retries (`int`): How often a query that failed is asked again.
        share_batches (`bool`): Under `quota`, leave the rest of a batch that is not full to texts of other users,
            instead of filling it with copies. The servers then see how many texts there are, and which expert serves
            a text depends on the others' texts, so their users may learn how hard the router finds it next to theirs.
        log (callable): Takes a line when a query is asked again; a warning by default.

    Example:
        ```python
        folder = RoleFolder.load(Path("client"), "client")
        with RemoteSession(folder, ("a.example", 9000), ("b.example", 9000)) as session:
            print(session(["first text", ("a text", "and its pair")]).labels)
        ```

    Raises:
        `SecureRouterValueError`: `timeout` is no time to wait, or `retries` no number of times.
        `MeetingError`: A party was not reached, has no key of this sharing, or differs in version or manifest.
        `SessionError`: A party did not answer in time, left, or reported an error, as often as the query was asked;
            the session is over.
    """

    @refuses_unknown
    def __init__(
        self,
        folder: RoleFolder,
        party0: Address,
        party1: Address,
        timeout: float = 600.0,
        retries: int = RETRIES,
        share_batches: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        retries, manifest = check_integer("retries", retries, 0), folder.manifest
        sharing = load_protocol(manifest.protocol).sharing(manifest)
        super().__init__(manifest, folder.client(), sharing, timeout, manifest.largest_batch)
        self._identity, self._retries, self._share_batches = folder.identity, retries, share_batches
        self._log = log or warn
        # Party 1 comes first: its share, a seed, then waits in its queue when party 0 takes up the query.
        self._addresses = {"party1": party1, "party0": party0}

    def _open(self) -> None:
        if warning := self._identity.own.warning():
            warn(warning)
        self._persist(self._connect, self.timeout)

    def _connect(self) -> None:
        """Connect to the parties, unless that is done, and learn from both the largest batch that they answer."""
        if self._channels and self._events.empty():
            return
        self.close()  # between queries only the end of a connection is heard, such as of one that was idle for long
        deadline = time.monotonic() + self.timeout
        most = logits_bytes(self.manifest, self.manifest.largest_batch) + SMALL_HEADER
        for role, address in self._addresses.items():
            stream = connect(address, role, self._identity, deadline)
            self._add(role, Channel(stream, role, most, SMALL_HEADER))
        for role in self._addresses:
            self._send(role, {"kind": "hello"})
        for role, (header, _) in self._collect("hello", self.timeout).items():
            largest = header.get("batch")
            if type(largest) is not int or largest < (self.manifest.batch or 1):
                raise SessionError(f"{role} has memory for no batch of this model; the session is over.")
            self.batch_size = min(self.batch_size, largest)

    def _close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
        self._events = queue.SimpleQueue()  # nothing of these channels is heard any more

    def _query(self, batch: dict[str, Tensor]) -> Answer:
        """Ask for a batch; in parts, if the servers have memory for smaller batches only since they were met again."""
        ask, size = super()._query, len(batch["input_ids"])
        parts: list[Answer] = []
        start = 0

        def ask_next() -> None:
            nonlocal start
            self._connect()
            end = start + min(self.batch_size, size - start)
            parts.append(ask({name: values[start:end] for name, values in batch.items()}))
            start = end

        while start < size:
            self._persist(ask_next, self.timeout * size)
        return Answer(
            torch.cat([part.logits for part in parts]),
            None if parts[0].experts is None else [expert for part in parts for expert in part.experts or []],
            [inside for part in parts for inside in part.in_bounds],
            Cost.total([part.cost for part in parts]),
        )

    def _persist(self, action: Callable[[], None], seconds: float) -> None:
        """Try an action again, over new connections, as often and as long as the servers' answers allow."""
        deadline = time.monotonic() + seconds
        failures = 0
        while True:
            try:
                return action()
            except SessionError as error:
                self.close()
                if error.again is None:
                    raise
                failures += not error.refused
                pause = min(error.again * (1 if error.refused else 2 ** (failures - 1)), _LONGEST)
                pause *= 1 + secrets.randbelow(256) / 512  # clients that were refused together come again one by one
                if failures > self._retries or time.monotonic() + pause > deadline:
                    raise
                self._log(f"{error} The query is asked again, with fresh shares, in {pause:.1f} seconds.")
                time.sleep(pause)

    def _compare(self, batch: Mapping[str, Tensor], logits: Tensor, experts: list[int] | None) -> None:
        """Do nothing: a client does not have the model."""

    def _rows(self, size: int) -> list[int]:
        return list(range(size)) if self._share_batches else super()._rows(size)

    def _header(self, size: int) -> dict[str, Any]:
        return super()._header(size) | {"id": secrets.token_hex(16)}

    def _send(self, role: str, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        try:
            super()._send(role, header, tensors)
        except SessionError as error:
            with contextlib.suppress(queue.Empty):
                while True:  # a server says why it ends a connection
                    found, event = self._events.get(timeout=_LAST_WORD)
                    if found == role:
                        raise self._failure(role, event) from error
            raise

    def _failure(self, role: str, event: Any) -> SessionError:
        if isinstance(event, ChannelError):
            return SessionError(f"{event} This ends the query.", again=0.5)
        again = event[0].get("again")
        text = f"{role} gave no answer: {event[0].get('error', 'no reason')}"
        if not isinstance(again, int | float) or not 0 <= again < 3600:
            return SessionError(text)
        return SessionError(text, float(again), refused=event[0].get("busy") is True)
