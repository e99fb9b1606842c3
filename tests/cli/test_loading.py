# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A plain classifier in the place of a pool: what is loaded, what is refused, and what the commands do with it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, GPT2Config, GPT2Model

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.classification import classify
from hf_securerouter.cli.card import rewrite_card
from hf_securerouter.cli.loading import load_model
from hf_securerouter.cli.predict import predict_file
from hf_securerouter.cli.share import share_model
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.models import supported_model_types
from tests.support.commands import read_lines, run, write_lines
from tests.tiny import FAMILIES, MAX_POSITIONS, family_config, noisy_classifier


LABELS = {0: "poor", 1: "fair", 2: "fine"}
TEXTS = ["good film", "bad", ("a bad film", "it was dull"), "the film was very good and not bad"]


def saved(folder, family, tokenizer):
    model = noisy_classifier(family, width=16, heads=2)
    head = getattr(model.classifier, "out_proj", model.classifier)
    head.out_features, head.weight, head.bias = 3, *(torch.nn.Parameter(torch.randn(3, *n)) for n in ((16,), ()))
    model.config.id2label = LABELS
    model.config.label2id = {name: index for index, name in LABELS.items()}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def plain(tmp_path, tokenizer):
    """The folder of a BERT classifier with three labels."""
    folder = tmp_path / "plain"
    saved(folder, "bert", tokenizer)
    return folder


def rewrite(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def without(folder, part):
    """Drop the tensors whose names hold `part`."""
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if part not in k}, folder / "model.safetensors", {"format": "pt"})


