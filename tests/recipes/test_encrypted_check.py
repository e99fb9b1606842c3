# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Encrypted answers beside those of the clear model."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import encrypted_rows
import pytest
import torch
from transformers import DataCollatorWithPadding

from hf_securerouter import SecureRouterValueError
from hf_securerouter.classification import classify
from hf_securerouter.metrics import GLUE_METRICS, local_metric
from hf_securerouter.recipes import encrypted_check
from hf_securerouter.recipes.encrypted_check import compare_with_clear
from hf_securerouter.recipes.tasks import TASKS


def test_encrypted_answers_are_compared_with_the_clear_policy():
    task, labels = TASKS["mrpc"], torch.tensor([0, 1, 1])
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.6], [0.5, 0.7]])  # batches of two: 0 | 1, then 2 and its copy
    logits = torch.tensor([[[0.0, 1.0], [3.0, 2.0]], [[4.0, 5.0], [7.0, 6.0]], [[0.0, 1.0], [3.0, 2.0]]])
    clear = torch.stack([logits[0, 1], logits[1, 0], logits[2, 1]])
    found = compare_with_clear(task, clear + 0.25, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["largest_error"] == 0.25 and found["labels_equal"] == found["inputs"] == 3
    assert found["served_elsewhere"] == found["elsewhere_labels_changed"] == 0
    assert found["metrics"] == found["clear_metrics"]
    swapped = torch.stack([logits[0, 0], logits[1, 1], logits[2, 1]])
    found = compare_with_clear(task, swapped, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["served_elsewhere"] == found["elsewhere_labels_changed"] == 2 and found["largest_error"] == 0
    # Rounded answers of an expert lie further from its clear ones, and may be nearer to those of another.
    near = torch.stack([clear, clear + 0.3], dim=1)
    rounded = task, clear + 0.2, scores, near, [1, 1], [2.0, 1.0], labels
    assert compare_with_clear(*rounded)["served_elsewhere"] > 0
    assert compare_with_clear(*rounded, reduced=True)["served_elsewhere"] == 0
    # The answer of a small margin may change, and counts apart.
    close = logits - torch.tensor([[[0.0, 0.97], [0.97, 0.0]]])
    close[0] = logits[0]
    changed = torch.stack([close[0, 1], close[1, 0].flip(0), close[2, 1]])
    found = compare_with_clear(task, changed, scores, close, [1, 1], [1.0, 2.0], labels)
    assert (found["labels_equal"], found["sure"], found["sure_labels_equal"]) == (2, 1, 1)
    assert found["elsewhere_labels_changed"] == 0
    other = clear.flip(1)
    found = compare_with_clear(task, other, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["labels_equal"] == found["sure_labels_equal"] == 0 and found["sure"] == 3
    assert found["metrics"] != found["clear_metrics"]


def test_a_metric_that_is_not_defined_is_0_in_the_comparison(monkeypatch):
    monkeypatch.setattr("hf_securerouter.recipes.tasks.glue_metric", lambda task: local_metric(GLUE_METRICS[task]))
    logits = torch.tensor([[[0.5], [1.0]], [[2.0], [1.5]], [[3.0], [3.5]], [[4.5], [4.0]]])
    policy = torch.zeros(4, 2), logits, [2, 2], [1.0, 2.0]
    found = compare_with_clear(TASKS["stsb"], logits[:, 0], *policy, torch.full((4,), 2.5))
    assert found["metrics"] == found["clear_metrics"] == {"pearson": 0.0, "spearmanr": 0.0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rows_are_asked_of_a_saved_pool(model, tokenizer, tmp_path, monkeypatch, capsys):
    model.eval()
    texts = ["good film", "bad film", "a good and bad film"]
    answers = classify(model, tokenizer, texts, [1, 1, 1])
    asked = []

    def encrypted(pool, quotas, rows, collate, max_length, samples):
        asked.append((quotas, len(rows), max_length, len(samples)))
        return torch.tensor([one.logits for one in answers]) + 0.01, {"seconds": 1.0}

    monkeypatch.setattr(encrypted_check, "encrypted_logits", encrypted)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"sentence": text, "label": 1}) + "\n" for text in texts))
    own = ["--validation_file", str(tmp_path / "rows.jsonl"), "--router", str(tmp_path)]
    more = ["--task_name", "sst2", *own]
    for quotas in (None, [1, 1, 1]):
        model.config.quotas = quotas
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        if quotas is None:
            with pytest.raises(SecureRouterValueError, match="`quotas` should be set in the config of the pool"):
                encrypted_rows.main(more)
    encrypted_rows.main(more)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for rows in (more, own):  # of a task, and of a user's own data
        encrypted_rows.main([*rows, "--train_file", str(tmp_path / "rows.jsonl"), "--max_train_samples", "2"])
        assert asked.pop() == ([1, 1, 1], 3, 7, 2)  # training rows set the bounds
    folder = tmp_path / "sst2"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    for source in (["--task_name", "sst2", "--data_dir", str(tmp_path)], ["--dataset_dir", str(folder)]):
        encrypted_rows.main([*source, "--router", str(tmp_path)])
        assert asked.pop() == ([1, 1, 1], 3, 7, 3)  # those of the same source, too
    assert asked == [([1, 1, 1], 3, 7, 0)] and found["length"] == 7  # of five words, and two special tokens
    assert (found["inputs"], found["labels_equal"], found["served_elsewhere"], found["seconds"]) == (3, 3, 0, 1.0)
    assert found["largest_error"] == pytest.approx(0.01, abs=1e-4)


def test_samples_set_the_bounds(model, tokenizer, monkeypatch):
    model.eval()
    asked, real = [], type(model).to_mpc

    def to_mpc(pool, **options):
        asked.append(options)
        return real(pool, **options)

    monkeypatch.setattr(type(model), "to_mpc", to_mpc)
    texts = ["good film", "bad film", "a good and bad film"]
    rows = [dict(tokenizer(text)) | {"labels": 1} for text in texts]
    collate = DataCollatorWithPadding(tokenizer)
    expected = torch.tensor([one.logits for one in classify(model, tokenizer, texts, [1, 1, 1])])
    logits, query = encrypted_check.encrypted_logits(model, [1, 1, 1], rows, collate, 8, rows * 2)
    assert (logits - expected).abs().max() < 0.02 and query["in_bounds"] == 3
    assert len(asked[0]["calibration"]["input_ids"]) == 6 and "labels" not in asked[0]["calibration"]


def test_inputs_whose_batches_left_their_bounds_are_counted_apart(model, tokenizer, monkeypatch):
    cost = SimpleNamespace(online_seconds=3.0, preprocess_seconds=6.0, online_bytes=9, dealer_bytes=12)
    result = SimpleNamespace(logits=torch.zeros(3, 2), cost=cost, in_bounds=[True, False, None])
    session = SimpleNamespace(local_session=lambda: nullcontext(lambda inputs, progress: result))
    asked = []
    monkeypatch.setattr(type(model), "to_mpc", lambda pool, **options: asked.append(options) or session)
    rows = [dict(tokenizer("good film")) | {"labels": 1}] * 3
    _, query = encrypted_check.encrypted_logits(model, [1, 1, 1], rows, DataCollatorWithPadding(tokenizer), 8)
    expected = {"seconds": 1.0, "preprocess_seconds": 2.0, "bytes": 3.0, "dealer_bytes": 4.0, "in_bounds": 1}
    assert query == expected and asked[0]["guard"] is True and asked[0]["calibration"] is None
