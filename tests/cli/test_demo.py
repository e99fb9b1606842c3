# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter demo`: six sentences, in clear text and on secret shares."""

import dataclasses
import json

import pytest

from hf_securerouter import SecureRouterForSequenceClassification
from hf_securerouter import classification as classify_module
from hf_securerouter.classification import Classified, classify
from hf_securerouter.cli import demo as demo_module
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.net.cost import Cost
from tests.support.commands import COST_FIELDS, FakeSecure, run
from tests.tiny import MAX_POSITIONS


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
        assert done.exit_code == 2 and "securerouter: stop here" in done.stderr
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
