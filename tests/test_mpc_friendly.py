# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts with another softmax and activation: their results, and that nothing resets the functions."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.families import activation_slots
from hf_securerouter.mpc.conversion.clear_encoder import ClearEncoder
from hf_securerouter.mpc.models import architecture_for
from hf_securerouter.mpc_friendly import Quadratic, attention_weights, use_functions
from tests.support.kinds_of_layers import configs, more_configs
from tests.tiny import FAMILIES, FIXED_ATTENTION, family_config, pool_model


CHOICES = [
    {"hidden_act": "quadratic", "softmax": "2quad"},
    {"hidden_act": "relu", "softmax": "2relu"},
    {"hidden_act": "quadratic", "softmax": "exact"},
    {"hidden_act": "exact", "softmax": "2quad"},
]


@pytest.fixture
def padded(batch):
    """Texts of which some are shorter than the batch."""
    assert (batch["attention_mask"] == 0).any()
    return batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chosen", CHOICES, ids=lambda chosen: "-".join(chosen.values()))
def test_an_expert_computes_in_clear_what_its_description_says(family, chosen, padded):
    if family in FIXED_ATTENTION and chosen["softmax"] != "exact":
        pytest.skip("its softmax cannot be replaced")
    torch.manual_seed(0)
    fields = {"hidden_act": "gelu"} if family == "albert" else {}
    expert = AutoModelForSequenceClassification.from_config(family_config(family, layers=2, **fields)).eval()
    for parameter in expert.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5
    batch = dict(padded)
    if family in ("distilbert", "roberta", "mpnet"):
        del batch["token_type_ids"]
    with torch.no_grad():
        before = expert(**batch).logits
        use_functions(expert, **chosen)
        found = expert(**batch).logits
    architecture = architecture_for(expert.config.model_type)
    embeddings = architecture.embeddings(architecture.encoder(expert))
    embedded = architecture.embed(embeddings, batch["input_ids"], batch.get("token_type_ids"))
    clear = ClearEncoder(architecture.spec(expert.config, **chosen), architecture.weights(expert))
    expected = clear(embedded, batch["attention_mask"])
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(before, found, atol=1e-4)


@pytest.mark.parametrize("family", FIXED_ATTENTION)
def test_a_softmax_that_cannot_be_replaced_is_refused(family):
    expert = AutoModelForSequenceClassification.from_config(family_config(family))
    for softmax in ("2quad", "2relu"):
        with pytest.raises(SecureRouterValueError, match=f"`softmax` '{softmax}' .* of '{family}'.* leave it at"):
            use_functions(expert, softmax=softmax)
    assert not hasattr(expert, "expert_mpc")


@pytest.mark.parametrize("config", [*configs(), *more_configs()], ids=lambda config: config.model_type)
def test_an_activation_is_replaced_or_refused(config):
    """Gated layers call it by another name; before, nothing was replaced there, and nothing said so."""
    expert = AutoModelForSequenceClassification.from_config(config)
    slots = list(activation_slots(expert.base_model))
    assert (not slots) == (config.model_type in ("modernbert", "eurobert", "nomic_bert"))
    if slots:
        use_functions(expert, hidden_act="quadratic")
        assert all(isinstance(getattr(module, name), Quadratic) for module, name in slots)
        return
    with pytest.raises(SecureRouterValueError, match=f"'quadratic' is not there for .* '{config.model_type}'"):
        use_functions(expert, hidden_act="quadratic", softmax="2quad")
    assert not hasattr(expert, "expert_mpc")


def test_a_pool_keeps_the_functions_of_its_experts(tmp_path, batch):
    chosen = [{}, CHOICES[0], {"softmax": "2relu"}]
    model = pool_model(expert_mpc=chosen)
    found = [expert(**batch).logits for expert in model.experts]
    exact = [expert(**batch).logits for expert in pool_model().experts]
    torch.testing.assert_close(found[0], exact[0])
    assert all(not torch.allclose(found[index], exact[index], atol=1e-3) for index in (1, 2))

    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    eager = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    model.set_attn_implementation("eager")
    for other in (model, loaded, eager):
        for expert, expected in zip(other.experts, found, strict=True):
            torch.testing.assert_close(expert(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_pooler_and_the_head_keep_their_activation():
    for family in ("bert", "albert"):
        expert = AutoModelForSequenceClassification.from_config(family_config(family))
        use_functions(expert, "quadratic")
        kinds = [type(module) for module in expert.modules()]
        assert nn.Tanh in kinds and kinds.count(Quadratic) == 1


@pytest.mark.parametrize("softmax", ["2quad", "2relu"])
def test_rows_sum_to_one_unless_their_numerators_vanish(softmax):
    live = torch.tensor([True, True, False])
    weights = attention_weights(torch.tensor([[1.0, 3.0, 100.0], [-5.0, -5.0, 9.0]]), live, softmax)
    expected = {"2quad": [36 / 100, 64 / 100, 0], "2relu": [0.25, 0.75, 0]}[softmax]
    torch.testing.assert_close(weights, torch.tensor([expected, [0.0, 0.0, 0.0]]))


def test_the_exact_softmax_has_no_unnormalised_weights():
    with pytest.raises(
        SecureRouterValueError, match="`softmax` should be one of 2quad, 2relu, got 'exact': call `tor"
    ):
        attention_weights(torch.zeros(1, 2, 2), None, "exact")
