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
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ...errors import SecureRouterError, SecureRouterValueError
from .frame import ABORT_TEXTS, HEADER, MAGIC, MAX_OBJECT, VERSION, Abort, Kind, as_bytes, to_json
from .ledger import Ledger
from .socket_stream import SocketStream, TlsStream
from .sockets import connect_until, is_this_machine, listen_at, send_at_once


# Spin this often before blocking: a peer on the same machine answers faster than a wake-up takes.
_SPINS = 40
_PAUSE = 0.05  # seconds between two attempts to connect


class LinkError(SecureRouterError):
    """The link to the other party failed and is closed; the other party is told or sees it close."""


class Link:
    """The parties' own full-duplex link.

    Both parties call the same methods in the same order. Each call costs one round: both send one frame at once, and
    neither waits for the other's before it sends its own. A link is used by one thread. After a `LinkError` it is
    closed. Making one blocks until the other end has been made too.

    Args:
        sock (`socket.socket` or `TlsStream`): A connected stream socket, or one under TLS already, with certificates
            as under `ssl_context`. The link owns it from now on.
        rank (`int`): 0 or 1; the other party has the other one.
        ledger (`Ledger`, *optional*): Counts every byte that the socket takes and gives, headers, handshake and TLS
            included, and one round for each exchange.
        timeout (`float`): Seconds without one byte in either direction after which the other party counts as lost.
            Also the limit for the whole handshake.
        hello (`dict[str, str]`, *optional*): Public facts that both parties must hold alike, as for `agree`.
        token (`bytes`, *optional*): 32 secret bytes that both parties prove to hold (HMAC-SHA256 of both challenges),
            so that no other user of this machine takes the place of a party. They do not encrypt.
        ssl_context (`ssl.SSLContext`, *optional*): TLS 1.3 with certificates demanded of both ends. The other party's
            must name its role, `party0` or `party1`, as a DNS name, so that no other role's key will do.
        server_side (`bool`): Which side of the TLS handshake this is.

    Raises:
        LinkError: The other end is lost or not who it should be, or the parties do not agree; both ends fail.
        SecureRouterValueError: An argument is wrong.

    Example:
        ```python
        with Link.listen() as listener:  # in the other process: Link.connect(address, 1, token=token)
            tell(listener.address)
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
            _check_context(ssl_context)
        self.rank, self.peer = rank, f"party{1 - rank}"
        self.ledger = Ledger() if ledger is None else ledger
        self.timeout = timeout
        self._round = 0
        self._closed = False
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
        except OSError as error:  # only the TLS handshake raises it as it is
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
            A `Listener`, whose `address` is for the other party and whose `accept(rank, ...)` makes the link.
        """
        return Listener(cls, host, port)

    @classmethod
    def connect(cls, address: tuple[str, int], rank: int, *, timeout: float = 30.0, **options: Any) -> Link:
        """Connect to the other party, trying again until it listens.

        Args:
            address (`tuple[str, int]`): Host and port.
            rank (`int`), timeout (`float`), options: As for `Link`. Without `ssl_context` only an address of this
                machine will do.

        Raises:
            LinkError: Nobody listened in time, or as for `Link`.
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
                change until this returns.
            expected (`Sequence[int]`, *optional*): Lengths in bytes of the parts that the other party sends; those of
                `parts` where not given.

        Returns:
            `list[memoryview]`: The parts received, writable views of one new buffer.

        Raises:
            LinkError: The other party is lost, silent for `timeout` seconds, gave up, or sent something else than one
                frame of this round and length. This end closes and the other one fails as well.
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
        """Make sure that both parties hold the same facts, such as a plan's digest, a tuple's id and its nonce.

        Args:
            fields (`Mapping[str, str]`): Public; sent to the other party.

        Raises:
            LinkError: At both parties, with the names of the fields that differ.

        Cost: The fields as JSON each way, one round.
        """
        theirs = self._swap_json(Kind.HELLO, dict(fields))
        if not isinstance(theirs, dict):
            self._fail(f"{self.peer} sent something else than the facts to agree on.", Abort.GARBAGE)
        self._compare(dict(fields), theirs)

    def send_object(self, obj: Any) -> None:
        """Send what JSON holds, up to 1 MiB, to the other party, which calls `receive_object` meanwhile: one round.

        Raises:
            LinkError: As for `exchange`.
            SecureRouterValueError: JSON does not hold `obj`; nothing has been sent.
        """
        self._swap(Kind.OBJECT, [memoryview(to_json(obj))], 0)

    def receive_object(self) -> Any:
        """The object that the other party sends by `send_object`; errors as for `exchange`."""
        return self._from_json(self._swap(Kind.OBJECT, [], None))

    @property
    def traffic(self) -> int:
        """Bytes that the socket has taken and given so far, headers, handshake and TLS included."""
        return self._stream.sent + self._stream.received

    def close(self) -> None:
        """Close this end; the other one fails at its next exchange."""
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
        """One frame each way; with `length` None any up to `MAX_OBJECT` is received."""
        if self._closed:
            raise LinkError(f"The link to {self.peer} is closed.")
        stream = self._stream
        sent, received = stream.sent, stream.received
        try:
            size = sum(part.nbytes for part in parts)
            stream.put([memoryview(HEADER.pack(MAGIC, kind, self._round, size)), *parts])
            self._pump(self._header)
            payload = np.empty(self._check_header(kind, length), dtype=np.uint8).data
            self._pump(payload)
            self._pump(None)
            if self._broken is not None:
                raise self._lost(self._broken) from self._broken
            self._round = (self._round + 1) & 0xFFFFFFFF
        except BaseException:  # whatever it is, the next frame would be out of step
            self.close()
            raise
        finally:
            self._count(sent, received)
            self.ledger.round()
        return payload

    def _count(self, sent: int, received: int) -> None:
        """Book what went over the socket since it stood at `sent` and `received`."""
        sent, received = self._stream.sent - sent, self._stream.received - received
        self.ledger.sent(sent)
        self.ledger.received(received)

    def _pump(self, view: memoryview | None) -> None:
        """Fill `view`, sending meanwhile what is queued; without a view, send the rest."""
        stream, idle = self._stream, 0
        while view if view is not None else stream.unsent:
            before = stream.sent + stream.received
            if stream.unsent:
                try:
                    stream.push()
                except OSError as error:  # the other end may have told why before it closed
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
            raise LinkError(f"{self.peer} gave up: {ABORT_TEXTS.get(got_length, 'it did not say why')}.")
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
        """Tell the other party, unless it is in the middle of a frame and could not tell this from its payload."""
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
        """Exchange version, rank and challenges, then the proofs that both hold the token."""
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
        # Both have the other's fields by now, so both raise this.
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

    `accept` may be called again after a stranger was refused.
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
            rank (`int`), timeout (`float`), options: As for `Link`. Without `ssl_context` only a party on this machine
                is let in.

        Raises:
            LinkError: Nobody came in time, or as for `Link`.
        """
        self._sock.settimeout(timeout)
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            raise LinkError(f"party{1 - rank} did not connect within {timeout:g} seconds ({error}).") from error
        return self._link_class(_private(sock, options), rank, timeout=timeout, server_side=True, **options)

    def close(self) -> None:
        """Give the port back."""
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _private(sock: socket.socket, options: Mapping[str, Any]) -> socket.socket:
    """Refuse to leave this machine in clear, and send small frames at once."""
    if options.get("ssl_context") is None and not is_this_machine(sock):
        host = sock.getpeername()[0]
        sock.close()
        raise SecureRouterValueError(
            f"A link to {host} leaves this machine: give it an `ssl_context`. The dealer knows every mask, and with "
            "what the parties open it would have every input."
        )
    return send_at_once(sock)


def _check_context(context: ssl.SSLContext) -> None:
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
