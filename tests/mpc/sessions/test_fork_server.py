# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Programs that a fork server starts behave as if Python had started them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hf_securerouter.mpc.sessions import fork_server
from hf_securerouter.mpc.sessions.fork_server import ForkError, ForkServer, shared_fork_server
from hf_securerouter.mpc.sessions.local import SessionError
from tests.support import ROOT
from tests.support.open_files import many_open_files
from tests.tiny import pool_model


LIMIT = 20.0
LONG = "import time; time.sleep(600)"


def end(process):
    process.kill()
    with contextlib.suppress(ForkError):
        process.wait(LIMIT)
    process.close()


@pytest.fixture(scope="module")
def server():
    with shared_fork_server() as server:
        yield server


@pytest.fixture
def start(server, tmp_path):
    """Starts a program, with one end of a socket; gives the process, the other end and the file of its stderr."""
    with contextlib.ExitStack() as stack:

        def starter(code, server=server, **environment):
            program, log = tmp_path / "program.py", tmp_path / "log"
            program.write_text(code)
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            ours.settimeout(LIMIT)
            with theirs, log.open("wb") as file:
                process = server.start([str(program), "one"], theirs.fileno(), file, os.environ | environment)
            stack.callback(end, process)
            return process, ours, log

        yield starter


def test_a_program_gets_arguments_folder_and_environment(start, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = """
import os, socket, sys
assert __name__ == "__main__" and sys.path[0] == os.path.dirname(sys.argv[0])
assert os.getsid(0) == os.getpid() and threading_count() == 1
with socket.socket(fileno=int(sys.argv[2])) as end:
    end.sendall(" ".join([sys.argv[1], os.getcwd(), os.environ["GIVEN"], str("HOME" in os.environ)]).encode())
""".replace("threading_count()", "__import__('threading').active_count()")
    process, end, log = start(code, GIVEN="this one")
    assert process.wait(LIMIT) == 0, log.read_text()
    assert end.recv(1000).decode() == f"one {tmp_path} this one {'HOME' in os.environ}"


@pytest.mark.parametrize(
    "code, status, said",
    [
        ("", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no such thing')", 1, "no such thing"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_the_status_and_the_errors_of_a_program(start, code, status, said):
    process, _, log = start(code)
    assert process.wait(LIMIT) == status
    assert process.poll() == status
    assert log.read_text().strip().endswith(said)
    process.kill()  # of a process that has ended: nothing happens


def test_a_running_program_can_be_waited_for_and_killed(start):
    process, _, _ = start(LONG)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.kill()
    assert process.wait(LIMIT) == -signal.SIGKILL


def test_a_caller_may_have_many_files_open(start):
    with many_open_files():
        process, _, _ = start(LONG)
        assert process._descriptor > 1024 and process.poll() is None
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL


def test_forks_share_no_random_numbers(start):
    code = """
import secrets, socket, sys
with socket.socket(fileno=int(sys.argv[2])) as end:
    end.sendall(secrets.token_bytes(16) + secrets.SystemRandom().randbytes(16))
"""
    drawn = [start(code)[1].recv(32) for _ in range(2)]
    assert len({part for data in drawn for part in (data[:16], data[16:])}) == 4


def test_a_server_that_has_ended_is_an_error(start):
    own = ForkServer(timeout=LIMIT)
    process, _, _ = start(LONG, own)
    own._process.kill()
    with pytest.raises(ForkError, match="has ended"):
        start("", own)
    process.kill()
    with pytest.raises(ForkError, match="has ended"):
        process.wait(LIMIT)
    own.close()
    own.close()


def test_a_server_that_stands_still_is_an_error(start):
    own = ForkServer(timeout=LIMIT)
    start("", own)[0].wait(LIMIT)
    own._timeout = 0.2
    os.kill(own.pid, signal.SIGSTOP)
    with pytest.raises(ForkError, match="does not answer"):
        start("", own)
    own.close()


def interrupt(connection):
    raise KeyboardInterrupt


def test_an_interrupted_request_leaves_no_answer_for_the_next(start, monkeypatch, capfd):
    monkeypatch.setattr(fork_server, "_shared", [])
    with shared_fork_server() as own:
        process, _, _ = start(LONG, own)
        with monkeypatch.context() as patched:
            patched.setattr(fork_server, "_receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                start(LONG, own)
        process.kill()
        with pytest.raises(ForkError, match="has ended or does not answer"):
            process.wait(LIMIT)
        assert own._process.wait(LIMIT) == 0
        with shared_fork_server() as another:
            assert another is not own and start("", another)[0].wait(LIMIT) == 0
    assert not fork_server._shared and another._process.returncode is not None
    assert "Traceback" not in capfd.readouterr().err


def test_a_session_says_when_no_role_can_start(monkeypatch):
    secure = pool_model().to_mpc(max_length=16)
    with shared_fork_server() as server:
        monkeypatch.setattr(server, "request", ForkServer.request.__get__(ended := ForkServer(timeout=LIMIT)))
        ended._process.kill()
        with pytest.raises(SessionError, match="No role was started"):
            secure.local_session(timeout=LIMIT).__enter__()
        ended.close()


def test_sessions_of_several_threads_share_the_server(start):
    statuses = {}

    def run(code):
        process, _, _ = start(f"raise SystemExit({code})")
        statuses[code] = process.wait(LIMIT)

    threads = [threading.Thread(target=run, args=(7,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert statuses == {7: 7}


CALLER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import psutil, torch
from tests.tiny import pool_model

secure = pool_model().to_mpc(max_length=16)
with secure.local_session(timeout=60) as one, secure.local_session(timeout=60) as two:
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
print(psutil.Process().children(recursive=True))
"""


def test_two_sessions_share_a_server_that_ends_with_the_last():
    done = subprocess.run([sys.executable, "-c", CALLER], capture_output=True, text=True, timeout=120)
    processes, rest = done.stdout.splitlines()
    assert len(processes.split()) == 1 + 2 * 3, done.stderr
    assert rest == "[]"


FORKING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from hf_securerouter.mpc.sessions import fork_server
from hf_securerouter.mpc.sessions.fork_server import shared_fork_server

with shared_fork_server() as server:
    child = os.fork()
    with shared_fork_server() as seen:
        os.write(1, f"{{seen is server}}\\n".encode())  # at once: two processes write here
    if child:
        assert os.waitpid(child, 0)[1] == 0 and server._process.poll() is None
"""


def test_a_fork_of_the_caller_has_a_server_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split()) == ["False", "True"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.fault
def test_the_server_and_the_roles_end_with_a_killed_caller():
    command = [sys.executable, "-c", CALLER, "wait"]
    caller = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with caller:
        processes = [psutil.Process(int(pid)) for pid in caller.stdout.readline().split()]
        caller.kill()
    assert len(processes) == 7
    started = time.monotonic()
    _, alive = psutil.wait_procs(processes, timeout=LIMIT)
    assert not alive, f"{alive} after {time.monotonic() - started} s"
