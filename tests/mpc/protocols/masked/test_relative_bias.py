# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A relative attention bias under the masked protocol: each party reads its share of the table at public places."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy import stats

from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.conversion.ranges import bounds_for, reached
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.ring.words import packed_size
from hf_securerouter.routing import assign_by_quota
from tests.mpc.protocols.masked.test_encoder import SMALL, batch_of, encrypted, plan_of, weights_of
from tests.support.conversation import Conversation
from tests.tiny import VOCABULARY, family_config, pool_model


BIASED = replace(SMALL, relative_buckets=32)
LENGTH, LABELS, QUOTAS = 6, 3, [2, 2]


def biased_weights(spec, table=None):
    """Weights of layers whose output depends much on their attention."""
    weights, generator = weights_of(spec), torch.Generator().manual_seed(5)
    for name in weights:
        if name.endswith(("value.weight", "attention_output.weight")):
            weights[name] = 3 * weights[name]
    table = 2 * torch.randn(32, spec.num_heads, generator=generator) if table is None else table
    return weights | {"relative_attention_bias.weight": table}


@pytest.mark.parametrize(
    "changes", [{}, {"softmax": "2quad"}, {"softmax": "2relu"}, {"num_layers": 1, "layer_map": (0,)}], ids=str
)
def test_logits_are_those_of_the_clear_encoder(changes):
    spec = replace(BIASED, **changes)
    weights = biased_weights(spec)
    x, live = batch_of(spec, [12, 5, 1], 12)
    expected = ClearEncoder(spec, weights)(x, live)
    without = ClearEncoder(replace(spec, relative_buckets=None), weights)(x, live)
    assert (expected - without).abs().max() > 0.05
    for _ in range(3):  # fresh masks
        assert (encrypted(spec, x, live, weights=weights).values - expected).abs().max() < 0.005


def test_a_bias_that_lifts_padding_above_all_tokens_changes_nothing():
    """Keys 5 and more behind a query are padding, and would be 28 above the row's maximum."""
    table = torch.zeros(32, SMALL.num_heads)
    table[16 + 5 :] = 28.0
    weights = biased_weights(BIASED, table)
    x, live = batch_of(BIASED, [5, 3, 1], 12)
    expected = ClearEncoder(BIASED, weights)(x, live)
    for _ in range(2):  # fresh masks
        assert (encrypted(BIASED, x, live, weights=weights).values - expected).abs().max() < 0.005


def test_calibration_leaves_room_for_padding():
    """Scores differ by 31 to 36 in a row: with a margin of one half they need 2^6, and as much for padding."""
    table = torch.zeros(32, SMALL.num_heads)
    table[16 + 5 :] = 33.0
    weights = biased_weights(BIASED, table)
    clear = ClearEncoder(BIASED, weights)
    clear(*batch_of(BIASED, [5, 3, 1], 12))
    assert 31 < clear.seen[0, "span"][1] < 36
    assert bounds_for(reached(clear.seen, 0), biased=True)["scores"] == 8
    assert bounds_for(reached(clear.seen, 0), biased=False)["scores"] == 7


@pytest.mark.parametrize("softmax", ["exact", "2quad"])
def test_the_table_costs_nothing_and_the_place_of_padding_a_bit_a_token(softmax):
    plain, biased = (plan_of(replace(spec, softmax=softmax), length=20, batch=3) for spec in (SMALL, BIASED))
    counts = biased.by_gate
    if softmax == "exact":
        assert counts["BitToRing"].rounds == 1
        assert (counts["BitToRing"].sent, counts["BitToRing"].dealer) == (packed_size(60, 1), packed_size(60, 2))
    known = {gate: (count.sent, count.dealer) for gate, count in counts.items() if gate != "BitToRing"}
    assert known == {gate: (count.sent, count.dealer) for gate, count in plain.by_gate.items()}
    assert biased.rounds == plain.rounds


@cache
def pool(shared, one_shape):
    """An MPNet expert and another, of the same shape or of another family."""
    other = family_config("mpnet" if one_shape else "roberta")
    return pool_model(
        ("mpnet", "mpnet"),
        expert_configs=[family_config("mpnet"), other],
        expert_costs=[1.0, 4.0],
        router_config=family_config("mpnet", width=8) if shared is None else None,
        router_shares_expert=shared,
        num_labels=LABELS,
        expert_max_lengths=[LENGTH, LENGTH] if one_shape else [LENGTH - 2, LENGTH],
    )


@torch.no_grad()
def queries(model):
    """Two clearly decided queries for each expert, of different lengths."""
    ids = torch.randint(5, len(VOCABULARY), (400, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < (torch.arange(400) % (LENGTH - 2) + 3)[:, None]).long()
    output = model(input_ids=ids, attention_mask=mask)
    decided = output.router_logits.diff().abs().squeeze(1) > 0.2
    rows = torch.cat([((output.expert_indices == expert) & decided).nonzero()[:2, 0] for expert in (1, 0)])
    return ids[rows], mask[rows]


@pytest.mark.parametrize("mode", ["revealed", "quota", "oblivious"])
@pytest.mark.parametrize("shared", [None, 0])
@pytest.mark.parametrize("one_shape", [True, False], ids=["one_shape", "lengths"])
def test_pools_answer_as_in_clear(mode, shared, one_shape):
    model = pool(shared, one_shape)
    ids, mask = queries(model)
    quotas = QUOTAS if mode == "quota" else None
    secure = model.to_mpc(routing_privacy=mode, max_length=LENGTH, quotas=quotas)
    assert secure.manifest.selects == (one_shape and mode == "oblivious")
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        chosen = output.expert_indices
        if quotas:
            chosen = assign_by_quota(output.router_logits, quotas, model.config.expert_costs)
        expected = model.run_experts({"input_ids": ids, "attention_mask": mask}, chosen)
    assert set(chosen.tolist()) == {0, 1}
    talk = Conversation(secure)
    for _ in range(2):  # fresh masks
        assert (talk(ids, mask).logits - expected).abs().max() < 0.006


def test_a_selected_table_is_opened_once_for_each_expert_and_row_and_takes_no_round():
    manifests = [
        pool_model(
            (family, family),
            expert_configs=[family_config(family), family_config(family)],
            router_config=family_config("bert", width=8),
        )
        .to_mpc(routing_privacy="oblivious", max_length=LENGTH)
        .manifest
        for family in ("roberta", "mpnet")
    ]
    plain, biased = (secure_program(manifest, "oblivious/4").plan() for manifest in manifests)
    width = 14 + 14 + 8  # of the scores
    extra = packed_size(2 * 4, 1) + packed_size(2 * 4 * 2 * 32, width)
    assert biased.by_gate["Select"].sent - plain.by_gate["Select"].sent == extra
    assert biased.rounds == plain.rounds


def test_what_is_opened_of_selected_tables_is_uniform():
    model = pool(None, True)
    ids, mask = queries(model)
    talk = Conversation(model.to_mpc(routing_privacy="oblivious", max_length=LENGTH))
    columns = 2 * 32
    opened = []
    for _ in range(12):
        found = [message.opened for message in talk(ids, mask).records[0] if message.gate == "Select"]
        tables = [words for words in found if words.shape[-1] == columns]
        assert len(tables) == 1
        opened.append(tables[0].flatten())
    top = (torch.cat(opened) >> 28) & 255
    assert stats.chisquare(top.bincount(minlength=256)).pvalue > 1e-6
    assert not torch.equal(opened[0], opened[1])
