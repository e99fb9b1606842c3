# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The queries that one party has received and not begun, and the batches that both parties form of them.

Both parties tell each other which queries they hold. Party 0 picks among those that both hold, and clients take turns.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import SecureRouterError
from .limits import AGAIN, Busy


MAX_WAITING = 512  # queries of all clients


FRAME = 60.0  # seconds from the first byte of a query to the last, and for a client to take an answer


# Seconds for which a query waits that only this party holds, by party. Party 1's share, a seed, arrives at once; that
# of party 0 may still be under way over a slow line.
HALF = (5.0, FRAME + 10.0)


_ENTRY = struct.Struct(">16sI")  # id, rows


class Query:
    """One query of a client at one party: the share as it arrived, from which nothing is computed while it waits.

    Args:
        identity (`str`): 32 hex digits, drawn by the client.
        name (`str`): The client.
        batch (`int`): Number of rows.
        tensors (`Mapping[str, torch.Tensor]`): This party's share.
    """

    def __init__(self, identity: str, name: str, batch: int, tensors: Mapping[str, Tensor]) -> None:
        self.identity, self.name, self.batch, self.tensors = identity, name, batch, tensors
        self.arrived = time.monotonic()
        self.done = threading.Event()
        self.response: tuple[dict[str, Any], dict[str, Tensor]] = {}, {}

    def reply(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Finish the query with a result for the client."""
        self._finish({"kind": "result", **header}, tensors)

    def fail(self, text: str, again: float | None = AGAIN) -> None:
        """Finish the query with an error for the client, which may ask again after `again` seconds unless None."""
        self._finish(failure(text, again), {})

    def _finish(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if not self.done.is_set():
            self.response, self.tensors = (header, tensors), {}
            self.done.set()


def failure(text: str, again: float | None = None, busy: bool = False) -> dict[str, Any]:
    """The header of an error for a client; `busy` says that its query was not begun."""
    return {"kind": "error", "error": text, "busy": busy} | ({} if again is None else {"again": round(again, 1)})


class QueryQueue:
    """Waiting queries. The clients' threads add queries, the party's own thread takes them.

    Args:
        rank (`int`): The party's.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._changed = threading.Condition()
        self._waiting: dict[str, Query] = {}
        self._served: dict[str, float] = {}  # by client: when a query of it was last taken up
        self._added = 0
        self._most: int | None = None

    def limit(self, most: int | None) -> None:
        """Fail queries of more than `most` rows, those that wait and those to come; None while no limit is known."""
        with self._changed:
            self._most = most
            for identity, query in list(self._waiting.items()):
                if self._refused(query):
                    del self._waiting[identity]
            self._changed.notify_all()

    def most(self, timeout: float) -> int | None:
        """The limit; None if it is not known within `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._most is not None, timeout)
            return self._most

    def _refused(self, query: Query) -> bool:
        if self._most is None or query.batch <= self._most:
            return False
        # The client learns the limit when it connects again.
        query.fail(f"The servers have memory for a query of 1 to {self._most} rows, not {query.batch}.")
        return True

    def add(self, query: Query) -> None:
        """Add a query, or fail it if it has too many rows.

        Raises:
            `Busy`: The queue is full.
            `SecureRouterError`: It has a query of this id.
        """
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                raise Busy(f"{MAX_WAITING} queries of all clients")
            if query.identity in self._waiting:
                raise SecureRouterError("A query of this id waits already.")
            if self._refused(query):
                return
            self._waiting[query.identity] = query
            self._added += 1
            self._changed.notify_all()

    def wait(self, idle: float, pause: float) -> None:
        """Wait for the next query: at most `idle` seconds, or `pause` seconds if some wait already."""
        with self._changed:
            before = self._added
            self._changed.wait_for(lambda: self._added != before, pause if self._waiting else idle)

    def held(self) -> list[tuple[str, int]]:
        """Id and rows of every waiting query."""
        with self._changed:
            return [(query.identity, query.batch) for query in self._waiting.values()]

    def pick(self, theirs: Mapping[str, int], size: int, max_wait: float) -> list[tuple[str, int]]:
        """The queries of the next batch. Clients take turns: who was served longest ago comes first.

        Args:
            theirs (`Mapping[str, int]`): Rows of the queries that the other party holds, by id.
            size (`int`): Rows of the batch.
            max_wait (`float`): Seconds for which a batch that is not full waits for more queries.

        Returns:
            Ids and rows, none if nothing is to be done yet.
        """
        with self._changed:
            both = [query for query in self._waiting.values() if theirs.get(query.identity) == query.batch]
            # The first query of everybody, then the second of everybody, and so on.
            turns: dict[str, int] = {}
            order = []
            for query in both:
                turn = turns[query.name] = turns.get(query.name, -1) + 1
                order.append((turn, self._served.get(query.name, 0.0), query))
            order.sort(key=lambda entry: entry[:2])  # among equals, the older query first
            chosen: list[Query] = []
            for _, _, query in order:
                if query.batch <= size - sum(one.batch for one in chosen):
                    chosen.append(query)
            full = sum(one.batch for one in chosen) == size
            if not chosen or not (full or time.monotonic() - min(one.arrived for one in chosen) >= max_wait):
                return []
            return [(query.identity, query.batch) for query in chosen]

    def take(self, picked: Iterable[tuple[str, int]]) -> list[Query | None]:
        """Remove queries, in order; None for one whose client has left, or has put another one in its place."""
        found: list[Query | None] = []
        with self._changed:
            for identity, rows in picked:
                query = self._waiting.get(identity)
                if query is None or query.batch != rows:
                    found.append(None)
                    continue
                del self._waiting[identity]
                self._served[query.name] = time.monotonic()
                found.append(query)
        return found

    def drop_halves(self, theirs: Mapping[str, int]) -> None:
        """Fail the queries of which the other party has had no equal for as long as `HALF` says."""
        since = time.monotonic() - HALF[self._rank]
        with self._changed:
            for identity, query in list(self._waiting.items()):
                if query.arrived <= since and theirs.get(identity) != query.batch:
                    del self._waiting[identity]
                    query.fail("The other server did not get its share of this query.")

    def withdraw(self, query: Query) -> bool:
        """Remove this very query, and none of the same id; False if the party has taken it up already."""
        with self._changed:
            if self._waiting.get(query.identity) is not query:
                return False
            del self._waiting[query.identity]
            return True


def packed(entries: Sequence[tuple[str, int]], most: int) -> bytes:
    """Ids and rows of up to `most` queries as bytes, the same number for any list."""
    content = b"".join(_ENTRY.pack(bytes.fromhex(identity), rows) for identity, rows in entries[:most])
    return content.ljust(most * _ENTRY.size, b"\0")


def unpacked(data: bytes) -> dict[str, int]:
    """Rows by id, in order, of what `packed` made."""
    return {identity.hex(): rows for identity, rows in _ENTRY.iter_unpack(data) if rows}
