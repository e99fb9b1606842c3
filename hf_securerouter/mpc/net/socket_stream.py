# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Byte streams over a non-blocking socket, in clear or under TLS; counters at the kernel's boundary."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from ...errors import SecureRouterValueError


_CHUNK = 1 << 17
_IOV_MAX = 512
_RECORD = 22  # bytes that a record of TLS 1.3 adds to its content: 5 in front, 17 behind


class SocketStream:
    """A byte stream over a non-blocking socket.

    `sent` and `received` count the bytes handed to and taken from the kernel. One thread may send while another
    receives.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.sent = 0
        self.received = 0
        self._queue: deque[memoryview] = deque()

    @property
    def unsent(self) -> bool:
        return bool(self._queue)

    def wire_size(self, size: int) -> int:
        """Bytes on the wire of `size` bytes, at most 16 KiB, that are sent alone."""
        return size

    def put(self, parts: Sequence[memoryview]) -> None:
        """Queue buffers for `push`; they must not change until they are sent."""
        self._queue.extend(part for part in parts if part)

    def push(self) -> None:
        """Send as many queued bytes as the kernel takes now."""
        try:
            count = self.sock.sendmsg(list(islice(self._queue, _IOV_MAX)))
        except BlockingIOError:
            return
        self.sent += count
        _advance(self._queue, count)

    def pull(self, view: memoryview) -> int | None:
        """Receive available bytes into `view`: their number, 0 at the end of the stream, None if none arrived."""
        try:
            count = self.sock.recv_into(view)
        except BlockingIOError:
            return None
        self.received += count
        return count

    def drop(self) -> None:
        """Discard the queued bytes."""
        self._queue.clear()


class TlsStream(SocketStream):
    """A byte stream under TLS. Records are made in memory, so the counters count the bytes on the wire.

    The constructor runs the handshake until `deadline`, as `time.monotonic()` counts, and raises `OSError` if the
    handshake fails. Without a deadline, `advance` runs it. A client checks that the server's certificate is for the
    DNS name `peer`.

    `role` and `name` say who is at the other end, once the role that accepted the connection has found out.
    """

    role = name = ""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        server_side: bool,
        peer: str,
        deadline: float | None = None,
    ) -> None:
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=None if server_side else peer
        )
        self._plain: deque[memoryview] = deque()
        self._lock = threading.Lock()  # OpenSSL's object serves one thread at a time
        self._scratch = memoryview(bytearray(_CHUNK))
        if deadline is not None:
            self._handshake(deadline)

    def _handshake(self, deadline: float) -> None:
        while not self._step():
            self.sock.settimeout(max(deadline - time.monotonic(), 1e-3))
            self._take(self.sock.recv_into(self._scratch))
        self.sock.setblocking(False)

    def advance(self) -> bool:
        """Advance the handshake with the bytes that have arrived, without waiting; True when it is done.

        Raises:
            `OSError`: The handshake failed, or the other end closed the connection.
        """
        try:
            self._take(self.sock.recv_into(self._scratch))
        except BlockingIOError:
            return False
        return self._step()

    def _take(self, count: int) -> None:
        if not count:
            raise ConnectionResetError("closed during the TLS handshake")
        self.received += count
        self._incoming.write(self._scratch[:count])

    def _step(self) -> bool:
        """Advance the handshake with the bytes received so far; True when it is done."""
        try:
            self._tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            return False
        finally:  # after a failure this sends the TLS alert
            super().put([memoryview(self._outgoing.read())])
            if self._queue:
                with suppress(OSError):  # the next read notices a lost connection
                    super().push()

    def peer_names(self) -> set[str]:
        """The DNS names in the other end's certificate."""
        certificate = self._tls.getpeercert() or {}
        alternatives: Any = certificate.get("subjectAltName", ())
        return {value for kind, value in alternatives if kind == "DNS"}

    def fingerprint(self) -> str:
        """SHA-256 of the other end's certificate, 64 hex digits."""
        return hashlib.sha256(self._tls.getpeercert(binary_form=True) or b"").hexdigest()

    @property
    def unsent(self) -> bool:
        return bool(self._plain or self._queue or self._outgoing.pending)

    def wire_size(self, size: int) -> int:
        return size + _RECORD

    def put(self, parts: Sequence[memoryview]) -> None:
        self._plain.extend(part for part in parts if part)

    def push(self) -> None:
        if not self._queue:
            with self._lock:
                while self._plain and self._outgoing.pending < _CHUNK:
                    _advance(self._plain, self._tls.write(self._plain[0][:_CHUNK]))
                self._queue.append(memoryview(self._outgoing.read()))
        super().push()

    def pull(self, view: memoryview) -> int | None:
        count = self._decrypt(view)
        if count:
            return count
        arrived = super().pull(self._scratch)
        if not arrived:
            return arrived
        return self._decrypt(view, self._scratch[:arrived]) or None

    def _decrypt(self, view: memoryview, arrived: memoryview | None = None) -> int:
        done = 0
        with self._lock:
            if arrived is not None:
                self._incoming.write(arrived)
            try:
                while done < len(view):
                    count: Any = self._tls.read(min(len(view) - done, _CHUNK), view[done:])
                    if not count:
                        raise ConnectionResetError("closed")
                    done += count
            except ssl.SSLWantReadError:
                pass
        return done

    def drop(self) -> None:
        super().drop()
        self._plain.clear()


def _advance(queue: deque[memoryview], count: int) -> None:
    """Remove the first `count` bytes from a queue of buffers."""
    while count:
        head = queue[0]
        if count < len(head):
            queue[0] = head[count:]
            return
        count -= len(head)
        queue.popleft()


def check_context(context: ssl.SSLContext) -> None:
    """Make sure that a context requires TLS 1.3 and certificates at both ends.

    Raises:
        `SecureRouterValueError`: It does not.
    """
    if context.verify_mode != ssl.CERT_REQUIRED:
        raise SecureRouterValueError(
            f"`ssl_context` has verify_mode {context.verify_mode.name}; both ends must be certified: set "
            "`ssl_context.verify_mode = ssl.CERT_REQUIRED`."
        )
    if context.minimum_version != ssl.TLSVersion.TLSv1_3:
        raise SecureRouterValueError(
            f"`ssl_context` allows {context.minimum_version.name}; set "
            "`ssl_context.minimum_version = ssl.TLSVersion.TLSv1_3`."
        )
