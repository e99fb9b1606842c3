# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The audit log of a server: who asked when, how much, and with which outcome.

A line is a JSON object: `time` (UTC), `role`, `user`, `key` (the fingerprint), `rows`, `bytes` (both directions) and
`outcome`: `answered`, `refused` (no valid query, or no room), `failed` (the servers could not answer), `left` (the
client did not wait) or `closed` (refused, as more of this user's messages were within a minute than `REFUSALS`; what
else is refused in that minute has no line, so that nobody can fill the disk). No text, share, seed or expert is in it.

A line that cannot be written, such as on a full disk, is owed: until it is written, no message is taken up, and a
connection that owes one ends.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from ...errors import SecureRouterError, SecureRouterValueError
from ...files import PRIVATE
from ..net.channel import Channel
from ..net.socket_stream import TlsStream


class Request:
    """One message of a client; `outcome` is set while it is served. None writes no line."""

    outcome: str | None = "left"


class Audit:
    """Appends to a file that only its owner can read.

    Args:
        path (`Path`, *optional*): The file; None keeps no log.
        role (`str`): The server's role.

    Raises:
        `SecureRouterValueError`: The file cannot be opened, is a link, or can be read by others.
    """

    def __init__(self, path: Path | None, role: str) -> None:
        self._role, self._lock = role, threading.Lock()
        self._file: int | None = None
        self._owed: list[bytes] = []
        if path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, PRIVATE)
        except OSError as error:
            raise SecureRouterValueError(f"`audit` {str(path)!r} cannot be opened ({error.strerror}).") from error
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise SecureRouterValueError(
                f"`audit` {str(path)!r} should be a file that only its owner can read: `chmod 600 {path}`."
            )

    def settle(self) -> None:
        """Write the lines that are owed.

        Raises:
            `SecureRouterError`: They still cannot be written; no query may be taken up.
        """
        with self._lock:
            while self._owed:
                self._append(self._owed[0])
                del self._owed[0]

    @contextlib.contextmanager
    def request(self, stream: TlsStream, channel: Channel, rows: object, before: int) -> Iterator[Request]:
        """Log one message of a client when the block ends, however it ends.

        Args:
            stream (`TlsStream`): The client's connection.
            channel (`Channel`): The same, with its counters.
            rows (`object`): What the message says of its number of rows.
            before (`int`): Bytes that the channel had carried before the message.

        Raises:
            `SecureRouterError`: The line cannot be written; the client's connection must end.
        """
        request = Request()
        try:
            yield request
        finally:
            if self._file is not None and request.outcome is not None:
                number = rows if type(rows) is int and 0 < rows < 1 << 32 else None
                moved = channel.bytes_sent + channel.bytes_received - before
                self._write(stream, {"rows": number, "bytes": moved, "outcome": request.outcome})

    def _write(self, stream: TlsStream, values: dict[str, object]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "role": self._role, "user": stream.name, "key": stream.fingerprint(), **values}
        with self._lock:
            self._owed.append((json.dumps(line) + "\n").encode())
        self.settle()

    def _append(self, data: bytes) -> None:
        """Add a whole line, or nothing."""
        assert self._file is not None
        try:
            before = os.fstat(self._file).st_size
            if os.write(self._file, data) != len(data):
                os.ftruncate(self._file, before)
                raise OSError("the disk is full")
        except OSError as error:
            raise SecureRouterError(f"The audit log cannot be written ({error}).") from error
