# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A TLS listener: each connection that ends before it is used leaves a line in the log."""

import contextlib
import queue
import shutil
import socket
import threading
import time

import pytest

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.net import counted_log, tls_listener, trusted
from hf_securerouter.mpc.net.certificates import make_certificates
from hf_securerouter.mpc.net.counted_log import CountedLog
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.peer_watch import PeerWatch
from hf_securerouter.mpc.net.socket_stream import TlsStream, check_context
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.net.tls_listener import MAX_FROM_ADDRESS, TlsListener
from hf_securerouter.mpc.net.trusted import AllowList, write_list
from tests.support.transport_ends import tcp_pair


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


def test_unfinished_greetings_of_one_certificate_give_way(identities, monkeypatch):
    monkeypatch.setattr(tls_listener, "MAX_FROM_KEY", 4)
    lines, entered = [], queue.SimpleQueue()

    def enter(role, stream):
        entered.put(role)
        stream.sock.close()

    with TlsListener(identities["party0"], ("127.0.0.1", 0), ("client",), enter, lines.append) as listener:
        threads = threading.active_count()
        client, deadline = identities["client"].client, time.monotonic() + LIMIT
        held = [
            TlsStream(socket.create_connection(listener.address), client, False, "party0", deadline) for _ in range(20)
        ]
        connect(listener.address, "party0", identities["client"], deadline).sock.close()
        assert entered.get(timeout=LIMIT) == "client"
        while threading.active_count() > threads + 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for stream in held:
            stream.sock.close()


def test_a_listener_outlives_a_log_that_cannot_be_written_and_a_lack_of_threads(identities, monkeypatch):
    entered, start, failures = queue.SimpleQueue(), threading.Thread.start, []

    def log(line):
        raise OSError("no space left on device")

    def enter(role, stream):
        entered.put(role)
        stream.sock.close()

    def start_or_fail(thread):
        if "_serve" in str(thread._target) and len(failures) < 2:
            failures.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with TlsListener(identities["party0"], ("127.0.0.1", 0), ("client",), enter, log) as listener:
        with socket.create_connection(listener.address) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.settimeout(LIMIT)
            with contextlib.suppress(ConnectionError):
                while stranger.recv(100):
                    pass
        monkeypatch.setattr(threading.Thread, "start", start_or_fail)
        connect(listener.address, "party0", identities["client"], time.monotonic() + LIMIT).sock.close()
        assert entered.get(timeout=LIMIT) == "client" and len(failures) == 2


def test_the_end_of_a_peer_is_seen_behind_unread_data():
    own, peer = tcp_pair()
    waiting, other = tcp_pair()
    with own, waiting, other, PeerWatch(own) as watch:
        watch.end_with_it(waiting)
        peer.sendall(b"unread")
        assert not watch.gone.wait(0.3)
        peer.close()
        assert watch.gone.wait(LIMIT)
        waiting.settimeout(LIMIT)
        assert waiting.recv(1) == b""
        assert own.recv(100) == b"unread"


def test_an_allow_list_is_read_again_until_it_can_be_read(identities, tmp_path, monkeypatch):
    certificates = [identities[role].own for role in ("client", "client")]
    write_list(tmp_path / "users.json", certificates)
    allowed = AllowList(tmp_path / "users.json")
    write_list(tmp_path / "users.json", certificates[:1])

    def fail(path):
        raise SecureRouterValueError("no descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(trusted, "read_list", fail)
        assert not allowed.refresh() and len(allowed.users) == 2 and "stays in force" in allowed.problem
    assert allowed.refresh() and len(allowed.users) == 1 and allowed.problem is None


def test_the_context_of_new_clients_is_made_until_it_can_be_made(identities, tmp_path, monkeypatch):
    write_list(tmp_path / "peers.json", [identities["party0"].own])
    for name in ("certificate.pem", "key.pem"):
        shutil.copy(identities["party0"]._key / name, tmp_path / name)
    write_list(tmp_path / "users.json", [])
    identity = Identity.load(tmp_path)
    before = identity.server
    write_list(tmp_path / "users.json", [identities["client"].own])
    with monkeypatch.context() as patched:

        def fail(*arguments):
            raise SecureRouterValueError("no descriptors")

        patched.setattr(Identity, "_context", fail)
        assert identity.server is before and "cannot connect" in identity.problem
    assert identity.server is not before and identity.problem is None


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


def test_both_ends_require_tls_1_3_and_certificates_and_resume_nothing(identities):
    for context in (identities["party0"].server, identities["client"].client):
        check_context(context)
    assert identities["party0"].server.num_tickets == 0


def test_a_servers_key_is_no_clients(identities, tmp_path):
    write_list(tmp_path / "users.json", [identities["party0"].own])
    with pytest.raises(SecureRouterValueError, match="has a certificate of party0; only clients stand in it"):
        AllowList(tmp_path / "users.json")
