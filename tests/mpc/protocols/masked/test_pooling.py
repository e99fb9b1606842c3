# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The mean of the tokens' rows and the heads that read it, under the masked protocol."""

import json
from dataclasses import replace

import pytest
import torch

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.models.spec import EncoderSpec, HeadSpec
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.pooling import MeanPooling
from hf_securerouter.mpc.protocols.masked.ring_widths import Bounds, RingWidths
from tests.mpc.protocols.masked.test_encoder import HEAD, SMALL, batch_of, encrypted, plan_of, weights_of
from tests.support.harness import Bits, Input, run
from tests.support.openings import gates_that_look_alike


LINEAR = HeadSpec(None, "identity", "head.classifier", 3)
HEADS = {
    "linear": LINEAR,
    "tanh": HEAD,
    "unit": replace(HEAD, activation="identity", inner_size=20, normalize=True),
    "unit of gelu": replace(HEAD, activation="gelu", normalize=True),
    "unit of tanh": replace(HEAD, inner_size=8, normalize=True),
    "unit of relu": replace(HEAD, activation="relu", normalize=True),
}
ONE_LAYER = replace(SMALL, num_layers=1, layer_map=(0,))


def weights_for(spec):
    """Weights of `weights_of`, with the head that the spec asks for."""
    weights, head = weights_of(spec), spec.head
    inner = spec.hidden_size if head.dense is None else head.inner_size or spec.hidden_size
    generator = torch.Generator().manual_seed(9)
    if head.dense is None:
        del weights["head.dense.weight"], weights["head.dense.bias"]
    else:
        weights["head.dense.weight"] = 0.2 * torch.randn(inner, spec.hidden_size, generator=generator)
        weights["head.dense.bias"] = 0.1 * torch.randn(inner, generator=generator)
    size = 3 if head.normalize else 0.3
    weights["head.classifier.weight"] = size * torch.randn(head.num_outputs, inner, generator=generator)
    return weights


def mean(rows, live, pooling=None):
    pooling = pooling or MeanPooling(rows.shape[1], 14, 5, 40)
    pooling.check()
    given, mask = Input.real(rows, pooling.row_width, 14), Bits(live)

    def program(party):
        tokens = yield from pooling.count(party, mask(party))
        return (yield from pooling.run(party, given(party), tokens))

    return run(program)


def test_the_mean_is_of_tokens_alone():
    """Rows of padding, which are larger than those of tokens, and zeros between tokens change nothing."""
    generator = torch.Generator().manual_seed(3)
    for length, counts in ((1, [1]), (2, [2, 1]), (33, [33, 17, 1]), (127, [127, 100]), (200, [200, 3])):
        live = (torch.arange(length) < torch.tensor(counts)[:, None]).to(torch.uint8)
        if length > 2:
            live[:, 1] = 0
        rows = torch.randn(len(counts), length, 6, generator=generator)
        rows = torch.where(live[:, :, None].bool(), rows, 20.0)
        expected = torch.stack([own[mask.bool()].mean(0) for own, mask in zip(rows, live, strict=True)])
        done = mean(rows, live)
        assert (done.values - expected).abs().max() < 6e-4 * expected.abs().max() + 4 * 2.0**-14
        assert (done.results[0].width, done.results[0].scale) == (40, 14)


def test_the_largest_rows_are_summed_rightly():
    for value in (31.9, -31.9):
        rows = torch.full((1, 64, 2), value)
        done = mean(rows, torch.ones(1, 64, dtype=torch.uint8))
        assert (done.values - value).abs().max() < 0.02


def test_the_largest_value_of_a_wide_normalised_row_is_summed_rightly():
    """A row of width d with one value that is not 0 has sqrt(d) there."""
    for features in (1024, 2048, 4096):
        pooling = MaskedEncoder(replace(ONE_LAYER, hidden_size=features, pooling="mean"), RingWidths(Bounds(), 8)).mean
        rows = torch.full((200, 8, 1), 0.99 * features**0.5)
        done = mean(rows, torch.ones(200, 8, dtype=torch.uint8), pooling)
        assert (done.values - rows[:, 0]).abs().max() < 0.05
        assert pooling.bound == 5 + (features > 1024)


def test_a_mean_beyond_64_bits_is_refused():
    for pooling in (MeanPooling(512, 14, 5, 50), MeanPooling(512, 40, 14, 20)):
        with pytest.raises(SecureRouterValueError, match="rows.*needs a ring of"):
            pooling.check()


