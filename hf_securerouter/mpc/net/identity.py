# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role's own key and certificate, and whom it trusts."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from pathlib import Path

from ...errors import SecureRouterValueError
from .certificates import CERTIFICATE, KEY, PEERS, USERS, Certificate, fingerprint_of
from .socket_stream import TlsStream
from .sockets import MeetingError
from .trusted import AllowList, read_list


AUTHORITY = "ca.pem"  # in folders of earlier versions: the authority of one sharing


class Identity:
    """A role's TLS contexts: they hold its key and certificate, and trust only the certificates of its own sharing.

    Args:
        folder (`Path`): The role's folder, with `peers.json`, and at a server `users.json`.
        key (`Path`, *optional*): The folder of the role's key; None if the role's folder has the key.

    Attributes:
        own (`Certificate`): This role's certificate.
        facts (`dict[str, str]`): What must be equal at both ends of each connection: the version, the sharing, the
            public description of the model. Both ends tell it in clear under TLS.

    Raises:
        `SecureRouterValueError`: A file is missing, or is not a key or certificate of one role; the sharing was made
            for another key of this role; the certificate has ended.
    """

    def __init__(self, folder: Path, key: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._folder, self._key = folder, key or folder
        self.facts: dict[str, str] = {}
        if not (self._key / KEY).exists():
            raise SecureRouterValueError(
                f"{str(self._key)!r} has no private key: pass the folder that `securerouter keygen` made on this "
                "machine as `key` (`--key`)."
            )
        self.own = Certificate.load(self._key / CERTIFICATE)
        if self.own.ended:
            raise SecureRouterValueError(str(self.own.warning()))
        self._authority = folder / AUTHORITY if not (folder / PEERS).exists() else None
        self.peers = () if self._authority else read_list(folder / PEERS)
        self._allowed = AllowList(folder / USERS) if (folder / USERS).exists() else None
        listed = {peer.role: peer for peer in self.peers}.get(self.role)
        if listed is not None and listed.fingerprint != self.own.fingerprint:
            raise SecureRouterValueError(
                f"The sharing was made for another key of {self.role}: {listed.fingerprint}, and the key in "
                f"{str(self._key)!r} is {self.own.fingerprint}. Use that key, or share anew."
            )
        self.client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        self._server = self._context(ssl.PROTOCOL_TLS_SERVER)
        self._is_behind = False  # whether that context still has to be made anew

    @classmethod
    def load(cls, folder: Path, key: Path | None = None) -> Identity:
        """The identity in a role's folder; as the constructor."""
        return cls(folder, key)

    @property
    def role(self) -> str:
        """The role that the certificate names."""
        return self.own.role

    @property
    def server(self) -> ssl.SSLContext:
        """For incoming connections; made anew when the allow list has changed."""
        with self._lock:
            self._refresh()
            return self._server

    @property
    def users(self) -> tuple[Certificate, ...]:
        """The clients that are allowed now."""
        with self._lock:
            self._refresh()
            return self._allowed.users if self._allowed else ()

    @property
    def problem(self) -> str | None:
        """What is wrong with the allow list since it was last changed."""
        return self._allowed.problem if self._allowed else None

    def allows(self, fingerprint: str) -> bool:
        """Whether the holder of this certificate may be connected now."""
        trusted = (*self.peers, *self.users)
        return bool(self._authority) or any(one.fingerprint == fingerprint and not one.ended for one in trusted)

    def greet(self, stream: TlsStream) -> None:
        """Find out who is at the other end, and write role and name into the stream.

        Raises:
            `MeetingError`: The certificate is not one of those that this role trusts.
        """
        if self._authority:
            names = stream.peer_names()
            stream.role = stream.name = names.pop() if len(names) == 1 else "nobody"
            return
        for one in (*self.peers, *self.users):
            if one.fingerprint == stream.fingerprint():
                stream.role, stream.name = one.role, one.name
                return
        raise MeetingError("its certificate is not one that this role trusts.")

    def check_pins(self, pins: Mapping[str, str]) -> None:
        """Compare the certificates that the model's owner put into the folder with what their holders say.

        Args:
            pins (`Mapping[str, str]`): Fingerprints by role.

        Raises:
            `SecureRouterValueError`: They differ, or a role is not in the folder.
        """
        found = {peer.role: peer.fingerprint for peer in self.peers}
        for role, text in pins.items():
            expected = fingerprint_of(text)
            if role not in found:
                raise SecureRouterValueError(
                    f"`pin` names {role!r}, and the folder has keys of {', '.join(found) or 'nobody'}."
                )
            if found[role] != expected:
                raise SecureRouterValueError(
                    f"The key of {role} in {str(self._folder)!r} has the fingerprint {found[role]}, and its pin is "
                    f"{expected}: somebody else may pose as {role}. Ask its operator, and whoever made the folder."
                )

    def _refresh(self) -> None:
        if self._allowed is None:
            return
        self._is_behind |= self._allowed.refresh()
        if self._is_behind:
            try:
                self._server = self._context(ssl.PROTOCOL_TLS_SERVER)
                self._is_behind, self._allowed.problem = False, None
            except SecureRouterValueError as error:  # the listener has to go on; revoked clients stay out by `greet`
                self._allowed.problem = f"{error} Clients that were added cannot connect."

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            if self._authority:
                context.load_verify_locations(self._authority)
            else:
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate in the list needs no authority
                users = self._allowed.users if self._allowed and protocol == ssl.PROTOCOL_TLS_SERVER else ()
                for one in (*self.peers, *users):
                    context.load_verify_locations(cadata=one.pem)
            context.load_cert_chain(self._key / CERTIFICATE, self._key / KEY)
        except OSError as error:
            raise SecureRouterValueError(
                f"The keys in {str(self._key)!r} cannot be read ({error}): name a folder that `securerouter share` or "
                "`securerouter keygen` made."
            ) from error
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # no resumption: every connection presents its certificate
        return context
