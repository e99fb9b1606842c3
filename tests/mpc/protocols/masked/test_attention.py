# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Softmax on shares, where scores lie as far apart as their bound allows."""

import pytest
import torch

from hf_securerouter.mpc.protocols.masked.attention import SecureAttention
from hf_securerouter.mpc.protocols.masked.key_places import KeyPlaces
from hf_securerouter.mpc.protocols.masked.ring_widths import WIDEST_SCORES, Bounds, RingWidths
from hf_securerouter.number_format import widest_distance
from tests.support.harness import Bits, Input, run


ROWS = 30_000


class Attention(SecureAttention):
    def __init__(self, rings):
        self.rings = rings


@pytest.mark.parametrize("shifts_padding", [False, True])
@pytest.mark.parametrize("bound", [6, 7, 8, WIDEST_SCORES])
def test_scores_at_the_widest_distance(bound, shifts_padding):
    """A row's maximum, a token and padding at the bottom, another token; over many masks and fractions."""
    bounds = Bounds().replaced(scores=bound)
    rings = RingWidths(bounds, 4, shifts_padding=shifts_padding)
    scale, generator = rings.bits.query + rings.bits.key, torch.Generator().manual_seed(bound)
    distance, unit = widest_distance(bounds, shifts_padding), 2.0 ** (bound - 8)
    top = 8 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
    near = top - 3 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
    scores = torch.stack([top, top - distance, top - distance, near], -1)
    scores[:, 2] -= 2 ** (bound - 2) if shifts_padding else 0
    live = torch.tensor([1, 1, 0, 1], dtype=torch.uint8).expand(ROWS, 4).contiguous()
    given, is_token = Input.real(scores[:, None, None], rings.score_width, scale), Bits(live)
    places = KeyPlaces(4, 4, None)

    def program(party):
        return Attention(rings)._exponentials(party, given(party), places.hidden(party, is_token(party)))

    found = run(program).values[:, 0, 0]
    assert (found[:, 2] == 0).all()
    highest, low, other = found[:, 0], found[:, 1], found[:, 3]
    assert highest.min() > torch.exp(torch.tensor(-2 * unit)) - 2**-12 and highest.max() <= 1 + 2**-12
    assert low.max() < 2**-12
    assert (other - highest * torch.exp(near - top)).abs().max() < 2**-11
