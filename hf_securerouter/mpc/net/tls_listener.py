# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role's TLS listener, and the accepted connections that wait to be used."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from ...errors import SecureRouterError
from .channel import Channel
from .identity import Identity
from .socket_stream import TlsStream
from .sockets import HANDSHAKE, Address, MeetingError, format_address, keep_alive, listen_at


MAX_STRANGERS = 64  # connections at once whose handshake is not complete
_PAUSE = 0.2  # seconds before the next `accept`, after one failed


class TlsListener:
    """Accepts TLS connections from some roles, and refuses all others; a context manager.

    Args:
        identity (`Identity`): This role's own identity.
        address (`tuple[str, int]`): Host and port to listen at; port 0 takes a free one.
        roles (`tuple[str, ...]`): The roles that are accepted.
        enter (callable): Called in a thread of its own with the role and the stream of each accepted connection, which
            it keeps or closes. If it raises `OSError` or `SecureRouterError`, the connection is refused.
        log (callable): Called with a line about each connection that is refused, or closed after another error.

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
        self._identity, self._roles, self._enter, self._log = identity, roles, enter, log
        self._free = threading.BoundedSemaphore(MAX_STRANGERS)
        try:
            self._sock = listen_at(address)
        except OSError as error:
            raise MeetingError(f"Cannot listen at {format_address(address)} ({error}).") from error
        self.address: Address = self._sock.getsockname()[:2]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def __enter__(self) -> TlsListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while True:
            try:
                sock, address = self._sock.accept()
            except OSError:
                if self._sock.fileno() < 0:
                    return
                time.sleep(_PAUSE)  # the caller hung up before accept, or the process is out of file descriptors
                continue
            if self._free.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(sock, address[0]), daemon=True).start()
            else:
                sock.close()

    def _serve(self, sock: socket.socket, host: str) -> None:
        try:
            try:
                stream = TlsStream(keep_alive(sock), self._identity.server, True, "", time.monotonic() + HANDSHAKE)
                role = self._checked(stream)
            finally:
                self._free.release()
            self._enter(role, stream)
        except (OSError, SecureRouterError) as error:
            self._log(f"Refused a connection from {host}: {error}")
            sock.close()
        except BaseException as error:
            self._log(f"Closed a connection from {host} after an unexpected {type(error).__name__}.")
            sock.close()
            raise

    def _checked(self, stream: TlsStream) -> str:
        self._identity.greet(stream)
        role = stream.role
        channel = Channel(stream, role, max_payload=0)
        if role not in self._roles:
            text = f"its certificate is for `{role}`, and {self._identity.role} serves {' and '.join(self._roles)}."
            channel.send({"kind": "refused", "error": text}, timeout=HANDSHAKE)
            raise MeetingError(text)
        channel.send({"kind": "welcome", "facts": self._identity.facts}, timeout=HANDSHAKE)
        answer, _ = channel.receive(timeout=HANDSHAKE)
        if answer.get("kind") != "agreed":
            raise MeetingError(ascii(answer.get("error", "it gives no reason"))[1:300])
        return role


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
