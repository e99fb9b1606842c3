# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""ModernBERT, EuroBERT, nomic-bert and XLM-R on shares: norms first, rotary positions, windows, gated layers."""

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    EuroBertConfig,
    ModernBertConfig,
    NomicBertConfig,
    XLMRobertaConfig,
)

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.conversion.clear_model import ClearModel
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.models import EncoderSpec, architecture_for
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.profiled_models import config_of
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from tests.support.conversation import Conversation


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": 0,
}
MODERN = SIZES | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}

CASES = {
    "modernbert": (ModernBertConfig(**MODERN, num_hidden_layers=3), 10),
    "modernbert, mean": (ModernBertConfig(**MODERN, num_hidden_layers=2, classifier_pooling="mean"), 10),
    "modernbert, out of reach": (ModernBertConfig(**MODERN, num_hidden_layers=2, local_attention=8), 10),
    "modernbert, in blocks": (ModernBertConfig(**MODERN, num_hidden_layers=3, local_attention=4), 24),
    "modernbert, biases": (
        ModernBertConfig(**MODERN, num_hidden_layers=2, attention_bias=True, mlp_bias=True, norm_bias=True),
        10,
    ),
    "eurobert, first token": (EuroBertConfig(**SIZES, num_hidden_layers=2, classifier_pooling="bos"), 10),
    "eurobert, mean": (EuroBertConfig(**SIZES, num_hidden_layers=2, classifier_pooling="mean"), 10),
    "eurobert, late": (EuroBertConfig(**SIZES, num_hidden_layers=2, classifier_pooling="late"), 10),
    "eurobert, grouped": (
        EuroBertConfig(
            **SIZES | {"num_attention_heads": 4},
            num_hidden_layers=2,
            num_key_value_heads=2,
            classifier_pooling="late",
        ),
        10,
    ),
    "nomic-bert": (NomicBertConfig(**SIZES, num_hidden_layers=2), 10),
    "xlm-roberta": (XLMRobertaConfig(**SIZES, num_hidden_layers=2), 10),
}


