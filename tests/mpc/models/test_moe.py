# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Mixtures of experts on shares: answers, costs, what every role sees, and pools with such experts."""

import warnings
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from hf_securerouter import SecureMoeForSequenceClassification, SecureRouterValueError
from hf_securerouter.expert_places import served
from hf_securerouter.lengths import copy_into_padding
from hf_securerouter.mpc.conversion import clear_encoder
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.gates.argmax import Reveal
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.models.spec import EncoderSpec, HeadSpec
from hf_securerouter.mpc.protocols.masked.dispatch import cheaper_dispatch, dispatch_costs
from hf_securerouter.mpc.protocols.masked.folding import fold_weights
from hf_securerouter.mpc.protocols.masked.layout import encoders
from hf_securerouter.mpc.protocols.masked.mixture import SecureMixture
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import Bounds
from tests.support.conversation import Conversation
from tests.support.harness import Bits, Input, run
from tests.support.openings import gates_that_look_alike
from tests.support.pad_audit import audited
from tests.tiny import VOCABULARY, family_config, moe_classifier, pool_model


WAYS = {
    "exact": {},
    "exact, two experts a token": {"num_experts_per_tok": 2},
    "exact, many experts": {"num_experts": 18},
    "capacity": {"expert_capacity": 2},
    "capacity, two experts a token": {"expert_capacity": 2, "num_experts_per_tok": 2},
    "more places than tokens": {"expert_capacity": 12, "hidden_act": "relu"},
}
MARGIN = 2e-3  # least difference of two probabilities of a token; below the rounding of scores the choice is another


