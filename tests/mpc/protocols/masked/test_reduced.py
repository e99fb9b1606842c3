# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts of reduced precision on shares: their cost against exact experts, and the clear model predicting them."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

from hf_securerouter.lengths import copy_into_padding
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.models import EncoderSpec
from hf_securerouter.mpc.protocols import load_protocol
from hf_securerouter.mpc.protocols.masked.encoder import MaskedEncoder
from hf_securerouter.mpc.protocols.masked.folding import fold_weights
from hf_securerouter.mpc.protocols.masked.ring_widths import RingWidths
from hf_securerouter.mpc.ring.fixed_point import from_fixed_point
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import number_format
from hf_securerouter.range_penalty import range_penalty
from tests.mpc.models.test_models import classifier, inputs, parts
from tests.mpc.protocols.masked.test_encoder import bert, plan_of
from tests.mpc.protocols.masked.test_shared_encoder import MODES, QUOTAS, clear, converted, mixed, pool
from tests.support.conversation import Conversation
from tests.support.harness import Bits, Input, run


EXACT = bert(6, 384, 12, 1536)
FRIENDLY = replace(EXACT, hidden_act="quadratic", softmax="2quad", precision="reduced")
SLIM = replace(bert(6, 384, 8, 1280), precision="reduced")  # exact functions, fewer heads and neurons
VARIANTS = [("quadratic", "2quad"), ("exact", "exact"), ("quadratic", "exact"), ("relu", "2relu")]


def precision_of(spec, length):
    chosen, differs = number_format(spec.precision, spec.softmax, spec.padding_differs), spec.padding_differs
    own = {"hidden_act": spec.hidden_act, "bits": chosen.bits, "shifts_padding": differs}
    return RingWidths(chosen.bounds, length, spec.softmax, **own)


@cache
def plan(spec, length):
    return plan_of(spec, length, precision=precision_of(spec, length))


# Costs.


@pytest.mark.parametrize(
    ("spec", "length", "sent", "linear", "rounds"),
    [
        (FRIENDLY, 64, 5_735_627, 2_437_056, 112),
        (FRIENDLY, 128, 13_365_398, 4_863_936, 112),
        (SLIM, 64, 5_649_430, 2_306_640, 148),
        (SLIM, 128, 13_279_189, 4_603_472, 160),
    ],
)
def test_an_expert_made_for_encryption_costs_half_of_the_exact_one(spec, length, sent, linear, rounds):
    exact, narrow = plan(EXACT, length), plan(spec, length)
    assert (narrow.payload_bytes, narrow.by_gate["Linear"].sent, narrow.rounds) == (sent, linear, rounds)
    assert narrow.payload_bytes <= 0.5 * exact.payload_bytes
    assert linear <= 0.55 * exact.by_gate["Linear"].sent


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@pytest.mark.parametrize("length", [16, 64, 128, 512])
def test_linear_layers_fit_4_bytes(variant, length):
    hidden_act, softmax = variant
    spec = replace(EXACT, hidden_act="gelu" if hidden_act == "exact" else hidden_act, softmax=softmax)
    narrow = plan(replace(spec, precision="reduced"), length)
    widths = [gate.width for gate in narrow.gates if isinstance(gate, Linear)]
    assert max(widths) <= 32 and len(widths) == 4 * 6 + 3
    assert narrow.by_gate["Linear"].sent <= 0.55 * plan(EXACT, length).by_gate["Linear"].sent
    assert narrow.rounds <= plan(EXACT, length).rounds


# Results.


