# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role's TLS key and certificate, and the authority that it trusts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ...errors import SecureRouterValueError
from .certificates import AUTHORITY, CERTIFICATE, KEY


@dataclass(frozen=True)
class Identity:
    """A role's TLS contexts: they hold its key and certificate, and trust only the roles of its own sharing.

    Args:
        role (`str`): The role that the certificate names.
        server (`ssl.SSLContext`): For incoming connections.
        client (`ssl.SSLContext`): For outgoing connections.
    """

    role: str
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def load(cls, folder: Path) -> Identity:
        """Load the identity in a role's folder.

        Raises:
            `SecureRouterValueError`: A file is missing, or is not a key or certificate of one role.
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
        context.num_tickets = 0  # no resumption: every connection presents its certificate
    return context
