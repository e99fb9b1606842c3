# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which stopped runs go on, and what the report of a labelled file says of answers that were asked twice."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from hf_securerouter.classification import Classified
from hf_securerouter.cli import labelling


class Answers:
    """Batches of two texts; the first batch differs when it is asked twice, and the run is stopped at batch `stop`.
    Where `verify` is below 1, none is asked twice."""

    protocol, routing_privacy, batch_size, cost = "masked", "quota", 2, None

    def __init__(self, verify, stop=None):
        self.verify, self.stop, self.batches = verify, stop, 0

    def __call__(self, texts):
        self.batches += 1
        if self.batches == self.stop:
            raise KeyboardInterrupt
        verified = "film 0" not in str(texts[0]) if self.verify == 1.0 else None
        return [Classified("good", 0.9, [0.0, 1.0], 0, verified=verified) for _ in texts]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"film {index}"}) + "\n" for index in range(6)))
    return path


def label(texts, verify=None, stop=None, model="model", output=None):
    def opened():
        return contextlib.nullcontext(Answers(verify, stop))

    return labelling.label_file(str(model), texts, output or texts.with_name("out.jsonl"), opened, True, verify=verify)


def test_answers_that_differed_are_counted_after_a_stop(texts):
    assert label(texts, verify=1.0)["differing"] == 2
    with pytest.raises(KeyboardInterrupt):
        label(texts, verify=1.0, stop=2)
    report = label(texts, verify=1.0)
    assert (report["resumed_after"], report["differing"]) == (2, 2)


def test_a_run_that_asks_twice_does_not_go_on_with_answers_that_were_asked_once(texts):
    with pytest.raises(KeyboardInterrupt):
        label(texts, stop=2)
    assert label(texts, verify=1.0)["resumed_after"] == 0
    assert all("verified" in line for line in texts.with_name("out.jsonl").read_text().splitlines())


@pytest.mark.parametrize("verify", [0.0, 0.5, 1.0])
def test_a_field_of_the_input_is_not_taken_for_an_answer(texts, verify, capsys):
    lines = [json.loads(line) | {"verified": False} for line in texts.read_text().splitlines()]
    texts.write_text("".join(json.dumps(line | {"text": line["text"].replace("0", "9")}) + "\n" for line in lines))
    assert label(texts, verify=verify)["differing"] == 0
    with pytest.raises(KeyboardInterrupt):
        label(texts, verify=verify, stop=2)
    report = label(texts, verify=verify)
    assert (report["resumed_after"], report["differing"]) == (2, 0)
    assert ('have a "verified" already' in capsys.readouterr().err) == (verify > 0)


def test_a_report_counts_what_differs_where_answers_are_asked_twice_only(texts):
    assert "differing" not in label(texts)


def piped(content):
    """A pipe that holds `content`, as a shell's `<(command)` passes it."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return Path(f"/dev/fd/{reading}")


def test_a_run_of_another_pipe_does_not_go_on_with_its_answers(texts, tmp_path):
    one, other = texts.read_bytes(), texts.read_bytes().replace(b"film", b"book")
    output = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        label(piped(one), stop=2, output=output)
    assert label(piped(other), output=output)["resumed_after"] == 0
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == [f"book {n}" for n in range(6)]
    assert label(piped(one), output=output)["resumed_after"] == 2


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.txt", "sentencepiece.bpe.model"])
def test_a_run_does_not_go_on_with_a_model_whose_subfolder_changed(texts, tmp_path, file):
    weights = tmp_path / "sentence" / "0_Transformer" / file
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    for expected in (2, 0):
        with pytest.raises(KeyboardInterrupt):
            label(texts, stop=2, model=tmp_path / "sentence")
        if not expected:
            weights.write_bytes(b"weights of another training")
        assert label(texts, model=tmp_path / "sentence")["resumed_after"] == expected
