# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products in a window, compared with all pairs, and elementwise products, compared with exact integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.gates.product import Product
from hf_securerouter.mpc.gates.windowed import Window, WindowMix, WindowScores
from hf_securerouter.mpc.ring.words import signed
from hf_securerouter.mpc.tuples.plan import trace
from tests.support.harness import Input, joined, run


def integers(shape, bits=20):
    return torch.randint(-(2**bits), 2**bits, shape)


WINDOWS = st.builds(Window, st.integers(1, 14), st.integers(0, 5), st.integers(1, 6))


@settings(max_examples=60, deadline=None)
@given(window=WINDOWS)
def test_blocks_meet_the_keys_of_the_window_and_no_others(window):
    length, allowed, places = window.length, window.allowed(), window.places()
    met = torch.zeros(length, length, dtype=torch.int64)
    for block in range(window.blocks):
        for row in range(window.block):
            query = block * window.block + row
            keys = places[block][allowed[block, row]]
            assert len(keys) > 0
            if query < length:
                met[query] += torch.bincount(keys, minlength=length)
    position = torch.arange(length)
    assert torch.equal(met, ((position[:, None] - position).abs() <= window.reach).long())
    rows = integers((2, length, 3))
    assert torch.equal(window.joined(window.in_blocks(rows)), rows)


@settings(max_examples=15, deadline=None)
@given(window=WINDOWS)
def test_scores_and_mixed_values_are_exact(window):
    heads, width = (2, 3), 44
    query, key = integers((*heads, window.length, 4), 10), integers((*heads, 4, window.length), 10)
    left, right = Input(query, width), Input(key, width + 5)
    gate = WindowScores(query.shape, key.shape, width, window)
    found = joined(run(lambda party: gate.run(party, left(party), right(party))).results)
    all_pairs = window.in_blocks(query @ key)  # (..., blocks, block, T)
    places = window.places()[:, None, :].expand(-1, window.block, -1)
    expected = all_pairs.gather(-1, places.expand(*heads, *places.shape))
    assert torch.equal(found, expected)

    weights = torch.where(window.allowed(), integers(found.shape, 8), 0)
    value = integers((*heads, window.length, 5), 8)
    left, right = Input(weights, width), Input(value, width)
    mix = WindowMix(weights.shape, value.shape, width, window)
    found = window.joined(joined(run(lambda party: mix.run(party, left(party), right(party))).results))
    dense = torch.zeros(*heads, window.blocks, window.block, window.length, dtype=torch.int64)
    dense.scatter_add_(-1, places.expand(*heads, *places.shape), weights)
    assert torch.equal(found, window.joined(dense) @ value)


def test_a_window_costs_its_scores_and_opens_every_row_once():
    """K bits an element of both operands, one round; dealer K bits an output: linear in the length."""
    cost = {}
    for length in (512, 1024):
        window = Window(length, 64, 64)
        assert window.saves
        left = torch.empty(2, length, 16, dtype=torch.int64, device="meta")
        gate = WindowScores(left.shape, (2, 16, length), 40, window)

        def program(party, gate=gate, left=left):
            return gate.run(party, party.secret(left, 40, 0, 4), party.secret(left.transpose(1, 2), 40, 0, 4))

        plan = trace(program)
        assert plan.payload_bytes * 8 == 2 * 2 * length * 16 * 40 and plan.rounds == 1
        assert plan.dealer_bytes * 8 == 2 * length * window.span * 40
        cost[length] = plan.payload_bytes + plan.dealer_bytes
    assert cost[1024] == 2 * cost[512]
    assert not Window(128, 64, 64).saves


@pytest.mark.parametrize("bits, scalar_bits, width", [(6, 6, 8), (20, 12, 40), (22, 22, 64), (30, 8, 33)])
def test_elementwise_products_are_exact(bits, scalar_bits, width):
    x, y = integers((5, 7), bits - 2), integers((5, 7), scalar_bits - 2)
    x.view(-1)[:2], y.view(-1)[:2] = (
        torch.tensor([2 ** (bits - 2) - 1, 1 - 2 ** (bits - 2)]),
        2 ** (scalar_bits - 2) - 1,
    )
    left, right = (
        Input(x.clamp(1 - 2 ** (bits - 2)), bits, 3),
        Input(y.clamp(1 - 2 ** (scalar_bits - 2)), scalar_bits, 2),
    )
    gate = Product(tuple(x.shape), bits, scalar_bits, width)
    done = run(lambda party: gate.run(party, left(party), right(party)))
    expected = x.clamp(1 - 2 ** (bits - 2)) * y.clamp(1 - 2 ** (scalar_bits - 2))
    assert torch.equal(done.integers, signed(expected, width))
    assert {(share.width, share.scale) for share in done.results} == {(width, 5)}
    assert done.plan.rounds == 1 and done.plan.payload_bytes == -(-35 * bits // 8) + -(-35 * scalar_bits // 8)
