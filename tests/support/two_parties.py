# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Two parties on two threads of one process, over a real link, and a small program for them."""

import socket
import threading

import torch

from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.net.link import Link
from hf_securerouter.mpc.protocols.masked.evaluator import SecureProgram
from hf_securerouter.mpc.ring.fixed_point import from_fixed_point, to_fixed_point
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed


PATIENCE = 20
SHAPE = (3, 5)
WIDTH, SCALE, BOUND = 40, 14, 5


def _relu_and_back(party, shares):
    """ReLU after a GeLU whose result is discarded: a second gate of another size."""
    x = party.secret(shares["x"], WIDTH, SCALE, BOUND)
    yield from Activation("gelu", SHAPE, BOUND, 12, SCALE, 36).run(party, x)
    return (yield from ReLU(SHAPE, x.value_bits, WIDTH).run(party, x))


PROGRAM = SecureProgram(
    "relu/3x5", _relu_and_back, {"x": torch.empty(SHAPE, dtype=torch.int64, device="meta")}, weights={}
)


def shared(values):
    """Both parties' shares of real numbers."""
    mask = Csprng(new_seed(), b"test").ring(SHAPE, WIDTH)
    return to_fixed_point(values, SCALE) - mask, mask


def expected(results):
    """The real numbers that two shares of a result encode."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return from_fixed_point(results[0].words + results[1].words, results[0].width, results[0].scale).float()


def at_both(action, *, timeout=PATIENCE):
    """Run `action(rank, link)` at both parties; return its two results or exceptions."""
    results = [None, None]

    def work(rank, sock):
        link = None
        try:
            link = Link(sock, rank, timeout=timeout)
            results[rank] = action(rank, link)
        except Exception as error:
            results[rank] = error
        finally:
            if link is not None:
                link.close()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(socket.socketpair())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * timeout)
        assert not thread.is_alive(), "a party hangs"
    return results
