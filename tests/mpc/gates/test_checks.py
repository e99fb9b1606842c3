# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Debugging: values are checked against their bounds, at both parties, and only if `debug` is set."""

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.gate import together
from hf_securerouter.mpc.gates.party import BoundError, Party
from hf_securerouter.mpc.gates.relu import ReLU
from tests.support.harness import Input, attempt, joined, run


def checked(values, width, scale, bound):
    share = Input(torch.tensor(values), width, scale, bound)
    return lambda party: party.checked(share(party), "hidden state")


CASES = [
    ([5, -1023, 1023], 20, 4, 6, True),
    ([5, 1024], 20, 4, 6, False),
    ([5, -1024], 20, 4, 6, False),
    ([0, 2**19 - 1], 20, 0, 18, False),
    ([-(2**19)], 20, 0, 18, False),
    ([2**62], 64, 0, 61, False),
    ([-(2**63)], 64, 10, 30, False),
    ([-(2**62) + 1, 2**62 - 1], 64, 14, 48, True),
    ([[1, 2], [3, 4]], 9, 0, 3, True),
    ([1, 0], 1, 0, 0, False),
]


@pytest.mark.parametrize(("values", "width", "scale", "bound", "holds"), CASES)
def test_a_violated_bound_raises_at_both_parties(values, width, scale, bound, holds):
    program = checked(values, width, scale, bound)
    results, done = attempt(program, debug=True)
    if holds:
        assert torch.equal(joined(results), torch.tensor(values))
    else:
        for result in results:
            assert isinstance(result, BoundError)
            assert isinstance(result, SecureRouterError)
            assert str(result) == (
                f"`hidden state` exceeds its bound of 2^{bound}; raise the bound or calibrate again."
            )
    assert all(len(rounds) == 1 for rounds in done.sent)


@pytest.mark.parametrize(("values", "width", "scale", "bound", "holds"), CASES)
def test_otherwise_a_check_does_nothing_and_sends_nothing(values, width, scale, bound, holds):
    done = run(checked(values, width, scale, bound))
    assert done.sent == ([], [])
    assert done.plan.rounds == done.plan.payload_bytes == 0
    program = checked(values, width, scale, bound)

    def plain(party):
        before = party.secret(torch.zeros(1), 4, 0, 1)
        return (yield from Party.checked(party, before, "x")) is before

    assert run(plain).results == (True, True)
    assert [result.width for result in run(program).results] == [width, width]


def test_nothing_to_check_holds():
    share = Input(torch.zeros((0, 3), dtype=torch.int64), 10, 0, 1)
    results, _ = attempt(lambda party: party.checked(share(party), "nothing"), debug=True)
    assert [result.shape for result in results] == [(0, 3), (0, 3)]


def test_checks_go_between_gates_and_beside_them():
    """With `debug` a value inside its bound passes; a value outside is named before it gives a wrong result."""
    inside, outside = Input(torch.tensor([5, -7]), 12, 0, 4), Input(torch.tensor([5, -700]), 12, 0, 4)

    def program(share):
        def both(party):
            x = share(party)

            def layer(name):
                y = yield from party.checked(x, name)
                z = yield from ReLU((2,), 12, 20).run(party, y)
                return (yield from party.checked(z, f"{name} after ReLU"))

            return together(layer("first"), layer("second"))

        return both

    results, _ = attempt(program(inside), debug=True)
    for index in range(2):
        assert torch.equal(joined([result[index] for result in results]), torch.tensor([5, 0]))
    results, _ = attempt(program(outside), debug=True)
    assert [str(result).split(" ")[0] for result in results] == ["`first`", "`first`"]


def test_a_violated_bound_goes_unseen_in_production():
    """The result is wrong and nothing else happens: bounds need a margin."""
    share = Input(torch.tensor([700, -700]), 10, 0, 4)
    done = run(lambda party: ReLU((2,), 10, 20).run(party, share(party)))
    assert not torch.equal(done.integers, torch.tensor([700, 0]))
