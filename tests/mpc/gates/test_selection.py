# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The gates that keep a choice secret: shuffle, ranks, select, widen, and products with selected weights."""

from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_securerouter.mpc.gates.gate import Dealing
from hf_securerouter.mpc.gates.ranks import ranks
from hf_securerouter.mpc.gates.select import Select
from hf_securerouter.mpc.gates.selected_linear import SelectedLinear
from hf_securerouter.mpc.gates.shuffle import Shuffle
from hf_securerouter.mpc.gates.widen import Widen
from hf_securerouter.mpc.protocols.masked.programs import rank_in_secret_order
from hf_securerouter.mpc.protocols.masked.ring_widths import RingWidths
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from hf_securerouter.mpc.ring.words import packed_size, signed
from hf_securerouter.number_format import Bounds
from tests.support.enumeration import Case
from tests.support.harness import Bits, Input, joined, run


def uniform(shape, bits):
    return signed(Csprng(new_seed(), b"test").ring(shape, bits).to(torch.int64), bits)


def one_hot(choices, candidates):
    return torch.nn.functional.one_hot(choices, candidates).T.to(torch.uint8)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 5), width=st.integers(9, 64))
def test_a_shuffle_moves_all_tensors_alike_and_its_transpose_puts_them_back(rows, columns, width):
    x, bits = uniform((rows, columns), width), torch.randint(0, 2, (rows, columns))
    given_x, given_bits = Input(x, width), Bits(bits)

    def program(party):
        shuffle = Shuffle(rows, ((columns, width), (columns, 1))).start(party)
        moved = yield from shuffle.open(0, given_x(party).words)
        moved_bits = yield from shuffle.open(1, given_bits(party))
        return shuffle.order, party.secret(moved, width, 0, 0), moved_bits

    done = run(program)
    order, moved, moved_bits = zip(*done.results, strict=True)
    matrix = joined(order)
    assert torch.equal(matrix.sum(0), torch.ones(rows, dtype=torch.int64)) and set(matrix.unique().tolist()) <= {0, 1}
    assert torch.equal(signed(matrix @ x, width), joined(moved))
    assert torch.equal(matrix @ bits, (moved_bits[0] ^ moved_bits[1]).to(torch.int64))
    assert torch.equal(matrix.T @ joined(moved), x)
    assert done.plan.payload_bytes == packed_size(rows * columns, width) + packed_size(rows * columns, 1)
    assert done.plan.dealer_bytes == packed_size(rows * rows, width) + done.plan.payload_bytes


def test_the_dealer_draws_every_permutation_as_often():
    found = Counter(tuple(Dealing((None, None)).permutation(3).tolist()) for _ in range(3000))
    assert len(found) == 6
    assert stats.chisquare(list(found.values())).pvalue > 1e-6


@settings(max_examples=15, deadline=None)
@given(keys=st.lists(st.integers(-(2**11), 2**11 - 1), min_size=1, max_size=9, unique=True))
@example(keys=[-1400, 0, 1400])
@example(keys=[2**11 - 1, -(2**11), -1, 0])
def test_ranks_count_what_is_larger_among_all_numbers_of_the_ring(keys):
    keys = torch.tensor(keys)
    x = Input(keys, 12)
    first, second = run(lambda party: ranks(party, x(party), 12)).results
    assert torch.equal(first, second)
    assert torch.equal(first, (keys[None] > keys[:, None]).sum(1))


@settings(max_examples=10, deadline=None)
@given(candidates=st.integers(2, 5), rows=st.integers(1, 4), width=st.integers(2, 64))
def test_select_takes_the_chosen_rows(candidates, rows, width):
    values, choices = uniform((candidates, rows, 3), width), torch.randint(0, candidates, (rows,))
    x, bits = Input(values, width), Bits(one_hot(choices, candidates))
    done = run(lambda party: Select(candidates, rows, 3, width).run(party, bits(party), x(party)))
    assert torch.equal(done.integers, values[choices, torch.arange(rows)])
    assert done.plan.rounds == 1
    assert done.plan.payload_bytes == packed_size(candidates * rows, 1) + packed_size(values.numel(), width)


@settings(max_examples=10, deadline=None)
@given(bits=st.integers(3, 30), more=st.integers(1, 30))
def test_widen_keeps_the_value(bits, more):
    values = uniform((20,), bits - 1)
    x = Input(values, bits)
    done = run(lambda party: Widen((20,), bits, bits + more).run(party, x(party)))
    assert torch.equal(done.integers, values) and done.results[0].width == bits + more


@pytest.mark.parametrize("candidates", [2, 3, 5])
@pytest.mark.parametrize("width", [30, 64])
def test_selected_products_are_those_of_the_chosen_weights(candidates, width):
    rows, length, features, columns = 4, 3, 5, 2
    weights, choices = {}, torch.tensor([0, candidates - 1, 1, 0])
    for index in range(candidates):
        weights |= {f"{index}.w": uniform((features, columns), 64), f"{index}.w.bias": uniform((columns,), 64)}
        weights |= {f"{index}.g": uniform((features,), 64), f"{index}.g.bias": uniform((features,), 64)}
    values = uniform((rows * length, features), width)
    x, bits = Input(values, width), Bits(one_hot(choices, candidates))
    names = tuple(f"{index}." for index in range(candidates))
    gate = SelectedLinear(rows, length, features, width, names, (("w", columns),), ("g",))
    done = run(lambda party: gate.run(party, x(party), bits(party), (0, 0), 5), weights)
    matrix, diagonal = (joined(pair) for pair in zip(*done.results, strict=True))
    for row, choice in enumerate(choices.tolist()):
        part, own = slice(row * length, (row + 1) * length), {name: weights[f"{choice}.{name}"] for name in "wg"}
        bias = {name: weights[f"{choice}.{name}.bias"] for name in "wg"}
        assert torch.equal(matrix[part], signed(values[part] @ own["w"] + bias["w"], width))
        assert torch.equal(diagonal[part], signed(values[part] * own["g"] + bias["g"], width))
    # The bytes sent do not depend on the size of the weights; each further candidate adds one bit a row.
    assert done.plan.rounds == 1
    assert done.plan.payload_bytes == packed_size(values.numel(), width) + packed_size(candidates * rows, 1)


