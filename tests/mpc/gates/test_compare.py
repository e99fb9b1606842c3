# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Comparison, argmax, ReLU, selection and maximum, compared with exact integers."""

import itertools

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.argmax import Argmax, Reveal
from hf_securerouter.mpc.gates.bits import Thermometer, deal_thermometer
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.gates.maximum import BITS, Knockout, groups_of, maximum
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from tests.support.harness import Bits, Input, joined, run


def compared(x, bits, thresholds):
    share = Input(x, bits)
    return run(lambda party: Compare(tuple(x.shape), bits, thresholds).run(party, share(party)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_comparison_is_exact_for_every_value_and_threshold(bits):
    quarter = 2 ** (bits - 2)
    x = torch.arange(-quarter, quarter).repeat(200)
    thresholds = tuple(range(-quarter, quarter + 1, max(1, quarter // 16)))
    found = compared(x, bits, thresholds).bits
    assert torch.equal(found, (x < torch.tensor(thresholds)[:, None]).to(torch.uint8))


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_comparison_reaches_half_of_the_ring(bits):
    half = 2 ** (bits - 1)
    for threshold in (0, 1, -1, half, -half, 5 * half + 3):
        x = (threshold + torch.arange(-half, half)).repeat(100)
        assert torch.equal(compared(x, bits, (threshold,)).bits[0], (x < threshold).to(torch.uint8))


@pytest.mark.parametrize("bits", [9, 13, 14, 17, 18, 32, 33, 40, 63, 64])
def test_comparison_is_exact_in_wide_rings(bits):
    quarter = 2 ** (bits - 2)
    thresholds = (0, 1, -1, quarter // 3, -quarter + 1, quarter)
    near = torch.tensor([t + d for t in thresholds for d in (-2, -1, 0, 1, 2)] + [-quarter, quarter - 1])
    near = near.clamp(-quarter, quarter - 1)
    powers = torch.tensor([sign * 2**e + d for e in range(bits - 2) for sign in (1, -1) for d in (-1, 0, 1)])
    x = torch.cat([near.repeat(30), powers.clamp(-quarter, quarter - 1), torch.randint(-quarter, quarter, (500,))])
    found = compared(x, bits, thresholds)
    assert torch.equal(found.bits, (x < torch.tensor(thresholds)[:, None]).to(torch.uint8))
    assert found.plan.rounds == {9: 2, 13: 2, 14: 2, 17: 2}.get(bits, 3)


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8, 10])
def test_relu_is_exact_for_every_value(bits):
    quarter = 2 ** (bits - 2)
    x = torch.arange(-quarter, quarter).repeat(6000 // quarter)
    share = Input(x, bits, scale=1, bound=3)
    for width in (bits + 1, 30, 64):
        done = run(lambda party, width=width: ReLU(tuple(x.shape), bits, width).run(party, share(party)))
        assert torch.equal(done.integers, x.clamp(min=0))
        assert {(part.width, part.scale, part.bound) for part in done.results} == {(width, 1, 3)}


@pytest.mark.parametrize(("bits", "width"), [(17, 20), (32, 33), (32, 60), (40, 64), (63, 64)])
def test_relu_is_exact_in_wide_rings(bits, width):
    quarter = 2 ** (bits - 2)
    powers = torch.tensor([sign * 2**e + d for e in range(bits - 2) for sign in (1, -1) for d in (-1, 0, 1)])
    x = torch.cat([torch.tensor([0, 1, -1, quarter - 1, -quarter]).repeat(40), powers.clamp(-quarter, quarter - 1)])
    x = torch.cat([x, torch.randint(-quarter, quarter, (500,))])
    share = Input(x, bits)
    done = run(lambda party: ReLU(tuple(x.shape), bits, width).run(party, share(party)))
    assert torch.equal(done.integers, x.clamp(min=0))


@pytest.mark.parametrize("choices", [2, 3, 4, 5])
def test_argmax_is_the_lowest_index_of_the_highest(choices):
    """All equal, all patterns of values 0 to 2 units apart, at any height, and far apart."""
    near = torch.tensor(list(itertools.product(range(3), repeat=choices)))
    heights = torch.randint(-1000, 1000, (len(near), 1))
    scores = torch.cat(
        [near, near + heights, torch.full((20, choices), 77), torch.randint(-2000, 2000, (200, choices))]
    )
    share = Input(scores, 20, scale=4, bound=8)
    gate = Argmax(len(scores), choices, 14)

    def program(party):
        found = yield from gate.run(party, share(party))
        return found, (yield from Reveal(tuple(found.shape)).run(party, found))

    done = run(program)
    expected = torch.nn.functional.one_hot((scores == scores.amax(1, keepdim=True)).int().argmax(1), choices)
    (first, revealed), (second, also_revealed) = done.results
    assert torch.equal(first ^ second, expected.T.to(torch.uint8))
    assert torch.equal(revealed, expected.T.to(torch.uint8))
    assert torch.equal(revealed, also_revealed)


@pytest.mark.parametrize(("choices", "rounds"), [(5, 3), (6, 4), (9, 4), (17, 4), (18, 5)])
def test_argmax_of_many_takes_a_round_of_ands_more(choices, rounds):
    scores = torch.randint(-20, 20, (40, choices))
    share, gate = Input(scores, 14), Argmax(40, choices, 10)
    done = run(lambda party: gate.run(party, share(party)))
    expected = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(done.bits, torch.nn.functional.one_hot(expected, choices).T.to(torch.uint8))
    assert done.plan.rounds == rounds
    assert done.plan.dealer_bytes < 40 * 80 * choices**2


@pytest.mark.parametrize("bits", [3, 6])
def test_argmax_uses_half_of_the_ring(bits):
    half = 2 ** (bits - 1)
    scores = torch.tensor([[a, b, a] for a in range(half) for b in range(half)]).repeat(4, 1)
    share = Input(scores, bits)
    done = run(lambda party: Argmax(len(scores), 3, bits).run(party, share(party)))
    expected = torch.where(scores[:, 0] >= scores[:, 1], 0, 1)
    assert torch.equal(done.bits, torch.nn.functional.one_hot(expected, 3).T.to(torch.uint8))


def test_scores_truncated_once_always_have_one_winner():
    """Truncating differences instead would leave near-ties without a winner."""
    scores = torch.randint(-40, 40, (2000, 4))
    share = Input(scores, 24, scale=8)
    done = run(lambda party: Argmax(2000, 4, 16).run(party, share(party).truncate(4)))
    assert torch.equal(done.bits.sum(0), torch.ones(2000))
    chosen = scores.gather(1, done.bits.argmax(0)[:, None])[:, 0]
    assert int((scores.amax(1) - chosen).max()) < 32  # two units of 2^-4


def test_revealed_bits_are_the_same_at_both_parties():
    bits = torch.randint(0, 2, (50, 7))
    flags = Bits(bits)
    done = run(lambda party: Reveal((50, 7)).run(party, flags(party)))
    assert torch.equal(done.results[0], bits.to(torch.uint8))
    assert torch.equal(done.results[1], bits.to(torch.uint8))


def small_rows(rows, count):
    """Rows of integers less than 2^7 apart: random, all equal, nearly equal, at the ends, anywhere in the ring."""
    x = torch.randint(-63, 64, (rows, count))
    x[0], x[1] = 5, torch.randint(0, 3, (count,))
    x[2], x[2, -1] = -64, 63
    x[3], x[3, 0] = 0, 127
    x[4] = torch.arange(count) % 128
    x[5] = 127 - torch.arange(count) % 128
    x[6:12] = torch.randint(0, 2, (6, count))
    return x


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 31, 33, 128])
def test_maximum_is_exact(count):
    x = small_rows(24, count)
    share = Input(x, 12, scale=2)
    done = run(lambda party: maximum(party, share(party)))
    assert torch.equal(done.integers, x.amax(-1)[:, None].amax(-1))
    assert {(part.width, part.scale) for part in done.results} == {(8, 2)}
    assert done.plan.rounds == 2 * len(groups_of(count))


def test_maximum_over_leading_dimensions_and_in_the_rings_far_half():
    x = torch.randint(0, 128, (2, 3, 6)) + 100
    share = Input(x, 8)
    done = run(lambda party: maximum(party, share(party)))
    assert torch.equal(done.integers % 256, x.amax(-1))


def test_every_pair_of_a_knockout_is_decided_rightly():
    """All pairs of values less than 2^7 apart, in the whole ring."""
    first, difference = torch.arange(-128, 128, 3), torch.arange(-127, 128)
    x = torch.stack(torch.broadcast_tensors(first[:, None] + difference, first[:, None]), -1).reshape(-1, 2)
    share = Input(x, BITS)
    done = run(lambda party: Knockout(tuple(x.shape)).run(party, share(party)))
    assert torch.equal((done.results[0].words + done.results[1].words) % 256, x.amax(-1) % 256)


@pytest.mark.parametrize("size", [3, 4, 8])
def test_ties_in_a_knockout_leave_one_winner(size):
    x = torch.tensor(list(itertools.product(range(2), repeat=size))) + 9
    share = Input(x, BITS)
    done = run(lambda party: Knockout(tuple(x.shape)).run(party, share(party)))
    assert torch.equal(done.integers, x.amax(-1))


@pytest.mark.parametrize("positions", [8, 16, 128, 512])
def test_thermometers_answer_for_every_position_and_range(positions):
    hidden = torch.arange(positions)[:, None].expand(positions, positions).contiguous()
    public = torch.arange(positions)[None, :].expand(positions, positions)

    class Stub:
        def __init__(self, rank, share):
            self.rank, self.share = rank, share

        def bits(self, shape):
            assert shape == self.share.shape
            return self.share

        def constant(self, values):
            return values

        def give_bits(self, values):
            self.values = values

    dealt = Stub(0, None)
    deal_thermometer(dealt, hidden, positions)
    mask = Csprng(new_seed(), b"test").ring(dealt.values.shape, 8)
    found = [
        Thermometer(Stub(rank, share), tuple(hidden.shape), positions)
        for rank, share in enumerate((dealt.values ^ mask, mask))
    ]
    assert torch.equal(found[0].at(public) ^ found[1].at(public), (hidden <= public).to(torch.uint8))
    coarse = (public - hidden) % positions
    for low, high in ((0, 1), (0, positions // 2), (3, 5), (1, positions), (positions // 2, positions)):
        bits = found[0].between(public, low, high) ^ found[1].between(public, low, high)
        assert torch.equal(bits, ((coarse >= low) & (coarse < high)).to(torch.uint8))


def test_a_tuple_serves_the_gate_that_the_plan_has_next():
    share = Input(torch.zeros(3, dtype=torch.int64), 10)
    sizes = iter([10, 10, 9])

    def program(party):
        return Compare((3,), next(sizes), (0,)).run(party, share(party))

    with pytest.raises(SecureRouterError, match="Gate 0 of the plan is not `Compare`"):
        run(program)


REFUSE = {
    "Compare": ((3,), Compare((3,), 13, (0,))),
    "Argmax": ((3, 2), Argmax(3, 2, 13)),
    "Exponential": ((3,), Exponential((3,), 5, 8, 40)),
    "RowFunction": ((3,), RowFunction("reciprocal", (3,), 9, 0, 4, 10)),
    "ReLU": ((3,), ReLU((3,), 13, 20)),
    "Activation": ((3,), Activation("gelu", (3,), 5, 6, 6, 20)),
}


@pytest.mark.parametrize("name", REFUSE)
def test_a_share_of_too_small_a_ring_is_refused(name):
    """Opened in a wider ring than its own, a value would be wrong."""
    shape, gate = REFUSE[name]
    share = Input(torch.zeros(shape, dtype=torch.int64), 12, scale=6)
    needed = 20 if name == "Activation" else 13  # its result contains its input
    with pytest.raises(SecureRouterError, match=f"ring of 12 bits cannot be read in one of {needed}"):
        run(lambda party: gate.run(party, share(party)))


def test_selection_leaves_the_shares_fresh():
    """The dealer's words randomise the result: shares of equal results differ from run to run."""
    share = Input(torch.full((64,), 3), 12)
    runs = [run(lambda party: ReLU((64,), 12, 40).run(party, share(party))) for _ in range(2)]
    words = torch.stack([part.words % 2**40 for done in runs for part in done.results])
    assert len(set(words.reshape(-1).tolist())) > 250
    assert all(torch.equal(joined(done.results), torch.full((64,), 3)) for done in runs)