def made(config):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(length):
    """Four rows: a full one, one token, and two with padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([[length], [1], [length // 2], [length - 1]])
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": torch.randint(5, 40, (4, length), generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_model(name):
    config, length = CASES[name]
    model, batch = made(config), inputs(length)
    with torch.no_grad():
        expected = model(**batch).logits
    secure = to_mpc(model, max_length=length)
    assert float(ClearModel(secure.converted).error(batch, expected, [0] * 4).max()) < 1e-4
    found = [Conversation(secure)(*batch.values()).logits for _ in range(2)]
    for logits in found:
        assert float((logits - expected).abs().max()) < 0.01
    assert not torch.equal(*found)
    spec = secure.manifest.experts[0]
    assert EncoderSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    "name", ["modernbert", "modernbert, in blocks", "eurobert, late", "nomic-bert", "xlm-roberta"]
)
def test_pairs_are_answered_in_rings_of_measured_bounds(name):
    """A model with values beyond the default bounds, one text of which is a pair."""
    config, length = CASES[name]
    model, batch = made(config), inputs(length)
    batch["input_ids"][0, length // 2] = batch["input_ids"][0, -1] = 2  # the separator
    if name == "nomic-bert":
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        batch["token_type_ids"][0, length // 2 + 1 :] = 1
    matrices = [value for part, value in model.named_parameters() if value.shape == (16, 24)]
    with torch.no_grad():
        for matrix in matrices:  # what a feed-forward layer adds
            matrix.mul_(400)
        expected = model(**batch).logits
    secure = to_mpc(model, max_length=length, calibration=batch)
    assert matrices and all(one.margin >= 0 for one in secure.ranges)
    assert any(one.exceeds_default for one in secure.ranges)
    talk = Conversation(secure)
    for _ in range(3):  # fresh masks
        assert float((talk(*batch.values()).logits - expected).abs().max()) < 0.02


@pytest.mark.parametrize("name", ["modernbert, out of reach", "nomic-bert", "eurobert, grouped"])
def test_the_reference_runs_them_too(name):
    config, length = CASES[name]
    if name != "modernbert, out of reach":
        config = type(config)(**config.to_dict() | {"num_hidden_layers": 1})
    model, batch = made(config), inputs(length)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)
        expected = model(**batch).logits
        with to_mpc(model, max_length=length, protocol="crypten", provider="tfp").local_session(timeout=60) as session:
            assert float((session(batch).logits - expected).abs().max()) < 0.05


def test_padding_out_of_reach_has_no_weight_in_the_reference():
    """Raw scores of the windowed layer span up to 188: some padding out of reach lies 110 below the largest score."""
    model = made(ModernBertConfig(**MODERN, num_hidden_layers=2, local_attention=4, classifier_pooling="mean"))
    mask = (torch.arange(10) < torch.tensor([[3], [4], [5], [6]])).long()
    ids = torch.randint(5, 40, (4, 10), generator=torch.Generator().manual_seed(22)) * mask
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)
        model.model.layers[1].attn.Wqkv.weight[:16].mul_(35)  # queries
        expected = model(input_ids=ids, attention_mask=mask).logits
        with to_mpc(model, max_length=10, protocol="crypten", provider="tfp").local_session(timeout=60) as session:
            logits = session({"input_ids": ids, "attention_mask": mask}).logits
    assert float((logits - expected).abs().max()) < 0.05


def plan_of(architecture, length):
    config = config_of(architecture, length)
    spec = architecture_for(config.model_type).spec(config)
    return secure_program(Manifest("masked", "ttp", "revealed", "cpu", length, None, (spec,)), "experts.0/1").plan()


def test_costs_at_128_tokens():
    """Bytes of both parties, and rounds."""
    plans = {name: plan_of(name, 128) for name in ("bert-base", "mpnet-base", "modernbert-base", "ettin-17m")}
    online = {name: 2 * plan.payload_bytes for name, plan in plans.items()}
    assert online["bert-base"] == 197_705_636
    configs = [config_of(name, 128) for name in ("bert-base", "xlm-roberta-base")]
    same, other = (architecture_for(config.model_type).spec(config) for config in configs)
    assert same == replace(other, layer_norm_eps=same.layer_norm_eps)
    assert online["mpnet-base"] < 1.02 * online["bert-base"]
    assert (online["modernbert-base"], plans["modernbert-base"].rounds) == (305_691_948, 599)  # below 0.29 GiB
    assert (online["ettin-17m"], plans["ettin-17m"].rounds) == (29_913_686, 194)  # below 30 MB


def layer_bytes(length, kind):
    """What one more layer of a kind sends, with 8 keys before and after a query in a window."""
    totals = []
    for count in (1, 2):
        sizes = MODERN | {"max_position_embeddings": 1024, "local_attention": 16, "num_hidden_layers": count + 1}
        config = ModernBertConfig(**sizes, layer_types=[kind] * count + ["full_attention"])
        spec = architecture_for("modernbert").spec(config)
        manifest = Manifest("masked", "ttp", "revealed", "cpu", length, None, (spec,))
        totals.append(secure_program(manifest, "experts.0/1").plan().payload_bytes)
    return totals[1] - totals[0]


def test_layers_with_a_window_grow_linearly_with_the_length():
    short, long = (layer_bytes(length, "sliding_attention") for length in (512, 1024))
    assert 2 * short <= long < 2.1 * short  # row sums and contexts get a bit with twice the keys
    assert layer_bytes(512, "full_attention") > 4 * short


def test_what_they_cannot_compute_is_named():
    longer = made(EuroBertConfig(**SIZES, num_hidden_layers=1, head_dim=16))
    with pytest.raises(ConversionError, match="heads of 16 numbers do not divide the width of 16"):
        to_mpc(longer, max_length=8)
    with pytest.raises(SecureRouterValueError, match="`softmax` of a modernbert should be the exact one"):
        architecture_for("modernbert").spec(CASES["modernbert"][0], softmax="2quad")
