# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A TLS listener: each connection that ends before it is used leaves a line in the log."""

import contextlib
import queue
import socket
import threading
import time

import pytest

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.net import counted_log, tls_listener
from hf_securerouter.mpc.net.certificates import make_certificates
from hf_securerouter.mpc.net.counted_log import CountedLog
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.net.tls_listener import MAX_FROM_ADDRESS, TlsListener


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


def test_an_unexpected_error_is_logged_by_its_name(identities):
    lines = logged(identities, KeyError("a secret"))
    assert lines == ["Closed a connection from 127.0.0.1 after an unexpected KeyError."]


def test_silent_strangers_give_way_and_are_counted(identities, monkeypatch):
    monkeypatch.setattr(tls_listener, "FIRST_MESSAGE", 0.5)
    lines, entered = [], queue.SimpleQueue()

    def enter(role, stream):
        entered.put((role, stream.name))
        stream.sock.close()

    with TlsListener(identities["party0"], ("127.0.0.1", 0), ("client",), enter, lines.append) as listener:
        threads = threading.active_count()
        silent = [socket.create_connection(listener.address) for _ in range(3 * MAX_FROM_ADDRESS)]
        connect(listener.address, "party0", identities["client"], time.monotonic() + LIMIT).sock.close()
        role, name = entered.get(timeout=LIMIT)
        assert (role, name) == ("client", "trial")
        assert threading.active_count() <= threads + 1
        for sock in silent:
            sock.settimeout(LIMIT)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
            sock.close()
    assert lines == [
        "Refused a connection from 127.0.0.1: it gives way to newer connections, before its handshake is done.",
        "Refused a connection from 127.0.0.1: timed out during the TLS handshake",
    ]


def test_counted_lines_are_told_at_the_end_of_their_window(monkeypatch):
    lines = []
    log = CountedLog(lines.append)
    for number in range(100):
        log("same")
        log(f"line {number}")
    assert lines[:2] == ["same", "line 0"] and len(lines) == counted_log.MOST
    monkeypatch.setattr(counted_log, "WINDOW", 0.0)
    log("next")
    assert lines[-2:] == [f"{200 - counted_log.MOST} more such lines within 0 seconds, the last one: line 99", "next"]
