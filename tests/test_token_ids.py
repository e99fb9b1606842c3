# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer's output in any container becomes the same tensors; a wrong row is named by its place."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

from hf_securerouter import PooledEncoderConfig, SecureRouterValueError
from hf_securerouter.errors import BadRowsError
from hf_securerouter.token_ids import as_id_tensors, check_ids, vocabulary_of
from tests.tiny import VOCABULARY, family_config


IDS = [[2, 7, 3], [2, 8, 9, 3]]
PADDED = [[2, 7, 3, 0], [2, 8, 9, 3]]
MASK = [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_every_container_gives_the_same_tensors(tokenizer):
    containers = [
        {"input_ids": IDS},
        {"input_ids": [np.array(row) for row in IDS]},
        {"input_ids": tuple(torch.tensor(row, dtype=torch.int32) for row in IDS)},
        {"input_ids": pd.Series(IDS, index=[4, 2])},
        {"input_ids": IDS, "attention_mask": [[1] * len(row) for row in IDS]},
        {"input_ids": PADDED, "attention_mask": np.array(MASK, dtype=bool)},
        {"input_ids": np.array(PADDED, dtype=np.uint8), "attention_mask": torch.tensor(MASK, dtype=torch.float16)},
        BatchEncoding({"input_ids": torch.tensor(PADDED), "attention_mask": torch.tensor(MASK), "labels": [0, 1]}),
    ]
    for container in containers:
        found = as_id_tensors(container, pad_token_id=0)
        assert {name: values.tolist() for name, values in found.items()} == {
            "input_ids": PADDED,
            "attention_mask": MASK,
        }, container
        assert {values.dtype for values in found.values()} == {torch.int64}
    texts = ["good film", "the film was bad"]
    tensors = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    for given in (tokenizer(texts), tokenizer(texts, padding=True, return_tensors="np")):
        found = as_id_tensors(given, tokenizer.pad_token_id)
        assert set(found) == set(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_rows_that_are_not_integers_of_one_length_are_named():
    nan = float("nan")
    for inputs, name, row in (
        ({"input_ids": [[2, 3], []]}, "input_ids", "1]` is empty"),
        ({"input_ids": [[2, 3], [2, 2.5]]}, "input_ids", "1]` should be a list of integers"),
        ({"input_ids": np.array([[2, 3], [2, nan]])}, "input_ids", "1]` should be a list of integers"),
        ({"input_ids": [["a", "b"], [2, 3]]}, "input_ids", "0]` should be a list of integers"),
        ({"input_ids": [[2, None], [2, 3]]}, "input_ids", "0]` should be a list of integers"),
        ({"input_ids": [[2, [3, 4]]]}, "input_ids", "0]` should be a list of integers"),
        ({"input_ids": torch.zeros(2, 3, 4)}, "input_ids", "0]` should be a list of integers"),
        ({"input_ids": IDS, "attention_mask": MASK}, "attention_mask", "0]` should be of 3 integers, as its"),
        ({"input_ids": PADDED, "token_type_ids": IDS}, "token_type_ids", "0]` should be of 4 integers, as its"),
        ({"input_ids": [[2, 3]], "attention_mask": [[1, 2]]}, "attention_mask", "0]` should hold 1 for tokens"),
        ({"input_ids": [[2, 3]], "attention_mask": [[1, nan]]}, "attention_mask", "0]` should be a list of integers"),
    ):
        with pytest.raises(BadRowsError) as caught:
            as_id_tensors(inputs, 0)
        assert f"`{name}[{row}" in str(caught.value)


def test_what_has_no_rows_is_refused():
    for value in ([], [2, 7, 3], torch.tensor([2, 7, 3]), np.array(4), torch.tensor(4), 4, "ids", ["ids"]):
        with pytest.raises(
            SecureRouterValueError, match=r"`input_ids` should be of shape .*pass `tokenizer\(\[text\]"
        ):
            as_id_tensors({"input_ids": value}, 0)
    with pytest.raises(SecureRouterValueError, match="should hold `input_ids`"):
        as_id_tensors({"attention_mask": MASK}, 0)
    with pytest.raises(SecureRouterValueError, match="`attention_mask` should have a row for each of the 2 rows"):
        as_id_tensors({"input_ids": IDS, "attention_mask": [[1, 1, 1]]}, 0)


def test_an_id_beyond_the_table_is_named_with_its_row():
    ids = torch.tensor([[1, 2], [3, 9], [-1, 4]])
    with pytest.raises(BadRowsError) as caught:
        check_ids("input_ids", ids, 9)
    assert caught.value.rows == {
        1: "has the id 9 at place 1, and this model has ids from 0 to 8",
        2: "has the id -1 at place 0, and this model has ids from 0 to 8",
    }
    check_ids("input_ids", ids.abs(), 10)
    check_ids("input_ids", ids, None)


def test_a_vocabulary_is_that_of_the_smallest_member():
    assert vocabulary_of(family_config("bert"), family_config("bert", vocab_size=11)) == 11
    assert vocabulary_of(object()) is None
    assert vocabulary_of(PooledEncoderConfig(text_config=family_config("bert", vocab_size=11))) == 11


def test_the_model_refuses_an_id_beyond_a_members_vocabulary(model, batch):
    batch["input_ids"][3, 1] = len(VOCABULARY)
    with pytest.raises(BadRowsError, match=rf"`input_ids\[3\]` has the id {len(VOCABULARY)} at place 1"):
        model(**batch)
    model.config.expert_configs[2].vocab_size = 6
    batch["input_ids"][3, 1] = 6
    with pytest.raises(BadRowsError, match=r"ids from 0 to 5"):
        model(**batch)
