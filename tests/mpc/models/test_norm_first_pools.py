# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Pools of encoders with the norm first, whose router reads an expert's sum of all steps."""

from functools import cache

import pytest
import torch
from transformers import EuroBertConfig

from hf_securerouter.mpc.conversion.description import Options
from hf_securerouter.mpc.conversion.validation import validate
from hf_securerouter.routing import assign_by_quota
from tests.support.conversation import Conversation
from tests.tiny import VOCABULARY, modern_config, pool_model


LENGTH, QUOTAS = 6, [2, 2]


def euro_config(**fields):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return EuroBertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **sizes, **special, **fields)


@cache
def pool(make=modern_config, **fields):
    """Two experts of one shape, and a router that shares the encoder of the first one."""
    configs = [make(**fields) for _ in range(2)]
    return pool_model(
        ("bert", "bert"),
        expert_configs=configs,
        expert_costs=[1.0, 2.0],
        router_config=None,
        router_shares_expert=0,
        num_labels=3,
    )


@pytest.mark.parametrize("mode", ["quota", "oblivious"])
def test_each_head_computes_the_last_norm_itself(mode, monkeypatch):
    monkeypatch.setattr("hf_securerouter.mpc.protocols.masked.schedule.SERVED", 2)
    model = pool()
    ids = torch.randint(5, len(VOCABULARY), (40, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[1:, LENGTH - 2 :] *= (torch.arange(39) % 2)[:, None]
    mask = (ids > 0).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        clear = torch.stack([expert(input_ids=ids, attention_mask=mask).logits for expert in model.experts])
    rows = output.router_logits.diff()[:, 0].argsort()[[0, -1, 1, -2]]  # clearly routed, by rank two to each
    chosen = output.expert_indices[rows]
    if mode == "quota":
        chosen = assign_by_quota(output.router_logits[rows], QUOTAS, model.config.expert_costs)
    assert set(chosen.tolist()) == {0, 1}
    secure = model.to_mpc(routing_privacy=mode, max_length=LENGTH, quotas=QUOTAS if mode == "quota" else None)
    assert secure.manifest.selects == (mode == "oblivious")
    done = Conversation(secure)(ids[rows], mask[rows])
    assert [name.partition("/")[0] for name in done.programs][:1] == ["read" if mode == "quota" else "oblivious"]
    assert (done.logits - clear[chosen, rows]).abs().max() < 0.01


@pytest.mark.parametrize(
    "make, pooling, same",
    [(modern_config, "mean", "cls"), (euro_config, "mean", "bos"), (euro_config, "late", "bos")],
)
def test_a_router_that_reads_another_row_than_its_experts_head_is_refused(make, pooling, same):
    model = pool(make, classifier_pooling=pooling)
    for protocol in ("masked", "crypten"):
        (problem,) = validate(model, None, Options(protocol=protocol, routing_privacy="revealed", max_length=LENGTH))
        assert problem.path == "config.router_shares_expert" and repr(pooling) in problem.reason
    assert validate(pool(make, classifier_pooling=same)) == []
