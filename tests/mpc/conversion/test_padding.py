# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Padding on either side and attention masks with holes: on shares the same logits as in clear."""

from functools import cache

import pytest
import torch

from hf_securerouter import SecureRouterValueError
from hf_securerouter.lengths import padded_right
from hf_securerouter.mpc.convert import to_mpc
from tests.support.conversation import Conversation
from tests.tiny import FAMILIES, VOCABULARY, noisy_classifier, pool_model


LENGTH = 10
TOLERANCE = 0.03


@cache
def classifier(family):
    return noisy_classifier(family, width=16, heads=2)


@cache
def talk(family):
    return Conversation(to_mpc(classifier(family), max_length=LENGTH))


def texts(seed):
    """Four texts of different length, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(VOCABULARY), (4, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH, (4,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def padded_left(inputs):
    """The same texts, padded on the left."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    return {name: values.gather(1, order) for name, values in inputs.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_is_answered_as_padding_on_the_right(family, seed):
    inputs = texts(seed)
    with torch.no_grad():
        clear = classifier(family)(**inputs).logits
    for given in (inputs, padded_left(inputs)):
        assert (talk(family)(**given).logits - clear).abs().max() < TOLERANCE


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_with_holes_is_answered_as_in_clear(family, seed):
    inputs = texts(seed)
    holes = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.4
    inputs["attention_mask"][:, 1:] *= ~holes[:, 1:]
    for given in (inputs, inputs | {"attention_mask": inputs["attention_mask"].roll(1, dims=1)}):
        with torch.no_grad():
            clear = classifier(family)(**padded_right(given)).logits
        assert (talk(family)(**given).logits - clear).abs().max() < TOLERANCE


def test_the_side_of_the_tokenizer_changes_nothing(tokenizer, monkeypatch):
    client = pool_model().to_mpc(tokenizer=tokenizer, max_length=LENGTH).client
    right = client.tokenize(["good film", ("bad", "the film was dull")])
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    left = client.tokenize(["good film", ("bad", "the film was dull")])
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_text_without_a_token_is_refused():
    client = pool_model().to_mpc(max_length=LENGTH).client
    inputs = texts(0)
    inputs["attention_mask"][2] = 0
    with pytest.raises(SecureRouterValueError, match=r"`attention_mask` .* row 2"):
        client.tokenize(inputs)
