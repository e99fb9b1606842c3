# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties' link against ends that fail, break the protocol or keep silent."""

import os
import signal
import socket
import threading
import time

import pytest

from hf_securerouter.mpc.net.frame import HEADER, Abort, Kind
from tests.support.transport_ends import SECRET, Party1, fails, listening, pair


pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("task", ["stuck_in_a_frame", "silent"])
def test_a_killed_party_is_noticed(task):
    victim = Party1()
    try:
        with listening(victim, task, *([60] if task == "silent" else [])) as listener, listener.accept(0) as link:
            if task == "stuck_in_a_frame":
                time.sleep(0.5)  # by then its buffers are full
                os.kill(victim.process.pid, signal.SIGKILL)
            else:
                threading.Timer(0.5, os.kill, (victim.process.pid, signal.SIGKILL)).start()
            with fails("party1 closed the link"):
                link.exchange([SECRET + bytes((64 << 20) - len(SECRET))])
            with fails("is closed"):
                link.exchange([b""])
    finally:
        victim.stop()


def test_parties_with_different_plans_both_fail(party1):
    with listening(party1, "agree_then", {}, [10, 20]) as listener, listener.accept(0) as link:
        link.agree({})
        link.exchange([bytes(10)])
        with fails("announces 20 bytes in round 4 where 30 are due"):
            link.exchange([bytes(30)])
    assert "where 20 are due" in party1.failed()


def test_large_frames_of_different_plans_both_fail(party1):
    with listening(party1, "agree_then", {}, [64 << 20]) as listener, listener.accept(0) as link:
        link.agree({})
        with fails("bytes in round 3"):
            link.exchange([bytes(63 << 20)])
    assert "round 3" in party1.failed()


def test_a_party_that_is_a_round_behind_and_leaves_is_noticed(party1):
    with listening(party1, "agree_then", {}, []) as listener, listener.accept(0) as link:
        link.agree({})
        with fails("party1 closed the link"):
            link.exchange([bytes(30)])
    party1.returned()


@pytest.mark.parametrize(
    ("make", "match", "code"),
    [
        (
            lambda fake: fake.frame(Kind.DATA, SECRET, length=2**63),
            "announces 9223372036854775808 bytes",
            Abort.LENGTH,
        ),
        (
            lambda fake: fake.frame(Kind.DATA, SECRET[:5]),
            "announces 5 bytes in round 2 where 21 are due",
            Abort.LENGTH,
        ),
        (lambda fake: fake.frame(Kind.DATA, SECRET, round=1), "at round 1, this party at 2", Abort.ROUND),
        (lambda fake: fake.frame(Kind.DATA, SECRET, round=3), "at round 3, this party at 2", Abort.ROUND),
        (lambda fake: fake.frame(Kind.OBJECT, SECRET), r"kind 4 where kind 3 \(DATA\) was due", Abort.KIND),
        (lambda fake: fake.frame(99, SECRET), "kind 99", Abort.KIND),
        (lambda fake: SECRET * 10, "no message of this link", Abort.GARBAGE),
        (lambda fake: b"", "silent for 0.5 seconds", Abort.TIMEOUT),
        (lambda fake: fake.frame(Kind.DATA, SECRET)[:9], "silent", Abort.TIMEOUT),
        (lambda fake: fake.frame(Kind.DATA, SECRET)[:-1], "silent", Abort.TIMEOUT),
        (lambda fake: fake.frame(Kind.ABORT, b"", length=Abort.LENGTH), "party1 gave up: it got .* length", None),
        (lambda fake: fake.frame(Kind.ABORT, SECRET), "party1 gave up: it gave no known reason", None),
    ],
)
def test_a_broken_frame(make, match, code):
    with pair(timeout=0.5) as (link, fake):
        fake.send(make(fake))
        with fails(match):
            link.exchange([SECRET])
        fake.receive(HEADER.size + len(SECRET))
        assert fake.abort_code() == code
        with fails("is closed"):
            link.exchange([SECRET])


@pytest.mark.parametrize("length", [0, 9, 16, 20, 36])
def test_a_frame_cut_short(length):
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.DATA, SECRET)[:length])
        fake.sock.shutdown(socket.SHUT_WR)
        with fails("party1 closed the link in round 2"):
            link.exchange([SECRET])


def test_a_party_that_takes_nothing_is_noticed():
    with pair(timeout=0.5) as (link, fake):
        fake.send(fake.frame(Kind.DATA, SECRET))
        with fails("silent for 0.5 seconds"):
            link.exchange([bytes(64 << 20)], [len(SECRET)])
        with pytest.raises((ConnectionError, EOFError)):
            fake.receive(HEADER.size + (64 << 20))


def test_a_slow_party_is_not_a_silent_one():
    with pair(timeout=1.0) as (link, fake):
        frame = fake.frame(Kind.DATA, SECRET)

        def dawdle():
            for start in range(0, len(frame), 6):
                time.sleep(0.3)
                fake.send(frame[start : start + 6])

        thread = threading.Thread(target=dawdle)
        thread.start()
        assert bytes(link.exchange([SECRET])[0]) == SECRET
        thread.join()


def test_a_party_that_finishes_first_and_closes_does_not_spoil_the_last_exchange():
    with pair() as (link, fake):
        fake.send(fake.frame(Kind.DATA, SECRET))
        fake.sock.shutdown(socket.SHUT_WR)
        assert bytes(link.exchange([SECRET])[0]) == SECRET


def test_an_interrupted_exchange_closes_the_link(monkeypatch):
    with pair() as (link, fake):

        def interrupt(view):
            raise KeyboardInterrupt

        monkeypatch.setattr(link._stream, "pull", interrupt)
        with pytest.raises(KeyboardInterrupt):
            link.exchange([SECRET])
        fake.receive(HEADER.size + len(SECRET))
        with pytest.raises((ConnectionError, EOFError)):
            fake.receive(1)
        with fails("is closed"):
            link.exchange([SECRET])
