# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Python processes forked from one process that has loaded what every role needs.

Loading PyTorch takes a process seconds, and a session starts three. A `ForkServer` loads it once: it is a process that
runs no computation and starts no thread, so that a fork of it is as good as a fresh start. Sessions that are open at
the same time share it, and it ends with the last of them, or with their process.

Each fork has its own keys: all randomness of the roles comes from the operating system, none from a generator whose
state a fork would copy. CrypTen draws the seeds of its generators from the operating system too, after the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from ...errors import SecureRouterError


# glibc keeps freed memory for the next tensor, instead of returning it and faulting it in again, and uses huge pages
# if the kernel gives them on request. Other allocators ignore these variables.
_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_LENGTH = struct.Struct("!I")


class ForkError(SecureRouterError):
    """The process that starts the roles has ended, or did not answer in time."""


class ForkedProcess:
    """A fork, with the methods of `subprocess.Popen` that sessions need."""

    def __init__(self, server: ForkServer, pid: int):
        self.pid, self.returncode = pid, None  # type: int, int | None
        self._server = server
        # The server collects the status only when asked, so until then no other process can get this id.
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs.

        Raises:
            `ForkError`: The process has ended, and the server too, which knows the status.
        """
        if self.returncode is None and self._ended(0.0):
            self.returncode = self._server.request({"status": self.pid})["status"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, as soon as the process has ended.

        Raises:
            `ForkError`: As in `poll`.
            `subprocess.TimeoutExpired`: The process runs for longer than `timeout` seconds.
        """
        if self.returncode is None and not self._ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        status = self.poll()
        assert status is not None
        return status

    def _ended(self, timeout: float | None) -> bool:
        poll = select.poll()  # `select.select` refuses descriptors from 1024 on
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Forget the process, which has ended."""
        os.close(self._descriptor)


class ForkServer:
    """A process that forks Python programs; starting it takes no time, the first fork waits until it has loaded.

    Args:
        prefix (`Sequence[str]`): Command in front of Python's, for instance `nsenter`.
        descriptors (`Sequence[int]`): File descriptors that the prefix needs.
        timeout (`float`): Seconds to wait for the server, which loads PyTorch first.
    """

    def __init__(self, prefix: Sequence[str] = (), descriptors: Sequence[int] = (), timeout: float = 120.0):
        self.users = 0  # how many `with` blocks share it
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *descriptors],
                env=os.environ | _MEMORY,
                start_new_session=True,  # it does not get the terminal's Ctrl-C
            )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def broken(self) -> bool:
        """Whether a request failed; no other one can follow."""
        return self._socket.fileno() < 0

    def start(
        self, program: Sequence[str], descriptor: int, log: IO[bytes], environment: Mapping[str, str]
    ) -> ForkedProcess:
        """Run a Python program in a fork, in a process session of its own.

        Args:
            program (`Sequence[str]`): A script, or `-m` and a module, and arguments; the last one, the number of
                `descriptor` in the fork, is added.
            descriptor (`int`): A file descriptor that the fork inherits.
            log (file): Takes what the program writes to stderr; what it writes to stdout is lost.
            environment (`Mapping[str, str]`): The environment, except for variables that are read at Python's start.

        Raises:
            `ForkError`: The server has ended, or does not answer in time.
        """
        request = {"program": list(program), "folder": os.getcwd(), "environment": dict(environment)}
        return ForkedProcess(self, self.request(request, [descriptor, log.fileno()])["pid"])

    def request(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Ask the server; its answer.

        Raises:
            `ForkError`: The server has ended, or does not answer in time.
        """
        with self._lock:
            try:
                self._socket.settimeout(self._timeout)
                _send(self._socket, request, descriptors)
                answer, _ = _receive(self._socket)
                if answer is None:
                    raise EOFError
            except BaseException as error:
                self._socket.close()  # an answer that is still to come would be taken for the next request's
                if not isinstance(error, OSError | EOFError):
                    raise
                raise ForkError(
                    f"The process that starts the roles has ended or does not answer ({type(error).__name__})."
                ) from error
        return answer

    def leave(self) -> None:
        """Close this process's end of the connection, in a fork; the server ends when the last end is closed."""
        self._socket.close()

    def close(self) -> None:
        """End the server; its forks go on. Safe to call twice."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


_shared: list[ForkServer] = []
_sharing = threading.Lock()


@contextlib.contextmanager
def shared_fork_server() -> Iterator[ForkServer]:
    """The server of this process, started with the first `with` block and ended with the last; a new one follows a
    server that is broken."""
    with _sharing:
        if not _shared or _shared[-1].broken:
            _shared.append(ForkServer())
        server = _shared[-1]
        server.users += 1
    try:
        yield server
    finally:
        with _sharing:
            if server in _shared:  # not so in a fork of the process that started it
                server.users -= 1
                if not server.users:
                    _shared.remove(server)
                    server.close()


def _forget() -> None:
    """In a fork of this process, the server is the other process's, and ends with it."""
    global _sharing
    for server in _shared:
        server.leave()
    _shared.clear()
    _sharing = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(data))], descriptors)
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A message and its file descriptors; None at the end of the connection."""
    size, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    data = bytearray()
    while len(size) == _LENGTH.size and len(data) < _LENGTH.unpack(size)[0]:
        part = connection.recv(_LENGTH.unpack(size)[0] - len(data))
        if not part:
            return None, descriptors
        data += part
    return (json.loads(data) if data else None), descriptors


def serve(connection: socket.socket) -> None:
    """Fork programs, and tell their statuses, until the caller closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, descriptors = _receive(connection)
        if request is None:
            return
        if "status" in request:
            pid, status = os.waitpid(request["status"], os.WNOHANG)
            _send(connection, {"status": os.waitstatus_to_exitcode(status) if pid else None})
            continue
        pid = os.fork()
        if not pid:
            connection.close()
            _run(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _send(connection, {"pid": pid})


def _run(request: dict[str, Any], descriptor: int, log: int) -> None:
    """The fork: run the program as Python would have started it, and end."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(log, 2)
        os.close(log)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        program: list[str] = [*request["program"], str(descriptor)]
        first, rest = program[0], program[1:]
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path.insert(0, os.path.dirname(first))
            runpy.run_path(first, run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def load() -> None:
    """Load what the roles of every protocol need; transformers is not among it."""
    from ..protocols.masked import roles  # noqa: F401


if __name__ == "__main__":
    load()
    with contextlib.suppress(ConnectionError):  # the caller closed its end before it had its answer
        serve(socket.socket(fileno=int(sys.argv[1])))
