# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Scores of queries, keys and relative positions, compared with exact integers pair by pair, and their cost."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.gates.relative_scores import RelativeScores
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.ring.words import signed
from hf_securerouter.mpc.tuples.plan import trace
from tests.support.harness import Input, run


def integers(*shape, bits=20):
    return torch.randint(-(2**bits), 2**bits, shape)


def pair_by_pair(query, key, entries, keys=None, queries=None):
    """Every score by itself, from the definition."""
    batch, heads, rows, _ = query.shape
    length = key.shape[-1]
    scores = torch.zeros(batch, heads, rows, length, dtype=torch.int64)
    for row in range(rows):
        for column in range(length):
            own, other = query[:, :, row], key[..., column]
            entry = entries[row - column + length - 1]
            scores[:, :, row, column] = (own * other).sum(-1)
            if keys is not None:
                scores[:, :, row, column] += (own * keys[..., entry]).sum(-1)
            if queries is not None:
                scores[:, :, row, column] += (other * queries[..., entry]).sum(-1)
    return scores


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 6),
    first=st.booleans(),
    names=st.sampled_from([("keys", "queries"), ("keys", None), (None, "queries")]),
    width=st.sampled_from([33, 64]),
    seed=st.integers(0, 10**6),
)
def test_scores_are_exact(length, first, names, width, seed):
    torch.manual_seed(seed)
    query, key = integers(2, 3, 1 if first else length, 4), integers(2, 3, 4, length)
    tables = {name: integers(3, 4, 8, bits=40) for name in names if name is not None}
    entries = tuple(torch.randint(0, 8, (2 * length - 1,)).tolist())
    gate = RelativeScores(tuple(query.shape), tuple(key.shape), width, entries, *names)
    left, right = Input(query, width, 2), Input(key, width, 5)
    done = run(lambda party: gate.run(party, left(party), right(party)), tables)
    assert torch.equal(done.integers, signed(pair_by_pair(query, key, entries, **tables), width))
    assert {share.scale for share in done.results} == {7}


def test_tables_cost_nothing_between_the_servers_nor_from_the_dealer():
    """K bits an element of both operands, in one round; dealer K bits a score."""
    length, left, right = 8, (2, 3, 8, 16), (2, 3, 16, 8)

    def meta(*shape):
        return torch.empty(shape, dtype=torch.int64, device="meta")

    shares = {name: WeightShare(meta(3, 16, 40), meta(3, 16, 40)) for name in ("keys", "queries")}
    gate = RelativeScores(left, right, 41, tuple(range(2 * length - 1)), "keys", "queries")

    def program(party):
        return gate.run(party, *(party.secret(meta(*shape), 41, 0, 4) for shape in (left, right)))

    plan = trace(program, shares)
    assert plan.payload_bytes * 8 == 41 * 2 * 3 * 2 * 8 * 16
    assert (plan.rounds, plan.dealer_bytes * 8) == (1, 41 * 2 * 3 * 8 * 8)
