# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One role in a process of its own: `python -m hf_securerouter.mpc.sessions.role_process ROLE FD`.

FD is the inherited end of a socket to the caller. The caller sends `setup`, the weights and queries; every query gets
an answer, if only an error. The process ends at once when the caller closes its end or dies.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

import torch

from ..net.channel import Channel, ChannelError
from ..net.ledger import Ledger
from ..protocols.base import make_program
from .core_dumps import forbid_core_dumps


def main(role: str, descriptor: int) -> int:
    """Serve the caller until it closes the channel.

    Args:
        role (`str`): `party0`, `party1` or `dealer`.
        descriptor (`int`): File descriptor of the socket.

    Returns:
        `int`: Exit status.
    """
    forbid_core_dumps()
    # On Ctrl-C the caller closes the channel, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor), "the caller")
    frames: queue.SimpleQueue[tuple[dict[str, Any], dict[str, torch.Tensor]]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, frames), daemon=True).start()
    try:
        _serve(role, channel, frames)
    except Exception as error:
        # The caller gets the text of the error, which never contains a share.
        try:
            channel.send({"kind": "error", "error": f"{type(error).__name__}: {error}"}, timeout=5)
        except ChannelError:
            pass
        return 1
    return 0


def _read(channel: Channel, frames: queue.SimpleQueue) -> None:
    """Collect frames; end the process when the caller has left, even in the middle of a computation."""
    while True:
        try:
            frames.put(channel.receive(timeout=None))
        except ChannelError:
            os._exit(0)


def _serve(role: str, channel: Channel, frames: queue.SimpleQueue) -> None:
    ledger = Ledger()
    header, _ = frames.get()
    torch.set_num_threads(header["threads"])
    program = make_program(role, header, ledger)
    while True:
        header, tensors = frames.get()
        if header["kind"] == "weights":
            program.receive_weights(tensors)
        elif header["kind"] == "ready":
            channel.send({"kind": "ready", "ledger": ledger.to_dict()})
        else:
            ledger.reset()
            answer, shares = program.query(header, tensors)
            channel.send({"kind": "result", "ledger": ledger.to_dict(), **answer}, shares)


if __name__ == "__main__":
    status = main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    # Not a normal exit: CrypTen's process groups may wait for roles that have ended.
    os._exit(status)
