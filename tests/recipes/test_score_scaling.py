# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Heads whose scores lie too far apart are scaled down, and no others."""

import pytest
import torch

from hf_securerouter.families import layers_of
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import MARGIN
from hf_securerouter.range_penalty import range_penalty
from hf_securerouter.recipes import score_scaling
from tests.tiny import noisy_classifier


HEADS, WIDE = 4, 1  # heads of a layer, and the one whose scores lie far apart


def bounds_of(expert):
    """Of scores, and of how far scores of a row lie apart."""
    if expert.config.model_type == "mpnet":
        return 64, 29
    return 32, 29.5


@pytest.fixture(params=("bert", "distilbert", "roberta", "mpnet"))
def expert(request):
    """Two layers of width 16 in reduced precision, of which the first has a head with large queries."""
    model = noisy_classifier(request.param, width=16, heads=HEADS)
    query = layers_of(model)[0][0]
    with torch.no_grad():
        query.weight.unflatten(0, (HEADS, -1))[WIDE].mul_(30)
        query.bias.unflatten(0, (HEADS, -1))[WIDE].mul_(30)
    use_functions(model, precision="reduced")
    return model


@pytest.fixture
def batches():
    torch.manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[:2, 6:] = 0
    return [
        {
            "input_ids": torch.randint(5, 20, (4, 9)),
            "attention_mask": mask,
            "labels": torch.zeros(4, dtype=torch.int64),
        }
        for _ in range(2)
    ]


def needs(expert, batches):
    """From queries and keys, a row of a head of an input after the other: the largest score and the largest distance
    over their bounds."""
    kept, (most, apart), bias = {}, bounds_of(expert), torch.zeros(HEADS, 9, 9)
    if expert.config.model_type == "mpnet":
        bias = expert.mpnet.encoder.compute_position_bias(torch.zeros(1, 9))[0]
    for index, (query, key, *_) in enumerate(layers_of(expert)):
        for name, module in (("query", query), ("key", key)):
            module.register_forward_hook(
                lambda _, inputs, rows, at=(index, name): kept.setdefault(at, []).append(rows)
            )
    found = torch.zeros(2, HEADS)
    with torch.no_grad():
        for batch in batches:
            kept.clear()
            expert(**batch)
            for index in range(2):
                queries, keys = kept[index, "query"][0], kept[index, "key"][0]
                for mask, query, key in zip(batch["attention_mask"].bool(), queries, keys, strict=True):
                    for head in range(HEADS):
                        own = slice(4 * head, 4 * head + 4)
                        scores = query[mask][:, own] @ key[mask][:, own].T / 2 + bias[head][mask][:, mask]
                        far = (scores.amax(1) - scores.amin(1)).amax() / apart
                        found[index, head] = max(found[index, head], far, scores.abs().amax() / most)
    return found


def widest(expert, batch):
    with torch.no_grad(), range_penalty(batch["attention_mask"]) as penalty:
        expert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return penalty.widest


def test_needs_are_those_of_the_scores(expert, batches):
    found = score_scaling.measure_scores(expert, batches)
    torch.testing.assert_close(found, needs(expert, batches))
    assert found[0, WIDE] > 1 > found[1].amax()
    expert.train()
    score_scaling.measure_scores(expert, batches)
    assert expert.training


def test_a_score_counts_where_none_of_its_row_is_far(expert, batches):
    with torch.no_grad():
        for weight in (layers_of(expert)[1][0].weight, layers_of(expert)[1][1].weight):
            weight[:4] = 0
        if expert.config.model_type == "mpnet":
            expert.mpnet.encoder.relative_attention_bias.weight.zero_()
        layers_of(expert)[1][0].bias[:4] = 10
        layers_of(expert)[1][1].bias[:4] = -2  # 4 times 10 times -2, over 2
    assert score_scaling.measure_scores(expert, batches)[1, 0] == pytest.approx(40 / bounds_of(expert)[0], rel=0.01)


def test_a_head_beyond_its_bound_keeps_the_margin_and_the_others_stay(expert, batches):
    before = [parameter.clone() for query, *_ in layers_of(expert) for parameter in (query.weight, query.bias)]
    assert max(widest(expert, batch) for batch in batches) > 1
    score_scaling.scale_down_queries(expert, batches)
    loss = 0.05 if expert.config.model_type == "mpnet" else 1e-3  # its bias is not scaled
    assert (1 - loss) / MARGIN < needs(expert, batches)[0, WIDE] < 1.001 / MARGIN
    assert max(widest(expert, batch) for batch in batches) < 1
    after = [parameter for query, *_ in layers_of(expert) for parameter in (query.weight, query.bias)]
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        for head, (one, other) in enumerate(zip(old.view(HEADS, 4, -1), new.view(HEADS, 4, -1), strict=True)):
            assert torch.equal(one, other) == (index > 1 or head != WIDE)
