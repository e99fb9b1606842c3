# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Where a role listens for others, under TLS."""

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


MAX_STRANGERS = 64  # connections that have not proved yet who they are
_PAUSE = 0.2  # seconds before the next `accept`, after one failed


class TlsListener:
    """Where one role listens for some others; a context manager. Nothing is ever spoken in clear.

    Args:
        identity (`Identity`): Of this role.
        address (`tuple[str, int]`): Host and port to listen at; port 0 takes a free one.
        roles (`tuple[str, ...]`): Who is let in.
        enter (callable): Called with the role and the connection of whoever was let in, in a thread of its own. What
            it does not keep, it closes; an error that it raises refuses the connection.
        log (callable): Takes a line about each connection that was refused.

    Raises:
        `MeetingError`: The address cannot be listened at.
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
        """Let nobody in any more."""
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
        except BaseException:
            sock.close()
            raise

    def _checked(self, stream: TlsStream) -> str:
        names = stream.peer_names()
        role = names.pop() if len(names) == 1 else "nobody"
        channel = Channel(stream, role)
        if role not in self._roles:
            text = f"its certificate is for `{role}`, and {self._identity.role} serves {' and '.join(self._roles)}."
            channel.send({"kind": "refused", "error": text}, timeout=HANDSHAKE)
            raise MeetingError(text)
        channel.send({"kind": "welcome"}, timeout=HANDSHAKE)
        return role


class PendingConnections:
    """Connections that came and wait to be used, the latest of each role."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._found: dict[str, tuple[str, TlsStream]] = {}

    def put(self, role: str, meeting: str, stream: TlsStream) -> None:
        """Keep a connection, in the place of an earlier one of the same role."""
        with self._changed:
            earlier = self._found.pop(role, None)
            self._found[role] = meeting, stream
            self._changed.notify_all()
        if earlier is not None:
            earlier[1].sock.close()

    def take(self, roles: tuple[str, ...], deadline: float) -> list[TlsStream]:
        """Wait for a connection of each role, all of one meeting.

        Raises:
            `MeetingError`: Somebody did not come before `deadline`.
        """

        def complete() -> bool:
            return all(role in self._found for role in roles) and len({self._found[role][0] for role in roles}) == 1

        with self._changed:
            if self._changed.wait_for(complete, timeout=max(deadline - time.monotonic(), 0.0)):
                return [self._found.pop(role)[1] for role in roles]
            missing = [role for role in roles if role not in self._found]
        if missing:
            raise MeetingError(f"{' and '.join(missing)} did not come in time.")
        raise MeetingError(f"{' and '.join(roles)} came in time, but are not connected to each other.")
