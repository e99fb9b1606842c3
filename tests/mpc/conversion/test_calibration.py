# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Measured bounds: they hold for what an encoder reaches, layer by layer, or the encoder is refused."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterValueError, SecureRouterWarning
from hf_securerouter.families import layers_of
from hf_securerouter.mpc.conversion import calibration
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.ranges import bounds_for, limit
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import LOWEST, MARGIN, Bounds
from tests.support.conversation import Conversation
from tests.tiny import VOCABULARY, family_config, noisy_classifier, pool_model


LENGTH = 10


def batch(rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCABULARY), (rows, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH, (rows, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def scaled(part, factor, layer=1, family="bert"):
    """A classifier of two layers, one of which has some weights multiplied."""
    model = noisy_classifier(family, width=16, heads=2)
    with torch.no_grad():
        getattr(layers_of(model)[layer], part).weight.mul_(factor)
    return model


def error_of(secure, model):
    """The largest error of a logit, over two sessions."""
    inputs = batch()
    with torch.no_grad():
        expected = model(**inputs).logits
    return max(float((Conversation(secure)(*inputs.values()).logits - expected).abs().max()) for _ in range(2))


def quietly(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecureRouterWarning)
        return to_mpc(model, max_length=LENGTH, **options)


def with_default_bounds(secure):
    return SecureModel(replace(secure.converted, manifest=replace(secure.manifest, bounds={})))


@pytest.mark.parametrize(
    ("part", "factor", "name"), [("output", 400, "residual"), ("intermediate", 60, "inner"), ("query", 25, "scores")]
)
def test_a_layer_that_exceeds_the_defaults_gets_wider_bounds_alone(part, factor, name):
    model = scaled(part, factor)
    with pytest.warns(SecureRouterWarning, match=r"exceed the default bounds of experts\.0.*`calibration=`") as warned:
        secure = to_mpc(model, max_length=LENGTH)
    assert [warning.filename for warning in warned] == [__file__]  # the caller's line, not one of the package
    assert secure.manifest.bounds.keys() == {"experts.0.layers.1"}
    assert name in secure.manifest.bounds["experts.0.layers.1"]
    assert error_of(secure, model) < 0.02
    if name != "scores":  # these samples come within the margin of the default only
        assert error_of(with_default_bounds(secure), model) > 0.1


@pytest.mark.parametrize("factor", [8, 64, 4096])
def test_scaled_queries_are_answered_rightly_or_refused(factor):
    model = scaled("query", factor, layer=0)
    try:
        secure = quietly(model)
    except ConversionError as error:
        assert "experts.0.layers.0" in str(error) and "scores 2^" in str(error)
    else:
        assert error_of(secure, model) < 0.02


def test_a_router_whose_inner_values_need_a_wider_ring_than_its_scores_answers():
    model = pool_model(("bert", "bert"))
    with torch.no_grad():
        model.router.dense.weight.mul_(2**18)
        model.router.out_proj.weight.zero_()
        model.router.out_proj.bias.copy_(torch.tensor([0.0, 1.0]))
    secure = quietly(model, routing_privacy="revealed")
    done = Conversation(secure)(*batch().values())
    assert secure.manifest.bounds["router"]["head"] > 18 and [int(one) for one in done.experts] == [1] * 4
    torch.testing.assert_close(done.logits, model(**batch()).logits, atol=0.01, rtol=0)


def test_what_no_ring_holds_is_refused_layer_by_layer():
    model = scaled("output", 1e6)
    with torch.no_grad():
        layers_of(model)[0].query.weight.mul_(1e5)
    with pytest.raises(ConversionError) as found:
        to_mpc(model, max_length=LENGTH)
    assert [problem.path for problem in found.value.problems] == ["experts.0.layers.0", "experts.0.layers.1"]
    for problem, name in zip(found.value.problems, ("scores", "residual"), strict=True):
        assert f"{name} 2^" in problem.reason and problem.remedy


def test_inputs_of_a_curved_activation_that_no_table_holds_are_refused():
    with pytest.raises(ConversionError, match=r"experts\.0\.layers\.1.*`inner` is bounded by 2\^.*gelu reads"):
        to_mpc(scaled("intermediate", 2000), max_length=LENGTH)
    model = noisy_classifier("bert", width=16, heads=2)
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(5000)
    with pytest.raises(ConversionError, match=r"experts\.0\.head.*`head` is bounded by 2\^.*tanh reads"):
        to_mpc(model, max_length=LENGTH)


def test_a_value_that_is_not_finite_on_a_sample_is_refused():
    with pytest.raises(ConversionError, match=r"experts\.0\.layers\.1.* is not finite on a sample"):
        to_mpc(scaled("query", 1e38), max_length=LENGTH)


@pytest.mark.parametrize("family, measured", [("bert", 6), ("mpnet", LENGTH)])
def test_samples_are_measured_to_their_last_token_and_padding_where_it_has_values(family, measured, monkeypatch):
    lengths = []

    class Watched(ClearEncoder):
        def __call__(self, x, is_token):
            lengths.append(is_token.shape[1])
            return super().__call__(x, is_token)

    monkeypatch.setattr(calibration, "ClearEncoder", Watched)
    mask = torch.tensor([[1, 0, 0, 0, 0, 1, 0, 0, 0, 0]])
    quietly(
        noisy_classifier(family, width=16, heads=2),
        calibration={"input_ids": torch.full((1, LENGTH), 7), "attention_mask": mask},
    )
    assert lengths == [measured]


def test_an_ordinary_model_keeps_the_default_bounds_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        secure = to_mpc(noisy_classifier("bert", width=16, heads=2), max_length=LENGTH)
    assert secure.manifest.bounds == {}
    assert all(one.margin > 0 and one.bound == one.default for one in secure.ranges)
    assert {(one.layer, one.kind) for one in secure.ranges} >= {(0, "inner"), (1, "residual"), (None, "logits")}


def test_samples_set_bounds_in_both_directions():
    model = scaled("output", 400)
    secure = quietly(model, calibration=batch(16, seed=1))
    wide, narrow = (Bounds().replaced(**secure.manifest.bounds[f"experts.0.layers.{layer}"]) for layer in (1, 0))
    assert narrow.residual < Bounds.residual < wide.residual
    assert secure.manifest.bounds["experts.0"]["logits"] < Bounds.logits
    assert error_of(secure, model) < 0.02


def test_measured_contexts_that_are_small_beside_their_weights_are_answered():
    model = scaled("query", 8, layer=0)
    with torch.no_grad():
        layers_of(model)[0].value.weight.mul_(0.1)
        layers_of(model)[0].value.bias.mul_(0.1)
    use_functions(model, "quadratic", "2quad", "reduced")
    secure = quietly(model, calibration=batch(16, seed=1))
    bounds = secure.manifest.bounds["experts.0.layers.0"]
    assert secure.plan(1).rounds and bounds["context"] < 2 * bounds["scores"] - 9
    assert error_of(secure, model) < 0.1


@pytest.mark.parametrize("precision", ["full", "reduced"])
def test_weights_that_are_all_zero_leave_a_context_with_a_ring(precision):
    model = scaled("query", 0)
    with torch.no_grad():
        layers_of(model)[1].query.bias.zero_()
    use_functions(model, "relu", "2relu", precision)
    secure = quietly(model, calibration=batch(16, seed=1))
    assert secure.manifest.bounds["experts.0.layers.1"]["context"] == -4
    assert secure.plan(1).rounds


def test_what_is_ranked_is_never_narrowed():
    pool = pool_model()
    secure = quietly(pool, calibration=batch(8, seed=1), routing_privacy="oblivious")
    assert "logits" not in secure.manifest.bounds["router"]
    assert "logits" in secure.manifest.bounds["experts.0"]


def test_experts_of_one_shape_are_selected_with_the_loosest_bounds():
    pool = pool_model(("bert", "bert"), expert_configs=[family_config("bert", layers=2) for _ in range(2)])
    with torch.no_grad():
        layers_of(pool.experts[1])[0].output.weight.mul_(4000)
    secure = quietly(pool, routing_privacy="oblivious")
    assert secure.manifest.selects
    assert secure.manifest.bounds_of("experts.0") == secure.manifest.bounds_of("experts.1")
    assert "residual" in secure.manifest.bounds["experts.0.layers.0"]


@given(
    st.dictionaries(st.sampled_from(["value", "residual", "inner", "head", "logits", "embedding"]), st.floats(0, 1e6)),
    st.floats(0, 1e4),
    st.floats(1e-6, 1e4),
    st.floats(1, 1e4),
    st.booleans(),
)
def test_a_bound_holds_its_value_with_the_margin(found, scores, low, ratio, biased):
    found |= {"scores": scores, "span": 1.5 * scores, "variance_low": low, "variance_high": low * ratio}
    bounds = Bounds().replaced(**bounds_for(found, biased))
    for kind, value in found.items():
        allowed = limit(bounds, kind, biased)
        assert allowed <= value / MARGIN * 1.0001 if kind in LOWEST else allowed >= value * MARGIN / 1.0001


def test_an_unknown_bound_is_refused():
    with pytest.raises(SecureRouterValueError, match="`bounds` holds 'score'"):
        Bounds().replaced(score=3)
    assert Bounds().replaced(inner=1).inner == 3
    assert math.isclose(limit(Bounds(), "span", False), 124) and limit(Bounds(), "span", True) == 60