def test_a_pool_is_loaded_as_before(checkpoint):
    model, tokenizer = load_model(checkpoint)
    assert isinstance(model, SecureRouterForSequenceClassification) and tokenizer("good")["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_each_family_answers_in_clear_as_by_itself(tmp_path, tokenizer, family):
    saved(tmp_path, family, tokenizer)
    model, own = load_model(tmp_path)
    assert not model.training and model.dtype == torch.float32
    answers = classify(model, own, TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        encoded = own(*(text if isinstance(text, tuple) else (text,)), return_tensors="pt")
        types = {} if family in ("distilbert", "roberta") else {"token_type_ids": encoded["token_type_ids"]}
        with torch.no_grad():
            logits = model(encoded["input_ids"], encoded["attention_mask"], **types).logits[0]
        assert answer.logits == pytest.approx(logits.tolist(), abs=1e-5)
        assert answer.label == LABELS[int(logits.argmax())] and answer.expert == 0
    (cut,) = classify(model, own, ["good " * 50])
    assert cut.logits == pytest.approx(classify(model, own, ["good " * (MAX_POSITIONS - 2)])[0].logits, abs=1e-6)


def test_encrypted_answers_are_those_of_clear_text(plain, tmp_path):
    source, clear, secret = (tmp_path / name for name in ("in.jsonl", "clear.jsonl", "secret.jsonl"))
    write_lines(
        source,
        [{"text": t} if isinstance(t, str) else dict(zip(("text", "text_pair"), t, strict=True)) for t in TEXTS],
    )
    report = predict_file(str(plain), source, clear)
    assert (report["protocol"], report["routing_privacy"]) == ("clear", "revealed")
    done = run("predict", str(plain), "--input", str(source), "--output", str(secret), "--encrypted", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["protocol"] == "masked"
    for one, other in zip(read_lines(clear), read_lines(secret), strict=True):
        assert (one["label"], one["expert"]) == (other["label"], other["expert"]) and one["label"] in LABELS.values()
        assert other["logits"] == pytest.approx(one["logits"], abs=0.05)
    assert read_lines(clear)[0]["logits"] != read_lines(secret)[0]["logits"]


def test_a_multi_label_classifier_names_all_likely_labels(plain, tmp_path):
    rewrite(plain, problem_type="multi_label_classification")
    source, clear, secret = (tmp_path / name for name in ("in.jsonl", "clear.jsonl", "secret.jsonl"))
    write_lines(source, [{"text": text} for text in TEXTS if isinstance(text, str)])
    predict_file(str(plain), source, clear)
    predict_file(str(plain), source, secret, encrypted=True)
    for line, other in zip(read_lines(secret), read_lines(clear), strict=True):
        assert set(line) == set(other) == {"text", "label", "labels", "score", "scores", "logits", "expert"}
        assert line["scores"] == pytest.approx(
            {name: torch.tensor(line["logits"][index]).sigmoid().item() for index, name in LABELS.items()}
        )
        assert line["scores"] == pytest.approx(other["scores"], abs=0.01)
        assert line["labels"] == [name for name, score in line["scores"].items() if score > 0.5]
        assert line["score"] == max(line["scores"].values()) == line["scores"][line["label"]]
    share_model(str(plain), tmp_path / "shares", max_length=8)
    file = tmp_path / "shares" / "client" / "client.json"
    assert "regression" not in json.loads(file.read_text())  # so that versions that would take one label refuse it
    labels = RoleFolder.load(tmp_path / "shares" / "client", "client").client().labels
    assert labels.problem_type == "multi_label_classification"
    assert labels(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])) == [["poor", "fine"], []]


def test_shares_of_a_classifier_have_its_labels(plain, tmp_path):
    report = share_model(str(plain), tmp_path / "shares", max_length=8)
    assert (report["max_length"], report["quotas"]) == (8, None)
    for role in ("party0", "party1", "dealer"):
        assert RoleFolder.load(tmp_path / "shares" / role, role).manifest.router is None
    client = RoleFolder.load(tmp_path / "shares" / "client", "client").client()
    assert client.labels(torch.eye(3)) == list(LABELS.values())
    assert client.tokenize(["good"])["input_ids"].shape == (1, 8)


@pytest.mark.parametrize("option", [{"routing_privacy": "revealed"}, {"quotas": [1]}])
def test_options_of_a_pool_are_refused(plain, tmp_path, option):
    (name,) = option
    with pytest.raises(SecureRouterValueError, match=f"`{name}`: one plain classifier has no routing"):
        share_model(str(plain), tmp_path / "shares", **option)
    assert not (tmp_path / "shares").exists()


@pytest.mark.parametrize("auto, name", [(AutoModel, "Model"), (AutoModelForMaskedLM, "ForMaskedLM")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_a_head_is_refused(tmp_path, tokenizer, family, auto, name):
    auto.from_config(family_config(family)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SecureRouterValueError, match=f"`architectures` are .*{name}: .*Fine-tune it"):
        load_model(tmp_path)
    rewrite(tmp_path, architectures=None)
    with pytest.raises(SecureRouterValueError, match="no fine-tuned sequence classifier, as it lacks .*Fine-tune it"):
        load_model(tmp_path)


def test_a_head_with_other_labels_than_the_config_is_refused(plain):
    rewrite(plain, id2label={"0": "poor", "1": "fine"}, label2id={"poor": 0, "fine": 1})
    with pytest.raises(SecureRouterValueError, match="no fine-tuned sequence classifier, as it lacks classifier.bias"):
        load_model(plain)


def test_a_classifier_that_names_no_architecture_is_judged_by_its_weights(plain):
    rewrite(plain, architectures=None)
    assert load_model(plain)[0].config.id2label == LABELS
    without(plain, "pooler")
    with pytest.raises(SecureRouterValueError, match="as it lacks bert.pooler.dense.bias, bert.pooler.dense.weight"):
        load_model(plain)


def test_another_family_is_refused_and_the_families_are_named(tmp_path):
    GPT2Model(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(SecureRouterValueError) as caught:
        load_model(tmp_path)
    assert "`model`" in str(caught.value) and "'gpt2'" in str(caught.value)
    known = ", ".join(supported_model_types())
    assert f"families {known}" in str(caught.value)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "is a PEFT adapter: merge it"),
        (lambda folder: rewrite(folder, quantization_config={"quant_method": "bitsandbytes"}), "is quantised: pass"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer, .*save it there"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json .*: pass the folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "corrupt safetensors file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(plain, spoil, message):
    spoil(plain)
    with pytest.raises(SecureRouterValueError, match=f"`model` .*{message}"):
        load_model(plain)


def test_weights_that_are_not_finite_are_refused(plain):
    tensors = load_file(plain / "model.safetensors")
    tensors["classifier.bias"][1] = torch.nan
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    with pytest.raises(SecureRouterValueError, match="infinite or NaN values, first in classifier.bias: train"):
        load_model(plain)


def test_only_a_pool_has_a_card(plain):
    with pytest.raises(SecureRouterValueError, match="holds a plain bert classifier: only the card of a pool"):
        rewrite_card(Path(plain))
    assert not (plain / "README.md").exists()
