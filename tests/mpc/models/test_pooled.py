# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Pooled encoders: clear text and shares agree, alone and in a pool, under every routing privacy."""

import warnings

import pytest
import torch
from transformers import AutoModelForSequenceClassification, ErnieConfig

from hf_securerouter import PooledEncoderConfig, PooledEncoderForSequenceClassification, SecureRouterValueError
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc_friendly import use_functions
from tests.support.conversation import Conversation
from tests.support.reference import reference
from tests.tiny import FAMILIES, VOCABULARY, family_config, pool_config, pool_model


HEADS = {
    "bert": {"normalize": True},
    "distilbert": {"pooling": "first", "dense_size": 10},
    "roberta": {"dense_size": 10, "dense_act": "tanh"},
    "electra": {},
    "albert": {"dense_size": 10, "dense_act": "gelu", "normalize": True},
    "mpnet": {"dense_size": 10, "normalize": True},
    "deberta-v2": {"pooling": "mean"},
}


def pooled_config(family, layers=2, **fields):
    inner = {"hidden_act": "gelu"} if family == "albert" else {}  # its own variant differs by up to 5e-4
    text_config = family_config(family, layers=layers, **inner)
    return PooledEncoderConfig(text_config=text_config, **{"num_labels": 3, **fields})


def pooled(family, **fields):
    """A classifier every parameter of which matters."""
    torch.manual_seed(1)
    model = PooledEncoderForSequenceClassification(pooled_config(family, **HEADS[family] | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.classifier.weight.copy_(torch.randn_like(model.classifier.weight))
    return model


def inputs(model, length=9):
    """Three texts of different length, with token types where the encoder has some."""
    mask = (torch.arange(length) < torch.tensor([length, length - 2, 3])[:, None]).long()
    ids = torch.randint(5, len(VOCABULARY), mask.shape, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if getattr(model.config.text_config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = (torch.arange(length) > 2).long() * mask
    return batch


def clear(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def converted(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return to_mpc(model, **options)


def answers(secure, batch):
    return Conversation(secure)(batch["input_ids"], batch["attention_mask"]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_embeddings_and_weights_are_the_whole_model(family):
    model = pooled(family)
    batch = inputs(model)
    expected = clear(model, batch)
    assert expected.std(0).max() > 0.1
    secure = converted(model, max_length=9)
    weights = {name.removeprefix("experts.0."): values for name, values in secure.weights.items()}
    embedded = secure.client.embed(secure.client.tokenize(batch))["experts.0"]
    spec = secure.manifest.experts[0]
    got = reference(weights, spec, embedded, batch["attention_mask"])
    assert (got - expected).abs().max() < 1e-5
    assert (ClearEncoder(spec, weights)(embedded, batch["attention_mask"]) - got).abs().max() < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_on_shares_are_those_of_clear_text(family):
    model = pooled(family)
    batch = inputs(model)
    batch.pop("token_type_ids", None)
    expected = clear(model, batch)
    secure = converted(model, max_length=11)
    for _ in range(2):  # fresh masks
        assert (answers(secure, batch) - expected).abs().max() < 0.02
    narrow = converted(model, max_length=11, calibration=batch)
    assert (answers(narrow, batch) - expected).abs().max() < 0.02


def test_other_functions_of_the_encoder_are_converted():
    model = pooled("bert")
    batch = inputs(model)
    batch.pop("token_type_ids")
    exact = clear(model, batch)
    use_functions(model, "quadratic", "2quad")
    expected = clear(model, batch)
    assert (expected - exact).abs().max() > 0.01
    assert (answers(converted(model, max_length=9), batch) - expected).abs().max() < 0.02
    with pytest.raises(SecureRouterValueError, match="cannot be replaced"):
        use_functions(pooled("mpnet"), softmax="2quad")


def pool(**fields):
    """A pooled expert beside a plain one of the same labels."""
    configs = [pooled_config("bert", normalize=True), family_config("mpnet", layers=2, num_labels=3)]
    return pool_model(**{"expert_configs": configs, "expert_costs": [1.0, 2.0], "max_length": 8} | fields)


@pytest.mark.parametrize("privacy", ["revealed", "quota", "oblivious"])
@pytest.mark.parametrize("shared", [None, 0])
def test_a_pool_may_mix_pooled_and_plain_experts(privacy, shared):
    model = pool(router_shares_expert=shared)
    ids = torch.randint(5, len(VOCABULARY), (2, 8), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    with torch.no_grad():
        each = torch.stack([model.run_experts(batch, torch.full((2,), index)) for index in (0, 1)], 1)
    secure = converted(model, routing_privacy=privacy)
    got = answers(secure, batch)
    nearest = (got[:, None] - each).abs().amax(-1)
    assert nearest.amin(1).max() < 0.02
    if privacy != "quota":
        with torch.no_grad():
            assert (got - model(**batch).logits).abs().max() < 0.02
    else:
        assert sorted(nearest.argmin(1).tolist()) == [0, 1]


def test_pooled_experts_of_one_shape_are_selected_under_encryption():
    configs = [pooled_config("bert", layers=1, normalize=True) for _ in range(2)]
    model = pool(expert_configs=configs)
    secure = converted(model, routing_privacy="oblivious")
    assert secure.manifest.selects
    ids = torch.randint(5, len(VOCABULARY), (6, 8), generator=torch.Generator().manual_seed(4))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        output = model(**batch)
    sure = output.router_logits.diff().abs().squeeze(1) > 0.05
    assert sure.sum() >= 3
    assert (answers(secure, batch) - output.logits)[sure].abs().max() < 0.02


def test_a_shared_encoder_gives_the_router_the_pooled_row():
    model = pool(router_shares_expert=0)
    ids = torch.randint(5, len(VOCABULARY), (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    expert = model.experts[0]
    with torch.no_grad():
        hidden = expert.body(ids, attention_mask=mask).last_hidden_state
        summary = model.router.summarize(input_ids=ids, attention_mask=mask)
    expected = torch.stack([own[live.bool()].mean(0) for own, live in zip(hidden, mask, strict=True)])
    assert torch.allclose(summary, expected, atol=1e-6)
    assert converted(model).manifest.router.pooling == "mean"


def test_a_router_of_its_own_needs_an_encoder():
    with pytest.raises(SecureRouterValueError, match="`router_config` is a pooled encoder"):
        pool_config(router_config=pooled_config("bert"))


def test_what_has_no_counterpart_is_named():
    config = ErnieConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = PooledEncoderForSequenceClassification(PooledEncoderConfig(text_config=config, num_labels=2))
    (problem,) = validate(model)
    assert problem.path == "model.body" and "'ernie'" in problem.reason
    model = pooled("bert")
    model.config.text_config.hidden_act = "mish"
    (problem,) = validate(model)
    assert problem.path == "model.body.config.hidden_act"
    with pytest.raises(SecureRouterValueError, match="`text_config` is None"):
        AutoModelForSequenceClassification.from_config(PooledEncoderConfig())
    with pytest.raises(SecureRouterValueError, match="has `model_type` 'none such'"):
        PooledEncoderConfig(text_config={"model_type": "none such"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "x"}, "`pooling` should be one of mean, first, got 'x'"),
        ({"dense_size": 2.5}, "`dense_size` should be an integer of at least 1, got 2.5"),
        ({"dense_size": 0}, "`dense_size` should be an integer of at least 1, got 0"),
        ({"dense_act": "silu"}, "`dense_act` should be one of identity, tanh, relu, gelu, got 'silu'"),
        ({"normalize": "no"}, "`normalize` should be one of True, False, got 'no'"),
        ({"text_config": "bert"}, "`text_config` should be an encoder's config, or its dict .* got 'bert'"),
        ({"poling": "first"}, "does not know `poling` .did you mean `pooling`"),
    ],
)
def test_a_field_with_a_wrong_value_is_named(fields, message):
    with pytest.raises(SecureRouterValueError, match=message):
        PooledEncoderConfig(**fields)


def test_the_clients_folder_knows_the_encoder(tmp_path, tokenizer):
    model = pooled("mpnet")
    secure = converted(model, tokenizer=tokenizer, max_length=9)
    secure.save_shares(tmp_path / "shares")
    client = RoleFolder.load(tmp_path / "shares" / "client", "client").client()
    batch = inputs(model)
    both = (one.embed(one.tokenize(batch))["experts.0"] for one in (client, secure.client))
    assert torch.equal(*both)


def test_crypten_computes_the_mean_and_refuses_the_division():
    model = pooled("roberta")
    batch = inputs(model)
    (problem,) = validate(pooled("bert"), options=Options(protocol="crypten"))
    assert problem.path == "model.normalize" and "masked" in problem.remedy
    secure = converted(model, protocol="crypten", max_length=11)
    with secure.local_session(timeout=120) as session:
        result = session(batch)
    assert (result.logits - clear(model, batch)).abs().max() < 0.02


def test_labels_give_a_loss_and_padding_changes_nothing():
    model = pooled("electra")
    batch = inputs(model)
    output = model(**batch, labels=torch.tensor([0, 1, 2]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2]))
    assert torch.allclose(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    alone = {name: values[2:, :3] for name, values in batch.items()}
    assert torch.allclose(clear(model, alone), output.logits[2:], atol=1e-5)
    without = {"input_ids": alone["input_ids"], "token_type_ids": alone["token_type_ids"]}
    assert torch.equal(clear(model, without), clear(model, alone))
