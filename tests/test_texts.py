# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Texts as callers have them become one list, in order; a row that cannot be read is named by its place."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from transformers import pipeline

from hf_securerouter import SecureRouterValueError
from hf_securerouter.errors import BadRowsError
from hf_securerouter.texts import as_texts


TEXTS = ["good film", "größer \U0001f600", "bad"]
PAIRS = [(text, f"{text} too") for text in TEXTS]


def test_every_container_gives_the_same_texts():
    frame = pd.DataFrame({"text": TEXTS, "pair": [pair for _, pair in PAIRS]}, index=[7, 3, 5])
    table = Dataset.from_dict({"text": TEXTS})
    containers = [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        frame["text"],
        frame["text"].astype("category"),
        table["text"],
        table[:]["text"],
        table[:],
        {"text": np.array(TEXTS), "label": [0, 1, 0]},
        ({"text": text} for text in TEXTS),
        [[text] for text in TEXTS],
    ]
    for container in containers:
        found = as_texts(container)
        assert found == TEXTS and {type(text) for text in found} == {str}, type(container)
    pairs = [
        PAIRS,
        [list(pair) for pair in PAIRS],
        np.array(PAIRS),
        zip(*zip(*PAIRS, strict=True), strict=True),
        {"text": TEXTS, "text_pair": frame["pair"]},
        [{"text": text, "text_pair": pair} for text, pair in PAIRS],
    ]
    for container in pairs:
        assert as_texts(container) == PAIRS, type(container)


def test_rows_that_cannot_be_read_are_all_named_and_never_shown():
    rows = ["fine", "", "secret \ud83d", None, float("nan"), 7, ("secret", " \n"), ("a", None), ("a", "b", "secret")]
    wanted = {
        1: "is empty",
        2: "has half of a surrogate pair at character 7",
        3: "is missing (None)",
        4: "is missing (nan)",
        5: "should be a text or a (text, pair) tuple of two, got int",
        6: "has a pair that is empty",
        7: "has a pair that is of type NoneType",
        8: "should be a text or a (text, pair) tuple of two, got tuple",
    }
    for given in (rows, iter(rows), np.array([*rows, None], dtype=object)[:-1]):
        with pytest.raises(BadRowsError) as caught:
            as_texts(given)
        assert caught.value.rows.keys() == wanted.keys()
        for row, problem in wanted.items():
            assert caught.value.rows[row].startswith(problem) and f"`inputs[{row}]` {problem}" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_of_many_rows_the_message_names_some_and_the_error_all():
    with pytest.raises(BadRowsError, match=r"`inputs\[7\]` is empty; and 92 more rows\. Correct these rows") as caught:
        as_texts([""] * 100)
    assert len(caught.value.rows) == 100


def test_what_is_no_list_of_texts_is_refused():
    table = {"text": TEXTS}
    whole = [pd.DataFrame(table), "one text", b"bytes", {"b", "a"}, 7, None, np.array("scalar"), [], iter([])]
    for given in whole:
        with pytest.raises(SecureRouterValueError, match=r"`inputs` should be a list .* pass `\[text\]`"):
            as_texts(given)
    for given in ({}, {"sentence": TEXTS}, {"text": "one"}):
        with pytest.raises(SecureRouterValueError, match="`inputs` should be a dict with `input_ids`, or with a list"):
            as_texts(given)
    with pytest.raises(SecureRouterValueError, match="3 texts and 1 pairs"):
        as_texts({"text": TEXTS, "text_pair": ["alone"]})
    with pytest.raises(BadRowsError):
        as_texts(Dataset.from_dict({"sentence": TEXTS}))  # its rows are dicts without a text


def test_a_pipeline_answers_the_texts_of_every_container(checkpoint):
    classifier = pipeline("text-classification", model=checkpoint)
    texts = ["good film", "bad"]
    expected = [classifier(text)[0] for text in texts]
    for container in (tuple(texts), np.array(texts), pd.Series(texts), Dataset.from_dict({"text": texts})["text"]):
        for found, wanted in zip(classifier(as_texts(container)), expected, strict=True):
            assert found["label"] == wanted["label"] and found["score"] == pytest.approx(wanted["score"], abs=1e-5)
