# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Wrong texts, labels, checkpoints and modes: each error says what to do."""

import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertTokenizer, pipeline

from hf_securerouter import (
    SecureRouterConfig,
    SecureRouterError,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
    SecureRouterWarning,
)
from tests.tiny import MAX_POSITIONS, VOCABULARY, family_config, pool_config, pool_model


load = AutoModelForSequenceClassification.from_pretrained
LONG = "very good film " * 20


@pytest.fixture
def weights(checkpoint):
    """The checkpoint's tensors, and a function that writes them back changed."""
    path = f"{checkpoint}/model.safetensors"

    def write(tensors):
        save_file(tensors, path, metadata={"format": "pt"})

    return load_file(path), write


def test_empty_text_is_classified(checkpoint):
    found = pipeline("text-classification", model=checkpoint)("")
    assert found[0]["label"] in ("LABEL_0", "LABEL_1") and 0.5 <= found[0]["score"] <= 1


def test_empty_text_of_a_pair_is_classified(model, tokenizer):
    inputs = tokenizer([("the film", ""), ("", "")], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (5,), None])
def test_no_tokens_are_refused(model, shape):
    ids = None if shape is None else torch.zeros(shape, dtype=torch.long)
    with pytest.raises(SecureRouterValueError, match=r"`input_ids` should be of shape \(examples, tokens\)"):
        model(input_ids=ids)


@pytest.mark.parametrize("words", [MAX_POSITIONS - 1, 2 * MAX_POSITIONS])  # with [CLS] and [SEP] one too many, or more
def test_text_beyond_the_maximum_is_cut_as_the_tokenizer_cuts_it(model, tokenizer, words):
    texts = ["good " * words, "a dull film", "bad film " * (words // 2) + "."]
    long = tokenizer(texts, padding=True, truncation=False, return_tensors="pt")
    cut = tokenizer(texts, padding=True, truncation=True, max_length=MAX_POSITIONS, return_tensors="pt")
    assert long["input_ids"].shape[1] > MAX_POSITIONS
    with pytest.warns(SecureRouterWarning, match=f"truncation=True, max_length={MAX_POSITIONS}"):
        found = model(**long).logits
    torch.testing.assert_close(found, model(**cut).logits)


def test_text_beyond_the_maximum_without_a_mask(model, tokenizer):
    ids = tokenizer(LONG, return_tensors="pt")["input_ids"]
    cut = tokenizer(LONG, truncation=True, max_length=MAX_POSITIONS, return_tensors="pt")["input_ids"]
    with pytest.warns(SecureRouterWarning, match="1 texts have more than the 24 tokens"):
        torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=cut).logits)


def test_cutting_leaves_the_callers_tensors_alone(model, tokenizer):
    inputs = tokenizer([LONG], return_tensors="pt")
    before = inputs["input_ids"].clone()
    with pytest.warns(SecureRouterWarning):
        model(**inputs)
    assert torch.equal(inputs["input_ids"], before)


@pytest.mark.parametrize("padding", [0, 5])
def test_text_within_the_maximum_is_not_warned_about(model, recwarn, padding):
    ids = torch.full((1, MAX_POSITIONS + padding), 6)
    mask = (torch.arange(ids.shape[1]) < MAX_POSITIONS)[None].long()
    expected = model(input_ids=ids[:, :MAX_POSITIONS]).logits
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
    assert not [warning for warning in recwarn if issubclass(warning.category, SecureRouterWarning)]


def test_pipeline_warns_about_a_long_text(checkpoint):
    with pytest.warns(SecureRouterWarning, match="the rest is cut off"):
        assert pipeline("text-classification", model=checkpoint)(LONG)[0]["score"] > 0


@pytest.mark.parametrize("training", [True, False])
def test_class_beyond_the_labels_is_refused(model, batch, training):
    with pytest.raises(SecureRouterValueError, match=r"`labels` should be classes from 0 to 1, got \[7\].*num_labels"):
        model.train(training)(**batch, labels=torch.tensor([0] * 11 + [7]))


def test_too_few_labels_are_refused(model, batch):
    with pytest.raises(SecureRouterValueError, match="each of the 12 examples"):
        model(**batch, labels=torch.zeros(5, dtype=torch.long))


def test_float_labels_for_classes_are_refused(batch):
    model = pool_model(problem_type="single_label_classification")
    with pytest.raises(SecureRouterValueError, match="`problem_type`"):
        model(**batch, labels=torch.zeros(12))


def test_too_few_values_in_regression_are_refused(batch):
    with pytest.raises(SecureRouterValueError, match="hold 1 values for each of the 12 examples"):
        pool_model(num_labels=1)(**batch, labels=torch.zeros(5))


@pytest.mark.parametrize("name", ["experts.1.classifier.weight", "router.out_proj.bias"])
def test_missing_tensor_is_named(checkpoint, weights, name):
    tensors, write = weights
    del tensors[name]
    write(tensors)
    with pytest.raises(SecureRouterError, match=f"lacks tensors, {re.escape(name)}"):
        load(checkpoint)


def test_foreign_tensor_is_named(checkpoint, weights):
    tensors, write = weights
    write(tensors | {"experts.9.classifier.bias": torch.zeros(2)})
    with pytest.raises(SecureRouterError, match="has foreign tensors, experts.9.classifier.bias"):
        load(checkpoint)


