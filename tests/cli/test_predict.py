# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter predict`: a file of texts in, the same file with labels out."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter import classification as classify_module
from hf_securerouter.classification import classify
from hf_securerouter.cli import labelling
from hf_securerouter.cli.labelling import BATCH_SIZE
from hf_securerouter.cli.predict import predict_file
from hf_securerouter.cli.records import read_records
from hf_securerouter.errors import SecureRouterValueError, SecureRouterWarning
from tests.support.commands import COST_FIELDS, read_lines, run, write_lines


BATCH = BATCH_SIZE // 3 * 3  # whole batches of one text for each of three experts


class TestPredict:
    def test_every_line_comes_back_in_order_with_its_answer(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        done = run("predict", checkpoint, "--input", str(texts), "--output", str(output), "--json")
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["lines"] == 70 and report["output"] == str(output)
        lines = read_lines(output)
        assert [line["id"] for line in lines] == list(range(70))
        model, tokenizer = classify_module.load_checkpoint(checkpoint)
        expected = classify(model, tokenizer, [line["text"] for line in lines], [1, 1, 1])
        for line, answer in zip(lines, expected, strict=True):
            assert set(line) == {"id", "text", "label", "score", "logits", "expert"}
            assert (line["label"], line["expert"]) == (answer.label, answer.expert)
            assert line["logits"] == pytest.approx(answer.logits, abs=1e-5)

    def test_pairs_are_read_as_pairs(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        write_lines(source, [{"text": "good film", "text_pair": "bad film"}, {"text": "good film", "text_pair": None}])
        predict_file(checkpoint, source, output)
        model, tokenizer = classify_module.load_checkpoint(checkpoint)
        pair, alone = read_lines(output)
        expected = classify(model, tokenizer, [("good film", "bad film"), "good film"], [1, 1, 1])
        for line, answer in zip((pair, alone), expected, strict=True):
            assert line["logits"] == pytest.approx(answer.logits)
        assert pair["logits"] != pytest.approx(alone["logits"])

    def test_memory_is_planned_for_encrypted_answers_only(self, checkpoint, texts, tmp_path):
        for encrypted, named in ((False, "with `--encrypted` only"), (True, "and `memory` is 1000: convert")):
            with pytest.raises(SecureRouterValueError, match=named):
                predict_file(checkpoint, texts, tmp_path / "out.jsonl", encrypted, memory=1000)
        assert not (tmp_path / "out.jsonl").exists()

    def test_unicode_and_empty_lines(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text('{"text": "größer\u2028als"}\n\n{"text": "b"}\r\n', encoding="utf-8")
        predict_file(checkpoint, source, output)
        assert [json.loads(line)["text"] for line in output.read_text("utf-8").split("\n")[:-1]] == [
            "größer\u2028als",
            "b",
        ]

    def test_only_the_owner_may_read_the_output(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        predict_file(checkpoint, texts, output)
        assert stat.S_IMODE(output.stat().st_mode) == 0o600

    def stop_after(self, monkeypatch, batches: int):
        calls = []

        def stopping(*arguments):
            calls.append(1)
            if len(calls) > batches:
                raise KeyboardInterrupt
            return classify(*arguments)

        monkeypatch.setattr(classify_module, "classify", stopping)
        return calls

    def test_stopped_run_leaves_no_output_and_goes_on(self, checkpoint, texts, tmp_path, monkeypatch):
        output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
        predict_file(checkpoint, texts, whole)
        with monkeypatch.context() as patched:
            self.stop_after(patched, 1)
            with pytest.raises(KeyboardInterrupt):
                predict_file(checkpoint, texts, output)
        assert not output.exists()
        (partial,) = tmp_path.glob(".out.jsonl.*.partial")
        assert len(read_lines(partial)) == BATCH

        calls = self.stop_after(monkeypatch, 99)
        report = predict_file(checkpoint, texts, output)
        assert report["resumed_after"] == BATCH
        assert len(calls) == 2
        assert output.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))

    def test_half_a_batch_is_answered_again(self, checkpoint, texts, tmp_path, monkeypatch):
        output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
        predict_file(checkpoint, texts, whole)
        with monkeypatch.context() as patched:
            self.stop_after(patched, 2)
            with pytest.raises(KeyboardInterrupt):
                predict_file(checkpoint, texts, output)
        (partial,) = tmp_path.glob(".out.jsonl.*.partial")
        partial.write_bytes(partial.read_bytes()[:-7])
        assert predict_file(checkpoint, texts, output)["resumed_after"] == BATCH
        assert output.read_bytes() == whole.read_bytes()

    def test_labels_below_a_threshold_are_withheld_and_counted(self, checkpoint, texts, tmp_path, monkeypatch):
        output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
        predict_file(checkpoint, texts, whole)
        answers = read_lines(whole)
        least = sorted(line["score"] for line in answers)[len(answers) // 2]
        with monkeypatch.context() as patched:
            self.stop_after(patched, 1)
            with pytest.raises(KeyboardInterrupt):
                predict_file(checkpoint, texts, output, abstain_below=least)
        done = run(
            *("predict", checkpoint, "--input", str(texts), "--output", str(output), "--abstain-below", str(least)),
        )
        assert done.exit_code == 0 and "Going on after" in done.stderr, done.stderr
        expected = [line | {"label": line["label"] if line["score"] >= least else None} for line in answers]
        assert read_lines(output) == expected
        withheld = sum(line["label"] is None for line in expected)
        assert withheld > 0 and f"{withheld} of them have no label" in done.stderr and "no answer" not in done.stderr

    @pytest.mark.parametrize("changed", ["input", "model"])
    def test_another_input_or_model_starts_anew(self, checkpoint, texts, tmp_path, monkeypatch, changed):
        output = tmp_path / "out.jsonl"
        with monkeypatch.context() as patched:
            self.stop_after(patched, 1)
            with pytest.raises(KeyboardInterrupt):
                predict_file(checkpoint, texts, output)
        if changed == "input":
            texts.write_text(texts.read_text().replace("number 3", "number three"))
        else:
            other = SecureRouterForSequenceClassification.from_pretrained(checkpoint)
            torch.nn.init.constant_(other.experts[0].classifier.bias, 3.0)
            time.sleep(0.02)
            other.save_pretrained(checkpoint)
        assert predict_file(checkpoint, texts, output)["resumed_after"] == 0

    def test_another_commit_of_a_model_on_the_hub_starts_anew(self, checkpoint, texts, tmp_path, monkeypatch):
        output, repository = tmp_path / "out.jsonl", tmp_path / "hub" / "models--owner--pool"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        (repository / "refs").mkdir(parents=True)
        for commit, resumed_after in (("a" * 40, BATCH), ("b" * 40, 0)):
            with monkeypatch.context() as patched:
                if resumed_after:
                    self.use_commit(repository, checkpoint, commit)
                self.stop_after(patched, 1)
                with pytest.raises(KeyboardInterrupt):
                    predict_file("owner/pool", texts, output)
            self.use_commit(repository, checkpoint, commit)
            assert predict_file("owner/pool", texts, output)["resumed_after"] == resumed_after

    def use_commit(self, repository, checkpoint, commit):
        """Let the cache of the Hub have a checkpoint under a commit, which is now the branch's."""
        shutil.copytree(checkpoint, repository / "snapshots" / commit, dirs_exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    def test_two_runs_do_not_write_the_same_output(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        partial = labelling._partial_path(output, texts.read_bytes(), checkpoint, False)
        with labelling._open_partial(partial):
            with pytest.raises(SecureRouterValueError, match="another run is writing"):
                predict_file(checkpoint, texts, output)
        assert predict_file(checkpoint, texts, output)["lines"] == 70

    @pytest.mark.parametrize("kind", ["link", "of another user"])
    def test_what_another_user_put_in_the_place_of_the_unfinished_output_is_not_written(
        self, checkpoint, texts, tmp_path, monkeypatch, kind
    ):
        partial = labelling._partial_path(tmp_path / "out.jsonl", texts.read_bytes(), checkpoint, False)
        (tmp_path / "theirs").write_text("before")
        if kind == "link":
            partial.symlink_to(tmp_path / "theirs")
        else:
            partial.write_text("before")
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        done = run("predict", checkpoint, "--input", str(texts), "--output", str(tmp_path / "out.jsonl"))
        assert done.exit_code == 2 and kind in done.stderr
        assert (tmp_path / "theirs").read_text() == "before" and not (tmp_path / "out.jsonl").exists()

    def test_existing_output_stays_until_the_new_one_is_complete(self, checkpoint, texts, tmp_path, monkeypatch):
        output = tmp_path / "out.jsonl"
        output.write_text("former\n")
        with monkeypatch.context() as patched:
            self.stop_after(patched, 2)
            with pytest.raises(KeyboardInterrupt):
                predict_file(checkpoint, texts, output)
        assert output.read_text() == "former\n"
        predict_file(checkpoint, texts, output)
        assert len(read_lines(output)) == 70

    @pytest.mark.fault
    def test_killed_process_can_be_started_again(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        write_lines(source, [{"text": f"good film {index}"} for index in range(8000)])
        command = [sys.executable, "-c", "from hf_securerouter.cli import main; main()", "predict", checkpoint]
        command += ["--input", str(source), "--output", str(output)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        try:
            while time.monotonic() < deadline and process.poll() is None:
                if any(path.stat().st_size > 100 for path in tmp_path.glob(".out.jsonl.*.partial")):
                    break
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        assert not output.exists()
        (partial,) = tmp_path.glob(".out.jsonl.*.partial")
        done = partial.read_bytes().count(b"\n")
        assert 0 < done < 8000
        resumed_after = predict_file(checkpoint, source, output)["resumed_after"]
        assert resumed_after == done - done % BATCH
        assert [line["text"] for line in read_lines(output)] == [f"good film {index}" for index in range(8000)]

    def test_encrypted_answers_are_those_of_clear_text(self, checkpoint, tmp_path):
        source, clear, secret = (tmp_path / name for name in ("in.jsonl", "clear.jsonl", "secret.jsonl"))
        config = Path(checkpoint) / "config.json"
        config.write_text(config.read_text().replace('"routing_privacy": "quota"', '"routing_privacy": "revealed"'))
        write_lines(source, [{"text": f"good film {index}"} for index in range(9)] + [{"text": "a", "text_pair": "b"}])
        predict_file(checkpoint, source, clear)
        done = run("predict", checkpoint, "--input", str(source), "--output", str(secret), "--encrypted", "--json")
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["protocol"] == "masked" and set(report["cost"]) == COST_FIELDS
        for one, other in zip(read_lines(clear), read_lines(secret), strict=True):
            assert (one["text"], one["label"], one["expert"]) == (other["text"], other["label"], other["expert"])
            assert other["logits"] == pytest.approx(one["logits"], abs=0.05)
        assert read_lines(clear)[0]["logits"] != read_lines(secret)[0]["logits"]

    @pytest.mark.parametrize("privacy", ["quota", "revealed"])
    def test_clear_text_is_routed_as_its_report_says(self, checkpoint, texts, tmp_path, privacy):
        config = Path(checkpoint) / "config.json"
        config.write_text(config.read_text().replace('"routing_privacy": "quota"', f'"routing_privacy": "{privacy}"'))
        report = predict_file(checkpoint, texts, tmp_path / "out.jsonl")
        experts = [line["expert"] for line in read_lines(tmp_path / "out.jsonl")]
        by_quota = all(sorted(experts[start : start + 3]) == [0, 1, 2] for start in range(0, 69, 3))
        assert report["routing_privacy"] == privacy and by_quota == (privacy == "quota")

    def test_encrypted_run_does_not_go_on_with_answers_in_clear_text(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        content = texts.read_bytes()
        names = {labelling._partial_path(output, content, checkpoint, encrypted) for encrypted in (True, False)}
        assert len(names) == 2

    def test_existing_label_is_replaced_with_a_word(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        write_lines(source, [{"text": "good film", "label": "gold"}])
        done = run("predict", checkpoint, "--input", str(source), "--output", str(output))
        assert 'have a "label" already' in done.stderr
        assert read_lines(output)[0]["label"] != "gold"

    def test_long_texts_are_read_in_windows(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        texts = ["good film " * 30, "bad"]
        write_lines(source, [{"text": text} for text in texts])
        options = ["--max-windows", "3", "--stride", "4"]
        with pytest.warns(SecureRouterWarning, match="1 of 2 texts have more than 3 windows"):
            done = run("predict", checkpoint, "--input", str(source), "--output", str(output), *options)
        assert done.exit_code == 0, done.stderr
        with pytest.warns(SecureRouterWarning):
            expected = classify(*classify_module.load_checkpoint(checkpoint), texts, [1, 1, 1], 3, 4)
        for line, answer in zip(read_lines(output), expected, strict=True):
            assert line["logits"] == pytest.approx(answer.logits, abs=1e-5) and line["expert"] == answer.expert
        content = source.read_bytes()
        names = {labelling._partial_path(output, content, checkpoint, False, windows=(n, 4)) for n in (2, 3)}
        assert len(names) == 2

    def test_progress_is_shown_on_stderr(self, checkpoint, texts, tmp_path):
        done = run("predict", checkpoint, "--input", str(texts), "--output", str(tmp_path / "out.jsonl"))
        assert "70/70" in done.stderr and done.stdout == ""


class TestPredictRefusals:
    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("{broken secret", "is not JSON"),
            ('["secret"]', "is not a JSON object"),
            ('{"sentence": "secret"}', 'has no "text" that is a string'),
            ('{"text": 3}', 'has no "text" that is a string'),
            ('{"text": "secret", "text_pair": 3}', 'has a "text_pair" that is not a string'),
            ('{"text": "secret", "value": NaN}', "is not JSON"),
        ],
    )
    def test_bad_line_is_named_by_its_number_not_by_its_text(self, tmp_path, line, problem):
        source = tmp_path / "in.jsonl"
        source.write_text('{"text": "fine"}\n\n' + line + "\n")
        with pytest.raises(SecureRouterValueError) as caught:
            read_records(source)
        assert f"Line 3 of `input` {problem}" in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_empty_input(self, tmp_path):
        (tmp_path / "in.jsonl").write_text("\n \n")
        with pytest.raises(SecureRouterValueError, match="`input` .* holds no line"):
            read_records(tmp_path / "in.jsonl")

    def test_input_in_another_encoding(self, tmp_path):
        (tmp_path / "in.jsonl").write_bytes('{"text": "größer"}\n'.encode("latin-1"))
        with pytest.raises(SecureRouterValueError, match="is not UTF-8 text"):
            read_records(tmp_path / "in.jsonl")

    def test_output_over_the_input(self, checkpoint, texts):
        before = texts.read_bytes()
        (texts.parent / "folder").mkdir()
        with pytest.raises(SecureRouterValueError, match="`output` must be a file of its own"):
            predict_file(checkpoint, texts, texts.parent / "folder" / ".." / texts.name)
        assert texts.read_bytes() == before

    def test_output_in_a_folder_that_is_not_there(self, checkpoint, texts, tmp_path):
        with pytest.raises(SecureRouterValueError, match="folder that does not exist"):
            predict_file(checkpoint, texts, tmp_path / "nowhere" / "out.jsonl")

    def test_model_that_is_nowhere(self, texts, tmp_path):
        with pytest.raises(SecureRouterValueError, match="`model` .* is neither a folder nor a name on the Hub"):
            predict_file(str(tmp_path / "no" / "model"), texts, tmp_path / "out.jsonl")
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
