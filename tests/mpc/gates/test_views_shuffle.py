# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's view of a shuffle of two tensors, over all orders and all randomness of tiny rings.

A permutation serves all columns of a shuffle, so many runs cannot go side by side in one: they go one after another.
The words that the viewer holds before the first round are sampled, once a group, and all others take all values.
"""

from collections import Counter

import pytest
import torch

from hf_securerouter.mpc.gates.gate import together
from hf_securerouter.mpc.gates.shuffle import Shuffle
from hf_securerouter.mpc.ring.randomness import Csprng
from hf_securerouter.mpc.ring.words import reduce
from tests.support.enumeration import SEED, SeenDealing, one_run
from tests.support.leaks import OneMaskShuffle


TENSORS = ((1, 2), (1, 1))  # columns and ring: words of 2 bits, and bits that are XOR-shared
WORDS = 6  # bits of one party's masks
SECRETS = [([0, 0], [0, 0]), ([1, 2], [1, 0]), ([3, 3], [0, 1])]


def run(gate, secret, rank, group, number, order):
    """What party `rank` receives in one run, which also moves the rows into their new order."""
    own = [Csprng(SEED, b"share/%d" % group).ring((2, 1), bits).to(torch.int64) for bits in (64, 1)]
    values = [torch.tensor(part)[:, None] for part in secret]
    pair = own, (values[0] - own[0], values[1] ^ own[1])

    def both(party, words, bits):
        shuffled = gate.start(party)
        return together(shuffled.open(0, words), shuffled.open(1, bits.to(torch.uint8)))

    class Ordered(SeenDealing):
        """A dealer whose permutation is chosen."""

        def permutation(self, count):
            return torch.tensor(order)

    view, moved = one_run(gate, both, pair if rank == 0 else pair[::-1], rank, group, number, Ordered)
    assert reduce(moved[0][0] + moved[1][0], 2).flatten().tolist() == [secret[0][row] for row in order]
    assert (moved[0][1] ^ moved[1][1]).flatten().tolist() == [secret[1][row] for row in order]
    return view


def same(gate, rank, words=WORDS):
    """Whether party `rank` has the same views for every secret."""
    for group in range(2):
        views = [
            Counter(
                run(gate, secret, rank, group, number, order)
                for number in range(1 << words)
                for order in ((0, 1), (1, 0))
            )
            for secret in SECRETS
        ]
        if any(view != views[0] for view in views):
            return False
    return True


@pytest.mark.parametrize("rank", [0, 1])
def test_every_secret_looks_the_same_to_each_party(rank):
    assert same(Shuffle(2, TENSORS), rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_mask_for_all_tensors_shows_in_the_views(rank):
    assert not same(OneMaskShuffle(2, TENSORS), rank, words=4)