def test_many_missing_tensors_are_summed_up(checkpoint, weights):
    tensors, write = weights
    write({name: tensor for name, tensor in tensors.items() if not name.startswith("experts.2.")})
    with pytest.raises(SecureRouterError, match=r"experts\.2\..* and \d+ more"):
        load(checkpoint)


def test_tensor_of_another_shape_is_refused(checkpoint, weights):
    tensors, write = weights
    write(tensors | {"experts.0.classifier.weight": torch.zeros(3, 16)})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(checkpoint)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_corrupt_safetensors_file_is_reported(checkpoint, damage):
    path = f"{checkpoint}/model.safetensors"
    content = open(path, "rb").read()
    damaged = {"truncated": content[: len(content) // 2], "header": b"\xff" * 8 + content[8:], "empty": b""}[damage]
    with open(path, "wb") as file:
        file.write(damaged)
    with pytest.raises(SecureRouterError, match="is corrupt .*download or copy it again"):
        load(checkpoint)


def test_corrupt_expert_is_reported(tmp_path, tokenizer):
    expert = tmp_path / "expert"
    BertForSequenceClassification(family_config("bert")).save_pretrained(expert)
    tokenizer.save_pretrained(expert)
    (expert / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(SecureRouterError, match=r"`experts\[0\]` is .*corrupt safetensors file|`router` is .*corrupt"):
        SecureRouterForSequenceClassification.from_expert_pretrained(expert, [expert])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(checkpoint, weights, value):
    tensors, write = weights
    tensors["experts.1.classifier.weight"][0, 0] = value
    write(tensors)
    with pytest.raises(SecureRouterError, match="infinite or NaN values in tensors, experts.1.classifier.weight"):
        load(checkpoint)


@pytest.mark.parametrize("part", ["router", "expert"])
def test_experts_with_nan_weights_are_refused(tmp_path, tokenizer, part):
    folders = {}
    for name in ("router", "expert"):
        model = BertForSequenceClassification(family_config("bert"))
        if name == part:
            model.bert.encoder.layer[0].output.dense.bias.data[3] = float("nan")
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    with pytest.raises(SecureRouterValueError, match=f"{part}'.*NaN values, first in .*output.dense.bias"):
        SecureRouterForSequenceClassification.from_expert_pretrained(folders["router"], [folders["expert"]])


def test_expert_that_lacks_a_layer_is_refused(tmp_path, tokenizer):
    folder = tmp_path / "expert"
    BertForSequenceClassification(family_config("bert", layers=1)).save_pretrained(folder)
    family_config("bert", layers=2, architectures=["BertForSequenceClassification"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(SecureRouterValueError, match="lacks 16 tensors of its architecture, first .*layer.1"):
        SecureRouterForSequenceClassification.from_expert_pretrained(folder, [folder])


def test_fine_tuned_expert_without_its_head_is_refused(tmp_path, tokenizer):
    folder = tmp_path / "expert"
    BertForSequenceClassification(family_config("bert")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SecureRouterValueError, match="lacks 1 tensors.*classifier.weight"):
        SecureRouterForSequenceClassification.from_expert_pretrained(folder, [folder])


def test_different_tokenizers_are_refused(tmp_path):
    for name, lower in (("uncased", True), ("cased", False)):
        BertForSequenceClassification(family_config("bert")).save_pretrained(tmp_path / name)
        BertTokenizer(vocab=VOCABULARY, do_lower_case=lower).save_pretrained(tmp_path / name)
    with pytest.raises(SecureRouterValueError, match="different tokenizers.*choose checkpoints with the same"):
        SecureRouterForSequenceClassification.from_expert_pretrained(
            tmp_path / "uncased", [tmp_path / "uncased", tmp_path / "cased"]
        )


def test_plain_checkpoint_is_no_pool(tmp_path):
    BertForSequenceClassification(family_config("bert")).save_pretrained(tmp_path)
    with pytest.raises(SecureRouterValueError, match="from_expert_pretrained"):
        SecureRouterForSequenceClassification.from_pretrained(tmp_path)


def test_no_expert_is_refused():
    with pytest.raises(SecureRouterValueError, match="needs at least one expert"):
        SecureRouterForSequenceClassification(SecureRouterConfig(router_config=family_config("bert")))


@pytest.mark.parametrize("field, value", [("routing_privacy", "secret"), ("router_objective", "best")])
def test_unknown_mode_is_refused(field, value):
    with pytest.raises(StrictDataclassError, match=f"`{field}` should be one of .*got '{value}'"):
        pool_config(**{field: value})


def test_unknown_mode_is_refused_when_loading(checkpoint):
    with pytest.raises(StrictDataclassError, match="`routing_privacy` should be one of"):
        load(checkpoint, routing_privacy="secret")


def test_costs_of_the_wrong_length_are_refused(checkpoint):
    with pytest.raises(StrictDataclassError, match="`expert_costs` should have one entry for each of the 3 experts"):
        load(checkpoint, expert_costs=[1.0, 2.0])
    with pytest.raises(StrictDataclassError, match="`expert_costs`"):
        pool_config(expert_costs=[1.0])


def test_every_own_error_is_a_secure_router_error():
    assert issubclass(SecureRouterValueError, (SecureRouterError)) and issubclass(SecureRouterValueError, ValueError)
