# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Rows of GLUE: where they come from, how they are tokenized, split and perturbed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DataCollatorWithPadding, GPT2Config

from hf_securerouter import PooledEncoderConfig, SecureRouterValueError
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.recipes.data import (
    open_data,
    perturb,
    rows_digest,
    shortened,
    split_by_sentence,
    split_rows,
    tokenize,
)
from hf_securerouter.recipes.prediction import predict
from hf_securerouter.recipes.quota_accuracy import answers
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import made_up_rows
from tests.tiny import VOCABULARY, family_config, pool_model


def test_the_same_rows_from_another_kind_of_file_have_one_digest():
    rows = [{"sentence1": "a", "sentence2": "b", "label": 3.8}]
    other = [{"sentence1": " a ", "sentence2": "b", "label": str(np.float32(3.8))}]
    assert rows_digest(TASKS["stsb"], rows) == rows_digest(TASKS["stsb"], other)
    rows = [{"sentence1": "a", "sentence2": "b", "label": 1}]
    assert rows_digest(TASKS["mrpc"], rows) == rows_digest(TASKS["mrpc"], [rows[0] | {"label": "1"}])
    for change in ({"label": 0}, {"sentence2": "c"}, {"sentence1": "b", "sentence2": "a"}):
        assert rows_digest(TASKS["mrpc"], rows) != rows_digest(TASKS["mrpc"], [rows[0] | change])


def test_a_distilled_expert_learns_from_perturbed_copies_too(tokenizer):
    rows = tokenize(TASKS["mrpc"], made_up_rows(30, 2), tokenizer, 16)
    special = set(tokenizer.all_special_ids)
    copies = perturb(rows, 2, special, seed=0)
    assert len(copies) == 60
    for row, copy in zip(rows * 2, copies, strict=True):
        assert len(row["input_ids"]) == len(copy["input_ids"])
        changed = [a for a, b in zip(row["input_ids"], copy["input_ids"], strict=True) if a != b]
        assert not special & set(changed) and not special & (set(copy["input_ids"]) - set(row["input_ids"]))
    assert sum(a["input_ids"] != b["input_ids"] for a, b in zip(rows * 2, copies, strict=True)) > 20


GPT2 = GPT2Config(vocab_size=len(VOCABULARY), n_embd=16, n_layer=1, n_head=2, n_positions=24, pad_token_id=0)


@pytest.mark.parametrize(
    "config",
    [GPT2, PooledEncoderConfig(text_config=GPT2), family_config("bert")],
    ids=["causal", "pooled causal", "encoder"],
)
def test_an_expert_learns_from_what_its_pool_will_give_it(config, tokenizer):
    whole, length = family_config("bert", layers=2), 7
    configs = {"router_config": family_config("bert"), "expert_configs": [config, whole]}
    pool = pool_model(**configs, expert_costs=[1.0, 2.0], expert_max_lengths=[length, 24], num_labels=2)
    texts = [list(range(5, 5 + count)) for count in range(1, 9)]
    ids = [[2, *texts[-1 - index], 3, *text, 3] for index, text in enumerate(texts)]  # 6 is no separator
    rows = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": 1} for row in [*ids, [2, 7, 3], [2, 6, 8]]]
    collate = DataCollatorWithPadding(tokenizer)
    inputs = {name: values for name, values in collate(rows).items() if name != "labels"}
    expected = pool.run_experts(inputs, torch.zeros(len(rows), dtype=torch.long)).detach()
    read = shortened(rows, length, pool.experts[0].config)
    assert [len(row["input_ids"]) for row in read] == [length] * 8 + [3, 3] and read[0]["labels"] == 1
    torch.testing.assert_close(predict(pool.experts[0], read, collate)[0], expected)
    _, classes = answers(pool, rows, collate)
    assert torch.equal(classes[:, 0], expected.argmax(dim=1))
    assert shortened(rows, None, pool.experts[0].config) == rows


