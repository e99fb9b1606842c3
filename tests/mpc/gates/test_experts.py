# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The gates of a mixture of experts: ANDs, the products of all experts' weights, and the largest of many scores."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.gates.argmax import Argmax
from hf_securerouter.mpc.gates.compare import deal_and
from hf_securerouter.mpc.gates.conjunction import And
from hf_securerouter.mpc.gates.expert_linear import ExpertLinear
from hf_securerouter.mpc.gates.largest import largest
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from hf_securerouter.mpc.ring.words import packed_size, signed
from hf_securerouter.mpc.tuples.plan import trace
from tests.support.enumeration import Case
from tests.support.harness import Bits, Input, joined, run
from tests.support.leaks import again


def uniform(shape, bits):
    return signed(Csprng(new_seed(), b"test").ring(shape, bits).to(torch.int64), bits)


PRODUCTS = ((0, 1), (0, 2), (1, 2, 3))


def test_ands_of_several_bits():
    bits = torch.tensor([[row >> index & 1 for row in range(16)] for index in range(4)])
    given_bits = Bits(bits)
    done = run(lambda party: And(4, 16, PRODUCTS).run(party, given_bits(party)))
    expected = torch.stack([bits[list(product)].all(0) for product in PRODUCTS])
    assert torch.equal(done.bits.bool(), expected)
    assert (done.plan.payload_bytes, done.plan.rounds) == (packed_size(64, 1), 1)
    assert done.plan.dealer_bytes == 6 * packed_size(16, 1)  # 01, 02, 12, 13, 23 and 123


@settings(max_examples=8, deadline=None)
@given(
    experts=st.integers(1, 4), rows=st.integers(1, 3), features=st.integers(1, 5), same=st.booleans(),
    width=st.integers(9, 64),
)  # fmt: skip
def test_every_expert_multiplies_its_rows(experts, rows, features, same, width):
    gate = ExpertLinear(experts, rows, features, 3, width, "w", same)
    x, weight = uniform(gate.shape, width), uniform((experts * features, 3), 64)
    given_x = Input(x, width)
    done = run(lambda party: gate.run(party, given_x(party), 7, 4), {"w": weight})
    assert torch.equal(done.integers, signed(x @ weight.view(experts, features, 3), width))
    assert done.results[0].scale == 7
    assert (done.plan.payload_bytes, done.plan.rounds) == (packed_size(x.numel(), width), 1)
    assert done.plan.dealer_bytes == packed_size(experts * rows * 3, width)


@settings(max_examples=6, deadline=None)
@given(
    count=st.sampled_from([2, 3, 8, 16, 17, 24, 40, 128]), seed=st.integers(0, 99), spread=st.sampled_from([2, 200])
)
def test_the_largest_score_and_its_lowest_index(count, seed, spread):
    scores = torch.randint(-spread, spread, (5, count), generator=torch.Generator().manual_seed(seed))
    x = Input(scores, 10)
    (one_hot, top), (other, other_top) = run(lambda party: largest(party, x(party), 10)).results
    lowest = torch.tensor([row.index(max(row)) for row in scores.tolist()])
    assert torch.equal((one_hot ^ other).t().to(torch.int64), torch.nn.functional.one_hot(lowest, count))
    assert torch.equal(joined((top, other_top)), scores.amax(-1))


def plan_of_largest(count, rows=8):
    def program(party):
        words = torch.empty(rows, count, dtype=torch.int64, device="meta")
        return largest(party, party.secret(words, 20, 0, 4), 20)

    return trace(program)


def plan_of_pairs(count, rows=8):
    def program(party):
        words = torch.empty(rows, count, dtype=torch.int64, device="meta")
        return Argmax(rows, count, 20).run(party, party.secret(words, 20, 0, 4))

    return trace(program)


def test_groups_save_comparisons_and_cost_rounds():
    """Beyond 16 scores: groups of 8, the winners, and one AND for each score; 87 comparisons of 24 instead of 276."""
    assert [plan_of_largest(count).rounds for count in (2, 5, 8, 16, 17)] == [4, 5, 6, 6, 12]
    plan = plan_of_largest(24)
    assert 2 * plan.payload_bytes < plan_of_pairs(24).payload_bytes
    compared = 87 * plan_of_pairs(2).payload_bytes
    assert compared < plan.by_gate["Argmax"].sent < 1.2 * compared
    assert plan.by_gate["And"].sent == packed_size((24 + 3) * 8, 1)


@dataclass(frozen=True)
class OneMaskAnd(And):
    """ANDs whose first two bits have one mask bit."""

    def deal(self, dealing):
        deal_and(dealing, (self.rows,), self.inputs, self.products)

    def run(self, party, bits):
        randomness = party.take(self)
        mask = randomness.mask((self.inputs, self.rows), 1)
        words = torch.cat([mask.words[:1], mask.words[:1], mask.words[2:]])
        yield [randomness.open(bits, again(type(mask)(words, 1)))]
        return bits


def ands(gate):
    return lambda runs: lambda party, bits: gate(3, runs, ((0, 1), (0, 1, 2))).run(party, bits.t().contiguous())


SECRETS = [([0, 0, 0],), ([0, 1, 1],), ([1, 1, 0],), ([1, 1, 1],)]
CASES = {
    "and": Case(ands(And), (0,), SECRETS),
    "experts with rows of their own": Case(
        lambda runs: (
            lambda party, x: ExpertLinear(1, runs, 1, 2, 9, "w").run(party, x.map(lambda words: words[None]), 0, 4)
        ),
        (9,),
        [([x], [[w, 3]]) for x in (-256, 0, 7) for w in (-(2**62), 17)],
        weights=("w",),
    ),
    "experts with the same rows": Case(
        lambda runs: (
            lambda party, x: ExpertLinear(2, runs, 1, 1, 9, "w", True).run(
                party, x.map(lambda words: words[None]), 0, 4
            )
        ),
        (9,),
        [([x], [[w], [3]]) for x in (-256, 0, 7) for w in (-(2**62), 17)],
        weights=("w",),
    ),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_secret_looks_the_same_to_each_party(name, rank):
    assert CASES[name].same(rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_mask_for_two_bits_shows_in_the_views(rank):
    assert not Case(ands(OneMaskAnd), (0,), SECRETS).same(rank)
