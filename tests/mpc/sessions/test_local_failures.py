# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A session that fails ends soon, with the reason, and leaves no process behind."""

import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import psutil
import pytest

from hf_securerouter.mpc.sessions import fork_server
from hf_securerouter.mpc.sessions.local import SessionError
from tests.support import ROOT
from tests.support.children import children
from tests.tiny import pool_model


LIMIT = 10.0

CALLER = """
import signal
import sys
sys.path.insert(0, {tests!r})
import torch
from tests.support.children import children
from tests.tiny import pool_model

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores SIGINT for background processes
secure = pool_model().to_mpc(max_length=16, protocol="crypten")
with secure.local_session(timeout=120) as session:
    ids = torch.full((2, 16), 7)
    session({{"input_ids": ids}})
    print(*[child.pid for child in children()], flush=True)
    while {busy}:
        session({{"input_ids": ids}})
    signal.pause()
"""
# One role in `make test`, all of them in `make faults`.
KILLED = ["party1", *(pytest.param(name, marks=pytest.mark.fault) for name in ("party0", "dealer"))]


@pytest.fixture(scope="module")
def secure(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return pool_model().to_mpc(tokenizer=tokenizer, max_length=16, protocol="crypten")


@pytest.fixture(scope="module")
def without_dealer(tokenizer):
    """Starts faster: only two processes."""
    with pytest.warns(UserWarning, match="party 0 make all correlated randomness"):
        return pool_model().to_mpc(tokenizer=tokenizer, max_length=16, protocol="crypten", provider="tfp")


def wait_until_gone(processes):
    gone, alive = psutil.wait_procs(processes, timeout=LIMIT)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.parametrize("role", KILLED)
def test_a_killed_role_ends_the_session(secure, role):
    killed = []

    def kill(process):
        killed.append(time.monotonic())
        process.kill()

    with pytest.raises(SessionError, match=f"{role} was killed by signal 9"):
        with secure.local_session(timeout=120) as session:
            processes = children()
            threading.Timer(0.7, kill, [session._roles[role].process]).start()
            while True:  # in the middle of a query, or just before one
                session(["the film was good"] * 8)
    assert time.monotonic() - killed[0] < LIMIT
    assert len(processes) == 3
    wait_until_gone(processes)
    assert not session._roles


def test_a_role_that_does_not_answer_ends_the_session(secure):
    with pytest.raises(SessionError, match="No answer from .*party1.* within 2 seconds"):
        with secure.local_session(timeout=120) as session:
            processes = children()
            session.timeout = 2.0
            session._roles["party1"].process.send_signal(signal.SIGSTOP)
            start = time.monotonic()
            session(["the film was good"])
    assert time.monotonic() - start < LIMIT
    wait_until_gone(processes)


def test_an_exception_in_the_caller_ends_all_roles(without_dealer):
    with pytest.raises(ZeroDivisionError):
        with without_dealer.local_session(timeout=120) as session:
            processes = children()
            folder = session._folder
            raise ZeroDivisionError
    assert len(processes) == 2
    wait_until_gone(processes)
    assert not folder.exists()


def test_an_interrupt_while_the_roles_start_leaves_nothing(without_dealer, monkeypatch, tmp_path):
    receive, started = fork_server._receive, []

    def interrupted(connection):
        answer, descriptors = receive(connection)
        if "pid" in answer:
            started.append(psutil.Process(answer["pid"]))
            if len(started) == 2:
                raise KeyboardInterrupt
        return answer, descriptors

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fork_server, "_shared", [])
    monkeypatch.setattr(fork_server, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        without_dealer.local_session(timeout=60).__enter__()
    assert len(started) == 2 and not fork_server._shared and not list(tmp_path.iterdir())
    wait_until_gone(started)


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_what_fails_in_closing_hides_no_error_and_leaves_nothing(without_dealer, monkeypatch, error):
    def fail(*_):
        raise OSError("cannot be closed")

    monkeypatch.setattr(fork_server, "_shared", [])
    with pytest.raises(error or OSError):
        with without_dealer.local_session(timeout=60) as session:
            roles, folder, shared = list(session._roles.values()), session._folder, fork_server._shared[0]
            processes = [psutil.Process(role.process.pid) for role in roles]
            monkeypatch.setattr(roles[-1].process, "wait", fail)
            monkeypatch.setattr(shared, "request", fail)
            if error is not None:
                raise error
    wait_until_gone(processes)
    assert not folder.exists() and not fork_server._shared and shared._process.returncode is not None
    assert all(role.channel._stream.sock.fileno() < 0 for role in roles) and not session.is_open


@pytest.mark.fault
def test_roles_end_with_their_caller():
    # One is stopped while its roles compute, the other while they wait.
    tests = str(ROOT)
    callers = {
        sent: subprocess.Popen(
            [sys.executable, "-c", CALLER.format(tests=tests, busy=sent == signal.SIGINT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for sent in (signal.SIGINT, signal.SIGKILL)
    }
    try:
        for sent, caller in callers.items():
            roles = [psutil.Process(int(pid)) for pid in caller.stdout.readline().split()]
            assert len(roles) == 3
            caller.send_signal(sent)
            _, errors = caller.communicate(timeout=LIMIT)
            assert caller.returncode != 0
            assert ("KeyboardInterrupt" in errors) == (sent == signal.SIGINT)
            wait_until_gone(roles)
    finally:
        for caller in callers.values():
            caller.kill()


def test_a_role_that_cannot_start_is_reported(without_dealer, monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr("hf_securerouter.mpc.sessions.local.ROLE_PROGRAM", (str(program),))
    with pytest.raises(SessionError, match="party. exited, and the session is over: no such thing"):
        without_dealer.local_session(timeout=60).__enter__()
    wait_until_gone(children())


def test_an_error_inside_a_role_reaches_the_caller(without_dealer):
    with pytest.raises(SessionError, match="party. failed and the session is over: "):
        with without_dealer.local_session(timeout=60) as session:
            processes = children()
            for role in ("party0", "party1"):
                session._send(role, {"kind": "query", "batch": 1}, {})  # without its inputs
            session._collect("result", 60)
    wait_until_gone(processes)
