# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Scores between contents and positions under the masked protocol, and DeBERTa models asked through all roles."""

import warnings
from dataclasses import replace

import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification

from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.pool import cut_layers
from tests.mpc.protocols.masked.test_encoder import BASE, SMALL, batch_of, encrypted, plan_of, weights_of
from tests.support.conversation import Conversation
from tests.tiny import VOCABULARY, family_config, pool_model


BOTH = replace(SMALL, position_terms=("c2p", "p2c"), position_span=4, position_limit=24)
LENGTH = 9


def positioned_weights(spec, size=1.5):
    """Weights of layers whose output depends much on their attention, and on positions."""
    weights, generator = weights_of(spec), torch.Generator().manual_seed(5)
    for name in weights:
        if name.endswith(("value.weight", "attention_output.weight")):
            weights[name] = 3 * weights[name]
    for layer in set(spec.layer_map):
        for part in ("position_keys", "position_queries"):
            table = size * torch.randn(2 * spec.position_span, spec.hidden_size, generator=generator)
            weights[f"layers.{layer}.{part}.weight"] = table
    return weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_terms": ("c2p",)},
        {"position_terms": ("p2c",), "position_limit": None},
        {"softmax": "2quad"},
        {"num_layers": 3, "layer_map": (0, 0, 1)},
    ],
    ids=str,
)
def test_logits_are_those_of_the_clear_encoder(changes):
    spec = replace(BOTH, **changes)
    weights = positioned_weights(spec)
    x, live = batch_of(spec, [12, 5, 1], 12)
    expected = ClearEncoder(spec, weights)(x, live)
    without = ClearEncoder(replace(spec, position_terms=()), weights)(x, live)
    assert (expected - without).abs().max() > 0.04
    for _ in range(3):  # fresh masks
        assert (encrypted(spec, x, live, weights=weights).values - expected).abs().max() < 0.005


def test_padding_that_lies_above_all_tokens_changes_nothing():
    """Every key 5 and more behind a query is padding, whose scores are 14 to 26 above those of tokens."""
    spec = replace(BOTH, position_span=12, position_limit=None)
    weights = positioned_weights(spec)
    for layer in (0, 1):
        weights[f"layers.{layer}.key.bias"][:] = 1.0
        table = torch.zeros(24, spec.hidden_size)
        table[: 12 - 4] = 9.0
        weights[f"layers.{layer}.position_queries.weight"] = table
    x, live = batch_of(spec, [5, 3, 1], 12)
    clear = ClearEncoder(spec, weights)
    expected = clear(x, live)
    assert clear.seen[0, "span"][1] > 16
    for _ in range(2):  # fresh masks
        assert (encrypted(spec, x, live, weights=weights).values - expected).abs().max() < 0.005


def test_a_base_model_costs_what_bert_costs():
    """Beside BERT's openings a bit a token, in the first round; tables of positions are never opened."""
    spec = replace(BASE, position_terms=("c2p", "p2c"), position_span=256, position_limit=512)
    plain, positioned = plan_of(BASE), plan_of(spec)
    assert positioned.payload_bytes - plain.payload_bytes == packed_size(128, 1)
    assert positioned.dealer_bytes - plain.dealer_bytes == packed_size(128, 2)
    assert positioned.rounds == plain.rounds


def deberta(**fields):
    """A tiny classifier of random weights, which depends on positions."""
    torch.manual_seed(4)
    layers = fields.pop("layers", 2)
    config = family_config("deberta-v2", layers=layers, num_labels=3, **fields)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = 1.0 if "embeddings" in name else parameter.shape[1] ** -0.5
                parameter.copy_(scale * torch.randn_like(parameter))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def texts():
    """A long text, a pair, a short one and a single token."""
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH, 7, 4, 1])[:, None]).long()
    ids = torch.randint(5, len(VOCABULARY), mask.shape, generator=torch.Generator().manual_seed(3))
    ids[:, 0], ids[1, 3], ids[1, 6] = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"], VOCABULARY["[SEP]"]
    return ids * mask, mask


