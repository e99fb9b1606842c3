# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A line that cannot be answered: named and refused, or skipped with its reason, and the others lose nothing."""

import json
from pathlib import Path

import pytest
from transformers import BertTokenizer

from hf_securerouter import classification
from hf_securerouter.classification import classify, load_checkpoint
from hf_securerouter.cli import labelling
from hf_securerouter.cli.labelling import OnError
from hf_securerouter.cli.predict import predict_file
from hf_securerouter.errors import SecureRouterValueError
from tests.support.commands import read_lines, run
from tests.tiny import MAX_POSITIONS, VOCABULARY


DEEP = "[" * 100_000 + "]" * 100_000
# Lines that cannot be answered, and what is said about them.
BAD = {
    b'{"text": "secret \\ud83d"}': 'has a "text" that has half of a surrogate pair at character 7',
    b'{"text": "secret", "text_pair": "\\udc00"}': 'has a "text_pair" that has half of a surrogate pair',
    b'{"text": " "}': 'has a "text" that is empty',
    b'{"text": "secret", "text_pair": ""}': 'has a "text_pair" that is empty',
    b'{"text": null}': 'has no "text" that is a string',
    b'{"text": NaN}': "is not JSON",
    b'{"text": "secret", "value": 1e999}': "is not JSON",
    b'{"text": "secret", "value": ' + b"9" * 5000 + b"}": "is not JSON",
    b'{"text": "secret", "value": ' + DEEP.encode() + b"}": "is nested too deeply",
    b'{"text": "secret"': "is not JSON",
    '{"text": "secret größer"}'.encode("latin-1"): "is not UTF-8 text (byte 19 of the line)",
    b"\xff\xfe": "is not UTF-8 text (byte 0 of the line)",
    b'["secret"]': "is not a JSON object",
}


def bad_and_good(tmp_path):
    """A file with a good line before and after each bad one; the good texts, and the problems by line."""
    lines, problems, texts = [], {}, []
    for index, (bad, problem) in enumerate(BAD.items()):
        texts.append(f"good film {index}" if index % 2 else f"bad movie {index}")
        lines += [json.dumps({"text": texts[-1], "id": "\ud83d" if index == 0 else index}).encode(), bad]
        problems[len(lines)] = problem
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    return source, texts, problems


def test_a_bad_line_is_named_before_anything_is_loaded(tmp_path):
    for bad, problem in BAD.items():
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_bytes(b'{"text": "fine"}\n\n' + bad + b"\n")
        done = run("predict", str(tmp_path / "no" / "model"), "--input", str(source), "--output", str(output))
        assert done.exit_code == 2 and f"Line 3 of `input` {problem}" in done.stderr and not output.exists()
        assert "secret" not in done.stderr


def test_of_many_bad_lines_some_are_named(tmp_path):
    source, _, problems = bad_and_good(tmp_path)
    with pytest.raises(SecureRouterValueError) as caught:
        predict_file("no/model", source, tmp_path / "out.jsonl")
    for number in list(problems)[:8]:
        assert f"Line {number} of `input`" in str(caught.value)
    assert f"{len(problems) - 8} more lines" in str(caught.value) and "--on-error skip" in str(caught.value)


def test_skipped_lines_have_their_reason_and_the_others_their_answers(checkpoint, tmp_path):
    source, texts, problems = bad_and_good(tmp_path)
    output = tmp_path / "out.jsonl"
    options = ["--input", str(source), "--output", str(output), "--on-error", "skip"]
    done = run("predict", checkpoint, *options, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lines"], report["skipped"]) == (2 * len(BAD), len(BAD))
    lines = read_lines(output)
    expected = classify(*load_checkpoint(checkpoint), texts, [1, 1, 1])
    for line, text, answer in zip(lines[::2], texts, expected, strict=True):
        assert line["text"] == text and "error" not in line
        assert (line["label"], line["expert"]) == (answer.label, answer.expert)
        assert line["logits"] == pytest.approx(answer.logits, abs=1e-5)
    assert lines[0]["id"] == "\ud83d"
    for line, (number, problem) in zip(lines[1::2], problems.items(), strict=True):
        assert line["error"].startswith(f"The line {problem}")
        assert [line[name] for name in ("label", "score", "logits", "expert")] == [None] * 4
        assert "text" in line or line["line"] == number
    assert f"{len(BAD)} of them have no answer" in run("predict", checkpoint, *options).stderr


def test_a_stopped_run_with_skipped_lines_goes_on_as_if_it_had_not_stopped(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "BATCH_SIZE", 3)
    source, texts, _ = bad_and_good(tmp_path)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    predict_file(checkpoint, source, whole, on_error=OnError.SKIP)
    asked = []

    def stopping(model, tokenizer, batch, *more):
        asked.append(len(batch))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return classify(model, tokenizer, batch, *more)

    monkeypatch.setattr(classification, "classify", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_file(checkpoint, source, output, on_error=OnError.SKIP)
    report = predict_file(checkpoint, source, output, on_error=OnError.SKIP)
    assert (report["resumed_after"], report["skipped"]) == (12, len(BAD))
    assert asked[:3] == [3, 3, 3] and sum(asked[3:]) == len(texts) - 6
    assert output.read_bytes() == whole.read_bytes()


def test_a_text_with_an_id_beyond_the_vocabulary_is_named_by_its_line(checkpoint, tmp_path):
    larger = BertTokenizer(vocab=VOCABULARY | {"weird": len(VOCABULARY)}, model_max_length=MAX_POSITIONS)
    larger.save_pretrained(checkpoint)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "good"}\n\n{"text": "a weird film"}\n{"text": "bad"}\n')
    problem = f"Line 3 of `input` has the id {len(VOCABULARY)} at place 2"
    with pytest.raises(SecureRouterValueError, match=problem):
        predict_file(checkpoint, source, output)
    report = predict_file(checkpoint, source, output, on_error=OnError.SKIP)
    assert (report["lines"], report["skipped"]) == (3, 1)
    assert ["error" in line for line in read_lines(output)] == [False, True, False]


def test_a_file_without_one_good_line_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}\n")
    with pytest.raises(SecureRouterValueError, match='Line 1 of `input` has no "text" that is a string'):
        predict_file("no/model", tmp_path / "in.jsonl", tmp_path / "out.jsonl", on_error=OnError.SKIP)


def test_a_byte_order_mark_is_no_part_of_the_first_line(checkpoint, tmp_path):
    source = Path(tmp_path / "in.jsonl")
    source.write_bytes(b'\xef\xbb\xbf{"text": "good"}\r\n')
    predict_file(checkpoint, source, tmp_path / "out.jsonl")
    assert read_lines(tmp_path / "out.jsonl")[0]["text"] == "good"