@torch.no_grad()
def tamed(model):
    """Halves a classifier's matrices in place: values stay within the bounds, and rounding moves logits by a
    standard deviation below 0.002."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embeddings." not in name:
            parameter *= 0.5


def narrow_classifier(family, hidden_act="quadratic", softmax="2quad"):
    """A classifier whose values stay within the bounds."""
    model = classifier(family)
    tamed(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if softmax == "2relu" and name.endswith(("query.bias", "key.bias", "q_lin.bias", "k_lin.bias")):
                parameter += 1  # so that every row has a score above 0, and a row sum to divide by
    use_functions(model, hidden_act, softmax, "reduced")
    return model


def encrypted(model, batch):
    spec, embedded, weights = parts(model, batch, **model.expert_mpc)
    assert spec.precision == "reduced"
    live = batch["attention_mask"].to(torch.uint8)
    encoder = MaskedEncoder(spec, precision_of(spec, embedded.shape[1]))
    bits = encoder.rings.bits
    x = Input.real(copy_into_padding(embedded, live), encoder.input_width, bits.hidden)
    mask = Bits(live)
    words = fold_weights(spec, weights, encoder.rings)
    return run(lambda party: encoder.run(party, x(party), mask(party)), words).values


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_clear_model_predicts_the_encrypted_logits(family, variant):
    model = narrow_classifier(family, *variant)
    batch = inputs(model)
    with torch.no_grad():
        expected = model(**batch).logits
    found = torch.stack([encrypted(model, batch) for _ in range(4)])  # fresh masks
    assert (found - expected).abs().max() < 0.02
    assert (found.mean(0) - expected).abs().max() < 0.008  # truncation is right in the mean
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet"])
def test_layers_multiply_by_the_words_that_are_shared(family):
    model = narrow_classifier(family)
    spec, _, weights = parts(model, inputs(model), **model.expert_mpc)
    precision = precision_of(spec, 9)
    words = fold_weights(spec, weights, precision)
    seen = 0
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "format")}
    by_shape = [module for module in layers.values() if isinstance(module, torch.nn.Linear)]
    expected = ["query", "key", "value", "attention_output", "intermediate", "output"]
    names = [f"{before}.{layer}.{part}" for before, layer in (("in", 0), ("0", 1)) for part in expected]
    for name, module in zip([*names, "head.dense", "head.classifier"], by_shape, strict=True):
        matrix = module.shared()[0]
        if module.format.norm:
            matrix = matrix * module.format.norm[0].shared()[0]
        if module.format.centred:
            matrix = matrix - module.weight.mean(0)
        shared = from_fixed_point(words[name], 64, module.format.weights).T
        torch.testing.assert_close((matrix * module.format.scale).double(), shared, atol=1e-5, rtol=0)
        seen += 1
    assert seen == 14


@pytest.mark.parametrize(("apart", "within"), [(27.0, True), (56.0, False)])
def test_scores_with_a_bias_lie_as_far_apart_as_training_allows(apart, within):
    """Padding is moved below all scores of tokens, which takes half of their range."""
    model = narrow_classifier("mpnet", "exact", "exact")
    table = model.mpnet.encoder.relative_attention_bias.weight
    with torch.no_grad():
        table[0] = apart  # of a token and itself; the others have about 0
        batch = inputs(model)
        with range_penalty(batch["attention_mask"]) as penalty:
            expected = model(**batch).logits
    assert (penalty.widest <= 1) == within
    draws = torch.stack([encrypted(model, batch) for _ in range(4)])
    assert ((draws - expected).abs().max() < 0.02) == within


def test_a_later_input_out_of_bounds_is_garbage():
    model = narrow_classifier("bert")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 40.0  # the bound is 16
        batch = inputs(model)
        expected = model(**batch).logits
    # Wrapping depends on the masks: about one draw in forty has an error of only 0.02; within bounds it is 0.004.
    draws = torch.stack([encrypted(model, batch) for _ in range(4)])
    assert (draws - expected).abs().max() > 0.05


# Pools of both precisions.


NARROW = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"}


def pool_of(*chosen, widths=(16, 8)):
    """The shared-encoder pool of `test_shared_encoder`, with the given functions of its experts."""
    model = copy.deepcopy(pool(widths=widths))
    model.config.expert_mpc = [
        {"hidden_act": "exact", "softmax": "exact", "precision": "full"} | own for own in chosen
    ]
    for expert, own in zip(model.experts, chosen, strict=True):
        if own.get("precision") == "reduced":
            tamed(expert)
    model._use_functions()
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chosen", [({}, NARROW), (NARROW, {}), (NARROW, NARROW)], ids=["router", "other", "both"])
def test_every_mode_serves_experts_of_both_precisions(mode, chosen):
    """The router shares the encoder of the second expert."""
    model = pool_of(*chosen)
    ids, mask = mixed(model)
    logits, _ = clear(model, ids, mask, QUOTAS if mode == "quota" else None)
    done = Conversation(converted(model, mode))(ids, mask)
    assert (done.logits - logits).abs().max() < 0.01


def test_experts_of_one_precision_are_selected_and_those_of_two_run_side_by_side():
    for chosen, selects in (((NARROW, NARROW), True), (({**NARROW, "precision": "full"}, NARROW), False)):
        model = pool_of(*chosen, widths=(8, 8))
        ids, mask = mixed(model)
        logits, _ = clear(model, ids, mask)
        secure = converted(model, "oblivious")
        assert secure.manifest.selects == selects
        assert (Conversation(secure)(ids, mask).logits - logits).abs().max() < 0.01


def test_calibration_narrows_the_narrow_bounds():
    model = pool_of(NARROW, NARROW)
    ids, mask = mixed(model)
    secure = converted(model, "revealed", calibration={"input_ids": ids, "attention_mask": mask})
    wide, narrow = (
        sum(plan.payload_bytes for plan in Conversation(one)(ids, mask).plans)
        for one in (converted(model, "revealed"), secure)
    )
    assert narrow < wide


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet"])
def test_an_exact_expert_of_the_weights_that_are_shared_gives_its_logits(family):
    """The reference computes every expert with the same fraction bits."""
    model = narrow_classifier(family, "exact", "exact")
    batch = inputs(model)
    spec, embedded, weights = parts(model, batch, **model.expert_mpc)
    assert load_protocol("crypten").problems({"experts.0": spec}, "cpu", "ttp") == []
    found = ClearEncoder(spec, weights)(embedded, batch["attention_mask"])
    with torch.no_grad():
        torch.testing.assert_close(found.float(), model(**batch).logits, atol=1e-4, rtol=0)


def test_a_manifest_without_precision_is_full():
    described = replace(EXACT, precision="full").to_dict()
    del described["precision"]
    assert EncoderSpec.from_dict(described) == EXACT
    assert EncoderSpec.from_dict(FRIENDLY.to_dict()) == FRIENDLY
