# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The link between the two computing parties: one frame each way at the same time, counted, under a deadline.

Every field of a frame's header is checked before a byte of its payload is stored (`frame.py` has the format). Nothing
received is unpickled.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ...errors import SecureRouterError, SecureRouterValueError
from .frame import ABORT_TEXTS, ALIVE, HEADER, MAGIC, MAX_OBJECT, VERSION, Abort, Kind, as_bytes, to_json
from .ledger import Ledger
from .socket_stream import SocketStream, TlsStream, check_context
from .sockets import connect_until, is_this_machine, listen_at, send_at_once


# Spin this often before blocking: a peer on the same machine answers faster than a wake-up takes.
_SPINS = 40
_PAUSE = 0.05  # seconds between two attempts to connect


class LinkError(SecureRouterError):
    """The link to the other party failed and is closed; the other party gets an abort frame or sees it close."""


class Link:
    """The full-duplex link between the two parties.

    Both parties call the same methods in the same order. Each call costs one round: both parties send a frame at the
    same time. A link serves one thread, and is closed after a `LinkError`. The constructor blocks until the other
    party constructs its end.

    Args:
        sock (`socket.socket` or `TlsStream`): A connected stream socket, or a stream under TLS with the certificates
            that `ssl_context` describes. The link owns it from now on.
        rank (`int`): 0 or 1; the other party has the other rank.
        ledger (`Ledger`, *optional*): Counts every byte through the socket, headers, handshake and TLS included, and
            one round for each exchange.
        timeout (`float`): Seconds without a byte in either direction after which the other party counts as lost.
            Also the limit for the whole handshake.
        hello (`dict[str, str]`, *optional*): Public facts that must be equal at both parties, as for `agree`.
        token (`bytes`, *optional*): 32 secret bytes that each party proves to hold (HMAC-SHA256 of both challenges),
            so that no other user of this machine can pose as a party. The token does not encrypt.
        ssl_context (`ssl.SSLContext`, *optional*): TLS 1.3 with certificates required at both ends. The other party's
            certificate must name its role, `party0` or `party1`, as a DNS name, so that other roles' keys are refused.
        server_side (`bool`): Whether this end is the TLS server.

    Raises:
        LinkError: The other party is silent or closes the link, its certificate or token is wrong, or the parties
            differ in version, rank or `hello`. Both ends fail.
        SecureRouterValueError: `rank` is not 0 or 1, `timeout` is not positive, `token` does not have 32 bytes, or
            `ssl_context` does not require TLS 1.3 and certificates.

    Example:
        ```python
        with Link.listen() as listener:  # in the other process: Link.connect(address, 1, token=token)
            publish(listener.address)
            link = listener.accept(0, token=token)
        (theirs,) = link.exchange([mine])
        ```
    """

    def __init__(
        self,
        sock: socket.socket | TlsStream,
        rank: int,
        *,
        ledger: Ledger | None = None,
        timeout: float = 30.0,
        hello: Mapping[str, str] | None = None,
        token: bytes | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_side: bool = False,
    ) -> None:
        if rank not in (0, 1):
            raise SecureRouterValueError(f"`rank` is {rank!r}, but a link has the ranks 0 and 1.")
        if not timeout > 0:
            raise SecureRouterValueError(f"`timeout` is {timeout!r}; give a positive number of seconds.")
        if token is not None and len(token) != 32:
            raise SecureRouterValueError(
                f"`token` has {len(token)} bytes; make one of 32 with `secrets.token_bytes(32)`."
            )
        if ssl_context is not None:
            check_context(ssl_context)
        self.rank, self.peer = rank, f"party{1 - rank}"
        self.ledger = Ledger() if ledger is None else ledger
        self.timeout = timeout
        self._round = 0
        self._closed = False
        self._busy = threading.Lock()  # held in a round; between rounds a sign of life may be sent
        self._sent_at = time.monotonic()
        self._limit: float | None = time.monotonic() + timeout
        self._broken: OSError | None = None
        self._header = memoryview(bytearray(HEADER.size))
        self._stream: SocketStream
        plain = sock.sock if isinstance(sock, TlsStream) else sock
        try:
            if isinstance(sock, TlsStream):
                self._stream = sock
            elif ssl_context is None:
                self._stream = SocketStream(sock)
            else:
                self._stream = TlsStream(sock, ssl_context, server_side, self.peer, self._limit)
            self._count(0, 0)
            self._poll = select.poll()
            self._poll.register(plain, 0)
            if isinstance(self._stream, TlsStream) and self.peer not in (names := self._stream.peer_names()):
                self._fail(
                    f"The certificate at the other end is for {sorted(names)}, not `{self.peer}`.", Abort.IDENTITY
                )
            self._greet(token)
            self.agree(hello or {})
        except OSError as error:  # from the TLS handshake; later `OSError`s become `LinkError`s
            plain.close()
            raise LinkError(f"No TLS 1.3 link to {self.peer}: {error}.") from error
        except BaseException:
            plain.close()
            raise
        self._limit = None

    @classmethod
    def listen(cls, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """Bind a TCP port (0: any free one) where the other party can connect.

        Returns:
            A `Listener`: the other party connects to its `address`, and `accept(rank, ...)` makes the link.

        Raises:
            LinkError: The address cannot be bound.
        """
        return Listener(cls, host, port)

    @classmethod
    def connect(cls, address: tuple[str, int], rank: int, *, timeout: float = 30.0, **options: Any) -> Link:
        """Connect to the other party, trying again until it listens.

        Args:
            address (`tuple[str, int]`): Host and port.
            rank (`int`), timeout (`float`), options: As for `Link`. Without `ssl_context` the address must be on
                this machine.

        Raises:
            LinkError: The other party did not listen within `timeout` seconds, or the handshake failed (see `Link`).
            SecureRouterValueError: The address is on another machine and `ssl_context` is missing, or an option is
                wrong (see `Link`).
        """

        def attempt(left: float) -> socket.socket:
            return socket.create_connection(address, timeout=left)

        try:
            sock = connect_until(time.monotonic() + timeout, _PAUSE, attempt, (OSError,))
        except OSError as error:
            raise LinkError(f"party{1 - rank} does not listen at {address[0]}:{address[1]} ({error}).") from error
        return cls(_private(sock, options), rank, timeout=timeout, server_side=False, **options)

    def exchange(self, parts: Sequence[Any], expected: Sequence[int] | None = None) -> list[memoryview]:
        """Send one frame and receive one, at the same time: one round.

        Args:
            parts (`Sequence[Buffer]`): C-contiguous buffers, sent back to back without a copy. They must not
                change until `exchange` returns.
            expected (`Sequence[int]`, *optional*): Lengths in bytes of the other party's parts; by default those of
                `parts`.

        Returns:
            `list[memoryview]`: The parts received, writable views of one new buffer.

        Raises:
            LinkError: The other party closed the link, was silent for `timeout` seconds, gave up, or sent anything
                but one frame of this round and these lengths. This end closes, so the other party fails too.
            SecureRouterValueError: A part is not a C-contiguous buffer; nothing has been sent.

        Cost: `16 + sum of the lengths` bytes each way, one round.
        """
        views = [as_bytes(part) for part in parts]
        lengths = [view.nbytes for view in views] if expected is None else list(expected)
        payload = self._swap(Kind.DATA, views, sum(lengths))
        received, start = [], 0
        for length in lengths:
            received.append(payload[start : start + length])
            start += length
        return received

    def agree(self, fields: Mapping[str, str]) -> None:
        """Make sure that both parties hold the same facts, such as a plan's digest and a tuple set's id and nonce.

        Args:
            fields (`Mapping[str, str]`): Public; sent to the other party.

        Raises:
            LinkError: Facts differ; both parties raise, with the names of the fields. Also if the exchange fails, as
                `exchange` can.

        Cost: The fields as JSON each way, one round.
        """
        theirs = self._swap_json(Kind.HELLO, dict(fields))
        if not isinstance(theirs, dict):
            self._fail(f"{self.peer} sent something else than the facts to agree on.", Abort.GARBAGE)
        self._compare(dict(fields), theirs)

    def send_object(self, obj: Any) -> None:
        """Send a JSON-able object of up to 1 MiB, while the other party calls `receive_object`: one round.

        Raises:
            LinkError: The other party closed the link, was silent for `timeout` seconds, or sent anything but the
                empty frame of `receive_object`.
            SecureRouterValueError: `obj` is not JSON-able or is too large; nothing has been sent.
        """
        self._swap(Kind.OBJECT, [memoryview(to_json(obj))], 0)

    def receive_object(self) -> Any:
        """Receive the object that the other party sends by `send_object`: one round.

        Raises:
            LinkError: The other party closed the link, was silent for `timeout` seconds, or sent anything but an
                object.
        """
        return self._from_json(self._swap(Kind.OBJECT, [], None))

    def show_life(self, idle: float) -> None:
        """From any thread: send a sign of life, unless in a round or if a frame was sent within `idle` seconds."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            if not self._closed and not self._stream.unsent and time.monotonic() - self._sent_at >= idle:
                self._sent_at = time.monotonic()
                self._stream.put([memoryview(ALIVE)])
                self._stream.push()
        except OSError:
            pass  # the next round notices
        finally:
            self._busy.release()

    @property
    def traffic(self) -> int:
        """Bytes sent and received by the socket so far, headers, handshake and TLS included."""
        return self._stream.sent + self._stream.received

    def close(self) -> None:
        """Close this end; the other party fails at its next exchange."""
        self._closed = True
        try:
            self._stream.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._stream.sock.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One round.

    def _swap(self, kind: Kind, parts: Sequence[memoryview], length: int | None) -> memoryview:
        """One frame each way; `length` None accepts a payload of up to `MAX_OBJECT` bytes."""
        with self._busy:
            try:
                return self._swap_now(kind, parts, length)
            finally:
                self._sent_at = time.monotonic()

    def _swap_now(self, kind: Kind, parts: Sequence[memoryview], length: int | None) -> memoryview:
        if self._closed:
            raise LinkError(f"The link to {self.peer} is closed.")
        stream = self._stream
        sent, received = stream.sent, stream.received
        try:
            size = sum(part.nbytes for part in parts)
            stream.put([memoryview(HEADER.pack(MAGIC, kind, self._round, size)), *parts])
            self._pump(self._header)
            while self._header == ALIVE:
                self.ledger.received(-stream.wire_size(HEADER.size))  # signs of life count as nothing
                self._pump(self._header)
            payload = np.empty(self._check_header(kind, length), dtype=np.uint8).data
            self._pump(payload)
            self._pump(None)
            if self._broken is not None:
                raise self._lost(self._broken) from self._broken
            self._round = (self._round + 1) & 0xFFFFFFFF
        except BaseException:  # after any failure the next frame would be out of step
            self.close()
            raise
        finally:
            self._count(sent, received)
            self.ledger.round()
        return payload

    def _count(self, sent: int, received: int) -> None:
        """Add to the ledger the bytes since the stream's counters stood at `sent` and `received`."""
        sent, received = self._stream.sent - sent, self._stream.received - received
        self.ledger.sent(sent)
        self.ledger.received(received)

    def _pump(self, view: memoryview | None) -> None:
        """Fill `view` and send queued bytes meanwhile; without a view, send all queued bytes."""
        stream, idle = self._stream, 0
        while view if view is not None else stream.unsent:
            before = stream.sent + stream.received
            if stream.unsent:
                try:
                    stream.push()
                except OSError as error:  # the other party's abort frame may still be read
                    self._broken = error
                    stream.drop()
            count = None
            if view:
                try:
                    count = stream.pull(view)
                except OSError as error:
                    raise self._lost(error) from error
                if count == 0:
                    raise self._lost(None)
                if count:
                    view = view[count:]
            if count or stream.sent + stream.received != before:
                idle = 0
            elif idle < _SPINS:
                idle += 1
                os.sched_yield()
            else:
                idle = 0
                self._wait((select.POLLIN if view else 0) | (select.POLLOUT if stream.unsent else 0))

    def _wait(self, events: int) -> None:
        seconds = self.timeout
        if self._limit is not None:
            seconds = min(seconds, max(self._limit - time.monotonic(), 0.0))
        self._poll.modify(self._stream.sock, events)
        if not self._poll.poll(seconds * 1000):
            self._fail(f"{self.peer} was silent for {self.timeout:g} seconds.", Abort.TIMEOUT)

    def _check_header(self, kind: Kind, length: int | None) -> int:
        magic, got_kind, got_round, got_length = HEADER.unpack(self._header)
        if magic != MAGIC:
            self._fail(
                f"{self.peer} sent bytes that are no message of this link; does only one of the parties use TLS?",
                Abort.GARBAGE,
            )
        if got_kind == Kind.ABORT:
            raise LinkError(f"{self.peer} gave up: {ABORT_TEXTS.get(got_length, 'it gave no known reason')}.")
        if got_kind != kind:
            self._fail(
                f"{self.peer} sent a message of kind {got_kind} where kind {int(kind)} ({kind.name}) was due.",
                Abort.KIND,
            )
        if got_round != self._round:
            self._fail(f"{self.peer} is at round {got_round}, this party at {self._round}.", Abort.ROUND)
        if length is None:
            if got_length > MAX_OBJECT:
                self._fail(
                    f"{self.peer} announces an object of {got_length} bytes; {MAX_OBJECT} is the limit.", Abort.LENGTH
                )
        elif got_length != length:
            self._fail(
                f"{self.peer} announces {got_length} bytes in round {self._round} where {length} are due. Do both run "
                "the same plan?",
                Abort.LENGTH,
            )
        return got_length

    def _lost(self, error: OSError | None) -> LinkError:
        return LinkError(f"{self.peer} closed the link in round {self._round}{f' ({error})' if error else ''}.")

    def _fail(self, text: str, why: Abort) -> NoReturn:
        """Send an abort frame, close and raise. A half-sent frame prevents the abort: it would be read as payload."""
        if not self._stream.unsent:
            self._stream.put([memoryview(HEADER.pack(MAGIC, Kind.ABORT, self._round, why))])
            try:
                self._stream.push()
            except OSError:
                pass
        self.close()
        raise LinkError(text)

    # The handshake.

    def _greet(self, token: bytes | None) -> None:
        """Exchange version, rank and challenges, then proofs that both parties hold the token."""
        challenge = "" if token is None else secrets.token_hex(32)
        theirs = self._swap_json(Kind.HELLO, {"version": VERSION, "rank": self.rank, "challenge": challenge})
        answer = theirs.get("challenge") if isinstance(theirs, dict) else None
        if not isinstance(answer, str) or not answer.isascii():
            self._fail(f"{self.peer} sent a greeting that cannot be read.", Abort.GARBAGE)
        self._compare(
            {"version": VERSION, "rank": 1 - self.rank, "use of a token": bool(challenge)},
            {key: theirs.get(key) for key in ("version", "rank")} | {"use of a token": bool(answer)},
        )
        if token is None:
            return
        challenges = "".join(sorted((challenge, answer))).encode()
        own, other = (
            hmac.digest(token, b"hf_securerouter link %d " % rank + challenges, "sha256")
            for rank in (self.rank, 1 - self.rank)
        )
        if not hmac.compare_digest(self._swap(Kind.PROOF, [memoryview(own)], 32), other):
            self._fail(f"The other end did not prove that it holds the `token` of {self.peer}.", Abort.IDENTITY)

    def _compare(self, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        # Both parties have all fields by now, so both raise.
        names = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if names:
            self.close()
            raise LinkError(
                f"The parties do not agree on: {', '.join(f'`{ascii(name[:40])[1:-1]}`' for name in names)}."
            )

    def _swap_json(self, kind: Kind, obj: Any) -> Any:
        payload = self._swap(kind, [memoryview(to_json(obj))], None)
        return self._from_json(payload)

    def _from_json(self, payload: memoryview) -> Any:
        try:
            return json.loads(bytes(payload))
        except (ValueError, RecursionError):
            self._fail(f"{self.peer} sent an object that is not JSON.", Abort.GARBAGE)


class Listener:
    """A TCP port where one party waits for the other; made by `Link.listen`.

    `accept` may be called again after a connection was refused.
    """

    def __init__(self, link_class: type[Link], host: str, port: int) -> None:
        self._link_class = link_class
        try:
            self._sock = listen_at((host, port), backlog=1)
        except OSError as error:
            raise LinkError(f"Cannot listen at {host}:{port} ({error}).") from error
        self.address: tuple[str, int] = self._sock.getsockname()[:2]

    def accept(self, rank: int, *, timeout: float = 30.0, **options: Any) -> Link:
        """Wait for the other party and make the link.

        Args:
            rank (`int`), timeout (`float`), options: As for `Link`. Without `ssl_context` the other party must be on
                this machine.

        Raises:
            LinkError: The other party did not connect within `timeout` seconds, or the handshake failed (see `Link`).
            SecureRouterValueError: The other party is on another machine and `ssl_context` is missing, or an option
                is wrong (see `Link`).
        """
        self._sock.settimeout(timeout)
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise LinkError(f"party{1 - rank} did not connect within {timeout:g} seconds ({error}).") from error
        return self._link_class(_private(sock, options), rank, timeout=timeout, server_side=True, **options)

    def close(self) -> None:
        """Release the port."""
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _private(sock: socket.socket, options: Mapping[str, Any]) -> socket.socket:
    """Refuse a link to another machine without TLS, and send small frames at once (TCP_NODELAY)."""
    if options.get("ssl_context") is None and not is_this_machine(sock):
        host = sock.getpeername()[0]
        sock.close()
        raise SecureRouterValueError(
            f"A link to {host} leaves this machine: give it an `ssl_context`. The dealer knows every mask, so the "
            "openings on this link would show it every input."
        )
    return send_at_once(sock)
