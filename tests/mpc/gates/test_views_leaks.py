# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The audit of masks, and controls for the tests of views: gates that leak are caught."""

from dataclasses import dataclass

import pytest
import torch

from hf_securerouter.mpc.gates.gate import Gate, together
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.ring.randomness import PadReusedError
from tests.support.enumeration import Case
from tests.support.harness import Input, PeerGone, attempt, run
from tests.support.leaks import LEAKS, Hidden, SharedBeta, Twice, TwoUnderOneMask, UnreducedDealing, again, gate_of


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_shows_in_the_views(name, rank):
    assert not LEAKS[name].same(rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_same_gates_without_the_leak_pass(rank):
    assert Case(gate_of(lambda shape: Twice(shape, 4)), (4,), [(0,), (3,)]).same(rank)
    # Bits that are equal in both secrets' difference look the same under a shared beta.
    assert Case(gate_of(SharedBeta), (0, 0), [(0, 1), (1, 0)]).same(rank)


def test_an_unreduced_correction_shows_in_the_views():
    secrets = [(0,), (3,)]
    assert Case(gate_of(Hidden), (3,), secrets).same(0, everything=True)
    assert not Case(gate_of(Hidden), (3,), secrets, dealing_class=UnreducedDealing).same(0, everything=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_corrections_are_needed_for_a_view(rank):
    """The opening alone is uniform for every secret; only together with the correction could it leak."""
    assert Case(gate_of(Hidden), (3,), [(0,), (1,), (3,)]).same(rank, everything=True)


def test_a_mask_serves_one_opening():
    share = Input(torch.arange(5), 12)
    gate = TwoUnderOneMask((5,), 12, 12, audited=True)
    with pytest.raises(PadReusedError, match="12 bits was used for a second message"):
        run(lambda party: gate.run(party, share(party)))


def test_a_mask_spent_twice_is_seen_at_both_parties():
    """Also if the plan was traced without the reuse, and within one round."""

    @dataclass(frozen=True)
    class Careless(Gate):
        shape: tuple[int, ...]

        def deal(self, dealing):
            dealing.mask(self.shape, 9)

        def run(self, party, x):
            randomness = party.take(self)
            mask = randomness.mask(self.shape, 9)
            traced = x.words.device.type == "meta"
            yield [randomness.open(x.words, mask), randomness.open(x.words, again(mask) if traced else mask)]

    share = Input(torch.arange(5), 9)
    results, done = attempt(lambda party: Careless((5,)).run(party, share(party)))
    assert all(isinstance(result, PadReusedError | PeerGone) for result in results)
    assert any(isinstance(result, PadReusedError) for result in results)
    assert done.sent == ([], [])


def test_an_operand_is_not_opened_twice():
    """An operand of a product cannot be opened twice: the gate's mask is spent."""
    shares = Input(torch.ones(1, 1, dtype=torch.int64), 20), Input(torch.zeros(1, 1, dtype=torch.int64), 20)

    def program(party):
        operands = Matmul((1, 1), (1, 1), 20).start(party)
        yield from together(*(operands.open_left(share(party)) for share in shares))

    with pytest.raises(PadReusedError):
        run(program)
