# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the members of a pool answer for it: attention by name, embeddings and the size of the vocabulary."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification, SecureRouterValueError
from tests.tiny import VOCABULARY, pool_config, pool_model


def attention(model) -> list[str]:
    """The attention of the router, and of each expert."""
    return [member.config._attn_implementation for member in (model.router.encoder, *model.experts)]


CHOICES = [
    ({"router_config": "eager"}, ["eager", "sdpa", "sdpa", "sdpa"]),
    ({"expert_configs": "eager"}, ["sdpa", "eager", "eager", "eager"]),
    ({"expert_configs": [None, "eager", None]}, ["sdpa", "sdpa", "eager", "sdpa"]),
    ({"": "eager", "router_config": "sdpa"}, ["sdpa", "eager", "eager", "eager"]),
    ({"": "eager"}, ["eager"] * 4),
]


def test_attention_is_set_member_by_member(checkpoint):
    for choice, expected in CHOICES:
        loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint, attn_implementation=choice)
        built = SecureRouterForSequenceClassification(pool_config(attn_implementation=choice))
        switched = pool_model()
        switched.set_attn_implementation(choice)
        assert attention(loaded) == attention(built) == attention(switched) == expected, choice


def test_the_config_takes_its_attention_to_all_members():
    config = pool_config(attn_implementation="eager")
    members = [config.router_config, *config.expert_configs]
    assert {member._attn_implementation for member in members} == {"eager"}
    config._attn_implementation = "sdpa"
    assert {member._attn_implementation for member in members} == {"sdpa"}


def test_a_shared_encoder_has_the_attention_of_its_expert():
    model = pool_model(router_config=None, router_shares_expert=1)
    model.set_attn_implementation({"": "sdpa", "expert_configs": [None, "eager", None]})
    assert attention(model) == ["eager", "sdpa", "eager", "sdpa"]
    with pytest.raises(SecureRouterValueError, match="reads the encoder of expert 1: name it in 'expert_configs'"):
        model.set_attn_implementation({"router_config": "eager"})


def test_an_experts_own_softmax_stays():
    model = pool_model(expert_mpc=[{}, {"softmax": "2quad"}, {}])
    before = attention(model)
    model.set_attn_implementation({"expert_configs": "eager"})
    assert attention(model) == ["sdpa", "eager", before[2], "eager"] and "2quad" in before[2]


def test_what_no_member_is_called_is_refused(model):
    refusals = {
        "got 'router': correct": {"router": "eager"},
        "one name for all or for each of the 3": {"expert_configs": ["eager"]},
        "should hold names": {"router_config": 1},
    }
    for message, choice in refusals.items():
        with pytest.raises(SecureRouterValueError, match=message):
            model.set_attn_implementation(choice)
        with pytest.raises(SecureRouterValueError, match=message):
            pool_config(attn_implementation=choice)


def test_the_routers_embeddings_can_be_replaced(model):
    before = [expert.get_input_embeddings() for expert in model.experts]
    embeddings = torch.nn.Embedding(40, 8)
    model.set_input_embeddings(embeddings)
    assert model.router.encoder.embeddings.word_embeddings is model.get_input_embeddings() is embeddings
    assert all(expert.get_input_embeddings() is own for expert, own in zip(model.experts, before, strict=True))


def test_the_vocabulary_is_what_every_member_knows(model):
    assert model.config.vocab_size == len(VOCABULARY) and SecureRouterConfig().vocab_size is None
    model.experts[1].resize_token_embeddings(20)
    assert model.config.vocab_size == 20
    model.resize_token_embeddings(40)
    assert model.config.vocab_size == model.vocab_size == 40
    config = pool_config()
    config.vocab_size = 50
    built = SecureRouterForSequenceClassification(config)
    assert {m.get_input_embeddings().num_embeddings for m in (built.router.encoder, *built.experts)} == {50}
    assert "vocab_size" not in config.to_dict()
