# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The whole encoder under the masked protocol: its results, its costs, and the roles' views."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.lengths import copy_into_padding
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.ranges import bounds_for, reached
from hf_securerouter.mpc.gates.maximum import groups_of
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.models.spec import EncoderSpec, HeadSpec
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.folding import fold_weights, weight_shapes
from hf_securerouter.mpc.protocols.masked.ring_widths import Bounds, RingWidths
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.mpc.tuples.plan import trace
from tests.support.harness import Bits, Input, run
from tests.support.openings import gates_that_look_alike


HEAD = HeadSpec("head.dense", "tanh", "head.classifier", 3)
SMALL = EncoderSpec(2, 32, 2, 64, "gelu", "exact", 1e-12, (0, 1), HEAD)
GIB = 2**30


def bert(layers, width, heads, inner):
    return EncoderSpec(
        layers, width, heads, inner, "gelu", "exact", 1e-12, tuple(range(layers)), replace(HEAD, num_outputs=2)
    )


TINY, BASE, LARGE = bert(2, 128, 2, 512), bert(12, 768, 12, 3072), bert(24, 1024, 16, 4096)
FRIENDLY = replace(BASE, hidden_act="quadratic", softmax="2quad")


def weights_of(spec, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": 0, "key": 0, "value": 0, "attention_output": 0, "intermediate": 1, "output": 2}
    sizes = [
        (spec.hidden_size,) * 2,
        (spec.intermediate_size, spec.hidden_size),
        (spec.hidden_size, spec.intermediate_size),
    ]
    weights = {}

    def put(name, *shape):
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * (0.08 if len(shape) > 1 else 0.1)
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
        if len(shape) == 1:
            weights[f"{name}.weight"] += 1

    for layer in sorted(set(spec.layer_map)):
        for name, kind in shapes.items():
            put(f"layers.{layer}.{name}", *sizes[kind])
        for name in ("attention_norm", "output_norm"):
            put(f"layers.{layer}.{name}", spec.hidden_size)
    put("head.dense", spec.hidden_size, spec.hidden_size)
    put("head.classifier", spec.head.num_outputs, spec.hidden_size)
    return weights


def batch_of(spec, lengths, longest, seed=0):
    """Embedding outputs whose padding rows are copies, and the mask."""
    x = torch.randn(len(lengths), longest, spec.hidden_size, generator=torch.Generator().manual_seed(seed))
    live = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(torch.uint8)
    return copy_into_padding(x, live), live


def encrypted(spec, x, live, bounds=None, weights=None, **options):
    encoder = MaskedEncoder(spec, RingWidths(bounds or Bounds(), x.shape[1], spec.softmax))
    words = fold_weights(spec, weights or weights_of(spec), encoder.rings)
    given, mask = Input.real(x, encoder.input_width, encoder.rings.bits.hidden), Bits(live)
    return run(lambda party: encoder.run(party, given(party), mask(party)), words, **options)


def plan_of(spec, length=128, batch=1, bounds=None, precision=None):
    encoder = MaskedEncoder(spec, precision or RingWidths(bounds or Bounds(), length, spec.softmax))
    meta = partial(torch.empty, device="meta")
    weights = {
        name: WeightShare(meta(shape, dtype=torch.int64), meta(shape, dtype=torch.int64))
        for name, shape in weight_shapes(spec).items()
    }

    def program(party):
        x = party.secret(
            meta(batch, length, spec.hidden_size, dtype=torch.int64),
            encoder.input_width,
            encoder.rings.bits.hidden,
            5,
        )
        return encoder.run(party, x, meta(batch, length, dtype=torch.uint8))

    return trace(program, weights)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "relu", "head": replace(HEAD, activation="relu")},
        {"hidden_act": "quadratic", "head": replace(HEAD, activation="gelu")},
        {"softmax": "2quad"},
        {"softmax": "2quad", "hidden_act": "quadratic"},
        {"num_layers": 3, "layer_map": (0, 0, 1)},
        {"layer_norm_eps": 1e-3},
    ],
    ids=lambda changes: (
        "-".join(f"{value}" for value in changes.values() if not isinstance(value, HeadSpec)) or "exact"
    ),
)
def test_logits_are_those_of_the_clear_encoder(changes):
    spec = replace(SMALL, **changes)
    x, live = batch_of(spec, [12, 5, 1], 12)
    expected = ClearEncoder(spec, weights_of(spec))(x, live)
    for _ in range(2):  # fresh masks
        done = encrypted(spec, x, live)
        assert (done.values - expected).abs().max() < 0.004
        assert done.results[0].width == MaskedEncoder(spec, RingWidths(Bounds(), 12, spec.softmax)).logit_width


