# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A TLS listener: each connection that ends before it is used leaves a line in the log."""

import contextlib
import queue
import threading
import time

import pytest

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.net.certificates import make_certificates
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.net.tls_listener import TlsListener


LIMIT = 10.0


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    found = {}
    for role, files in make_certificates(("party0", "client")).items():
        folder = tmp_path_factory.mktemp(role)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found[role] = Identity.load(folder)
    return found


def logged(identities, error):
    """The log of a listener whose `enter` raises `error`, when the client's end has seen the connection close."""
    lines = []

    def enter(role, stream):
        raise error

    with TlsListener(identities["party0"], ("127.0.0.1", 0), ("client",), enter, lines.append) as listener:
        stream = connect(listener.address, "party0", identities["client"], time.monotonic() + LIMIT)
        stream.sock.settimeout(LIMIT)
        with contextlib.suppress(ConnectionError):  # an end that closes with unread bytes resets the connection
            assert stream.sock.recv(1) == b""
        stream.sock.close()
    return lines


@pytest.mark.parametrize("error", [OSError("no room"), SecureRouterError("no room")])
def test_a_refused_connection_is_logged_with_its_reason(identities, error):
    assert logged(identities, error) == ["Refused a connection from 127.0.0.1: no room"]


def test_an_unexpected_error_is_logged_by_its_name_and_raised(identities, monkeypatch):
    raised = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.put(arguments.exc_type))
    lines = logged(identities, KeyError("a secret"))
    assert lines == ["Closed a connection from 127.0.0.1 after an unexpected KeyError."]
    assert raised.get(timeout=LIMIT) is KeyError
