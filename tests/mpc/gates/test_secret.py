# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Shares in shrinking rings, fixed point, and the sharing of weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterError, SecureRouterValueError
from hf_securerouter.mpc.gates.secret import Secret
from hf_securerouter.mpc.gates.weight_share import (
    _PIECE,
    mask_weight,
    mask_weights,
    weight_mask,
    weight_share,
    whole_mask,
)
from hf_securerouter.mpc.ring.fixed_point import from_fixed_point, to_fixed_point
from hf_securerouter.mpc.ring.randomness import AES, CHACHA20, Csprng, new_seed
from hf_securerouter.mpc.ring.words import RingWidthError, reduce, signed
from tests.support.harness import Input, joined, real


def pair(integers, width, scale=0, bound=0):
    shares = Input(torch.as_tensor(integers), width, scale, bound).shares
    return [Secret(share, width, scale, bound, rank) for rank, share in enumerate(shares)]


def word(value):
    """The int64 with the same residue mod 2^64."""
    return (value + 2**63) % 2**64 - 2**63


@st.composite
def sharings(draw):
    """A value of Z_2^width, any two words that add up to it, and bits to drop."""
    width = draw(st.integers(2, 64))
    drop = draw(st.integers(1, width - 1))
    value = draw(st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1))
    first = draw(st.integers(-(2**63), 2**63 - 1))
    multiple = draw(st.integers(-(2**63), 2**63 - 1)) * 2**width
    return width, drop, value, first, word(value - first + multiple)


@given(sharings())
@settings(max_examples=500, deadline=None)
def test_truncation_is_within_one_unit_in_the_smaller_ring(case):
    """For every value, every sharing and any bits above the ring."""
    width, drop, value, first, second = case
    shares = [Secret(torch.tensor([words]), width, drop, 0, rank) for rank, words in enumerate((first, second))]
    assert joined(shares).item() == value
    cut = [share.truncate(0) for share in shares]
    assert {(share.width, share.scale) for share in cut} == {(width - drop, 0)}
    error = (joined(cut).item() * 2**drop - value) % 2**width
    error = error - 2**width if error >= 2 ** (width - 1) else error
    # In a ring of one bit -1 and 1 unit are the same.
    assert abs(error) < 2**drop or width - drop == 1


@pytest.mark.parametrize("value", [0, 1, -1, 77, -77, 255, -256, 200])
def test_truncation_is_exact_over_all_shares_and_unbiased(value):
    """All sharings in Z_2^9, 4 bits dropped: the mean is the value, in units of 2^-4."""
    first = torch.arange(512)
    shares = [Secret(first, 9, 4, 0, 0), Secret(value - first, 9, 4, 0, 1)]
    found = joined([share.truncate(0) for share in shares]).double()
    error = found - value / 16
    error = torch.where(error.abs() > 16, error - 32 * error.sign(), error)
    assert error.abs().max() < 1
    assert error.mean().abs() < 1e-12


@pytest.mark.parametrize(("width", "drop"), [(40, 14), (64, 26), (64, 63), (20, 1)])
def test_truncation_is_unbiased_over_random_shares(width, drop):
    count = 200_000
    value = (0x5DEECE66D * 0x2545F4914F6CDD1D) % 2 ** min(62, width - 1) - 2 ** (min(62, width - 1) - 1)
    first = Csprng(bytes(32), b"truncation").ring((count,), 64)
    shares = [Secret(first, width, drop, 0, 0), Secret(value - first, width, drop, 0, 1)]
    cut = [share.truncate(0) for share in shares]
    left = value - ((value >> drop) << drop)  # a fraction left / 2^drop of all sharings rounds up
    up = signed(cut[0].words + cut[1].words - (value >> drop), width - drop)
    if width - drop > 1:
        assert set(up.tolist()) <= {0, 1}
    mean = up.double().abs().mean().item()
    assert abs(mean - left / 2**drop) < 6 * 0.5 / count**0.5


def test_a_truncated_share_is_of_no_use_in_the_old_ring():
    share = pair([5], 20, scale=4)[0].truncate(0)
    assert share.width == 16
    with pytest.raises(SecureRouterError, match="ring of 16 bits cannot be read in one of 20"):
        share.narrow(20)


def test_truncation_does_not_raise_the_scale():
    share = pair([5], 20, scale=4)[0]
    assert share.truncate(4) is share
    with pytest.raises(SecureRouterError, match="from scale 4 up to 5"):
        share.truncate(5)
    with pytest.raises(RingWidthError):
        pair([5], 4, scale=4)[0].truncate(0)