def test_2relu_needs_a_row_that_sums_to_an_eighth():
    spec, weights = replace(SMALL, softmax="2relu"), weights_of(SMALL)
    for layer in (0, 1):  # scores around 1: without a positive score, 2ReLU has no row sum to divide by
        for part in ("query", "key"):
            weights[f"layers.{layer}.{part}.bias"] += 0.5
    x, live = batch_of(spec, [12, 9, 7], 12)
    clear = ClearEncoder(spec, weights)
    expected = clear(x, live)
    assert (encrypted(spec, x, live, weights=weights).values - expected).abs().max() < 0.004


@pytest.mark.parametrize("softmax", ["2quad", "2relu"])
def test_large_weights_of_small_values_have_a_ring_for_their_row_sums(softmax):
    spec, weights = replace(SMALL, softmax=softmax), weights_of(SMALL)
    for layer in (0, 1):
        for part in ("query", "key"):
            weights[f"layers.{layer}.{part}.bias"] += 1.0
        for part in ("weight", "bias"):
            weights[f"layers.{layer}.value.{part}"] *= 0.005
    x, live = batch_of(spec, [2, 1], 2)
    clear = ClearEncoder(spec, weights)
    expected = clear(x, live)
    found = [bounds_for(reached(clear.seen, layer), False) for layer in (0, 1)]
    own = {name: max(one[name] for one in found) for name in ("value", "context")}
    assert own["context"] == {"2quad": 0, "2relu": -4}[softmax]
    for scores in (6, 8):
        bounds = Bounds().replaced(scores=scores, **own)
        assert (encrypted(spec, x, live, bounds, weights).values - expected).abs().max() < 0.004


def test_weights_that_need_more_than_64_bits_are_refused():
    rings = RingWidths(Bounds(), 512, "2quad")
    with pytest.raises(SecureRouterValueError, match=r"attention weights \(max_length, value bound\) needs a ring"):
        rings.check(rings.attention_width)


@pytest.mark.parametrize("length", [1, 2, 5, 33])
def test_any_length_works(length):
    x, live = batch_of(SMALL, [length], length)
    expected = ClearEncoder(SMALL, weights_of(SMALL))(x, live)
    assert (encrypted(SMALL, x, live).values - expected).abs().max() < 0.004


def test_padding_changes_nothing():
    spec = replace(SMALL, num_layers=1, layer_map=(0,))
    short, mask = batch_of(spec, [5], 5)
    long = torch.cat([short, short[:, -1:].expand(-1, 4, -1)], 1)
    live = torch.cat([mask, torch.zeros(1, 4, dtype=torch.uint8)], 1)
    expected = ClearEncoder(spec, weights_of(spec))(short, mask)
    assert (encrypted(spec, long, live).values - expected).abs().max() < 0.004


def test_a_ring_beyond_64_bits_is_refused():
    with pytest.raises(SecureRouterValueError, match="lower bounds|too wide together"):
        plan_of(SMALL, 16, 1, replace(Bounds(), residual=24))


