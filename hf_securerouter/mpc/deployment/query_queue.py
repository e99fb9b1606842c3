# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The queries that one party has received and not begun."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import SecureRouterError


MAX_WAITING = 16  # queries


class Query:
    """One batch of a client at one party.

    Args:
        identity (`str`): 32 hex digits, drawn by the client.
        inputs (`Mapping[str, torch.Tensor]`): This party's shares of the batch.
        batch (`int`): Number of rows.
    """

    def __init__(self, identity: str, inputs: Mapping[str, Tensor], batch: int) -> None:
        self.identity, self.inputs, self.batch = identity, inputs, batch
        self.done = threading.Event()
        self.response: tuple[dict[str, Any], dict[str, Tensor]] = {}, {}

    def reply(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Finish the query with a result for the client."""
        self.response = {"kind": "result", **header}, tensors
        self.done.set()

    def fail(self, text: str) -> None:
        """Finish the query with an error for the client."""
        self.response = {"kind": "error", "error": text}, {}
        self.done.set()


class QueryQueue:
    """Waiting queries, in order of arrival. The clients' threads add queries, the party's own thread takes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Query] = {}

    def add(self, query: Query) -> None:
        """Add a query.

        Raises:
            `SecureRouterError`: The queue is full, or has a query of this id.
        """
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise SecureRouterError(f"{MAX_WAITING} queries wait already; try again later.")
            if query.identity in self._waiting:
                raise SecureRouterError("A query of this id waits already.")
            self._waiting[query.identity] = query
            self._changed.notify_all()

    def first(self, timeout: float) -> Query | None:
        """Take the oldest query; None if no query arrived within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting, timeout)
            return self._waiting.pop(next(iter(self._waiting))) if self._waiting else None

    def take(self, identity: str, timeout: float) -> Query | None:
        """Take the query of this id; None if it did not arrive within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: identity in self._waiting, timeout)
            return self._waiting.pop(identity, None)

    def withdraw(self, query: Query) -> bool:
        """Remove a query; False if the party has taken it up already."""
        with self._changed:
            return self._waiting.pop(query.identity, None) is not None
