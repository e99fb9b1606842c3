# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The `securerouter` command: what it prints, where, and what it leaves on disk."""

import contextlib
import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_securerouter import SecureRouterForSequenceClassification, cli
from hf_securerouter import classification as classify_module
from hf_securerouter.classification import Classified, classify, from_logits
from hf_securerouter.cli import demo as demo_module
from hf_securerouter.cli import predict as predict_module
from hf_securerouter.cli.labelling import read_records
from hf_securerouter.cli.predict import predict_file
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.net.cost import Cost
from tests.tiny import MAX_POSITIONS


COST_FIELDS = {
    "online_bytes",
    "rounds",
    "dealer_bytes",
    "client_bytes",
    "setup_seconds",
    "preprocess_seconds",
    "online_seconds",
    "dealer_seconds",
    "peak_rss_bytes",
}
COMMANDS = ["card", "client", "dealer", "demo", "env", "party", "predict", "profile", "share"]


class FakeSecure:
    """A converted model whose session starts nothing."""

    def local_session(self):
        return contextlib.nullcontext()


def run(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def texts(tmp_path):
    """70 lines, more than two batches; their words are in the tiny vocabulary or unknown to it."""
    path = tmp_path / "in.jsonl"
    write_lines(path, [{"id": index, "text": f"good film number {index}"} for index in range(70)])
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"Example: securerouter {command}" in " ".join(done.stdout.split())


def test_help_lists_every_command():
    done = run("--help")
    assert done.exit_code == 0
    for command in COMMANDS:
        assert command in done.stdout


class TestEnv:
    def test_json_is_one_document_with_versions_devices_and_crypten(self):
        done = run("env", "--json")
        report = json.loads(done.stdout)
        assert report["versions"]["torch"] == torch.__version__
        assert report["devices"][0]["device"] == "cpu"
        assert report["crypten"]["state"] == "ready" and report["crypten"]["version"] == "0.4.1"
        assert report["missing"] == []

    def test_missing_crypten_is_reported_with_its_install_line(self, monkeypatch):
        from hf_securerouter.cli import env as env_module

        monkeypatch.setattr(env_module, "_version", lambda name: None if name == "crypten" else "1.0")

        def absent():
            raise ImportError("`crypten` is not installed.")

        monkeypatch.setattr("hf_securerouter.mpc.protocols.crypten.compat.import_crypten", absent)
        report = json.loads(run("env", "--json").stdout)
        assert report["crypten"]["state"] == "missing"
        assert report["missing"] == [
            {
                "name": "crypten",
                "needed_for": "protocol='crypten'",
                "install": "pip install --no-deps crypten==0.4.1",
            }
        ]
        assert "pip install --no-deps crypten==0.4.1" in " ".join(run("env").stdout.split())

    def test_broken_crypten_is_told_from_a_missing_one(self, monkeypatch):
        def broken():
            raise ImportError("`onnx` is missing")

        monkeypatch.setattr("hf_securerouter.mpc.protocols.crypten.compat.import_crypten", broken)
        crypten = json.loads(run("env", "--json").stdout)["crypten"]
        assert crypten["state"] == "broken" and crypten["error"] == "`onnx` is missing"

    def test_missing_training_extra_is_reported(self, monkeypatch):
        from hf_securerouter.cli import env as env_module

        version = env_module._version
        monkeypatch.setattr(env_module, "_version", lambda name: None if name == "datasets" else version(name))
        (item,) = json.loads(run("env", "--json").stdout)["missing"]
        assert item["name"] == "datasets" and "hf_securerouter[train]" in item["install"]

    def test_table_for_people(self):
        done = run("env")
        assert torch.__version__ in done.stdout and "Nothing is missing." in done.stdout


class TestDemo:
    @pytest.fixture(autouse=True)
    def _tiny_checkpoint(self, checkpoint, monkeypatch):
        monkeypatch.setattr(classify_module, "DEMO_CHECKPOINT", checkpoint)
        monkeypatch.setattr(demo_module, "MAX_LENGTH", MAX_POSITIONS)
        self.checkpoint = checkpoint

    def test_labels_and_experts_are_the_models(self):
        report = json.loads(run("demo", "--protocol", "clear", "--json").stdout)
        model, tokenizer = classify_module.load_checkpoint(self.checkpoint)
        expected = classify(model, tokenizer, demo_module.SENTENCES, [1, 1, 1])
        assert [example["text"] for example in report["examples"]] == list(demo_module.SENTENCES)
        assert [example["label"] for example in report["examples"]] == [one.label for one in expected]
        assert [example["expert"] for example in report["examples"]] == [one.expert for one in expected]
        assert report["agreement"] == 1.0 and report["cost"] is None

    @pytest.mark.parametrize("name", ["quota", "oblivious", "crypten"])
    def test_encrypted_report_has_its_fields_and_agrees_with_clear_text(self, name):
        options = {"oblivious": ["--routing-privacy", name], "crypten": ["--protocol", name]}.get(name, [])
        done = run("demo", "--json", *options)
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert set(report) == {"protocol", "routing_privacy", "examples", "agreement", "cost"}
        protocol, privacy = ("crypten", "revealed") if name == "crypten" else ("masked", name)
        assert (report["protocol"], report["routing_privacy"]) == (protocol, privacy)
        clear = demo_module.run_demo("clear", privacy)
        for example, plain in zip(report["examples"], clear["examples"], strict=True):
            assert set(example) == {"text", "label", "score", "plaintext_label", "expert"}
            assert example["plaintext_label"] == plain["label"]
            assert example["expert"] == (plain["expert"] if privacy == "revealed" else None)
            assert example["score"] == pytest.approx(plain["score"], abs=0.05)
        assert report["agreement"] == 1.0
        assert set(report["cost"]) == COST_FIELDS
        assert set(report["cost"]["peak_rss_bytes"]) == {"party0", "party1", "dealer", "client"}
        assert min(report["cost"][name] for name in ("online_bytes", "rounds", "dealer_bytes", "client_bytes")) > 0

    def test_agreement_counts_the_labels_that_differ(self, monkeypatch):
        answers = classify_module.classify

        def flipped(model, tokenizer, texts, quotas=None):
            plain = answers(model, tokenizer, texts, quotas)
            return [dataclasses.replace(plain[0], label="other"), *plain[1:]]

        with monkeypatch.context() as patched:
            patched.setattr(classify_module, "classify", flipped)
            plain = flipped(*classify_module.load_checkpoint(self.checkpoint), demo_module.SENTENCES, [1, 1, 1])
            encrypted = answers(*classify_module.load_checkpoint(self.checkpoint), demo_module.SENTENCES, [1, 1, 1])
            patched.setattr(classify_module, "classify_encrypted", lambda *arguments: (encrypted, Cost()))
            patched.setattr(SecureRouterForSequenceClassification, "to_mpc", lambda self, **kwargs: FakeSecure())
            report = demo_module.run_demo()
        assert plain[0].label != encrypted[0].label
        assert report["agreement"] == pytest.approx(5 / 6)

    def test_secret_experts_are_shown_as_secret(self, monkeypatch):
        hidden = [Classified("positive", 0.75, [0.0, 1.0], None)] * 6
        monkeypatch.setattr(classify_module, "classify_encrypted", lambda *arguments: (hidden, Cost()))
        monkeypatch.setattr(SecureRouterForSequenceClassification, "to_mpc", lambda self, **kwargs: FakeSecure())
        assert [example["expert"] for example in demo_module.run_demo()["examples"]] == [None] * 6
        assert run("demo").stdout.count("secret") == 6

    def test_options_reach_the_conversion(self, monkeypatch):
        given = {}

        def to_mpc(self, **kwargs):
            given.update(kwargs)
            raise SecureRouterValueError("stop here")

        monkeypatch.setattr(SecureRouterForSequenceClassification, "to_mpc", to_mpc)
        done = run("demo", "--protocol", "masked", "--routing-privacy", "quota")
        assert isinstance(done.exception, SecureRouterValueError)
        assert (given["protocol"], given["routing_privacy"]) == ("masked", "quota")

    def test_tables_for_people_show_sentences_and_cost(self, monkeypatch):
        cost = Cost(online_bytes=12_500_000, rounds=1234)
        answers = [Classified("positive", 0.75, [0.0, 1.0], 1)] * 6
        monkeypatch.setattr(classify_module, "classify_encrypted", lambda *arguments: (answers, cost))
        monkeypatch.setattr(SecureRouterForSequenceClassification, "to_mpc", lambda self, **kwargs: FakeSecure())
        shown = run("demo").stdout
        assert shown.count("0.750") == 6
        assert "12.5 MB in 1,234 rounds" in shown

    def test_progress_goes_to_stderr(self):
        done = run("demo", "--protocol", "clear", "--json")
        assert "Classifying 6 sentences" in done.stderr and "Classifying" not in done.stdout

    def test_six_different_sentences_that_fit(self):
        _, tokenizer = classify_module.load_checkpoint(self.checkpoint)
        assert len(set(demo_module.SENTENCES)) == 6
        assert max(len(tokenizer(text)["input_ids"]) for text in demo_module.SENTENCES) <= 32


class TestClassify:
    def test_logits_scores_and_labels_belong_together(self, model, tokenizer):
        model.eval()
        (answer,) = classify(model, tokenizer, ["good film"])
        with torch.no_grad():
            output = model(**tokenizer("good film", return_tensors="pt"))
        assert answer.logits == pytest.approx(output.logits[0].tolist(), abs=1e-6)
        assert answer.score == pytest.approx(output.logits[0].softmax(-1).max().item(), abs=1e-6)
        assert answer.label == model.config.id2label[output.logits[0].argmax().item()]
        assert answer.expert == output.expert_indices.item()

    def test_batching_and_padding_change_nothing(self, model, tokenizer):
        model.eval()
        texts = ["good", "a good film and a bad film", ("good film", "bad film"), ""]
        together = classify(model, tokenizer, texts)
        for text, one in zip(texts, together, strict=True):
            (alone,) = classify(model, tokenizer, [text])
            assert alone.logits == pytest.approx(one.logits, abs=1e-5)
            assert (alone.expert, alone.label) == (one.expert, one.label)

    def test_long_text_is_truncated_and_counted(self, model, tokenizer, capsys):
        model.eval()
        limit = model.config.max_length
        long = "good " * (limit + 10)
        (answer,) = classify(model, tokenizer, [long])
        (same,) = classify(model, tokenizer, ["good " * (limit - 2)])
        assert answer.logits == pytest.approx(same.logits, abs=1e-6)
        assert capsys.readouterr().err.count(f"1 of 1 texts are longer than {limit} tokens and were truncated") == 1

    def test_regression_gives_the_score_as_label(self, model):
        model.config.num_labels = 1
        (answer,) = from_logits(model.config, torch.tensor([[2.5]]), [0])
        assert (answer.label, answer.score, answer.logits, answer.expert) == (2.5, None, [2.5], 0)

    def test_several_labels_at_once_have_independent_probabilities(self, model):
        model.config.problem_type = "multi_label_classification"
        (answer,) = from_logits(model.config, torch.tensor([[2.0, 1.0]]), [0])
        assert answer.score == pytest.approx(torch.tensor(2.0).sigmoid().item())

    def test_secret_experts_stay_unnamed(self, model):
        answers = from_logits(model.config, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), None)
        assert [answer.expert for answer in answers] == [None, None]


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
        expected = classify(model, tokenizer, [line["text"] for line in lines])
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
        assert pair["logits"] == pytest.approx(classify(model, tokenizer, [("good film", "bad film")])[0].logits)
        assert alone["logits"] == pytest.approx(classify(model, tokenizer, ["good film"])[0].logits)
        assert pair["logits"] != pytest.approx(alone["logits"])

    def test_unicode_and_empty_lines(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text('{"text": "größer\u2028als"}\n\n{"text": ""}\r\n', encoding="utf-8")
        predict_file(checkpoint, source, output)
        assert [json.loads(line)["text"] for line in output.read_text("utf-8").split("\n")[:-1]] == [
            "größer\u2028als",
            "",
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
        assert len(read_lines(partial)) == predict_module.BATCH_SIZE

        calls = self.stop_after(monkeypatch, 99)
        report = predict_file(checkpoint, texts, output)
        assert report["resumed_after"] == predict_module.BATCH_SIZE
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
        assert predict_file(checkpoint, texts, output)["resumed_after"] == predict_module.BATCH_SIZE
        assert output.read_bytes() == whole.read_bytes()

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

    def test_two_runs_do_not_write_the_same_output(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        partial = predict_module._partial_path(output, texts, checkpoint, False)
        with predict_module._open_partial(partial):
            with pytest.raises(SecureRouterValueError, match="another run is writing"):
                predict_file(checkpoint, texts, output)
        assert predict_file(checkpoint, texts, output)["lines"] == 70

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
        assert resumed_after == done - done % predict_module.BATCH_SIZE
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

    def test_encrypted_run_does_not_go_on_with_answers_in_clear_text(self, checkpoint, texts, tmp_path):
        output = tmp_path / "out.jsonl"
        names = {predict_module._partial_path(output, texts, checkpoint, encrypted) for encrypted in (True, False)}
        assert len(names) == 2

    def test_existing_label_is_replaced_with_a_word(self, checkpoint, tmp_path):
        source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        write_lines(source, [{"text": "good film", "label": "gold"}])
        done = run("predict", checkpoint, "--input", str(source), "--output", str(output))
        assert 'have a "label" already' in done.stderr
        assert read_lines(output)[0]["label"] != "gold"

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


class TestMain:
    def run_main(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", "from hf_securerouter.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | environment,
            check=False,
        )

    def test_foreseen_error_is_one_line_and_status_1(self, tmp_path):
        done = self.run_main("card", str(tmp_path), "--json")
        assert done.returncode == 1 and done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("securerouter: `path` should be the folder")

    def test_json_stdout_is_one_document_in_a_real_process(self):
        done = self.run_main("env", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["versions"]["python"]

    def test_unknown_command_is_a_usage_error(self):
        done = self.run_main("nonsense")
        assert done.returncode == 2 and done.stdout == ""


class TestCard:
    def test_card_takes_the_costs_of_the_config(self, checkpoint):
        config_path = os.path.join(checkpoint, "config.json")
        config = json.loads(open(config_path).read())
        config["expert_costs"] = [round(1.5 + index, 2) for index in range(len(config["expert_costs"]))]
        config["expert_costs_source"] = "measured"
        with open(config_path, "w") as file:
            json.dump(config, file)
        report = json.loads(run("card", checkpoint, "--json").stdout)
        assert report["expert_costs"] == config["expert_costs"] and report["expert_costs_source"] == "measured"
        text = open(os.path.join(checkpoint, "README.md")).read()
        assert "cost (measured)" in text and "| 1.5 |" in text

    def test_card_of_a_person_is_refused_and_stays(self, checkpoint):
        path = os.path.join(checkpoint, "README.md")
        with open(path, "w") as file:
            file.write("# Mine\n")
        done = run("card", checkpoint)
        assert isinstance(done.exception, SecureRouterValueError)
        assert "edited by hand" in str(done.exception)
        assert open(path).read() == "# Mine\n"

    def test_folder_without_a_checkpoint_is_refused(self, tmp_path):
        done = run("card", str(tmp_path))
        assert "`path` should be the folder of a checkpoint" in str(done.exception)
