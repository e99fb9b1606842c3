# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Buckets of relative positions, compared with the model's own."""

import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from hf_securerouter.mpc.models.relative_positions import BUCKETS, relative_buckets


@pytest.mark.parametrize("length", [1, 2, 16, 127, 512])
def test_buckets_are_those_of_the_model(length):
    places = torch.arange(length)
    assert torch.equal(
        relative_buckets(length), MPNetEncoder.relative_position_bucket(places - places[:, None], BUCKETS)
    )


def test_buckets_of_a_shorter_input_are_a_corner_of_a_longer_one():
    longest = relative_buckets(512)
    assert all(torch.equal(relative_buckets(length), longest[:length, :length]) for length in range(1, 512))


def test_every_bucket_but_that_of_a_later_key_at_distance_0_is_used():
    assert set(relative_buckets(128).flatten().tolist()) == set(range(BUCKETS)) - {BUCKETS // 2}
