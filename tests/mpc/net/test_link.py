# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties' link between two processes, and CrypTen's communicator on it."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.net.frame import HEADER, MAX_OBJECT, Abort, Kind
from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.net.link import Link, LinkError
from hf_securerouter.mpc.net.signs_of_life import SignsOfLife
from tests.support import link_worker
from tests.support.link_worker import pattern, tls_context
from tests.support.transport_ends import LIMIT, TOKEN, Fake, fails, listening, pair, tcp_pair
from tests.support.waiting import ended


pytestmark = pytest.mark.timeout(120)


# Exchanges between two processes.


@pytest.mark.parametrize("tls", [False, True])
def test_exchange_carries_any_lengths(party1, keys, tls):
    big = 24 << 20  # more than the buffers of both sockets hold
    own = [0, 1, 15, 16, 17, 65537, big, 0, 3]
    theirs = [5, 0, big + 1, 1, 16384]
    options = {"tls": keys} if tls else {}
    with listening(party1, "mirror", theirs, own, **options) as listener:
        context = tls_context(keys, "party0", True) if tls else None
        with listener.accept(0, ssl_context=context) as link:
            received = link.exchange([pattern(i, length) for i, length in enumerate(own)], theirs)
            assert [len(part) for part in received] == theirs
            for i, part in enumerate(received):
                assert bytes(part) == pattern(1000 + i, theirs[i])
    assert all(party1.returned())


def test_what_is_received_is_writable_and_its_own():
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.DATA, b"abcd") + fake.frame(Kind.DATA, b"efgh"))
        (first,) = link.exchange([bytes(4)])
        np.frombuffer(first, dtype=np.uint8)[0] = 0
        (second,) = link.exchange([bytes(4)])
        assert bytes(first) == b"\0bcd" and bytes(second) == b"efgh"


def test_parts_are_any_contiguous_buffers_sent_back_to_back():
    words = np.arange(6, dtype=np.int64).reshape(2, 3)
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.DATA, bytes(51)))
        parts = [b"ab", bytearray(b"c"), memoryview(words), np.zeros((0, 3)), torch.zeros(0).numpy()]
        assert [len(part) for part in link.exchange(parts)] == [2, 1, 48, 0, 0]
        assert fake.receive(HEADER.size + 51)[HEADER.size :] == b"abc" + words.tobytes()
        with pytest.raises(SecureRouterValueError, match="C-contiguous"):
            link.exchange([words.T])
        fake.send(fake.frame(Kind.DATA, b""))
        link.exchange([])  # nothing was sent, so both ends are still in step


@pytest.mark.parametrize("tls", [False, True])
def test_a_party_that_computes_for_long_is_alive_and_a_stopped_one_is_not(keys, tls):
    ends = tcp_pair()
    contexts = [tls_context(keys, f"party{rank}", rank == 0) if tls else None for rank in (0, 1)]
    links, ledgers = {}, (Ledger(), Ledger())

    def meet(rank):
        links[rank] = Link(
            ends[rank], rank, ledger=ledgers[rank], ssl_context=contexts[rank], server_side=rank == 0, timeout=LIMIT
        )

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    links[0].timeout = 0.4
    ledgers[0].reset()
    ledgers[1].reset()

    def answer_late():
        with SignsOfLife(links[1], 0.1):
            time.sleep(1.5)  # computes
        links[1].exchange([b"late"])

    late = threading.Thread(target=answer_late)
    late.start()
    assert bytes(links[0].exchange([b"soon"])[0]) == b"late"
    late.join(LIMIT)
    assert ledgers[0].total("received") == ledgers[1].total("sent") == ledgers[0].total("sent")
    with fails("party1 was silent for 0.4 seconds"):
        links[0].exchange([b"nobody"])
    links[1].close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    own=st.lists(st.integers(0, 70_000), max_size=6),
    theirs=st.lists(st.integers(0, 70_000), max_size=6),
    tls=st.booleans(),
)
def test_exchange_property(keys, own, theirs, tls):
    a, b = socket.socketpair()
    contexts = [tls_context(keys, f"party{rank}", rank == 0) if tls else None for rank in (0, 1)]
    sides = [None, None]

    def party(sock, rank, send, receive):
        with Link(sock, rank, ssl_context=contexts[rank], server_side=rank == 0) as link:
            parts = link.exchange([pattern(rank * 1000 + i, length) for i, length in enumerate(send)], receive)
            link.exchange([])
            sides[rank] = [bytes(part) for part in parts], link.ledger.total("sent"), link.ledger.total("received")

    thread = threading.Thread(target=party, args=(b, 1, theirs, own))
    thread.start()
    party(a, 0, own, theirs)
    thread.join(LIMIT)
    assert sides[0][0] == [pattern(1000 + i, length) for i, length in enumerate(theirs)]
    assert sides[1][0] == [pattern(i, length) for i, length in enumerate(own)]
    assert sides[0][1:] == sides[1][:0:-1]