def test_logits_are_those_of_the_clear_encoder():
    cases = [("mean", head) for head in HEADS.values()] + [("first", LINEAR), ("first", HEADS["unit of gelu"])]
    for pooling, head in cases:
        spec = replace(ONE_LAYER, pooling=pooling, head=head)
        weights = weights_for(spec)
        x, live = batch_of(spec, [5, 3, 1], 5)
        expected = ClearEncoder(spec, weights)(x, live)
        assert expected.std(0).max() > 0.1
        for _ in range(3):  # fresh masks
            done = encrypted(spec, x, live, weights=weights)
            assert (done.values - expected).abs().max() < 0.01, (pooling, head)


def test_other_functions_are_pooled_too():
    for changes in ({"softmax": "2quad", "hidden_act": "quadratic"}, {"relative_buckets": 32}):
        spec = replace(SMALL, pooling="mean", head=HEADS["unit"], **changes)
        weights = weights_for(spec)
        if spec.relative_buckets:
            weights["relative_attention_bias.weight"] = torch.randn(32, 2)
        x, live = batch_of(spec, [9, 4], 9)
        expected = ClearEncoder(spec, weights)(x, live)
        assert (encrypted(spec, x, live, weights=weights).values - expected).abs().max() < 0.01


def test_the_mean_costs_two_rounds_and_fits_every_usual_size():
    base = EncoderSpec(2, 768, 12, 3072, "gelu", "exact", 1e-12, (0, 1), LINEAR)
    for width, heads, length in ((768, 12, 128), (1024, 16, 512)):
        spec = replace(base, hidden_size=width, num_heads=heads)
        if length == 128:  # in longer rows, the maxima of all tokens' rows take other rounds than one token's
            first, pooled = plan_of(spec, length), plan_of(replace(spec, pooling="mean"), length)
            assert pooled.rounds == first.rounds + 2
        for head in HEADS.values():
            plan_of(replace(spec, pooling="mean", head=replace(head, inner_size=None)), length)


def test_a_bound_that_a_head_measures_reaches_its_gates():
    """Very short and very long rows are divided rightly at their own bounds, and wrongly at narrower ones."""
    for size, low, high in ((0.05, -18, -2), (40.0, 2, 24)):
        spec = replace(ONE_LAYER, head=HEADS["unit"])
        weights = weights_for(spec)
        weights |= {f"head.dense.{part}": size * weights[f"head.dense.{part}"] for part in ("weight", "bias")}
        x, live = batch_of(spec, [5, 3], 5)
        clear = ClearEncoder(spec, weights)
        expected = clear(x, live)
        own = Bounds().replaced(norm_low=low, norm_high=high, norm=(low + high) // 2, head=10)
        errors = [
            (encrypted(spec, x, live, bounds=bounds, weights=weights).values - expected).abs().max()
            for bounds in (own, replace(own, norm_low=-1, norm_high=1, norm=0))
        ]
        assert errors[0] < 0.05 < errors[1], (size, errors)


def test_what_the_parties_see_is_uniform_and_alike_for_two_numbers_of_tokens():
    head = replace(HEADS["unit"], inner_size=8)
    spec = replace(ONE_LAYER, hidden_size=8, intermediate_size=16, pooling="mean", head=head)
    weights = weights_for(spec)
    inputs = [batch_of(spec, [3], 3, seed=1), batch_of(spec, [1], 3, seed=2)]
    inputs[1] = (inputs[1][0] * 3, inputs[1][1])
    gates = gates_that_look_alike(lambda x, live: encrypted(spec, x, live, weights=weights), inputs, runs=8)
    assert {"BitToRing", "RowFunction", "Matmul", "RowScale", "Linear"} <= gates


def test_specs_without_pooling_are_written_as_before():
    spec = replace(SMALL, pooling="mean", head=HEADS["unit"])
    assert EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    old = SMALL.to_dict()
    assert "pooling" not in old and "normalize" not in old["head"]
    assert EncoderSpec.from_dict(old) == SMALL


def test_rings_of_a_head_are_checked():
    wide = RingWidths(replace(Bounds(), logits=40), 16)
    for head in (LINEAR, HEADS["unit"]):
        with pytest.raises(SecureRouterValueError, match="needs a ring of"):
            wide.check_head(head, 32)
