# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Classifiers with fewer heads and neurons: what stays is what matters, and nothing else changes."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_securerouter import SecureRouterValueError
from hf_securerouter.families import layers_of
from hf_securerouter.recipes import head_pruning as prune
from tests.tiny import family_config, noisy_classifier


FAMILIES = ("bert", "distilbert", "roberta", "mpnet")


@pytest.fixture(params=FAMILIES)
def model(request):
    """Two layers of width 24, with 6 heads and 48 neurons."""
    return noisy_classifier(request.param, width=24, heads=6)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[:2, 6:] = 0
    return {
        "input_ids": torch.randint(5, 20, (4, 9)),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 1, 0]),
    }


def test_what_does_not_matter_goes_and_the_answers_stay(model, batch, monkeypatch):
    monkeypatch.setattr(prune, "FRESH", 0.0)
    # MPNet's layers share the relative attention bias of each head.
    neurons, heads = [[1, 4], [0, 5]], [[1, 4], [1, 4] if model.config.model_type == "mpnet" else [0, 5]]
    with torch.no_grad():
        for gone, lost, layer in zip(heads, neurons, layers_of(model), strict=True):
            for head in gone:
                layer[3].weight[:, 4 * head : 4 * head + 4] = 0
            layer[6].weight[:, lost] = 0
    importance = prune.measure_importance(model, [batch, batch])
    assert [one["heads"].eq(0).nonzero().flatten().tolist() for one in importance] == heads
    assert [one["neurons"].eq(0).nonzero().flatten().tolist() for one in importance] == neurons
    small = prune.prune(model, 4, 46, importance)
    assert prune.pruned_shape(small.config, 1, 1) == (4, 46)
    assert layers_of(small)[0][5].weight.shape == (46, 24)
    torch.testing.assert_close(small(**batch).logits, model(**batch).logits)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_with_all_heads_and_neurons_it_is_a_copy(model, batch):
    small = prune.prune(model, 6, 48, prune.measure_importance(model, [batch]))
    assert torch.equal(small(**batch).logits, model(**batch).logits)
    assert set(small.state_dict()) == set(model.state_dict())


def test_padding_does_not_matter(model, batch):
    before = prune.measure_importance(model, [batch])
    batch["input_ids"][:2, 6:] = 0
    for own, other in zip(before, prune.measure_importance(model, [batch]), strict=True):
        for name in own:
            torch.testing.assert_close(own[name], other[name], atol=1e-6, rtol=1e-4)


def test_values_go_to_the_heads_that_look_where_theirs_did():
    likeness = torch.full((4, 4), -2.0)
    likeness[3, 1] = likeness[0, 2] = -1.0
    assert prune._values_of([0, 3], 4, 2, 4, likeness) == [0, 1, 4, 5, 6, 7, 2, 3]
    # Where the nearest has no room left, the rest goes to the next.
    likeness[3, 2] = -0.5
    assert prune._values_of([0, 3], 4, 2, 4, likeness) == [0, 1, 2, 3, 6, 7, 4, 5]


def test_shapes_are_shares_of_the_old_one_that_divide_the_width():
    config = family_config("bert", width=384)
    config.num_attention_heads, config.intermediate_size = 12, 1536
    assert prune.pruned_shape(config, 2 / 3, 5 / 6) == (8, 1280)
    assert prune.pruned_shape(config, 0.6, 1) == (6, 1536)
    assert prune.pruned_shape(family_config("distilbert", width=24), 0.1, 0.5) == (1, 24)
    assert prune.pruned_shape(config, 0.001, 0.0001) == (1, 1)  # a layer of none would compute nothing


def test_heads_that_do_not_divide_the_width_are_refused(model, batch):
    importance = prune.measure_importance(model, [batch])
    for heads in (0, 5, 8):
        with pytest.raises(SecureRouterValueError, match=f"`heads` should be a divisor of 24 up to 6, got {heads}"):
            prune.prune(model, heads, 48, importance)


@pytest.mark.parametrize("family", ["albert", "electra"])
def test_other_families_are_refused(family, batch):
    model = AutoModelForSequenceClassification.from_config(family_config(family))
    with pytest.raises(
        SecureRouterValueError,
        match="`slim` is there for experts of bert, distilbert, mpnet, roberta, xlm-roberta, got",
    ):
        prune.measure_importance(model, [batch])


def test_layers_that_share_a_bias_keep_the_same_heads():
    model, likeness = noisy_classifier("mpnet", width=24, heads=6), torch.zeros(6, 6)
    importance = [
        {"heads": torch.tensor(heads), "neurons": torch.ones(48), "likeness": likeness}
        for heads in ([6.0, 5, 4, 3, 0, 0], [0.0, 0, 0, 0, 1, 1])
    ]
    small = prune.prune(model, 4, 48, importance)
    tables = [one.mpnet.encoder.relative_attention_bias.weight for one in (model, small)]
    assert torch.equal(tables[1], tables[0][:, [0, 1, 4, 5]])
    for whole, pruned in zip(layers_of(model), layers_of(small), strict=True):
        for place, head in enumerate([0, 1, 4, 5]):  # heads become 6 wide instead of 4
            assert torch.equal(pruned.key.weight[6 * place : 6 * place + 4], whole.key.weight[4 * head : 4 * head + 4])