@pytest.mark.parametrize("tls", [False, True])
def test_ledger_equals_the_kernel_counters(party1, keys, tls):
    options = {"tls": keys} if tls else {"token": TOKEN}
    with socket.create_server(("127.0.0.1", 0)) as server:
        party1.start("counted", server.getsockname(), hello={"plan": "1234"}, **options)
        sock, _ = server.accept()
        acknowledged, _ = link_worker.kernel_counters(sock)
        ledger = Ledger()
        if tls:
            options = {"ssl_context": tls_context(keys, "party0", True), "server_side": True}
        link = Link(sock, 0, ledger=ledger, hello={"plan": "1234"}, **options)
        counts, kernel, traffic = link_worker.exchange_and_count(link, sock, acknowledged)
    their_counts, their_kernel, _ = party1.returned()
    link_worker.close_kept()
    party1.start("close_kept")
    party1.returned()
    assert counts[:2] == kernel and their_counts[:2] == their_kernel
    assert counts[:2] == their_counts[1::-1]
    assert counts[2] == their_counts[2] == (6 if tls else 7)
    assert counts[0] > 5_000_001 + 6 * HEADER.size
    assert traffic == sum(counts[:2])


def test_a_round_costs_its_bytes_and_one_header():
    with pair() as (link, fake):
        link.ledger.reset()
        fake.send(fake.frame(Kind.DATA, bytes(7)))
        link.exchange([bytes(100)], [7])
        assert [link.ledger.total(what) for what in ("sent", "received", "rounds")] == [116, 23, 1]


# The handshake.


@pytest.mark.parametrize(
    ("ours", "task", "theirs", "name"),
    [
        ({}, "say_hello", {"rank": 0}, "rank"),
        ({}, "say_hello_as_version_2", {}, "version"),
        ({"hello": {"plan": "1"}}, "say_hello", {"hello": {"plan": "2"}}, "plan"),
        ({"hello": {"plan": "1"}}, "say_hello", {"hello": {"plan": "1", "nonce": "3"}}, "nonce"),
        ({"hello": {"plan": "1"}}, "say_hello", {}, "plan"),
        ({"token": TOKEN}, "say_hello", {}, "use of a token"),
        ({}, "say_hello", {"token": TOKEN}, "use of a token"),
    ],
)
def test_both_parties_name_what_they_do_not_agree_on(party1, ours, task, theirs, name):
    with listening(party1, task, **theirs) as listener, fails(f"do not agree on: `{name}`"):
        listener.accept(0, **ours)
    assert f"do not agree on: `{name}`" in party1.failed()


def test_parties_that_agree_get_a_link(party1):
    options = {"token": TOKEN, "hello": {"plan": "1", "tuple": "2", "nonce": "3"}}
    with listening(party1, "say_hello", **options) as listener, listener.accept(0, **options) as link:
        link.exchange([])
    party1.returned()


def test_a_party_with_another_token_is_refused(party1):
    with listening(party1, "say_hello", token=bytes(32)) as listener, fails("did not prove"):
        listener.accept(0, token=TOKEN)
    assert "did not prove" in party1.failed()


def test_agree_later(party1):
    with listening(party1, "agree_then", {"tuple": "7"}, []) as listener, listener.accept(0) as link:
        with fails("do not agree on: `tuple`"):
            link.agree({"tuple": "8"})
    assert "`tuple`" in party1.failed()


def test_a_stranger_without_the_token_is_refused_and_the_party_let_in_after(party1):
    with Link.listen() as listener:
        stranger = Fake(socket.create_connection(listener.address))
        stranger.send(stranger.hello(version=1, rank=1, challenge="0" * 64))
        # An impostor knows only the proof that it received, and sends it back as its own.
        thread = threading.Thread(target=stranger.reflect_proof, daemon=True)
        thread.start()
        with fails("did not prove"):
            listener.accept(0, token=TOKEN, hello={"tuple": "seven"})
        ended(thread, "an impostor to send back the proof that it got")
        assert stranger.abort_code() == Abort.IDENTITY
        assert b"seven" not in stranger.seen
        party1.start("say_hello", listener.address, token=TOKEN)
        with listener.accept(0, token=TOKEN) as link:
            link.exchange([])
    party1.returned()


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"\x16\x03\x01\x02\x00\x01" + bytes(60)]
)
def test_a_stranger_that_speaks_otherwise_is_refused(greeting):
    with Link.listen() as listener, socket.create_connection(listener.address) as stranger:
        stranger.sendall(greeting)
        with fails("no message of this link" if greeting else "silent for 0.5 seconds"):
            listener.accept(0, token=TOKEN, timeout=0.5)


