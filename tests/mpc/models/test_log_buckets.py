# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Entries of DeBERTa's tables of positions, compared with those that transformers computes in floating point."""

import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from hf_securerouter.mpc.models.log_buckets import entries_of_pairs, position_entries


def test_entries_are_those_of_transformers():
    for span, limit in ((256, 512), (8, 24), (7, 24), (2, 12), (32, 512), (24, None), (6, None), (512, None)):
        for length in {1, 2, 9, min(limit or 40, 200), limit or 40}:
            rows = torch.empty(length, 1)
            buckets = build_relative_position(rows, rows, -1 if limit is None else span, limit or -1)[0]
            expected = (buckets + span).clamp(0, 2 * span - 1)
            assert torch.equal(entries_of_pairs(length, span, limit), expected), (span, limit, length)


def test_entries_of_a_short_input_are_those_of_a_long_one():
    longest = position_entries(512, 256, 512)
    for length in (1, 2, 100, 300):
        assert position_entries(length, 256, 512) == longest[512 - length : 511 + length]
    assert longest == tuple(sorted(longest)) and (longest[0], longest[511], longest[-1]) == (1, 256, 511)