@given(st.integers(10, 64), st.data())
@settings(max_examples=100, deadline=None)
def test_linear_operations_are_exact(width, data):
    values = st.lists(st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1), min_size=4, max_size=4)
    x, y = data.draw(values), data.draw(values)
    other = data.draw(st.integers(8, width))
    xs, ys = pair(x, width, 3, 2), pair(y, other, 3, 4)
    tx, ty, factor = torch.tensor(x), torch.tensor(y), data.draw(st.integers(-9, 9))
    for result, expected, ring, bound in (
        ([a + b for a, b in zip(xs, ys, strict=True)], tx + ty, other, 5),
        ([a - b for a, b in zip(xs, ys, strict=True)], tx - ty, other, 5),
        ([-a for a in xs], -tx, width, 2),
        ([a.add_public(ty) for a in xs], tx + ty, width, 2),
        ([a.times_public(factor) for a in xs], tx * factor, width, 2),
        ([a.narrow(other) for a in xs], tx, other, 2),
        ([a.map(lambda words: words.flip(0)) for a in xs], tx.flip(0), width, 2),
        ([a.with_bound(7) for a in xs], tx, width, 7),
    ):
        assert {(share.width, share.bound, share.scale) for share in result} == {(ring, bound, 3)}
        assert torch.equal(joined(result), signed(expected, ring))


def test_more_fraction_bits_need_a_wider_ring():
    shares = [share.upscale(7) for share in pair([5, -6], 20, scale=3, bound=4)]
    assert {(share.width, share.scale, share.bound) for share in shares} == {(24, 7, 4)}
    assert real(shares).tolist() == [5 / 8, -6 / 8]
    with pytest.raises(RingWidthError):
        pair([5], 62, scale=3)[0].upscale(6)
    with pytest.raises(SecureRouterError, match="from scale 3 down to 2"):
        pair([5], 20, scale=3)[0].upscale(2)


def test_secrets_of_different_scales_do_not_add():
    with pytest.raises(SecureRouterError, match="scales 3 and 4"):
        pair([1], 20, scale=3)[0] + pair([1], 20, scale=4)[0]


def test_value_bits_hold_value_sign_and_a_unit():
    assert pair([1], 40, scale=12, bound=5)[0].value_bits == 19
    assert pair([[1, 2]], 40)[0].shape == (1, 2)


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=9), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_encoding_rounds_to_nearest(values, scale):
    real_values = torch.tensor(values, dtype=torch.float64)
    words = to_fixed_point(real_values, scale)
    assert words.dtype == torch.int64
    width = scale + 12
    found = from_fixed_point(reduce(words, width), width, scale)
    assert found.dtype == torch.float64
    assert float((found - real_values).abs().max()) <= 2.0 ** -(scale + 1)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 2.0**50, -(2.0**60)])
def test_what_does_not_fit_is_not_encoded(value):
    with pytest.raises(SecureRouterValueError, match="not finite or exceeds 2\\^48"):
        to_fixed_point(torch.tensor([0.0, value]), 14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_encoded(dtype):
    assert to_fixed_point(torch.tensor([1.5, -0.25], dtype=dtype), 4).tolist() == [24, -4]


def test_weights_are_shared_as_masked_values_and_seeds():
    weights = {"a": Csprng(new_seed(), b"w").ring((4, 3), 64), "b": torch.arange(-2, 3)}
    masked, seeds = mask_weights(weights)
    for name, words in weights.items():
        masks = [weight_mask(seed, name, tuple(words.shape)) for seed in seeds]
        assert torch.equal(masked[name] + masks[0] + masks[1], words)
        shares = [weight_share(rank, seeds[rank], name, masked[name]) for rank in (0, 1)]
        assert torch.equal(shares[0].share + shares[1].share, words)
        assert all(torch.equal(share.masked, masked[name]) for share in shares)
        assert torch.equal(shares[1].share, masks[1])


def test_every_sharing_draws_fresh_masks():
    """Equal masks would show the difference of the weights of two sharings, or of two tensors."""
    weights = {"a": torch.zeros(64, dtype=torch.int64), "b": torch.zeros(64, dtype=torch.int64)}
    (first, seeds), (second, other_seeds) = mask_weights(weights), mask_weights(weights)
    seen = [first["a"], first["b"], second["a"], second["b"]]
    assert len({word for masked in seen for word in masked.tolist()}) == 4 * 64
    assert len({*seeds, *other_seeds}) == 4
    masks = [weight_mask(seed, name, (64,)) for seed in seeds for name in weights]
    assert len({word for mask in masks for word in mask.tolist()}) == 4 * 64


@pytest.mark.parametrize("cipher", [AES, CHACHA20])
def test_masks_of_weights_are_the_same_drawn_whole_or_in_pieces(cipher):
    seeds, shape = (new_seed(), new_seed()), (3, _PIECE + 5)
    both = sum(weight_mask(seed, "w", shape, cipher) for seed in seeds)
    assert torch.equal(whole_mask(seeds, "w", shape, cipher), both)
    words = torch.arange(both.numel()).view(shape)
    assert torch.equal(mask_weight(seeds, "w", words, cipher), words - both)
