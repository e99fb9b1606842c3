# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Keys of roles and of clients, and the self-signed certificates that are their public parts.

A certificate names its role as a DNS name, and its holder as the common name. There is no authority: who trusts a
certificate has a copy of it, and compares the fingerprint.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import SecureRouterValueError


CERTIFICATE, KEY = "certificate.pem", "key.pem"
PEERS, USERS = "peers.json", "users.json"  # lists of certificates: servers and dealer; clients
ROLES = ("party0", "party1", "dealer", "client")
LIFETIME = datetime.timedelta(days=365)  # of a key that its holder made
TRIAL_LIFETIME = datetime.timedelta(days=90)  # of a key that the model's owner made
WARNING = datetime.timedelta(days=14)  # before a certificate ends
_CLOCK_SKEW = datetime.timedelta(days=1)
_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Certificate:
    """The public part of a key.

    Args:
        role (`str`): `party0`, `party1`, `dealer` or `client`.
        name (`str`): The holder's name.
        fingerprint (`str`): SHA-256 of the certificate, 64 hex digits.
        until (`datetime.datetime`): The end of its validity, in UTC.
        pem (`str`): The certificate as PEM.
    """

    role: str
    name: str
    fingerprint: str
    until: datetime.datetime
    pem: str

    @classmethod
    def from_pem(cls, data: bytes, what: str) -> Certificate:
        """Read a certificate; `what` says in errors where it comes from.

        Raises:
            `SecureRouterValueError`: `data` is no certificate of one role, or holds a private key.
        """
        if b"PRIVATE KEY" in data:
            raise SecureRouterValueError(
                f"{what} holds a private key, which stays with its holder: pass {CERTIFICATE}, the public part."
            )
        try:
            found = x509.load_pem_x509_certificate(data)
            alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (role,) = alternatives.get_values_for_type(x509.DNSName)
            (common,) = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        except (ValueError, x509.ExtensionNotFound) as error:
            raise SecureRouterValueError(
                f"{what} is no certificate of one role ({error}): pass the {CERTIFICATE} that `securerouter keygen` "
                "made."
            ) from error
        name = str(common.value)
        if role not in ROLES or not _NAME.fullmatch(name):
            raise SecureRouterValueError(
                f"{what} is for the role {ascii(role)[:80]} and the name {ascii(name)[:80]}; pass a certificate that "
                "`securerouter keygen` made."
            )
        pem = found.public_bytes(serialization.Encoding.PEM)
        fingerprint = hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).hexdigest()
        return cls(role, name, fingerprint, found.not_valid_after_utc, pem.decode())

    @classmethod
    def load(cls, path: Path) -> Certificate:
        """Read a certificate's file.

        Raises:
            `SecureRouterValueError`: It cannot be read, or is no certificate of one role.
        """
        try:
            return cls.from_pem(path.read_bytes(), repr(str(path)))
        except OSError as error:
            raise SecureRouterValueError(
                f"The certificate {str(path)!r} cannot be read ({error.strerror})."
            ) from error

    @property
    def ended(self) -> bool:
        """Whether its validity is over."""
        return _now() >= self.until

    def warning(self) -> str | None:
        """What its holder has to know of its end; None while that is further away than 14 days."""
        day = f"{self.until:%Y-%m-%d}"
        if self.ended:
            return (
                f"The certificate of {self.role} ({self.name}) ended on {day}: nobody lets it in any more. Make a new "
                "key with `securerouter keygen`, and hand out its certificate."
            )
        if self.until - _now() > WARNING:
            return None
        return (
            f"The certificate of {self.role} ({self.name}) ends on {day}: make a new key with `securerouter keygen`, "
            "and hand out its certificate before."
        )

    def __str__(self) -> str:
        return f"{self.role} ({self.name}), until {self.until:%Y-%m-%d}, fingerprint {self.fingerprint}"


def make_key(role: str, name: str, lifetime: datetime.timedelta = LIFETIME) -> dict[str, bytes]:
    """Make a fresh key (P-256) and its certificate.

    Args:
        role (`str`): `party0`, `party1`, `dealer` or `client`.
        name (`str`): The holder's name: 1 to 64 letters, digits and `. _ @ -`.
        lifetime (`datetime.timedelta`): How long the certificate is valid.

    Returns:
        `dict[str, bytes]`: PEM by file name: the certificate, and the private key without a password.

    Raises:
        `SecureRouterValueError`: There is no such role, or `name` is not of this form.
    """
    if role not in ROLES:
        raise SecureRouterValueError(f"`role` should be one of {', '.join(ROLES)}, got {role!r}.")
    if not _NAME.fullmatch(name):
        raise SecureRouterValueError(f"`name` should be 1 to 64 letters, digits and . _ @ -, got {ascii(name)[:80]}.")
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    use = x509.ExtendedKeyUsageOID
    certificate = (
        x509.CertificateBuilder(
            subject_name=own,
            issuer_name=own,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=_now() - max(_CLOCK_SKEW, -lifetime + _CLOCK_SKEW),
            not_valid_after=_now() + lifetime,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**{name: name == "digital_signature" for name in _USES}), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(role)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([use.SERVER_AUTH, use.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {
        CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM),
        KEY: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }


def list_bytes(certificates: Iterable[Certificate]) -> bytes:
    """The content of a file of certificates; only `certificate` is read again, the rest is for people."""
    entries = [
        {
            "role": one.role,
            "name": one.name,
            "until": f"{one.until:%Y-%m-%d}",
            "fingerprint": one.fingerprint,
            "certificate": one.pem,
        }
        for one in certificates
    ]
    return (json.dumps(entries, indent=2) + "\n").encode()


def trust_files(role: str, certificates: Iterable[Certificate]) -> dict[str, bytes]:
    """The files of trust for one role's folder, by name: every folder has the peers, and a server's the clients."""
    found = tuple(certificates)
    files = {PEERS: list_bytes(one for one in found if one.role != "client")}
    if role in ("party0", "party1"):
        files[USERS] = list_bytes(one for one in found if one.role == "client")
    return files


def make_certificates(roles: tuple[str, ...]) -> dict[str, dict[str, bytes]]:
    """Make the keys of all roles in one place, for a trial: whoever did can pose as each of them.

    Args:
        roles (`tuple[str, ...]`): Names of the roles.

    Returns:
        `dict[str, dict[str, bytes]]`: The files of each role's folder by name: certificate, private key, and whom it
        trusts.
    """
    keys = {role: make_key(role, "trial", TRIAL_LIFETIME) for role in roles}
    made = [Certificate.from_pem(files[CERTIFICATE], role) for role, files in keys.items()]
    return {role: files | trust_files(role, made) for role, files in keys.items()}


def fingerprint_of(text: str) -> str:
    """A fingerprint as 64 lower hex digits; it may be in capitals and have colons.

    Raises:
        `SecureRouterValueError`: `text` is no fingerprint.
    """
    found = text.replace(":", "").strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise SecureRouterValueError(f"A fingerprint has 64 hex digits, got {text!r}.")
    return found


def distinct(certificates: Iterable[Certificate]) -> None:
    """Refuse one key under two roles or twice.

    Raises:
        `SecureRouterValueError`: A certificate occurs twice.
    """
    seen: dict[str, Certificate] = {}
    for certificate in certificates:
        if (other := seen.setdefault(certificate.fingerprint, certificate)) is not certificate:
            raise SecureRouterValueError(f"The key of {other.role} ({other.name}) is given twice: pass each once.")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
