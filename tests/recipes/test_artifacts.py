# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Files that are made once, and are whole or not there."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_securerouter.recipes import artifacts
from hf_securerouter.recipes.artifacts import Countdown, announce, duration, once, once_tensors, save_once


class Stopped(Exception):
    pass


def stopped():
    raise Stopped


def test_a_value_is_made_once(tmp_path):
    assert once(tmp_path / "a.json", lambda: {"b": [1, 2.5]}) == {"b": [1, 2.5]}
    assert once(tmp_path / "a.json", stopped) == {"b": [1, 2.5]}
    with pytest.raises(Stopped):
        once(tmp_path / "b.json", stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_tensors_are_made_once(tmp_path):
    value = torch.arange(6).view(2, 3).T
    assert torch.equal(once_tensors(tmp_path / "a.safetensors", lambda: {"b": value})["b"], value)
    assert torch.equal(once_tensors(tmp_path / "a.safetensors", stopped)["b"], value)
    with pytest.raises(Stopped):
        once_tensors(tmp_path / "b.safetensors", stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_model_is_trained_and_saved_once(tmp_path, two_experts, tokenizer):
    expert, folder = two_experts[0], tmp_path / "experts" / "0"
    with pytest.raises(Stopped):
        save_once(folder, expert, tokenizer, stopped)
    assert not folder.exists()
    save_once(folder, expert, tokenizer, lambda: expert.classifier.bias.data.fill_(7.0))
    assert AutoModelForSequenceClassification.from_pretrained(folder).classifier.bias.eq(7).all()
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    save_once(folder, expert, tokenizer, stopped)
    assert [path.name for path in folder.parent.iterdir()] == ["0"]


def test_progress_is_a_line(capsys):
    announce("Measuring expert 2 of 3 ...")
    assert capsys.readouterr().out == "Measuring expert 2 of 3 ...\n"


def test_a_long_step_says_how_far_it_is_and_how_long_it_takes_at_most_twice_a_minute(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 29.0, 40.0, 60.0, 100.0, 400.0])
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: next(clock))
    countdown = Countdown(2000, "rows")
    for done in (0, 100, 500, 700, 1000, 2000):
        countdown(done)
    assert (
        capsys.readouterr().out == "  500 of 2,000 rows, about 2 min more\n  1,000 of 2,000 rows, about 2 min more\n"
    )
    assert [duration(seconds) for seconds in (0.4, 89, 91, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]
