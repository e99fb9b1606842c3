# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Memory is planned: the estimate holds, batches are split to fit, and what cannot fit is refused at once."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_securerouter import SecureRouterValueError, to_mpc
from hf_securerouter.mpc.protocols.masked import memory, schedule
from hf_securerouter.mpc.protocols.masked.memory import PROCESS_BYTES, batch_cost, fit_batch, rough_bytes
from hf_securerouter.mpc.protocols.masked.schedule import programs
from tests.mpc.protocols.masked.test_encoder import BASE, HEAD, TINY, bert
from tests.mpc.protocols.masked.test_routing_privacy import same_shape
from tests.support.children import children
from tests.support.conversation import Conversation
from tests.tiny import WORDS, noisy_classifier, pool_model


LENGTH = 12
TEXTS = [" ".join(WORDS[start : start + 5]) for start in range(7)]


def wide_classifier(length):
    """Random weights, with heads and widths at which arrays take more than the process itself."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=768,
        max_position_embeddings=length,
    )
    return BertForSequenceClassification(config).eval()


def tokens(rows, length):
    return {
        "input_ids": torch.randint(5, 100, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
    }


@pytest.fixture(scope="module")
def secure(tokenizer):
    return pool_model(("bert", "bert")).to_mpc(
        tokenizer=tokenizer, max_length=LENGTH, routing_privacy="revealed", routing_lambda=0.0
    )


def test_no_role_takes_more_memory_than_planned():
    """The estimate is above the peak, and not far above it; and so is the estimate with words drawn ahead."""
    secure, inputs = to_mpc(wide_classifier(128), max_length=128), tokens(3, 128)
    cost = secure.plan(3)
    budget = cost.memory + 300 * 10**6
    with secure.local_session(batch_size=3, memory=budget) as session:
        ahead = session._ahead
        peaks = session(inputs).cost.peak_rss_bytes
    assert 100 * 10**6 < ahead <= 150 * 10**6
    for role in secure.manifest.roles:
        planned = getattr(cost, role) + (ahead if role != "dealer" else 0)
        assert 0.5 * planned < peaks[role] < planned, (role, planned, peaks[role])
    assert sum(peaks[role] for role in secure.manifest.roles) < budget


def test_memory_makes_batches_smaller_and_answers_stay(tokenizer):
    model = noisy_classifier("bert", width=16, heads=2)
    secure = to_mpc(model, tokenizer=tokenizer, max_length=LENGTH)
    encoded = tokenizer(TEXTS, padding="max_length", max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits
    done = []
    with secure.local_session(memory=secure.plan(3).memory) as session:
        assert session.batch_size == 3
        result = session(TEXTS, progress=lambda *counts: done.append(counts))
    assert done == [(3, 7), (6, 7), (7, 7)]
    assert (result.logits - expected).abs().max() < 0.006


def test_what_does_not_fit_is_refused_before_a_role_starts(secure, monkeypatch):
    least = secure.plan(1)
    before = children()
    with pytest.raises(SecureRouterValueError, match=rf"1 texts of {LENGTH} tokens needs {least.memory} bytes"):
        secure.local_session(memory=least.memory - 1)
    assert secure.local_session(memory=least.memory).batch_size == 1
    # By default half of what is free is filled, and all of it for the smallest batch; the owner takes a part.
    own = memory.sharing_bytes(secure.manifest)
    for free, found in ((2 * secure.plan(3).memory, 3), (least.memory, 1)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free + own)
        assert secure.local_session().batch_size == found
    monkeypatch.setattr(memory, "free_memory", lambda device: least.memory - 1 + own)
    with pytest.raises(
        SecureRouterValueError, match=f"and {least.memory - 1} are free beside what this process needs: convert"
    ):
        secure.local_session()
    quota = pool_model(("bert", "bert")).to_mpc(max_length=LENGTH, routing_privacy="quota", quotas=[2, 2])
    needed = quota.plan().memory
    assert quota.local_session(batch_size=1, memory=needed).batch_size == 4  # a batch under `quota` is never split
    with pytest.raises(SecureRouterValueError, match="or smaller `quotas`"):
        quota.local_session(memory=needed - 1)
    assert children() == before


def test_without_a_known_limit_batches_are_whole(secure, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    session = secure.local_session()
    assert session.batch_size == 8 and session._ahead is None


def test_plans_are_of_batches_that_exist(secure):
    for batch in (0, -1, 2.5, "2"):
        with pytest.raises(SecureRouterValueError, match=f"`batch` should be an integer of at least 1, got {batch!r}"):
            secure.plan(batch)
    quota = pool_model(("bert", "bert")).to_mpc(max_length=LENGTH, routing_privacy="quota", quotas=[2, 2])
    assert quota.plan().batch == 4
    with pytest.raises(SecureRouterValueError, match="`batch` should be 4, the sum of the quotas, got 2"):
        quota.plan(2)
    assert secure.plan().batch == 8 and secure.plan(2).to_dict()["party0"] == secure.plan(2).party0


def test_the_plan_of_a_batch_is_what_the_batch_runs(monkeypatch):
    monkeypatch.setattr(schedule, "SERVED", 1)
    secure = pool_model(("bert", "bert")).to_mpc(max_length=6, routing_privacy="quota", quotas=[2, 1])
    done = Conversation(secure)(torch.randint(5, 20, (3, 6)), torch.ones(3, 6, dtype=torch.long))
    planned = programs(secure.manifest, 3)
    assert [names for (names,) in planned] == done.programs
    assert done.programs == [*["read/1"] * 3, "rank/3", "serve/1.1", "serve/1.0", "restore/3"]
    cost = batch_cost(secure.manifest, 3)
    assert cost.rounds == sum(plan.rounds for plan in done.plans)
    assert cost.online_bytes == 2 * sum(plan.payload_bytes for plan in done.plans)
    assert cost.dealer_bytes == sum(plan.dealer_bytes for plan in done.plans)


@pytest.mark.parametrize(("spec", "shared", "rows"), [(TINY, None, 8), (BASE, None, 2), (BASE, 0, 4)])
def test_wide_encoders_take_fewer_rows_at_a_time(spec, shared, rows):
    """Two experts of 128 tokens, of which one that shares its encoder with the router is not run again."""
    made = pool_model(("bert", "bert")).to_mpc(max_length=6, routing_privacy="quota", quotas=[16, 16]).manifest
    manifest = replace(made, experts=(spec, spec), router=spec, router_shares_expert=shared, max_length=128, bounds={})
    assert schedule.rows_at_a_time(manifest) == rows
    names = [name.split("/") for (name,) in programs(manifest, 32)]
    assert {int(size) for kind, size in names if kind == "read"} == {rows}
    served = [tuple(map(int, sizes.split("."))) for kind, sizes in names if kind == "serve"]
    assert served == [(0 if shared == 0 else rows, rows)] * (16 // rows)
    alone = replace(manifest, router=None, experts=(spec,), quotas=(), hardest_first=(), router_shares_expert=None)
    assert schedule.rows_at_a_time(alone) == (8 if spec is TINY else 4)


def test_the_rough_bound_is_above_the_plan_and_only_saves_tracing(secure, monkeypatch):
    wide = to_mpc(wide_classifier(128), max_length=128)
    selecting = same_shape(3).to_mpc(max_length=LENGTH, routing_privacy="oblivious")
    assert selecting.manifest.selects
    for model in (secure, wide, selecting):
        for batch in (1, 8):
            assert rough_bytes(model.manifest, batch) > model.plan(batch).memory
    enough = rough_bytes(secure.manifest, 8)
    monkeypatch.setattr(memory, "batch_cost", lambda *_: pytest.fail("a plan was traced"))
    roles = secure.manifest.roles
    plan = fit_batch(secure.manifest, 8, enough + 1000, roles)
    assert plan.batch == 8 and plan.ahead == 500  # two parties share what is left
    assert fit_batch(secure.manifest, 8, 10 * enough, roles).ahead == 10 * enough // 4
    monkeypatch.undo()
    assert fit_batch(secure.manifest, 8, secure.plan(8).party0, ["party0"]).batch == 8


SILU = replace(bert(2, 256, 2, 1024), hidden_act="silu")
GATED = replace(SILU, gated=True, rotary=(1e4, 1e4), norm_first=True, norm="rms")
MIXTURE = replace(bert(1, 8, 1, 8), sparse_layers=(0,), num_experts=128, experts_per_token=2, expert_capacity=16)


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        (bert(2, 256, 4, 1024), 256),
        (bert(2, 64, 1, 4096), 64),
        (SILU, 256),
        (replace(bert(2, 64, 1, 4096), hidden_act="silu"), 64),
        (replace(GATED, head=replace(HEAD, activation="gelu")), 512),
        (replace(SILU, hidden_size=768, num_heads=12, intermediate_size=3072, gated=True, rotary=(1e4, 1e4)), 128),
        (replace(GATED, pooling="late", head=replace(HEAD, activation="gelu", inner_size=2048)), 128),
        (replace(GATED, pooling="late", head=replace(HEAD, inner_size=4096)), 64),
        (MIXTURE, 256),
        (replace(MIXTURE, num_experts=16, expert_capacity=64), 256),
        (replace(MIXTURE, intermediate_size=256, hidden_act="silu", num_experts=8, expert_capacity=32), 64),
    ],
    ids=["bert", "wide", "silu", "wide silu", "gated", "nomic", "late", "late tanh", "places", "few", "silu experts"],
)
def test_the_rough_bound_holds_for_every_kind_of_layer(secure, spec, length):
    manifest = replace(secure.manifest, experts=(spec,), router=None, max_length=length, bounds={})
    taken, rough = (most - 3 * PROCESS_BYTES for most in (batch_cost(manifest, 8).memory, rough_bytes(manifest, 8)))
    assert taken < rough < 2 * taken


def test_only_masked_shares_have_plans(tokenizer):
    with pytest.warns(UserWarning):
        crypten = pool_model().to_mpc(tokenizer=tokenizer, max_length=LENGTH, protocol="crypten")
    for call in (crypten.plan, lambda: crypten.local_session(memory=1 << 40)):
        with pytest.raises(SecureRouterValueError, match="'masked'.*got 'crypten'"):
            call()
