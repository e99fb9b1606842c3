# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One session of real processes takes every container, refuses bad rows before anything is sent, and goes on."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from hf_securerouter import SecureRouterValueError
from hf_securerouter.errors import BadRowsError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.windows import Windows
from tests.tiny import VOCABULARY, WORDS, noisy_classifier, pool_model


TEXTS = ["the film was good", "bad", "a dull movie"]
TOLERANCE = 0.03  # rounding of the shares; the texts' logits are further apart


@pytest.fixture(scope="module")
def opened(tokenizer):
    model = noisy_classifier("bert", width=16, heads=2)
    with to_mpc(model, tokenizer, max_length=8).local_session(timeout=60) as session:
        session.clear = model
        with torch.no_grad():
            clear = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        assert torch.cdist(clear, clear)[~torch.eye(3, dtype=torch.bool)].min() > 2 * TOLERANCE
        yield session, clear


def test_every_container_is_answered_and_bad_rows_cost_nothing(opened, tokenizer):
    session, clear = opened
    containers = [
        (text for text in TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, index=[3, 1, 2]),
        Dataset.from_dict({"text": TEXTS})["text"],
        tokenizer(TEXTS),
        dict(tokenizer(TEXTS, padding=True)),
        tokenizer(TEXTS, padding=True, return_tensors="np"),
        tokenizer(TEXTS, padding=True, return_tensors="pt"),
    ]
    bad = [
        (["good", "secret \udc00"], r"`inputs\[1\]` has half of a surrogate pair at character 7"),
        (["", "good"], r"`inputs\[0\]` is empty"),
        (["good", float("nan")], r"`inputs\[1\]` is missing \(nan\)"),
        ({"input_ids": [[2, 3], [2, len(VOCABULARY)]]}, rf"`input_ids\[1\]` has the id {len(VOCABULARY)} at place 1"),
        ({"input_ids": torch.tensor([[2, -1]])}, r"`input_ids\[0\]` has the id -1"),
        ({"input_ids": [[2, 3]], "token_type_ids": [[0, 2]]}, r"`token_type_ids\[0\]` has the id 2 at place 1"),
        ({"input_ids": [[2, 3], []]}, r"`input_ids\[1\]` is empty"),
    ]
    for index, container in enumerate(containers):
        given, message = bad[index % len(bad)]
        with pytest.raises(BadRowsError, match=message) as caught:
            session(given)
        assert "secret" not in str(caught.value)
        torch.testing.assert_close(session(container).logits, clear, rtol=0, atol=TOLERANCE)
    with pytest.raises(SecureRouterValueError, match="one column of a table"):
        session(pd.DataFrame({"text": TEXTS}))


def test_long_texts_cost_and_look_like_short_ones(opened, tokenizer, monkeypatch):
    session, _ = opened
    asked, query = [], session._query
    monkeypatch.setattr(session, "_query", lambda batch: asked.append(batch["input_ids"].shape) or query(batch))
    texts = [" ".join(WORDS[:14]), "bad", ("a film", " ".join(WORDS[3:9]))]
    results = [session([text], verify=True, max_windows=3, stride=1) for text in texts]
    assert asked == [(3, 8)] * 6  # each asked twice: what a server sees says nothing of a text's own windows
    costs = {(own.cost.online_bytes, own.cost.rounds, own.cost.dealer_bytes) for own in results}
    assert len(costs) == 1
    rows, counts = Windows(3, 1).split(tokenizer, texts, 8)
    assert counts == [3, 1, 3]
    with torch.no_grad():
        clear = session.clear(**tokenizer.pad(rows, return_tensors="pt")).logits.view(3, 3, -1)
    for result, own, count in zip(results, clear, counts, strict=True):
        torch.testing.assert_close(result.logits[0], own[:count].mean(0), rtol=0, atol=TOLERANCE)
        assert result.verified == [True] and result.labels == session.client.labels(result.logits)
        assert result.expert_indices == [[0] * count]
    seen = []
    session(texts, max_windows=3, stride=1, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (3, 3)
    with pytest.raises(SecureRouterValueError, match="`max_windows` cuts texts, and `inputs` holds token ids"):
        session(tokenizer(TEXTS), max_windows=2)
    with pytest.raises(BadRowsError, match=r"`inputs\[1\]` is empty"):
        session(["good", ""], max_windows=2)


def test_threads_that_share_a_session_wait_for_each_other(opened):
    session, clear = opened
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: session(TEXTS), range(4)))
    for result in results:
        torch.testing.assert_close(result.logits, clear, rtol=0, atol=TOLERANCE)
        assert result.choice == "one expert"


@pytest.mark.parametrize(("privacy", "choice"), [("quota", "quotas 2/1"), ("revealed", "scores")])
def test_a_result_says_by_what_experts_were_chosen(privacy, choice):
    quotas = [2, 1] if privacy == "quota" else None
    secure = pool_model(("bert", "bert")).to_mpc(max_length=8, routing_privacy=privacy, quotas=quotas)
    assert secure.local_session()._choice() == choice


def test_a_tokenizer_of_another_model_is_noticed_by_the_row(opened, tokenizer, monkeypatch):
    session, clear = opened
    larger = type(tokenizer)(vocab=VOCABULARY | {"weird": len(VOCABULARY)}, model_max_length=24)
    monkeypatch.setattr(session.client, "tokenizer", larger)
    with pytest.raises(BadRowsError, match=rf"`inputs\[1\]` has the id {len(VOCABULARY)} at place 2") as caught:
        session(["good", "a weird film"])
    assert caught.value.rows.keys() == {1} and "weird" not in str(caught.value)
    assert session(TEXTS).logits.shape == clear.shape
