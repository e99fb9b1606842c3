# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Bounds that are as narrow as samples allow: up to them, shares compute what clear text does."""

import math
from dataclasses import replace

import pytest
import torch

from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.ranges import bounds_for, reached
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.ring_widths import RingWidths
from hf_securerouter.number_format import Bounds, deviation_bits, number_format
from tests.mpc.protocols.masked.test_encoder import SMALL, batch_of, encrypted, weights_of
from tests.support.harness import Input, run


ONE_LAYER = replace(SMALL, num_layers=1, layer_map=(0,))


def measured(spec, weights, x, live):
    """The clear logits, and the bounds of the layer by what it reaches."""
    clear = ClearEncoder(spec, weights)
    logits = clear(x.double(), live)
    return logits, Bounds().replaced(**bounds_for(reached(clear.seen, 0), spec.padding_differs)), clear.seen


def test_2quad_squares_scores_plus_5():
    """The ring is of what is squared, so that scores of 3 to 5 need another one than scores of -5 to -3."""
    spec, weights = replace(ONE_LAYER, softmax="2quad"), weights_of(ONE_LAYER)
    for name in ("query", "key"):
        weights[f"layers.0.{name}.weight"] *= 0.2
        weights[f"layers.0.{name}.bias"].fill_(1.0)
    x, live = batch_of(spec, [16] * 4, 16)
    expected, bounds, seen = measured(spec, weights, x, live)
    assert 8 < seen[0, "scores"][1] < 10
    for _ in range(3):
        found = encrypted(spec, x, live, bounds=bounds, weights=weights).values
        assert (found - expected).abs().max() < 0.01


def test_padding_has_no_weight_in_the_smallest_range():
    least = Bounds().replaced(scores=0).scores
    y = torch.linspace(0.05, 2.0 ** (least - 1) - 2.1, 400).mul(2**12).round().long()
    hidden = y + (1 << (least - 1 + 12))  # as the ring's top bit is added to padding
    words = Input(hidden, least + 12, 12, least - 2)
    found = run(lambda party: Exponential(hidden.shape, least, 12, 57).run(party, words(party)))
    assert not found.values.any()


@pytest.mark.parametrize("width", [20, 24, 32])
def test_variances_are_measured_as_shares_divide_their_sums(width):
    """By 2^ceil(log2 d), so that the least variance has its whole margin whatever d is."""
    spec = replace(ONE_LAYER, hidden_size=width)
    x, live = batch_of(spec, [5, 7], 7)
    _, _, seen = measured(spec, weights_of(spec), x, live)
    clear = ClearEncoder(spec, weights_of(spec))
    found = []
    clear._note = lambda kind, values: found.append((kind, values)) or values
    clear(x.double(), live)
    sums = [values.square().sum(-1) / 2 ** deviation_bits(width) for kind, values in found if kind == "residual"]
    least, largest = min(own.min() for own in sums), max(own.max() for own in sums)
    assert seen[0, "variance"] == pytest.approx((float(least), float(largest)))


@pytest.mark.parametrize("precision", ["full", "reduced"])
def test_the_quadratic_activation_is_right_up_to_its_bound(precision):
    known = number_format(precision, "2quad")
    bounds = known.bounds if precision == "reduced" else Bounds(inner=3)
    rings = RingWidths(bounds, 16, "2quad", hidden_act="quadratic", bits=known.bits)
    encoder, bits = MaskedEncoder(replace(SMALL, hidden_act="quadratic", softmax="2quad"), rings), rings.bits
    top = 2.0**rings.bounds.inner
    values = torch.tensor([0.9 * top, 0.99 * top, -0.99 * top, 0.5 * top]).double().repeat(4000)
    x = Input.real(values, rings.feed_forward_width, bits.hidden + bits.intermediate_weights, rings.bounds.inner)
    more = rings.bounds.inner, bits.inner, bits.active, rings.outer_width
    done = run(lambda party: encoder._activation(party, "quadratic", x(party), *more))
    assert (done.values - (values.square() / 8 + values / 4 + 0.5)).abs().max() < math.ldexp(1.0, -4)
    inside = Input.real(
        torch.full((400,), 0.86 * top).double(), x.width, bits.hidden + bits.intermediate_weights, x.bound
    )
    done = run(lambda party: encoder._activation(party, "quadratic", inside(party), *more), guarded=True)
    assert done.guard_word == 0
