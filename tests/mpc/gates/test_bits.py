# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Words chosen by opened bits, compared with `torch.where`."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.mpc.gates.bits import choose, spread


WORDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 1]))


@given(st.lists(st.tuples(st.integers(0, 1), WORDS, WORDS), max_size=70))
@settings(max_examples=200, deadline=None)
def test_words_are_chosen_as_by_a_branch(rows):
    flips = torch.tensor([row[0] for row in rows], dtype=torch.uint8)
    if_set, if_clear = (torch.tensor([row[side] for row in rows], dtype=torch.int64) for side in (1, 2))
    before = if_set.clone(), if_clear.clone()
    found = choose(spread(flips), if_set, if_clear)
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.where(flips.bool(), if_set, if_clear))
    assert torch.equal(if_set, before[0]) and torch.equal(if_clear, before[1])
