# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Long texts in windows: where they are cut, which of them count, and what the servers can tell."""

import copy

import pytest
import torch

from hf_securerouter.classification import classify
from hf_securerouter.errors import BadRowsError, SecureRouterValueError, SecureRouterWarning
from hf_securerouter.windows import Windows
from tests.tiny import VOCABULARY, WORDS


CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]
LONG = " ".join(WORDS[:17])


def by_hand(ids, length, stride):
    """The windows of one text, each with two special tokens."""
    room, found, start = length - 2, [], 0
    while True:
        found.append([CLS, *ids[start : start + room], SEP])
        if start + room >= len(ids):
            return found
        start += room - stride


@pytest.mark.parametrize("stride", [0, 3, 5])
def test_a_window_starts_with_the_last_tokens_of_the_one_before(tokenizer, stride):
    ids = [VOCABULARY[word] for word in LONG.split()]
    expected = by_hand(ids, 8, stride)
    rows, counts = Windows(len(expected), stride).split(tokenizer, [LONG, "bad"], 8)
    assert [row["input_ids"] for row in rows[: len(expected)]] == expected
    assert counts == [len(expected), 1]
    assert [row["input_ids"] for row in rows[len(expected) :]] == [[CLS, VOCABULARY["bad"], SEP]] * len(expected)


def test_copies_fill_up_in_turn_and_what_is_left_over_is_said(tokenizer):
    rows, counts = Windows(5).split(tokenizer, [LONG], 8)
    assert counts == [3] and rows[3:] == rows[:2]
    with pytest.warns(SecureRouterWarning, match="1 of 2 texts have more than 2 windows"):
        rows, counts = Windows(2).split(tokenizer, ["bad", LONG], 8)
    assert counts == [1, 2] and len(rows) == 4


@pytest.mark.parametrize("swapped", [False, True])
def test_of_a_pair_the_longer_text_is_cut(tokenizer, swapped):
    pair = ("a film", LONG)
    rows, (count,) = Windows(6, 1).split(tokenizer, [pair[::-1] if swapped else pair], 10)
    kept = [VOCABULARY["a"], VOCABULARY["film"]]
    for row in rows[:count]:
        ids, types = row["input_ids"], row["token_type_ids"]
        assert [own for own, kind in zip(ids, types, strict=True) if kind == int(swapped)][: 2 + (not swapped)] == (
            kept if swapped else [CLS, *kept]
        )
    assert count == 4  # five words each, one of them shared: 5 + 4 + 4 + 4


def test_what_cannot_be_cut_is_named(tokenizer):
    with pytest.raises(BadRowsError, match=r"`inputs\[1\]` is a pair whose shorter text fills a window") as caught:
        Windows(2).split(tokenizer, ["bad", (LONG, LONG)], 8)
    assert list(caught.value.rows) == [1]
    with pytest.raises(SecureRouterValueError, match="`stride` should be less than 6, the tokens of a window, got 6"):
        Windows(2, 6).split(tokenizer, ["bad"], 8)
    slow = copy.copy(tokenizer)
    type(slow).is_fast, fast = property(lambda self: self is not slow), type(slow).is_fast
    try:
        with pytest.raises(SecureRouterValueError, match="needs a fast tokenizer"):
            Windows(2).split(slow, ["bad"], 8)
    finally:
        type(slow).is_fast = fast
    for wrong, message in (
        ((0, 0), "`max_windows` should be an integer of at least 1, got 0"),
        ((True, 0), "`max_windows` should be an integer of at least 1, got True"),
        ((2, -1), "`stride` should be an integer of at least 0, got -1"),
        ((1, 4), "`stride` is 4, and one window of a text shares no token"),
    ):
        with pytest.raises(SecureRouterValueError, match=message):
            Windows(*wrong)


def test_copies_do_not_count():
    logits = torch.tensor([[1.0, 0.0], [3.0, 2.0], [1.0, 0.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]])
    torch.testing.assert_close(Windows(3).averaged(logits, [2, 1]), torch.tensor([[2.0, 1.0], [5.0, 5.0]]))
    assert Windows(3).grouped([0, 2, 0, 1, 1, 1], [2, 1]) == [[0, 2], [1]]
    assert Windows().grouped([0, 2], [1, 1]) == [0, 2]


@pytest.mark.parametrize("quotas", [None, [1, 2, 1]])
def test_in_clear_text_the_answer_is_the_mean_of_the_windows(model, tokenizer, quotas):
    model.eval()
    model.config.max_length = 8
    texts = [LONG, "bad", ("a film", WORDS[3])]
    answers = classify(model, tokenizer, texts, quotas, 5, 2)
    rows, counts = Windows(5, 2).split(tokenizer, texts, 8)
    alone = [tokenizer.decode(row["input_ids"][1:-1]) for row in rows[:5]]
    single = classify(model, tokenizer, alone, quotas) if quotas is None else None
    assert counts == [4, 1, 1]
    assert [len(answer.expert) for answer in answers] == counts
    if single is not None:
        expected = torch.tensor([one.logits for one in single[:4]]).mean(0)
        assert answers[0].logits == pytest.approx(expected.tolist(), abs=1e-5)
        assert answers[0].expert == [one.expert for one in single[:4]]
    assert classify(model, tokenizer, ["bad"])[0].logits == pytest.approx(answers[1].logits, abs=1e-5) or quotas