def converted(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_mpc(model, **options)


def clearly_routed(model, count=2, length=9):
    """Texts of different length whose tokens choose experts clearly."""
    ids = torch.randint(5, len(VOCABULARY), (40, length), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(length) < (torch.arange(40) * 5 % length + 1)[:, None]).long()
    with torch.no_grad():
        routed = model(ids, attention_mask=mask, output_router_logits=True).router_logits
    choices = model.config.num_experts_per_tok
    best = torch.stack([logits.softmax(-1).topk(choices + 1).values for logits in routed])
    gaps = (best[..., :-1] - best[..., 1:]).amin((0, -1)).masked_fill(mask == 0, 1.0).amin(-1)
    rows = ((gaps > MARGIN) & (mask.sum(1) > 3)).nonzero()[:count, 0]
    assert len(rows) == count
    return ids[rows], mask[rows]


@pytest.mark.parametrize("way", WAYS)
def test_logits_on_shares_are_those_of_clear_text(way):
    model = moe_classifier(sparse_step=1, **WAYS[way])
    ids, mask = clearly_routed(model)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    secure = converted(model, max_length=11)
    weights = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    embedded = secure.client.embed(secure.client.tokenize({"input_ids": ids, "attention_mask": mask}))["experts.0"]
    padded = torch.nn.functional.pad(mask, (0, 2))
    assert (ClearEncoder(secure.manifest.experts[0], weights)(embedded, padded) - expected).abs().max() < 1e-5
    talk = Conversation(secure)
    for _ in range(2):  # fresh masks
        assert (talk(ids, mask).logits - expected).abs().max() < 0.02


def test_narrow_bounds_hold_for_mixtures():
    model = moe_classifier(expert_capacity=2, num_experts_per_tok=2)
    ids, mask = clearly_routed(model)
    batch = {"input_ids": ids, "attention_mask": mask}
    secure = converted(model, max_length=9, calibration=batch)
    bounds = secure.manifest.bounds["experts.0.layers.1"]
    assert {"routing", "expert"} <= set(bounds) and bounds["expert"] < Bounds.expert
    with torch.no_grad():
        assert (Conversation(secure)(ids, mask).logits - model(**batch).logits).abs().max() < 0.02


def padding_takes_places(chosen, is_token, *rest):
    return served(chosen, torch.ones_like(is_token), *rest)


def first_token_is_served(chosen, is_token, *rest):
    found = served(chosen, is_token, *rest).clone()
    found[:, 0] = True
    return found


@pytest.mark.parametrize(
    ("wrong", "capacity", "step"),
    [(padding_takes_places, 2, 1), (first_token_is_served, 1, 2)],
    ids=["padding", "first token"],
)
def test_padding_takes_no_place_and_the_first_token_may_find_none(wrong, capacity, step, monkeypatch):
    """On texts whose answers would be others if copies in the padding took places, or if the last layer, which is the
    sparse one of two, saw the first token only."""
    model = moe_classifier(expert_capacity=capacity, num_experts_per_tok=2, sparse_step=step)
    secure = converted(model, max_length=12)
    weights = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    ids, mask = clearly_routed(model, count=8)
    embedded = secure.client.embed(secure.client.tokenize({"input_ids": ids, "attention_mask": mask}))["experts.0"]
    padded = torch.nn.functional.pad(mask, (0, 3))
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    monkeypatch.setattr(clear_encoder, "served", wrong)
    other = ClearEncoder(secure.manifest.experts[0], weights)(copy_into_padding(embedded, padded), padded)
    changed, rows = (other - expected).abs().amax(1).topk(2)
    assert changed[0] > 0.05
    assert (Conversation(secure)(ids[rows], mask[rows]).logits - expected[rows]).abs().max() < 0.02


def test_other_functions_of_a_mixture_are_converted():
    model = moe_classifier()
    ids, mask = clearly_routed(model)
    use_functions(model, "quadratic", "2quad")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    assert (Conversation(converted(model, max_length=9))(ids, mask).logits - expected).abs().max() < 0.02
    with pytest.raises(SecureRouterValueError, match="got 'secure_moe'"):
        use_functions(model, precision="reduced")


def test_the_clients_folder_knows_the_encoder(tmp_path, tokenizer):
    model = moe_classifier()
    secure = converted(model, tokenizer=tokenizer, max_length=9)
    secure.save_shares(tmp_path / "shares")
    client = RoleFolder.load(tmp_path / "shares" / "client", "client").client()
    ids, mask = clearly_routed(model)
    batch = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(*(one.embed(one.tokenize(batch))["experts.0"] for one in (client, secure.client)))


def test_tokens_that_find_no_place_are_dropped_on_shares_too():
    model = moe_classifier(sparse_step=1)
    ids, mask = clearly_routed(model)
    with torch.no_grad():
        exact = model(ids, attention_mask=mask).logits
        model.config.expert_capacity = 1
        dropped = model(ids, attention_mask=mask).logits
    assert (exact - dropped).abs().max() > 0.05
    assert (Conversation(converted(model, max_length=9))(ids, mask).logits - dropped).abs().max() < 0.02


def shape(experts, length, capacity=None, layers=2, width=64, choices=1):
    """The manifest of a model with one sparse layer."""
    spec = EncoderSpec(
        layers, width, 2, 4 * width, "gelu", "exact", 1e-12, tuple(range(layers)),
        HeadSpec("head.dense", "tanh", "head.classifier", 2), sparse_layers=(0,), num_experts=experts,
        experts_per_token=choices, expert_capacity=capacity,
    )  # fmt: skip
    return Manifest("masked", "ttp", "revealed", "cpu", length, None, (spec,))


def test_bytes_and_rounds_are_those_of_the_plan():
    """A sparse layer of 4 experts and 8 tokens, beside a dense one."""
    found = {
        name: (cost.online_bytes, cost.rounds, cost.dealer_bytes)
        for name, cost in dispatch_costs(shape(4, 8)).items()
    }  # fmt: skip
    assert found == {"exact": (153434, 58, 1532512), "capacity": (124002, 64, 1514996)}


def test_exact_grows_with_the_experts_and_capacity_does_not():
    few, many = (dispatch_costs(shape(experts, 32, width=256)) for experts in (4, 32))
    assert many["exact"].online_bytes > 2 * few["exact"].online_bytes
    assert many["capacity"].online_bytes < 1.3 * few["capacity"].online_bytes
    assert cheaper_dispatch(many, "lan") == "exact"  # 12 rounds more cost more than the bytes of this small layer
    costly = many | {"exact": replace(many["exact"], online_bytes=10**8)}
    assert cheaper_dispatch(costly, "lan") == "capacity"


@cache
def mixture_of(capacity):
    """The encoder of a model with one sparse layer, in the rings of that layer, and its folded weights."""
    secure = converted(moe_classifier(layers=1, sparse_step=1, expert_capacity=capacity), max_length=6)
    encoder = encoders(secure.manifest)["experts.0"]
    own = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    folded = fold_weights(encoder.spec, own, encoder.layer_rings[0])
    return replace(encoder, rings=encoder.layer_rings[0]), {f"experts.0.{name}": folded[name] for name in folded}


def run_mixture(capacity, tokens):
    """A mixture on shares, of six tokens by their number, the last of which is padding."""
    encoder, weights = mixture_of(capacity)
    vectors = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    x = Input.real(vectors[tokens][None], encoder.rings.feed_forward_width, encoder.rings.bits.hidden, 5)
    mask = Bits(torch.tensor([[1] * 5 + [0]]))
    return run(lambda party: encoder._mixture(party, "in.0", x(party), mask(party)), weights)


def revealing(choose):
    """A router that opens its choices."""

    def leaky(self, party, scores):
        chosen, best = yield from choose(self, party, scores)
        yield from Reveal(tuple(chosen.shape)).run(party, chosen)
        return chosen, best

    return leaky


ALIKE, MIXED = [0] * 6, [0, 1, 2, 3, 1, 1]


@pytest.mark.parametrize("capacity", [None, 2])
def test_nothing_tells_which_experts_tokens_use(capacity):
    with audited() as audit:
        gates = gates_that_look_alike(partial(run_mixture, capacity), ([ALIKE], [MIXED]), runs=8)
    assert {"Argmax", "ExpertLinear", "Matmul", "RowScale"} <= gates
    assert audit.pads > 500 and audit.repeated == 0


@pytest.mark.parametrize("capacity", [None, 2])
def test_a_leaky_mixture_is_noticed(capacity, monkeypatch):
    monkeypatch.setattr(SecureMixture, "_choices", revealing(SecureMixture._choices))
    with pytest.raises(AssertionError):
        gates_that_look_alike(partial(run_mixture, capacity), ([ALIKE], [MIXED]), runs=8)


@pytest.mark.parametrize(
    ("privacy", "shared"), [("revealed", None), ("quota", None), ("quota", 0), ("oblivious", None)]
)
def test_a_mixture_is_an_expert_of_a_pool(privacy, shared):
    configs = [moe_classifier(num_labels=2).config, family_config("bert")]
    model = pool_model(expert_configs=configs, expert_costs=[1.0, 2.0], max_length=6, router_shares_expert=shared)
    assert isinstance(model.experts[0], SecureMoeForSequenceClassification)
    ids, mask = clearly_routed(model.experts[0], length=6)
    with torch.no_grad():
        output = model(ids, attention_mask=mask)
        batch = {"input_ids": ids, "attention_mask": mask}
        each = torch.stack([model.run_experts(batch, torch.full((2,), index)) for index in (0, 1)], 1)
    got = Conversation(converted(model, routing_privacy=privacy))(ids, mask).logits
    nearest = (got[:, None] - each).abs().amax(-1)
    assert nearest.amin(1).max() < 0.02
    if privacy == "quota":
        assert sorted(nearest.argmin(1).tolist()) == [0, 1]
    else:
        assert (got - output.logits).abs().max() < 0.02


def test_mixtures_of_one_shape_are_all_computed_and_not_selected():
    configs = [moe_classifier(num_labels=2).config for _ in range(2)]
    model = pool_model(("bert", "bert"), expert_configs=configs, max_length=6)
    assert not converted(model, routing_privacy="oblivious").manifest.selects


def test_what_cannot_run_is_said():
    model = moe_classifier()
    (problem,) = validate(model, options=Options(protocol="crypten"))
    assert "no mixture of experts" in problem.reason
    model.config.hidden_act = "mish"
    (problem,) = validate(model)
    assert "'mish'" in problem.reason