@pytest.mark.parametrize(
    ("spec", "online", "rounds", "dealer"),
    [(TINY, 0.008, 350, 5), (BASE, 0.30, 350, 5), (LARGE, 0.8, 700, 16), (FRIENDLY, 0.20, 350, 5)],
    ids=["tiny", "base", "large", "friendly"],
)
def test_budgets_at_length_128(spec, online, rounds, dealer):
    plan = plan_of(spec)
    assert 2 * plan.payload_bytes <= online * GIB
    assert plan.rounds <= rounds
    assert plan.dealer_bytes <= dealer * GIB


def linear_bytes(spec, length, batch):
    """Openings before shared weights: the hidden state, the context, the hidden state, the activations."""
    precision = RingWidths(Bounds(), length, spec.softmax)
    wide, inner = precision.attention_width, precision.feed_forward_width

    def layer(rows):
        return [
            (rows * spec.hidden_size, precision.attended_width),
            (rows * spec.hidden_size, inner),
            (rows * spec.intermediate_size, precision.outer_width),
        ]

    openings = [(batch * length * spec.hidden_size, wide)] * spec.num_layers
    for _ in range(spec.num_layers - 1):
        openings += layer(batch * length)
    openings += [(batch * spec.hidden_size, wide), *layer(batch)]
    openings += [(batch * spec.hidden_size, wide), (batch * spec.hidden_size, precision.classifier_width)]
    return sum(packed_size(*opening) for opening in openings)


def attention_bytes(spec, length, batch):
    """Openings of Q, K, V and of the exponentials, and of y with its bit."""
    precision = RingWidths(Bounds(), length, spec.softmax)
    matmul = exponential = 0
    for queries in [length] * (spec.num_layers - 1) + [1]:
        scores = batch * spec.num_heads * queries * length
        matmul += packed_size(batch * queries * spec.hidden_size, precision.score_width)
        matmul += packed_size(batch * length * spec.hidden_size, precision.score_width)
        matmul += packed_size(batch * length * spec.hidden_size, precision.mix_width)
        matmul += packed_size(scores, precision.mix_width)
        exponential += packed_size(scores, precision.bounds.scores + precision.bits.scores) + packed_size(scores, 1)
    return matmul, exponential


def tournament_rounds(spec, length, batch):
    rows = [length] * (spec.num_layers - 1) + [1]
    return sum(2 * len(groups_of(length, batch * spec.num_heads * queries)) for queries in rows)


@pytest.mark.parametrize("length", [32, 128, 512])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_cost_grows_as_the_formula_says(length, batch):
    plan = plan_of(TINY, length, batch)
    matmul, exponential = attention_bytes(TINY, length, batch)
    assert plan.by_gate["Linear"].sent == linear_bytes(TINY, length, batch)
    assert plan.by_gate["Matmul"].sent == matmul
    assert plan.by_gate["Exponential"].sent == exponential
    one = plan_of(TINY, length, 1)
    # Rounds do not grow with the batch, except in tournaments, where the planner trades rounds against bytes.
    assert plan.rounds - tournament_rounds(TINY, length, batch) == one.rounds - tournament_rounds(TINY, length, 1)
    # All other bytes grow with the rows, up to the last byte of each opening.
    bytes_of, one_of = (part.payload_bytes - part.by_gate["Knockout"].sent for part in (plan, one))
    assert abs(bytes_of - batch * one_of) <= 0.001 * bytes_of


def test_what_the_parties_see_of_a_whole_model_is_uniform_and_alike_for_two_inputs():
    spec = replace(SMALL, hidden_size=8, intermediate_size=16, num_layers=1, layer_map=(0,))
    weights = weights_of(spec)
    inputs = [batch_of(spec, [4], 4, seed=1), batch_of(spec, [1], 4, seed=2)]
    inputs[1] = (inputs[1][0] * 3, inputs[1][1])
    assert gates_that_look_alike(lambda x, live: encrypted(spec, x, live, weights=weights), inputs, runs=10)