def line(bits, x, *weights):
    """x w + c of the chosen pair of w and c."""
    weight, bias = weights[2 * bits[1] : 2 * bits[1] + 2]
    return x[0] * weight[0][0] + bias[0]


CASES = {
    "select": Case(
        lambda runs: (
            lambda party, bits, x: Select(2, runs, 1, 3).run(
                party, bits.T.contiguous(), x.map(lambda words: words.T[..., None].contiguous())
            )
        ),
        (0, 3),
        [([1, 0], [2, -1]), ([0, 1], [2, -1]), ([0, 1], [0, 3])],
        check=lambda results, secret: bool((joined(results) == secret[1][secret[0].index(1)]).all()),
    ),
    "widen": Case(
        lambda runs: lambda party, x: Widen((runs,), 4, 7).run(party, x),
        (4,),
        [(value,) for value in range(-4, 4)],
        check=lambda results, secret: bool((joined(results) == secret[0]).all()),
    ),
    "selected linear": Case(
        lambda runs: (
            lambda party, bits, x: SelectedLinear(runs, 1, 1, 9, ("a", "b"), (("w", 1),)).run(
                party, x, bits.T.contiguous(), (0,), 4
            )
        ),
        (0, 9),
        [
            ([1, 0], [2], [[3]], [1], [[5]], [7]),
            ([0, 1], [2], [[3]], [1], [[5]], [7]),
            ([0, 1], [-1], [[0]], [0], [[1]], [2]),
        ],
        weights=("aw", "aw.bias", "bw", "bw.bias"),
        check=lambda results, secret: bool((joined([result[0] for result in results]) == line(*secret)).all()),
    ),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_secret_looks_the_same_to_each_party(name, rank):
    assert CASES[name].same(rank)


@pytest.mark.parametrize("scores", [[-70, 0, 70], [-100, 20, 120], [300, 90, -500]])
def test_scores_beyond_their_bound_are_ranked_by_a_permutation(scores):
    """In a ring for scores below 64; up to 128, the ranks are even those of the scores."""
    width = RingWidths.logits + Bounds.logits + 2
    words = torch.tensor(scores)[:, None] << RingWidths.logits
    for _ in range(3):  # fresh orders
        x = Input(words, width)

        def program(party, x=x):
            shuffle = Shuffle(3, ((1, width + 2),)).start(party)
            found = yield from rank_in_secret_order(party, shuffle, x(party))
            return found, shuffle.order

        (found, order), (_, other) = run(program).results
        places = (joined((order, other)).T @ found[:, None]).flatten().tolist()
        assert sorted(places) == [0, 1, 2]
        if max(map(abs, scores)) < 128:
            assert places == [2, 1, 0]


def orders(scores, runs, tie_after=False, shuffled=True):
    """How often each order of ranks is revealed."""
    batch, width = len(scores), 8
    bits = (batch - 1).bit_length()
    found = Counter()
    for _ in range(runs):
        x = Input(torch.tensor(scores)[:, None], width)

        def program(party, x=x):
            scores = x(party)
            shuffle = Shuffle(batch, ((1, width + bits),)).start(party)
            if tie_after:  # leaky: ties are broken by the place in the new order
                moved = yield from shuffle.open(0, scores.words)
                index = party.constant(torch.arange(batch - 1, -1, -1))
                keys = (moved[:, 0] << bits) + index * (party.rank == 0)
            elif not shuffled:  # leaky: the order of the queries themselves
                keys = (scores.words[:, 0] << bits) + party.constant(torch.arange(batch)) * (party.rank == 0)
            else:
                return (yield from rank_in_secret_order(party, shuffle, scores))
            return (yield from ranks(party, party.secret(keys, width + bits, 0, 0), width + bits))

        found[tuple(run(program).results[0].tolist())] += 1
    return found


def uniform_orders(found, batch):
    """Whether all orders of `batch` ranks look equally frequent."""
    possible = torch.arange(1, batch + 1).prod().item()
    counts = list(found.values()) + [0] * (possible - len(found))
    return stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("scores", [[5, 5, 5], [1, 5, 5], [-7, 3, 60]], ids=["equal", "two equal", "distinct"])
def test_revealed_ranks_are_a_uniform_permutation_whatever_the_scores(scores):
    assert uniform_orders(orders(scores, 120), 3)


@pytest.mark.parametrize("leak", [{"tie_after": True}, {"shuffled": False}], ids=["ties after", "no shuffle"])
def test_a_leaky_ranking_is_noticed(leak):
    assert not uniform_orders(orders([5, 5, 5], 60, **leak), 3)


@pytest.mark.parametrize("scores", [[5, 5, 5, 5], [0, 7, 7, -3], [3, 2, 1, 0]])
def test_every_permutation_reveals_another_order(scores, monkeypatch):
    """Ranks in the new order are a bijection of the permutation, so that uniform ones make uniform ranks."""
    seen = set()
    for order in torch.cartesian_prod(*[torch.arange(4)] * 4):
        if len(order.unique()) == 4:
            monkeypatch.setattr(Dealing, "permutation", lambda self, count, order=order: order)
            seen |= set(orders(scores, 1))
    assert len(seen) == 24
