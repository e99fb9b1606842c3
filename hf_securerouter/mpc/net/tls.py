# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Connections between roles on different machines: TLS 1.3 with certificates at both ends, and nothing else.

A certificate's DNS name is the role that holds it. The connecting end checks it for the role that it wants; the
listening end checks that it serves that role, and answers with a first frame, `welcome` or `refused`. A welcome has
the facts that must be equal at both ends; the connecting end compares them, and answers `agreed` or `refused`. Both
ends know the result before anything secret is sent.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping

from .channel import Channel, ChannelError
from .identity import Identity
from .socket_stream import TlsStream
from .sockets import HANDSHAKE, Address, MeetingError, connect_until, format_address, keep_alive


_PAUSE = 0.2  # seconds between two attempts to connect


def connect(
    address: Address, role: str, identity: Identity, deadline: float, check: Callable[[], None] | None = None
) -> TlsStream:
    """Connect to a role, trying again until it listens.

    Args:
        address (`tuple[str, int]`): Host and port.
        role (`str`): The role that must answer.
        identity (`Identity`): This role's own identity.
        deadline (`float`): When to give up, as `time.monotonic()` counts.
        check (callable, *optional*): Called before each attempt; it raises an error if there is no use in another one.

    Returns:
        `TlsStream`: A connection that both ends have accepted.

    Raises:
        `MeetingError`: The role did not answer before `deadline`; at once if the certificate there is not that role's,
            if this role is refused, or if the two differ in version, sharing or manifest.
    """
    place = format_address(address)

    def attempt(left: float) -> TlsStream:
        if check is not None:
            check()
        sock = socket.create_connection(address, timeout=left)
        try:
            return _greeted(sock, place, role, identity, min(deadline, time.monotonic() + HANDSHAKE))
        except BaseException:
            sock.close()
            raise

    try:
        return connect_until(deadline, _PAUSE, attempt, (OSError, ChannelError))
    except (OSError, ChannelError) as error:
        raise MeetingError(f"{role} was not reached at {place} ({error}).") from error


def _greeted(sock: socket.socket, place: str, role: str, identity: Identity, deadline: float) -> TlsStream:
    try:
        stream = TlsStream(keep_alive(sock), identity.client, False, role, deadline)
    except ssl.SSLCertVerificationError as error:
        raise MeetingError(
            f"The server at {place} is not `{role}` of this sharing ({error.verify_message}).{_pinned(identity, role)}"
        ) from error
    except ssl.SSLError as error:
        raise MeetingError(f"No TLS 1.3 with {place}, where `{role}` should be ({error}).") from error
    try:
        identity.greet(stream)
        if stream.role != role:
            raise MeetingError(f"The server at {place} is not `{role}` of this sharing but `{stream.role}`.")
        channel = Channel(stream, role, max_payload=0)
        header, _ = channel.receive(timeout=max(deadline - time.monotonic(), 1e-3))
    except ChannelError as error:
        # Under TLS 1.3 a server checks the client's certificate only after the client's handshake is done.
        if isinstance(error.__cause__, ssl.SSLError):
            raise MeetingError(
                f"{role} at {place} refuses the certificate of this role ({error.__cause__}); are both folders of "
                "one sharing, and is this key on its list?"
            ) from error
        raise
    if header.get("kind") != "welcome":
        raise MeetingError(f"{role} at {place} refuses this role: {header.get('error', 'it gives no reason')}")
    names = differing(identity.facts, header.get("facts"))
    text = f"{identity.role} and {role} do not agree on: {', '.join(f'`{name}`' for name in names)}."
    answer = {"kind": "refused", "error": text} if names else {"kind": "agreed"}
    channel.send(answer, timeout=max(deadline - time.monotonic(), 1e-3))
    if names:
        raise MeetingError(f"{text} Give both the folders of one sharing, and the same version of this package.")
    return stream


def differing(own: Mapping[str, str], theirs: object) -> list[str]:
    """The facts that the other end does not have, or has otherwise; between two versions only `version`."""
    found = theirs if isinstance(theirs, dict) else {}
    names = [name for name in own if found.get(name) != own[name]]
    return ["version"] if "version" in names else names


def _pinned(identity: Identity, role: str) -> str:
    listed = [peer.fingerprint for peer in identity.peers if peer.role == role]
    return f" Its key should have the fingerprint {listed[0]}." if listed else ""
