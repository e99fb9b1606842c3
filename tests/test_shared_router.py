# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A router that shares an expert's encoder, and a pool that is given its experts' answers."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification, SecureRouterValueError
from tests.tiny import family_config, pool_config, pool_model


@pytest.fixture
def shared():
    return pool_model(router_config=None, router_shares_expert=1, num_labels=3)


def test_the_encoder_is_the_experts_and_is_saved_once(shared, tmp_path, batch):
    assert shared.router.encoder is shared.experts[1].bert and shared.experts[1].bert.pooler is not None
    assert not any(name.startswith("router.encoder") for name in shared.state_dict())
    shared.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.router.encoder is loaded.experts[1].bert and loaded.config.router_shares_expert == 1
    torch.testing.assert_close(loaded(**batch).router_logits, shared(**batch).router_logits)
    torch.testing.assert_close(loaded(**batch).logits, shared(**batch).logits)


def test_a_copy_and_another_dtype_share_too(shared, batch):
    other = copy.deepcopy(shared)
    assert other.router.encoder is other.experts[1].bert and other.router.encoder is not shared.router.encoder
    other.half().float()
    assert other.router.encoder is other.experts[1].bert
    assert {id(p) for p in other.router.encoder.parameters()} <= {id(p) for p in other.experts.parameters()}


def test_a_replica_reads_the_encoder_of_its_own_expert(shared, batch):
    """`nn.DataParallel` copies the attributes of each module, and then puts the copies of its children in."""
    replica = shared._replicate_for_data_parallel()
    own = copy.deepcopy(shared.experts)
    replica._modules = {"router": shared.router._replicate_for_data_parallel(), "experts": own}
    with torch.no_grad():
        for parameter in own[1].parameters():
            parameter.mul_(1.5)
    given, expected = replica(**batch), shared(**batch)
    assert replica.router.encoder is own[1].bert and shared.router.encoder is shared.experts[1].bert
    assert not torch.allclose(given.router_logits, expected.router_logits)


def test_both_roles_train_the_one_encoder(shared, batch, labels):
    out = shared.train()(**batch, labels=labels)
    weight = shared.experts[1].bert.encoder.layer[0].output.dense.weight
    (from_router,) = torch.autograd.grad(out.router_logits.sum(), [weight], retain_graph=True)
    (from_expert,) = torch.autograd.grad(out.expert_logits[:, 1].sum(), [weight])
    assert from_router.abs().sum() > 0 and from_expert.abs().sum() > 0


def test_no_router_means_the_smallest_experts_encoder(tmp_path, tokenizer, batch):
    folders = []
    for layers in (2, 1):
        folders.append(str(tmp_path / str(layers)))
        BertForSequenceClassification(family_config("bert", layers=layers)).save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    model = SecureRouterForSequenceClassification.from_expert_pretrained(None, folders, expert_costs=[2.0, 1.0])
    assert model.config.router_shares_expert == 1 and model.router.encoder is model.experts[1].bert
    rebuilt = SecureRouterConfig(**model.config.to_dict())
    assert rebuilt.router_shares_expert == 1 and rebuilt.router_config.num_hidden_layers == 1


def test_resizing_the_embeddings_resizes_them_once(shared):
    assert shared.resize_token_embeddings(40).num_embeddings == 40
    assert shared.router.encoder.embeddings.word_embeddings.num_embeddings == 40


def test_an_index_beyond_the_pool_is_refused():
    with pytest.raises(StrictDataclassError, match="`router_shares_expert` should be the index of one of the 3"):
        pool_config(router_shares_expert=3)


def test_it_converts_with_one_copy_of_weights_and_embeddings(shared, tokenizer):
    secure = shared.to_mpc(tokenizer=tokenizer)
    own = {name for name in secure.weights if name.startswith("router.")}
    assert own == {f"router.router.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}
    assert set(secure.client.embeddings) == {"experts.0", "experts.1", "experts.2"}
    assert secure.manifest.router_shares_expert == 1 and secure.manifest.encoder_of("router") == "experts.1"


def test_an_experts_own_functions_are_the_routers_too(batch, tokenizer):
    fields = {"router_config": None, "router_shares_expert": 1}
    exact, model = pool_model(**fields), pool_model(**fields, expert_mpc=[{}, {"softmax": "2quad"}, {}])
    assert not torch.allclose(exact(**batch).router_logits, model(**batch).router_logits)
    secure = model.to_mpc(tokenizer=tokenizer)
    assert secure.manifest.router_shares_expert == 1 and secure.manifest.encoder_of("router") == "experts.1"


@pytest.mark.parametrize("objective", ["gumbel", "utility"])
def test_cached_answers_stand_for_the_experts(batch, labels, objective, monkeypatch):
    monkeypatch.setattr("torch.nn.functional.gumbel_softmax", lambda logits, tau: (logits / tau).softmax(dim=-1))
    model = pool_model(router_objective=objective, num_labels=3).train()
    whole = model(**batch, labels=labels)
    cached = whole.expert_logits.detach()
    for expert in model.experts:
        monkeypatch.setattr(expert, "forward", None)
    out = model(**batch, labels=labels, expert_logits=cached)
    torch.testing.assert_close(out.loss, whole.loss)
    out.loss.backward()
    assert all(parameter.grad is None for parameter in model.experts.parameters())
    assert model.router.out_proj.weight.grad.abs().sum() > 0

    evaluated = model.eval()(**batch, labels=labels, expert_logits=cached)
    assert evaluated.expert_logits is None
    torch.testing.assert_close(evaluated.logits, cached[torch.arange(12), evaluated.expert_indices])
    torch.testing.assert_close(evaluated.task_loss, F.cross_entropy(evaluated.logits, labels))


def test_answers_of_another_shape_are_refused(model, batch):
    with pytest.raises(SecureRouterValueError, match=r"`expert_logits` should be of shape \(12, 3, 2\)"):
        model(**batch, expert_logits=torch.zeros(12, 2, 2))


def test_a_known_summary_stands_for_the_routers_encoder(shared, batch, monkeypatch):
    shared.eval()
    whole = shared(**batch)
    summary = shared.router.summarize(**batch)
    monkeypatch.setattr(shared.router.encoder, "forward", None)
    found = shared(**batch, expert_logits=torch.zeros(12, 3, 3), router_summary=summary)
    torch.testing.assert_close(found.router_logits, whole.router_logits)
    with pytest.raises(SecureRouterValueError, match=r"`router_summary` should be of shape \(12, 16\)"):
        shared(**batch, router_summary=summary[:, 1:])
