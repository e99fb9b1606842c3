# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What one client may use of a server, and what it uses.

A client that asks for more is refused with the limit's name and the seconds after which it may come again. Others are
not affected: the limits are those of one name, and names take turns.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...errors import SecureRouterError, SecureRouterValueError
from ..net.channel import Channel
from ..ring.device import free_memory


MAX_CLIENTS = 512  # connections at once, of all clients


IDLE = 2.0  # seconds without a query after which a connection gives way to a newcomer, if there are too many


_PART = 4  # waiting queries may take a quarter of the memory that a server plans batches for, beside it


AGAIN = 1.0  # seconds after which a refused client may come again, where no better number is known


REFUSALS = 60  # messages of one client that are refused in a minute; with the next one its connection ends


_MINUTE = 60.0


_UNKNOWN = 4 << 30  # bytes that count as free where the system does not say


class Busy(SecureRouterError):
    """A limit is reached.

    Args:
        limit (`str`): The limit.
        again (`float`): Seconds after which the client may come again.
    """

    def __init__(self, limit: str, again: float = AGAIN) -> None:
        super().__init__(f"The server is busy ({limit}); come again in {max(round(again, 1), 0.1):g} seconds.")
        self.again = max(again, 0.1)


@dataclass(frozen=True)
class Limits:
    """The most that one client may use of a server.

    Args:
        connections (`int`): Connections at once. An idle one gives way to a new one.
        waiting (`int`): Queries at once that are not answered.
        rows_a_minute (`int`): Texts a minute; after a pause, as many at once.
        bytes_in_flight (`int`): Bytes of queries that are not answered.

    Raises:
        `SecureRouterValueError`: A limit is not a positive integer.
    """

    connections: int = 32
    waiting: int = 32
    rows_a_minute: int = 6000
    bytes_in_flight: int = 256 << 20

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise SecureRouterValueError(f"`limits`: `{name}` should be a positive integer, got {value!r}.")

    @classmethod
    def load(cls, path: Path) -> Limits:
        """Read limits from a JSON object; what it does not name keeps its default.

        Raises:
            `SecureRouterValueError`: The file is no JSON object of limits.
        """
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise SecureRouterValueError(f"`limits` {str(path)!r} cannot be read as JSON ({error}).") from None
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or set(values) - set(known):
            raise SecureRouterValueError(f"`limits` {str(path)!r} should be a JSON object of {', '.join(known)}.")
        return cls(**values)


def room_for_queries(memory: int | None, largest: int) -> int:
    """Bytes that the queries of all clients may take until they are answered, beside the memory of a batch.

    Args:
        memory (`int`, *optional*): Bytes that the server may take; by default half of what is free.
        largest (`int`): Bytes of the largest query, of which there is always room for two.
    """
    if memory is None:
        memory = (free_memory("cpu") or _UNKNOWN) // 2
    return max(memory // _PART, 2 * largest)


class Connection:
    """A client's connection to this server.

    Args:
        name (`str`): The client.
        channel (`Channel`): To the client.
    """

    def __init__(self, name: str, channel: Channel) -> None:
        self.name, self.channel = name, channel
        self.idle_since: float | None = time.monotonic()  # None while a query is worked on


class Accounts:
    """What the clients use of this server. The clients' threads share it.

    Args:
        limits (`Limits`): Of each client.
        room (`int`): Bytes of queries that are not answered, of all clients.
    """

    def __init__(self, limits: Limits, room: int) -> None:
        self.limits, self._room = limits, room
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._waiting: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._allowance: dict[str, tuple[float, float]] = {}  # by name: rows left, and when that was
        self._refused: dict[str, tuple[float, int]] = {}  # by name: when its minute began, and refusals since then

    def connect(self, name: str, channel: Channel) -> Connection:
        """Let a client in. If there is no room, the connection that is idle for longest gives way.

        Raises:
            `Busy`: The client, or all clients, have too many connections that are in use.
        """
        with self._lock:
            own = [one for one in self._connections if one.name == name]
            if len(own) >= self.limits.connections:
                self._make_room(own, f"`connections`: {self.limits.connections} of a client")
            if len(self._connections) >= MAX_CLIENTS:
                self._make_room(self._connections, f"{MAX_CLIENTS} connections of all clients")
            found = Connection(name, channel)
            self._connections.append(found)
            return found

    def _make_room(self, among: list[Connection], limit: str) -> None:
        since = time.monotonic() - IDLE
        idle = [one for one in among if one.idle_since is not None and one.idle_since <= since]
        if not idle:
            raise Busy(limit)
        oldest = min(idle, key=lambda one: one.idle_since or 0.0)
        self._connections.remove(oldest)
        oldest.channel.hang_up()

    def disconnect(self, connection: Connection) -> None:
        """Forget a connection."""
        with self._lock:
            if connection in self._connections:
                self._connections.remove(connection)

    def hang_up(self) -> None:
        """End all connections."""
        with self._lock:
            for connection in self._connections:
                connection.channel.hang_up()

    def take(self, name: str, size: int) -> None:
        """Count the bytes of a query, before they arrive and until `give_back`.

        Args:
            name (`str`): The client.
            size (`int`): Bytes.

        Raises:
            `Busy`: The client, or all clients, have too many of them; nothing was counted.
        """
        with self._lock:
            own = self._bytes[name] + size
            if own > self.limits.bytes_in_flight:
                raise Busy(f"`bytes_in_flight`: {self.limits.bytes_in_flight} of a client")
            # Nobody takes more than stays free, so that a few clients leave room for the others.
            if size and own > self._room - self._bytes.total() - size:
                raise Busy(f"{self._room} bytes of queries of all clients")
            self._bytes[name] = own

    def give_back(self, name: str, size: int) -> None:
        """The bytes that `take` counted are no longer kept."""
        with self._lock:
            self._bytes[name] -= size

    def begin(self, connection: Connection, rows: int) -> None:
        """Count a query until `end`.

        Args:
            connection (`Connection`): It is not idle meanwhile.
            rows (`int`): Texts.

        Raises:
            `Busy`: A limit of this client is reached; nothing was counted.
        """
        limits, name = self.limits, connection.name
        with self._lock:
            if self._waiting[name] >= limits.waiting:
                raise Busy(f"`waiting`: {limits.waiting} queries of a client")
            now, most, a_second = time.monotonic(), max(limits.rows_a_minute, rows), limits.rows_a_minute / 60
            left, before = self._allowance.get(name, (float(most), now))
            left = min(left + (now - before) * a_second, most)
            if left < rows:
                raise Busy(f"`rows_a_minute`: {limits.rows_a_minute} of a client", (rows - left) / a_second)
            self._allowance[name] = left - rows, now
            self._waiting[name] += 1
            connection.idle_since = None

    def refuse(self, name: str) -> tuple[int, float]:
        """Count a message that is refused.

        Returns:
            `tuple[int, float]`: How many of this client's messages were refused in the running minute, and the
                seconds that are left of it.
        """
        with self._lock:
            now = time.monotonic()
            since, count = self._refused.get(name, (now, 0))
            if now - since >= _MINUTE:
                since, count = now, 0
            self._refused[name] = since, count + 1
            return count + 1, since + _MINUTE - now

    def end(self, connection: Connection) -> None:
        """The query that `begin` counted is answered, or given up."""
        with self._lock:
            self._waiting[connection.name] -= 1
            connection.idle_since = time.monotonic()
