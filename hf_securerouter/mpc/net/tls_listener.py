# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role's TLS listener, and the accepted connections that wait to be used."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

from ...errors import SecureRouterError
from .channel import SMALL_HEADER, Channel
from .counted_log import CountedLog, never_failing
from .identity import Identity
from .socket_stream import TlsStream
from .sockets import HANDSHAKE, Address, MeetingError, format_address, keep_alive, listen_at


MAX_STRANGERS = 256  # connections at once whose handshake is not complete; beyond it the oldest gives way


MAX_FROM_ADDRESS = 32  # of these, from one address


MAX_FROM_KEY = 32  # connections at once of one certificate whose greeting is not complete


FIRST_MESSAGE = 2.0  # seconds for the first bytes of a handshake; `HANDSHAKE` for all of it


_PAUSE = 0.2  # seconds before the next `accept`, after one failed


class TlsListener:
    """Accepts TLS connections from some roles, and refuses all others; a context manager.

    One thread runs all handshakes, so that strangers cost neither threads nor places: an unfinished handshake gives
    way to newer ones, and ends after `FIRST_MESSAGE` seconds without a byte, or `HANDSHAKE` seconds in all. Then each
    connection has a thread, and an unfinished greeting gives way to newer ones of the same certificate.

    Args:
        identity (`Identity`): This role's own identity.
        address (`tuple[str, int]`): Host and port to listen at; port 0 takes a free one.
        roles (`tuple[str, ...]`): The roles that are accepted.
        enter (callable): Called in a thread of its own with the role and the stream of each accepted connection, which
            it keeps or closes. If it raises `OSError` or `SecureRouterError`, the connection is refused.
        log (callable): Called with a line about each connection that is refused, or closed after another error;
            repeated lines are counted.

    Raises:
        `MeetingError`: The address cannot be bound.
    """

    def __init__(
        self,
        identity: Identity,
        address: Address,
        roles: tuple[str, ...],
        enter: Callable[[str, TlsStream], None],
        log: Callable[[str], None],
    ) -> None:
        self._identity, self._roles, self._enter = identity, roles, enter
        self._log = CountedLog(never_failing(log))
        self._strangers: list[_Stranger] = []  # the oldest first
        self._greeted: list[tuple[str, TlsStream]] = []  # by certificate, the oldest first
        self._lock = threading.Lock()  # of `_greeted`
        self._selector = selectors.DefaultSelector()
        try:
            self._sock = listen_at(address)
        except OSError as error:
            raise MeetingError(f"Cannot listen at {format_address(address)} ({error}).") from error
        self.address: Address = self._sock.getsockname()[:2]
        self._sock.setblocking(False)
        self._selector.register(self._sock, selectors.EVENT_READ)
        self._open = True
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
        self._open = False
        try:
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the listening thread, which closes the socket
        except OSError:
            pass

    def __enter__(self) -> TlsListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The thread of all handshakes.

    def _listen(self) -> None:
        try:
            while self._open:
                try:
                    self._take_turn()
                except Exception as error:  # without this thread the role would be deaf
                    self._log(f"The listener met an unexpected {type(error).__name__}, and goes on.")
                    time.sleep(_PAUSE)
        finally:
            for stranger in list(self._strangers):
                self._forget(stranger)
                stranger.stream.sock.close()
            self._selector.close()
            self._sock.close()

    def _take_turn(self) -> None:
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                self._accept()
            elif key.data in self._strangers:  # it may have given way just now
                self._advance(key.data)
        self._end_late_ones()
        self._log.flush()

    def _patience(self) -> float:
        """Seconds until the next unfinished handshake is late, at most one."""
        now = time.monotonic()
        return min([1.0, *(max(stranger.deadline - now, 0.0) for stranger in self._strangers)])

    def _accept(self) -> None:
        try:
            sock, address = self._sock.accept()
        except OSError:
            if self._open:
                time.sleep(_PAUSE)  # the caller hung up before accept, or the process is out of file descriptors
            return
        host = address[0]
        same = [stranger for stranger in self._strangers if stranger.host == host]
        if len(same) >= MAX_FROM_ADDRESS or len(self._strangers) >= MAX_STRANGERS:
            oldest = (same if len(same) >= MAX_FROM_ADDRESS else self._strangers)[0]
            self._refuse(oldest, "it gives way to newer connections, before its handshake is done.")
        try:
            stream = TlsStream(keep_alive(sock), self._identity.server, True, "")
        except OSError:
            sock.close()
            return
        stranger = _Stranger(stream, host)
        self._strangers.append(stranger)
        self._selector.register(sock, selectors.EVENT_READ, stranger)

    def _advance(self, stranger: _Stranger) -> None:
        try:
            done = stranger.stream.advance()
        except OSError as error:
            self._refuse(stranger, error)
            return
        stranger.deadline = stranger.since + HANDSHAKE
        if not done:
            return
        self._make_room(stranger.stream)
        try:
            thread = threading.Thread(target=self._serve, args=(stranger.stream, stranger.host), daemon=True)
            self._forget(stranger)
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            self._log(f"Refused a connection from {stranger.host}: {error}")
            self._left(stranger.stream)
            stranger.stream.sock.close()

    def _make_room(self, stream: TlsStream) -> None:
        """Count a connection that is about to be greeted; the oldest one gives way where there are too many."""
        key = stream.fingerprint()
        with self._lock:
            same = [entry for entry in self._greeted if entry[0] == key]
            if len(same) >= MAX_FROM_KEY or len(self._greeted) >= MAX_STRANGERS:
                oldest = (same if len(same) >= MAX_FROM_KEY else self._greeted)[0]
                self._greeted.remove(oldest)
                with contextlib.suppress(OSError):
                    oldest[1].sock.shutdown(socket.SHUT_RDWR)  # its thread closes it
            self._greeted.append((key, stream))

    def _left(self, stream: TlsStream) -> None:
        with self._lock:
            self._greeted = [entry for entry in self._greeted if entry[1] is not stream]

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for stranger in [stranger for stranger in self._strangers if stranger.deadline <= now]:
            self._refuse(stranger, "timed out during the TLS handshake")

    def _refuse(self, stranger: _Stranger, reason: object) -> None:
        self._forget(stranger)
        stranger.stream.sock.close()
        self._log(f"Refused a connection from {stranger.host}: {reason}")

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.stream.sock)
        self._strangers.remove(stranger)

    # Accepted connections; each has a thread of its own.

    def _serve(self, stream: TlsStream, host: str) -> None:
        try:
            try:
                role = self._checked(stream)
            finally:
                self._left(stream)
            self._enter(role, stream)
        except (OSError, SecureRouterError) as error:
            self._log(f"Refused a connection from {host}: {error}")
            stream.sock.close()
        except BaseException as error:
            self._log(f"Closed a connection from {host} after an unexpected {type(error).__name__}.")
            stream.sock.close()

    def _checked(self, stream: TlsStream) -> str:
        self._identity.greet(stream)
        role = stream.role
        channel = Channel(stream, role, max_payload=0, max_header=SMALL_HEADER)
        if role not in self._roles:
            text = f"its certificate is for `{role}`, and {self._identity.role} serves {' and '.join(self._roles)}."
            channel.send({"kind": "refused", "error": text}, timeout=HANDSHAKE)
            raise MeetingError(text)
        channel.send({"kind": "welcome", "facts": self._identity.facts}, timeout=HANDSHAKE)
        answer, _ = channel.receive(timeout=HANDSHAKE)
        if answer.get("kind") != "agreed":
            raise MeetingError(ascii(answer.get("error", "it gives no reason"))[1:300])
        return role


