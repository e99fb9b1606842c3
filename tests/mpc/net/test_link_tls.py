# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties' link under TLS: it hides payloads, and refuses other certificates."""

import socket
import ssl
import threading

import pytest

from hf_securerouter.mpc.net.link import Link, LinkError
from tests.support.link_worker import pattern, tls_context
from tests.support.transport_ends import LIMIT, Relay, fails, listening


pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("tls", [False, True])
def test_only_tls_hides_the_payload_from_the_wire(party1, keys, tls):
    lengths = [200]
    with Link.listen() as listener, Relay(listener.address) as relay:
        party1.start("mirror", relay.address, lengths, lengths, **({"tls": keys} if tls else {}))
        with listener.accept(0, ssl_context=tls_context(keys, "party0", True) if tls else None) as link:
            link.exchange([pattern(0, 200)])
            assert all(party1.returned())
    for payload in (pattern(0, 200), pattern(1000, 200)):
        assert (payload in relay.seen) is not tls
    assert (b"challenge" in relay.seen) is not tls


@pytest.mark.parametrize(
    ("theirs", "match"),
    [
        ({"tls": "stranger"}, "CERTIFICATE_VERIFY_FAILED|ALERT"),  # another authority
        ({"tls": "", "role": "dealer"}, "is for .'dealer'., not `party1`"),
        ({"tls": "", "role": "party0"}, "is for .'party0'., not `party1`"),
        ({}, "No TLS 1.3 link"),
    ],
)
def test_tls_refuses_other_keys_and_none(party1, keys, theirs, match):
    options = theirs | ({"tls": keys / theirs["tls"]} if "tls" in theirs else {})
    with listening(party1, "say_hello", **options) as listener, fails(match):
        listener.accept(0, ssl_context=tls_context(keys, "party0", True))
    party1.failed()


@pytest.mark.parametrize("check_hostname", [True, False])
def test_the_connecting_side_refuses_another_roles_key(keys, check_hostname):
    context = tls_context(keys, "party1", False)
    context.check_hostname = check_hostname
    server_errors = []

    def serve(listener):
        try:
            listener.accept(0, ssl_context=tls_context(keys, "dealer", True)).exchange([])
        except LinkError as error:
            server_errors.append(error)

    with Link.listen() as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with fails("Hostname mismatch" if check_hostname else "is for .'dealer'., not `party0`"):
            Link.connect(listener.address, 1, ssl_context=context)
        thread.join(LIMIT)
    assert server_errors


def test_tls_1_2_is_refused(keys):
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(keys / "ca.pem")
    old.load_cert_chain(keys / "party1.pem", keys / "party1.key")
    errors = []

    def connect(address):
        try:
            old.wrap_socket(socket.create_connection(address), server_hostname="party0")
        except OSError as error:
            errors.append(error)

    with Link.listen() as listener:
        thread = threading.Thread(target=connect, args=(listener.address,))
        thread.start()
        with fails("UNSUPPORTED_PROTOCOL"):
            listener.accept(0, ssl_context=tls_context(keys, "party0", True))
        thread.join(LIMIT)
    assert "ALERT_PROTOCOL_VERSION" in str(errors)


def test_a_party_without_a_certificate_is_refused(keys):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.minimum_version = ssl.TLSVersion.TLSv1_3
    bare.load_verify_locations(keys / "ca.pem")
    errors = []

    def connect(address):
        try:
            Link.connect(address, 1, ssl_context=bare)
        except LinkError as error:
            errors.append(error)

    with Link.listen() as listener:
        thread = threading.Thread(target=connect, args=(listener.address,))
        thread.start()
        with fails("PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            listener.accept(0, ssl_context=tls_context(keys, "party0", True))
        thread.join(LIMIT)
    assert errors