@torch.no_grad()
def clear(model, ids, mask):
    return model(input_ids=ids, attention_mask=mask).logits


def share(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_mpc(model, max_length=LENGTH, **options)


OPTIONS = [
    {"pos_att_type": terms, "share_att_key": shared, "position_buckets": buckets}
    for terms in ("c2p|p2c", "c2p", "p2c")
    for shared in (True, False)
    for buckets in (4, -1)
]


def test_models_of_every_option_answer_as_in_clear_in_rings_of_measured_bounds():
    ids, mask = texts()
    for options in OPTIONS:
        model = deberta(**options)
        expected = clear(model, ids, mask)
        moved = ids.clone()
        moved[0, 1:] = moved[0, 1:].flip(0)
        assert (clear(model, moved, mask) - expected)[0].abs().max() > 0.02, options
        secure = share(model, calibration={"input_ids": ids, "attention_mask": mask})
        assert all(one.margin >= 0 for one in secure.ranges)
        talk = Conversation(secure)
        for _ in range(3):  # fresh masks
            assert (talk(ids, mask).logits - expected).abs().max() < 0.02, options


def test_experts_of_one_shape_all_run_where_the_choice_is_hidden():
    configs = [family_config("deberta-v2", num_labels=3) for _ in range(2)]
    router = family_config("bert", width=8)
    model = pool_model(("bert", "bert"), expert_configs=configs, router_config=router, num_labels=3)
    secure = share(model, routing_privacy="oblivious")
    ids, mask = texts()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    assert not secure.manifest.selects
    assert (Conversation(secure)(ids, mask).logits - expected).abs().max() < 0.02


def test_a_model_that_is_cut_keeps_its_positions():
    ids, mask = texts()
    whole = deberta(layers=3)
    cut = cut_layers(whole, 1)
    assert cut.deberta.encoder.rel_embeddings.weight.equal(whole.deberta.encoder.rel_embeddings.weight)
    expected = clear(cut, ids, mask)
    assert (expected - clear(whole, ids, mask)).abs().max() > 0.05
    assert (Conversation(share(cut))(ids, mask).logits - expected).abs().max() < 0.02


def test_pools_of_one_shape_run_every_expert_where_the_choice_is_hidden():
    """Tables of positions are not selected under encryption."""
    model = pool_model(
        ("deberta-v2", "deberta-v2"),
        expert_configs=[family_config("deberta-v2"), family_config("deberta-v2")],
        router_config=family_config("deberta-v2", width=8),
        num_labels=3,
    )
    ids, mask = texts()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        experts = torch.stack([clear(expert, ids, mask) for expert in model.experts])
    for mode in ("revealed", "oblivious"):
        secure = share(model, routing_privacy=mode)
        assert not secure.manifest.selects
        found = Conversation(secure)(ids, mask).logits
        sure = output.router_logits.diff().abs().squeeze(1) > 0.05
        assert sure.any()
        assert (found - output.logits)[sure].abs().max() < 0.02
        assert ((found - experts).abs().amax(-1).amin(0) < 0.02).all()


def test_what_is_opened_of_queries_and_keys_is_uniform_whatever_the_positions():
    spec = replace(BOTH, num_layers=1, layer_map=(0,), hidden_size=8, intermediate_size=16)
    x, live = batch_of(spec, [8], 8)
    for size in (0.0, 30.0):
        opened, lengths = [], set()
        for _ in range(10):
            done = encrypted(spec, x, live, weights=positioned_weights(spec, size))
            own = [message for message in done.records[0] if message.gate == "RelativeScores"]
            opened += [(message.bits, message.opened.flatten()) for message in own]
            lengths.add(tuple(len(part) for parts in done.sent[0] for part in parts))
        assert len(opened) == 20 and len(lengths) == 1
        for shift in (0, 28):
            words = torch.cat([(part >> shift) & 7 for _, part in opened])
            assert stats.chisquare(words.bincount(minlength=8)).pvalue > 1e-6