class _Stranger:
    """A connection whose handshake is not complete."""

    def __init__(self, stream: TlsStream, host: str) -> None:
        self.stream, self.host, self.since = stream, host, time.monotonic()
        self.deadline = self.since + FIRST_MESSAGE


class PendingConnections:
    """Accepted connections that wait to be used, the latest of each role."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._found: dict[str, tuple[str, TlsStream]] = {}

    def put(self, role: str, meeting: str, stream: TlsStream) -> None:
        """Keep a connection and close an earlier one of the same role; `meeting` names the parties' link."""
        with self._changed:
            earlier = self._found.pop(role, None)
            self._found[role] = meeting, stream
            self._changed.notify_all()
        if earlier is not None:
            earlier[1].sock.close()

    def take(self, roles: tuple[str, ...], deadline: float) -> list[TlsStream]:
        """Wait for a connection of each role, all with the same `meeting`.

        Raises:
            `MeetingError`: A role did not connect before `deadline`, or only for another `meeting`.
        """

        def complete() -> bool:
            return all(role in self._found for role in roles) and len({self._found[role][0] for role in roles}) == 1

        with self._changed:
            if self._changed.wait_for(complete, timeout=max(deadline - time.monotonic(), 0.0)):
                return [self._found.pop(role)[1] for role in roles]
            missing = [role for role in roles if role not in self._found]
        if missing:
            raise MeetingError(f"{' and '.join(missing)} did not connect in time.")
        raise MeetingError(f"{' and '.join(roles)} connected in time, but not to each other.")