def test_parts_are_disjoint_and_seeded():
    rows = made_up_rows(100, 0)
    parts = split_rows(TASKS["mrpc"], rows, [0.2, 0.1], 0)
    assert [len(part) for part in parts] == [70, 20, 10] and sorted(sum(parts, [])) == list(range(100))
    assert parts == split_rows(TASKS["mrpc"], rows, [0.2, 0.1], 0)
    assert parts != split_rows(TASKS["mrpc"], rows, [0.2, 0.1], 1)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_is_encoded(task, tokenizer):
    task = TASKS[task]
    row = {column: f"the film {index}" for index, column in enumerate(task.columns)} | {"label": 1, "idx": 3}
    (encoded,) = tokenize(task, [row], tokenizer, 16)
    assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert encoded["input_ids"].count(tokenizer.sep_token_id) == len(task.columns)
    assert isinstance(encoded["labels"], float) == (task.name == "stsb")


def test_a_file_of_the_users_comes_before_the_folder(made, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 0}) + "\n")
    args = DataArguments(task_name="mrpc", data_dir=str(made / "data"), train_file=str(file))
    assert open_data(args).rows("train") == [{"sentence1": "a", "sentence2": "b", "label": 0}]
    assert len(open_data(args).rows("validation")) == 40
    args.max_eval_samples = 7
    assert open_data(args).rows("validation") == made_up_rows(40, 1)[:7]
    file.write_text(json.dumps({"text": "a", "label": 0}))
    with pytest.raises(SecureRouterValueError, match="wants rows with label, sentence1, sentence2"):
        open_data(args).rows("train")
    with pytest.raises(SecureRouterValueError, match="`data_dir` should hold rte/train.jsonl"):
        open_data(DataArguments(task_name="rte", data_dir=str(made / "data"))).rows("train")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "A run needs data: pass `--task_name` for a task of GLUE, or `--train_file`"),
        (
            {"task_name": "mrpc", "text_column": "a", "label_column": "b"},
            "leave out --text_column, --label_column, or",
        ),
        ({"train_file": "a.csv", "dataset_dir": "b"}, "`--dataset_dir` holds both splits"),
        ({"train_file": "a.csv"}, "Own data need `--validation_file`, or `--dataset_dir`"),
        ({"validation_file": "a.csv"}, "There is no file 'a.csv'"),
    ],
)
def test_data_are_named_once_and_as_a_whole(given, message):
    with pytest.raises(SecureRouterValueError, match=message):
        open_data(DataArguments(**given))


texts_strategy = st.lists(
    st.lists(st.sampled_from("a b c d e f g".split()), min_size=1, max_size=6).map(" ".join), min_size=10, max_size=60
)


@settings(deadline=None, max_examples=50)
@given(texts=texts_strategy, seed=st.integers(0, 10))
def test_every_text_is_in_one_part(texts, seed):
    texts += [f"another{index}" for index in range(90)]
    parts = split_by_sentence(texts, [0.1, 0.1], seed)
    assert sorted(index for part in parts for index in part) == list(range(len(texts)))


def test_too_few_texts_are_refused():
    with pytest.raises(SecureRouterValueError, match="too few"):
        split_by_sentence(["a b c", "a b", "c"], [0.1, 0.1], seed=0)


def test_a_phrase_stays_with_its_sentence():
    sentences = [f"word{i} other{i} third{i} fourth{i} last{i}" for i in range(100)]
    phrases = [" ".join(sentence.split()[1:4]) for sentence in sentences]
    rest, tenth = split_by_sentence(sentences + phrases, [0.1], seed=3)
    assert len(tenth) == 20
    assert {index % 100 for index in rest}.isdisjoint(index % 100 for index in tenth)
    assert tenth != split_by_sentence(sentences + phrases, [0.1], seed=4)[1]
    rows = [{"sentence": text} for text in sentences + phrases]
    assert split_rows(TASKS["sst2"], rows, [0.1], 3) == [rest, tenth]
    assert split_rows(TASKS["cola"], rows, [0.1], 3) != [rest, tenth]
