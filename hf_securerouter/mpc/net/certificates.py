# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Keys and certificates for the roles of one sharing, signed by an authority whose private key is never stored.

A certificate names its role as a DNS name. Nobody can issue another certificate for the sharing; if a key leaks, the
owner shares the model anew.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


AUTHORITY, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"
LIFETIME = datetime.timedelta(days=3650)  # long, because the shares never expire
_CLOCK_SKEW = datetime.timedelta(days=1)
_OID = x509.ExtendedKeyUsageOID


def make_certificates(roles: tuple[str, ...]) -> dict[str, dict[str, bytes]]:
    """Make fresh keys (P-256) and certificates, all signed by one fresh authority.

    Args:
        roles (`tuple[str, ...]`): Names of the roles.

    Returns:
        `dict[str, dict[str, bytes]]`: The files of each role's folder, PEM by file name: the authority's certificate,
        the role's certificate, and the role's private key without a password.
    """
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("hf_securerouter sharing")
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = _sign(
        authority,
        authority,
        issuer,
        issuer,
        [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_usage(key_cert_sign=True), True),
            (identifier, False),
        ],
    )
    found = {}
    for role in roles:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(
            key,
            authority,
            _name(role),
            issuer,
            [
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage(digital_signature=True), True),
                (x509.SubjectAlternativeName([x509.DNSName(role)]), False),
                (x509.ExtendedKeyUsage([_OID.SERVER_AUTH, _OID.CLIENT_AUTH]), False),
                (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
                (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
            ],
        )
        found[role] = {
            AUTHORITY: root,
            CERTIFICATE: certificate,
            KEY: key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        }
    return found


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _usage(digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> bytes:
    """A certificate for `key`, signed by `authority`, as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + LIFETIME,
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
