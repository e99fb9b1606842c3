# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""How roles on different machines reach each other: TLS 1.3 with certificates at both ends, and nothing else.

A certificate's DNS name says which role holds it. Whoever connects checks the name that it wanted; whoever listens
checks that the name is one that it serves, and says so in a first frame, `welcome` or `refused`, so that both ends
know before anything secret is sent.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ...errors import SecureRouterError, SecureRouterValueError
from .certificates import AUTHORITY, CERTIFICATE, KEY
from .channel import Channel, ChannelError
from .socket_stream import TlsWire


Address = tuple[str, int]

HANDSHAKE = 10.0  # seconds that a stranger is listened to
MAX_STRANGERS = 64  # that are listened to at once
_PAUSE = 0.2


class MeetingError(SecureRouterError):
    """A role was not reached, did not come, or is not who it should be."""


@dataclass(frozen=True)
class Identity:
    """The key of one role, and whom it trusts: the roles of its own sharing.

    Args:
        role (`str`): The role that the certificate names.
        server (`ssl.SSLContext`): For connections that come.
        client (`ssl.SSLContext`): For connections to others.
    """

    role: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """The identity in a role's folder.

        Raises:
            `SecureRouterValueError`: Its files are missing or cannot be read.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (role,) = names.get_values_for_type(x509.DNSName)
            return cls(
                role,
                _context(folder, ssl.PROTOCOL_TLS_SERVER),
                _context(folder, ssl.PROTOCOL_TLS_CLIENT),
            )
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            raise SecureRouterValueError(
                f"The keys in {str(folder)!r} cannot be read ({error}): name a folder that `securerouter share` made."
            ) from error


def _context(folder: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / AUTHORITY)
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # every connection proves its certificate anew
    return context


def connect(address: Address, role: str, identity: Identity, deadline: float) -> TlsWire:
    """Connect to a role, trying again until it listens.

    Args:
        address (`tuple[str, int]`): Host and port.
        role (`str`): Who has to be there.
        identity (`Identity`): Of this role.
        deadline (`float`): When to give up, as `time.monotonic()` counts.

    Returns:
        `TlsWire`: After both ends have accepted each other.

    Raises:
        `MeetingError`: Nobody was there in time; at once where somebody else is, or where this role is refused.
    """
    place = f"{address[0]}:{address[1]}"
    while True:
        sock = None
        try:
            sock = socket.create_connection(address, timeout=max(deadline - time.monotonic(), 1e-3))
            return _greeted(sock, place, role, identity, min(deadline, time.monotonic() + HANDSHAKE))
        except MeetingError:
            _close(sock)
            raise
        except (OSError, ChannelError) as error:
            _close(sock)
            if time.monotonic() + _PAUSE > deadline:
                raise MeetingError(f"{role} was not reached at {place} ({error}).") from error
            time.sleep(_PAUSE)


def _greeted(sock: socket.socket, place: str, role: str, identity: Identity, deadline: float) -> TlsWire:
    try:
        wire = TlsWire(_tuned(sock), identity.client, False, role, deadline)
    except ssl.SSLCertVerificationError as error:
        raise MeetingError(
            f"Whoever listens at {place} is not `{role}` of this sharing ({error.verify_message})."
        ) from error
    except ssl.SSLError as error:
        raise MeetingError(f"No TLS 1.3 with {place}, where `{role}` should be ({error}).") from error
    try:
        header, _ = Channel(wire, role, max_payload=0).receive(timeout=max(deadline - time.monotonic(), 1e-3))
    except ChannelError as error:
        # Under TLS 1.3 a server judges the certificate only after the client's handshake is done.
        if isinstance(error.__cause__, ssl.SSLError):
            raise MeetingError(
                f"{role} at {place} refuses the certificate of this role ({error.__cause__}); are both folders of "
                "one sharing?"
            ) from error
        raise
    if header.get("kind") != "welcome":
        raise MeetingError(f"{role} at {place} refuses this role: {header.get('error', 'it does not say why')}")
    return wire


def _tuned(sock: socket.socket) -> socket.socket:
    """Send small frames at once, and notice within seconds that the other machine is gone."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
    ):
        sock.setsockopt(level, option, value)
    return sock


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()


class Door:
    """Where one role listens for some others; a context manager. Nothing is ever spoken in clear.

    Args:
        identity (`Identity`): Of this role.
        address (`tuple[str, int]`): Host and port to listen at; port 0 takes a free one.
        roles (`tuple[str, ...]`): Who is let in.
        enter (callable): Called with the role and the connection of whoever was let in, in a thread of its own. What
            it does not keep, it closes; an error that it raises refuses the connection.
        say (callable): Takes a line about each connection that was refused.

    Raises:
        `MeetingError`: The address cannot be listened at.
    """

    def __init__(
        self,
        identity: Identity,
        address: Address,
        roles: tuple[str, ...],
        enter: Callable[[str, TlsWire], None],
        say: Callable[[str], None],
    ) -> None:
        self._identity, self._roles, self._enter, self._say = identity, roles, enter, say
        self._free = threading.BoundedSemaphore(MAX_STRANGERS)
        try:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._sock = socket.create_server(address, family=family)
        except OSError as error:
            raise MeetingError(f"Cannot listen at {address[0]}:{address[1]} ({error}).") from error
        self.address: Address = self._sock.getsockname()[:2]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Let nobody in any more."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def __enter__(self) -> Door:
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
                time.sleep(_PAUSE)  # a caller that left at once, or no descriptor is free
                continue
            if self._free.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(sock, address[0]), daemon=True).start()
            else:
                sock.close()

    def _serve(self, sock: socket.socket, host: str) -> None:
        try:
            try:
                wire = TlsWire(_tuned(sock), self._identity.server, True, "", time.monotonic() + HANDSHAKE)
                role = self._checked(wire)
            finally:
                self._free.release()
            self._enter(role, wire)
        except (OSError, SecureRouterError) as error:
            self._say(f"Refused a connection from {host}: {error}")
            sock.close()
        except BaseException:
            sock.close()
            raise

    def _checked(self, wire: TlsWire) -> str:
        names = wire.peer_names()
        role = names.pop() if len(names) == 1 else "nobody"
        channel = Channel(wire, role)
        if role not in self._roles:
            text = f"its certificate is for `{role}`, and {self._identity.role} serves {' and '.join(self._roles)}."
            channel.send({"kind": "refused", "error": text}, timeout=HANDSHAKE)
            raise MeetingError(text)
        channel.send({"kind": "welcome"}, timeout=HANDSHAKE)
        return role


class Arrivals:
    """Connections that came and wait to be used, the latest of each role."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._found: dict[str, tuple[str, TlsWire]] = {}

    def put(self, role: str, meeting: str, wire: TlsWire) -> None:
        """Keep a connection, in the place of an earlier one of the same role."""
        with self._changed:
            earlier = self._found.pop(role, None)
            self._found[role] = meeting, wire
            self._changed.notify_all()
        if earlier is not None:
            earlier[1].sock.close()

    def take(self, roles: tuple[str, ...], deadline: float) -> list[TlsWire]:
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
