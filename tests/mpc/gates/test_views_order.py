# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's view of the comparisons behind a ranking, over all randomness of a tiny ring.

The pairs of a ranking are an axis of their own, so many runs cannot go side by side in one: they go one after another.
"""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from hf_securerouter.mpc.gates.ranks import Order
from hf_securerouter.mpc.ring.randomness import Csprng
from tests.support.enumeration import SEED, one_run
from tests.support.leaks import again


BITS = 2  # of the keys, which are all numbers of the ring
WORDS = 3 * BITS + 2  # bits of one party's masks: of two keys, of their difference, and of the two bits of an AND
SECRETS = [(-2, 1), (1, -2), (0, 1), (-1, -2)]  # the differences of the first two overflow


def run(gate, keys, rank, number):
    """What party `rank` receives in one run, which also finds the smaller key."""
    own = Csprng(SEED, b"share").ring((2,), 64).to(torch.int64)
    pair = own, torch.tensor(keys) - own

    def order(party, words):
        return gate.run(party, party.secret(words, BITS, 0, 0), torch.tensor([0]), torch.tensor([1]))

    shares = [(words,) for words in (pair if rank == 0 else pair[::-1])]
    view, (first, second) = one_run(gate, order, shares, rank, 0, number)
    return view, bool(first ^ second)


def same(gate, rank, checked=True):
    """Whether party `rank` has the same views for all keys."""
    views = []
    for keys in SECRETS:
        runs = [run(gate, keys, rank, number) for number in range(1 << WORDS)]
        assert not checked or all(smaller == (keys[0] < keys[1]) for _, smaller in runs)
        views.append(Counter(view for view, _ in runs))
    return all(view == views[0] for view in views)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_keys_look_the_same_to_each_party(rank):
    assert same(Order(2, BITS), rank)


@dataclass(frozen=True)
class OneMaskOrder(Order):
    """A leaky variant: the mask of the difference also masks the first key."""

    def run(self, party, keys, first, second):
        protocol = super().run(party, keys, first, second)
        (opening,) = next(protocol)
        mask = opening.mask
        reused = torch.cat([mask.words[:1], mask.words[:1], mask.words[2:]])
        yield [type(opening)(opening.words, again(type(mask)(reused, BITS)), opening.gate)]
        return torch.zeros(1, dtype=torch.uint8)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_mask_for_a_key_and_a_difference_shows_in_the_views(rank):
    assert not same(OneMaskOrder(2, BITS), rank, checked=False)
