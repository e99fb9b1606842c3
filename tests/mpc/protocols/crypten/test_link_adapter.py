# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""CrypTen's communicator over the parties' link, between two processes."""

import subprocess
import sys

import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.net.frame import Kind
from hf_securerouter.mpc.protocols.crypten.link_adapter import CryptenLink
from tests.support import link_worker
from tests.support.transport_ends import listening, pair


pytestmark = pytest.mark.timeout(120)


def test_crypten_operations(party1):
    def wrapped(value):
        return (value + 2**63) % 2**64 - 2**63

    with listening(party1, "crypten_operations") as listener, listener.accept(0) as link:
        ours, theirs = link_worker.operations(CryptenLink(link)), party1.returned()
    x = [[[2**62 + rank, -5], [7 * rank, 2**63 - 1]] for rank in (0, 1)]
    total = [[wrapped(a + b) for a, b in zip(*rows, strict=True)] for rows in zip(*x, strict=True)]
    xor = [[a ^ b for a, b in zip(*rows, strict=True)] for rows in zip(*x, strict=True)]
    both = {
        "size": 2,
        "sum": total,
        "xor": xor,
        "batch": [total, 7, []],
        "transposed": [list(row) for row in zip(*total, strict=True)],
        "bytes": [(200 + 201) % 256],
        "all_gather": x,
        "broadcast": x[1],
        "broadcast batch": [x[0], 3],
        "floats": [0.5],
        "broadcast object": ["from", 1],
        "barrier": None,
    }
    first = {"reduce": None, "reduce batch": [xor, 3 ^ 4], "gather": [None], "scatter": x[0], "send": None}
    second = {"reduce": total, "reduce batch": None, "gather": [3, 4], "send": x[0]}
    second["scatter"] = [[wrapped(value + 1) for value in row] for row in x[0]]
    assert ours == both | first | {"object": None, "unchanged": x[0]}
    assert theirs == both | second | {"object": {"k": [1, 2.5, None, "ü"]}, "unchanged": x[1]}


def test_crypten_computes_over_the_link(party1):
    with listening(party1, "crypten_computes") as listener, listener.accept(0) as link:
        product, larger = link_worker.crypten_arithmetic(CryptenLink(link))
        rounds = link.ledger.total("rounds")
    assert product == pytest.approx([-6.0, 1.0, 6.5], abs=1e-3)
    assert larger == [1.0, 0.0, 1.0]
    assert (product, larger) == party1.returned()
    assert rounds > 5


def test_wrong_arguments_to_the_communicator_send_nothing():
    with pair() as (bare, fake):
        link = CryptenLink(bare)
        for call, match in (
            (lambda: link.send(torch.zeros(1), 0), "`dst` is 0"),
            (lambda: link.recv(torch.zeros(1), 0), "`src` is 0"),
            (lambda: link.send_obj(1, 0), "`dst` is 0"),
            (lambda: link.broadcast(torch.zeros(1), 2), "Rank 2"),
            (lambda: link.reduce(torch.zeros(1, dtype=torch.int64), 5), "Rank 5"),
            (lambda: link.all_reduce(torch.zeros(1)), "torch.float32 cannot be reduced"),
            (lambda: link.all_reduce(torch.tensor([1]), op=torch.distributed.ReduceOp.MAX), "`op` is"),
            (lambda: link.all_reduce([torch.zeros(1)]), "`input` must be"),
            (lambda: link.all_reduce(torch.zeros(1), batched=True), "`input` must be"),
            (lambda: link.set_name(3), "`name` must be"),
        ):
            with pytest.raises(SecureRouterValueError, match=match):
                call()
        fake.send(fake.frame(Kind.DATA, b""))
        link.barrier()


def test_an_adapter_without_crypten_says_how_to_install_it():
    code = (
        "import sys; sys.modules['crypten'] = None\n"
        "from hf_securerouter.mpc.protocols.crypten.link_adapter import CryptenLink\n"
        "try: CryptenLink(None)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install --no-deps crypten==0.4.1" in done.stdout