def test_a_stranger_that_drips_is_refused_in_time():
    with Link.listen() as listener, socket.create_connection(listener.address) as stranger:
        done = threading.Event()

        def drip():
            for byte in HEADER.pack(b"SRL", Kind.HELLO, 0, 1000) + bytes(1000):
                if done.wait(0.2):
                    return
                try:
                    stranger.send(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with fails("silent|in time"):
            listener.accept(0, timeout=1.0)
        done.set()
        ended(thread, "a stranger that drips to be told to end")


@pytest.mark.parametrize(
    "greeting",
    [
        b"[]",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        json.dumps({"version": 1, "rank": 1, "challenge": "\ud800"}).encode(),
        json.dumps({"version": 1, "rank": 1, "challenge": 5}).encode(),
    ],
)
def test_a_greeting_that_cannot_be_read_is_refused(greeting):
    a, b = tcp_pair()
    with b:
        b.sendall(HEADER.pack(b"SRL", Kind.HELLO, 0, len(greeting)) + greeting)
        with fails("cannot be read|not JSON|do not agree|closed"):
            Link(a, 0, token=TOKEN)


def test_nobody_there():
    with Link.listen() as listener:
        with fails("did not connect within 0.3 seconds"):
            listener.accept(0, timeout=0.3)
    with fails("party1 does not listen"):
        Link.connect(listener.address, 0, timeout=0.3)


def test_connect_waits_for_a_listener(party1):
    with Link.listen() as listener:
        address = listener.address
    party1.start("say_hello", address)
    time.sleep(0.3)
    with Link.listen(*address) as listener, listener.accept(0) as link:
        link.exchange([])
    party1.returned()


def test_clear_text_does_not_leave_the_machine(monkeypatch):
    with Link.listen() as listener:
        monkeypatch.setattr(socket.socket, "getpeername", lambda self: ("192.0.2.1", 1))
        with pytest.raises(SecureRouterValueError, match="192.0.2.1 leaves this machine: give it an `ssl_context`"):
            Link.connect(listener.address, 0)
        with pytest.raises(SecureRouterValueError, match="leaves this machine"):
            listener.accept(0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 2}, "`rank` is 2"),
        ({"timeout": 0}, "`timeout` is 0"),
        ({"token": b"short"}, "`token` has 5 bytes"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}, "minimum_version"),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "CERT_REQUIRED"),
    ],
)
def test_wrong_arguments(options, match):
    a, b = tcp_pair()
    with a, b, pytest.raises(SecureRouterValueError, match=match):
        Link(a, **{"rank": 0, **options})


@pytest.mark.parametrize(
    "obj",
    [torch.zeros(2), (1, 2), {1: 2}, b"", float("nan"), np.int64(3), {"a": {3}}, Ledger(), "x" * MAX_OBJECT],
)
def test_objects_that_json_does_not_hold_are_refused_unsent(obj):
    with pair() as (link, fake):
        with pytest.raises(SecureRouterValueError, match="JSON|limit"):
            link.send_object(obj)
        fake.send(fake.frame(Kind.DATA, b""))
        link.exchange([])


@pytest.mark.parametrize("payload", [b"\x80\x04N.", b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_objects_received_are_json(payload):
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.OBJECT, payload))
        with fails("not JSON"):
            link.receive_object()
        fake.receive(HEADER.size)
        assert fake.abort_code() == Abort.GARBAGE


def test_an_object_past_the_limit_is_refused():
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.OBJECT, b"", length=MAX_OBJECT + 1))
        with fails("announces an object"):
            link.receive_object()


def test_a_link_needs_no_crypten():
    """A machine without CrypTen runs the masked protocol."""
    code = (
        "import sys, socket, threading; sys.modules['crypten'] = None\n"
        "from hf_securerouter.mpc.net.link import Link\n"
        "import hf_securerouter.mpc.protocols.masked.roles\n"
        "a, b = socket.socketpair()\n"
        "other = threading.Thread(target=lambda: Link(b, 1).exchange([b'2']))\n"
        "other.start()\n"
        "print(bytes(Link(a, 0).exchange([b'1'])[0]))\n"
        "other.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "b'2'\n"), done.stderr


@pytest.mark.benchmark
@pytest.mark.parametrize("tls", [False, True])
def test_measure(party1, keys, tls):
    with listening(party1, "measure", **({"tls": keys} if tls else {})) as listener:
        with listener.accept(0, ssl_context=tls_context(keys, "party0", True) if tls else None) as link:
            tiny, large = link_worker.timed(link)
    party1.returned()
    print(
        f"\n64 bytes: {tiny * 1e6:.0f} us; 64 MiB: {large * 1e3:.0f} ms, {(64 << 20) / large / 1e9:.2f} GB/s each way"
    )


def test_link_errors_are_the_packages_own():
    assert issubclass(LinkError, SecureRouterError)
