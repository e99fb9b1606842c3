# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Folders of sentence-transformers and SetFit as classifiers: what is read, what is refused, what stays pickled."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_securerouter import (
    PooledEncoderForSequenceClassification,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
    UnknownArgumentError,
    classifier_from_sentence_transformer,
)
from hf_securerouter.classification import classify
from hf_securerouter.cli.loading import load_model
from tests.tiny import family_config, noisy_classifier


LABELS = ["poor", "fair", "fine"]
TEXTS = ["good film", "a bad film it was dull", "the film was very good and not bad"]
TYPES = "sentence_transformers.models."


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write(folder, name, value):
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def linear(outputs, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(outputs, inputs, generator=generator),
        "bias": torch.randn(outputs, generator=generator),
    }


def save_body(folder, tokenizer, family="mpnet", pooling="mean_tokens", modules=("Transformer", "Pooling"), sub=""):
    """What sentence-transformers saves, of an encoder 16 wide."""
    torch.manual_seed(0)
    body = AutoModel.from_config(family_config(family, layers=2)).eval()
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    body.save_pretrained(folder / sub)
    tokenizer.save_pretrained(folder / sub)
    paths = [sub, *(f"{index}_{kind}" for index, kind in enumerate(modules[1:], 1))]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"{TYPES}{kind}"}
        for index, (kind, path) in enumerate(zip(modules, paths, strict=True))
    ]
    write(folder, "modules.json", listed)
    flags = {f"pooling_mode_{kind}": kind == pooling for kind in ("cls_token", "mean_tokens", "max_tokens")}
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": 16, **flags, "include_prompt": True})
    write(folder, Path(sub) / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": False})
    if "Dense" in modules:
        values = linear(12, 16, seed=5)
        act = "torch.nn.modules.activation.Tanh"
        config = {"in_features": 16, "out_features": 12, "bias": True, "activation_function": act}
        write(folder, "2_Dense/config.json", config)
        save_file({f"linear.{key}": value for key, value in values.items()}, folder / "2_Dense/model.safetensors")
    return body


@pytest.fixture
def setfit(tmp_path, tokenizer):
    """A folder with a head of three labels in safetensors; 16 wide, mean pooling."""
    save_body(tmp_path, tokenizer)
    save_file(linear(3, 16), tmp_path / "model_head.safetensors")
    write(tmp_path, "config_setfit.json", {"normalize_embeddings": False, "labels": LABELS})
    return tmp_path


def embeddings(body, tokenizer, pooling, dense=None, normalize=False, longest=10):
    """The embeddings of `TEXTS` by sentence-transformers' definitions, one text at a time."""
    rows = []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        ids = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            hidden = body(**ids).last_hidden_state[0]
        row = hidden.mean(0) if pooling == "mean_tokens" else hidden[0]
        if dense is not None:
            row = torch.tanh(dense["weight"] @ row + dense["bias"])
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows)


def test_answers_are_those_of_the_modules(tmp_path, tokenizer):
    cases = (
        ("bert", "cls_token", (), ""),
        ("mpnet", "mean_tokens", ("Normalize",), "0_Transformer"),
        ("distilbert", "mean_tokens", ("Dense",), ""),
        ("roberta", "cls_token", ("Dense", "Normalize"), "0_Transformer"),
    )
    for number, (family, pooling, more, sub) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        body = save_body(folder, tokenizer, family, pooling, ("Transformer", "Pooling", *more), sub)
        dense = linear(12, 16, seed=5) if "Dense" in more else None
        head = linear(3, 12 if dense else 16)
        save_file(head, folder / "model_head.safetensors")
        write(folder, "config_setfit.json", {"labels": LABELS})
        model, own = classifier_from_sentence_transformer(folder)
        rows = embeddings(body, tokenizer, pooling, dense, "Normalize" in more)
        expected = rows @ head["weight"].T + head["bias"]
        got = [answer.logits for answer in classify(model, own, TEXTS)]
        assert torch.allclose(torch.tensor(got), expected, atol=1e-5), cases[number]
        saved = tmp_path / f"saved{number}"
        model.save_pretrained(saved)
        own.save_pretrained(saved)
        assert str(folder) not in (saved / "config.json").read_text()
        again = AutoModelForSequenceClassification.from_pretrained(saved)
        assert isinstance(again, PooledEncoderForSequenceClassification)
        assert [one.logits for one in classify(again.eval(), load_model(saved)[1], TEXTS)] == got
        assert [again.config.id2label[index] for index in range(3)] == LABELS


def test_the_pooling_may_be_one_name(setfit):
    expected = classifier_from_sentence_transformer(setfit)[0].config.pooling
    write(setfit, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "mean"})
    assert classifier_from_sentence_transformer(setfit)[0].config.pooling == expected == "mean"
    for mode in ("max", ["mean", "cls"], [], "lasttoken"):
        write(setfit, "1_Pooling/config.json", {"pooling_mode": mode})
        with pytest.raises(SecureRouterValueError, match="only mean or cls alone"):
            classifier_from_sentence_transformer(setfit)


def test_texts_are_cut_as_in_sentence_transformers(setfit):
    model, own = classifier_from_sentence_transformer(setfit)
    assert own.model_max_length == 10
    long, cut = classify(model, own, ["good " * 20, "good " * 8])
    assert long.logits == pytest.approx(cut.logits, abs=1e-6)


def test_setfits_own_normalisation_is_kept(setfit):
    plain = classifier_from_sentence_transformer(setfit)[0]
    write(setfit, "config_setfit.json", {"normalize_embeddings": True, "labels": LABELS})
    model, own = classifier_from_sentence_transformer(setfit)
    assert (plain.config.normalize, model.config.normalize) == (False, True)
    rows = embeddings(model.body, own, "mean_tokens", normalize=True)
    expected = rows @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(torch.tensor([one.logits for one in classify(model, own, TEXTS)]), expected, atol=1e-5)


def test_a_pickled_head_is_never_unpickled(setfit, tmp_path):
    (setfit / "model_head.safetensors").unlink()
    exploded = tmp_path / "exploded"
    (setfit / "model_head.pkl").write_bytes(pickle.dumps(Bomb(exploded)))
    reads = (
        lambda: classifier_from_sentence_transformer(setfit),
        lambda: classifier_from_sentence_transformer(setfit, head=setfit / "model_head.pkl"),
        lambda: load_model(setfit),
        lambda: SecureRouterForSequenceClassification.from_expert_pretrained(None, [setfit]),
    )
    for read in reads:
        with pytest.raises(SecureRouterValueError, match="pickle.*head=model.model_head|no safetensors file"):
            read()
    (setfit / "model_head.pkl").unlink()
    with pytest.raises(SecureRouterValueError, match="pass `head`, a fitted classifier"):
        classifier_from_sentence_transformer(setfit)
    assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(exploded)))
    assert exploded.exists()  # it would have been seen


def test_a_pickled_dense_layer_is_refused(tmp_path, tokenizer):
    save_body(tmp_path, tokenizer, modules=("Transformer", "Pooling", "Dense"))
    (tmp_path / "2_Dense/model.safetensors").rename(tmp_path / "2_Dense/pytorch_model.bin")
    with pytest.raises(SecureRouterValueError, match="pickled pytorch_model.bin is not read: save it again"):
        classifier_from_sentence_transformer(tmp_path, head=nn.Linear(12, 3))


def test_a_fitted_classifier_of_scikit_learn_is_a_head(setfit):
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    body, own = AutoModel.from_pretrained(setfit).eval(), AutoTokenizer.from_pretrained(setfit)
    rows = embeddings(body, own, "mean_tokens").numpy()
    for classes, options in ((["b", "a", "c"], {}), (["no", "yes"], {}), (["x", "y"], {"fit_intercept": False})):
        targets = [classes[index % len(classes)] for index in range(60)]
        fitted = sklearn.LogisticRegression(**options).fit(generator.normal(size=(60, 16)), targets)
        model, tokenizer = classifier_from_sentence_transformer(setfit, head=fitted)
        answers = classify(model, tokenizer, TEXTS)
        probabilities = fitted.predict_proba(rows)
        assert [answer.label for answer in answers] == fitted.predict(rows).tolist()
        assert [answer.score for answer in answers] == pytest.approx(probabilities.max(1).tolist(), abs=1e-5)
        assert model.config.num_labels == len(classes)
    fitted = sklearn.LogisticRegression().fit(generator.normal(size=(60, 16)), [2, 0] * 30)
    model, tokenizer = classifier_from_sentence_transformer(setfit, head=fitted)
    assert model.config.id2label == {0: "poor", 1: "fine"}  # classes 0 and 2 of the folder's labels


def test_a_linear_module_is_a_head(setfit):
    module = nn.Linear(16, 3)
    model, _ = classifier_from_sentence_transformer(setfit, head=module)
    assert torch.equal(model.classifier.weight, module.weight) and torch.equal(model.classifier.bias, module.bias)
    head = nn.Module()  # SetFit's differentiable head
    head.linear, head.temperature, head.eps = module, 0.5, 0.0
    model, _ = classifier_from_sentence_transformer(setfit, head=head)
    assert torch.allclose(model.classifier.weight, 2 * module.weight)
    head.multitarget = True
    with pytest.raises(SecureRouterValueError, match="several labels for a text"):
        classifier_from_sentence_transformer(setfit, head=head)


def test_heads_that_do_not_fit_are_refused(setfit, tmp_path):
    save_file({"weight": torch.ones(3, 16), "scale": torch.ones(1)}, tmp_path / "more.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    fitted = {"coef_": np.ones((3, 16)), "intercept_": np.ones(3), "classes_": np.arange(3)}
    cases = (
        (nn.Linear(8, 3), {}, "reads rows of 8 numbers, and .* makes rows of 16"),
        (nn.Conv1d(1, 1, 1), {}, "is a Conv1d that is not linear"),
        (SimpleNamespace(), {}, "without `coef_`, `intercept_` and `classes_`"),
        (SimpleNamespace(**fitted, solver="liblinear"), {}, "one class against the rest"),
        (tmp_path / "more.safetensors", {}, "should hold `weight` of shape"),
        (tmp_path / "broken.safetensors", {}, "cannot be read"),
        (None, {"labels": ["one", "two"]}, "name each of the head's 3 classes once"),
        (None, {"labels": ["one", "one", "two"]}, "name each of the head's 3 classes once"),
    )
    for head, options, message in cases:
        with pytest.raises(SecureRouterValueError, match=message):
            classifier_from_sentence_transformer(setfit, head=head, **options)
    assert classifier_from_sentence_transformer(setfit, labels=list("abc"))[0].config.label2id == {
        "a": 0,
        "b": 1,
        "c": 2,
    }


def test_folders_that_would_answer_otherwise_are_refused(setfit, tokenizer):
    modules = json.loads((setfit / "modules.json").read_text())
    normalize = {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{TYPES}Normalize"}
    cases = (
        ("modules.json", [modules[0]], "has the modules Transformer: only"),
        ("modules.json", [*modules, normalize, normalize], "only Transformer, Pooling, and then"),
        ("modules.json", [modules[0] | {"path": "../other"}, modules[1]], "names modules outside of it"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts the prompt 'query' before"),
        ("adapter_config.json", {"peft_type": "LORA"}, "PEFT adapter"),
    )
    for name, value, message in cases:
        before = (setfit / name).read_bytes() if (setfit / name).exists() else None
        write(setfit, name, value)
        with pytest.raises(SecureRouterValueError, match=message):
            classifier_from_sentence_transformer(setfit)
        (setfit / name).unlink()
        if before is not None:
            (setfit / name).write_bytes(before)
    classifier_from_sentence_transformer(setfit)
    for name, text, message in (
        ("modules.json", "[{", "modules.json is not JSON"),
        ("modules.json", "{}", "should hold a JSON array, got dict"),
        ("modules.json", "[3]", "lists modules without a type and a path"),
        ("config_setfit.json", "[]", "should hold a JSON object, got list"),
        ("1_Pooling/config.json", "\0", "is not JSON"),
    ):
        before = (setfit / name).read_bytes()
        (setfit / name).write_text(text)
        with pytest.raises(SecureRouterValueError, match=message):
            classifier_from_sentence_transformer(setfit)
        (setfit / name).write_bytes(before)
    (setfit / "modules.json").unlink()
    with pytest.raises(SecureRouterValueError, match="has no modules.json"):
        classifier_from_sentence_transformer(setfit)


def test_a_folder_is_an_expert_among_others(setfit, tmp_path, tokenizer):
    other = noisy_classifier("bert", width=16, heads=2)
    other.classifier = nn.Linear(16, 3)
    other.config.id2label = dict(enumerate(reversed(LABELS)))
    other.config.label2id = {name: index for index, name in other.config.id2label.items()}
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    pool = SecureRouterForSequenceClassification.from_expert_pretrained(
        None, [tmp_path / "other", setfit], expert_costs=[2.0, 1.0]
    )
    assert pool.config.max_length == 10 and list(pool.config.id2label.values()) == LABELS[::-1]
    model, own = classifier_from_sentence_transformer(setfit)
    expected = torch.tensor([one.logits for one in classify(model, own, TEXTS)])
    batch = own(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        both = torch.stack([pool.run_experts(dict(batch), torch.full((3,), index)) for index in (0, 1)])
    assert torch.allclose(both[1], expected.flip(1), atol=1e-5)
    pool.save_pretrained(tmp_path / "pool")
    again = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "pool").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, pool(**batch).logits)
    assert str(setfit) not in (tmp_path / "pool/config.json").read_text()
    cut = SecureRouterForSequenceClassification.from_expert_pretrained(
        None, [setfit], expert_layers=[1, 2], expert_costs=[1.0, 2.0]
    )
    assert [expert.body.config.num_hidden_layers for expert in cut.experts] == [1, 2]


def test_the_command_reads_a_folder(setfit):
    model, own = load_model(setfit)
    direct, other = classifier_from_sentence_transformer(setfit)
    assert [one.logits for one in classify(model, own, TEXTS)] == [
        one.logits for one in classify(direct, other, TEXTS)
    ]
    save_file({"weight": torch.full((3, 16), float("nan"))}, setfit / "model_head.safetensors")
    with pytest.raises(SecureRouterValueError, match="has infinite or NaN values"):
        load_model(setfit)


def test_a_folder_in_a_subfolder_is_read_with_its_loader_arguments(setfit, tokenizer):
    save_body(setfit, tokenizer, family="bert")
    own = {"subfolder": setfit.name}
    pool = SecureRouterForSequenceClassification.from_expert_pretrained(
        None,
        [setfit.parent, setfit.parent],
        expert_kwargs=[own, {**own, "attn_implementation": "eager"}],
        local_files_only=True,
        expert_costs=[1.0, 1.0],
    )
    first, second = pool.experts
    assert [type(expert) for expert in pool.experts] == [PooledEncoderForSequenceClassification] * 2
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.classifier.weight.data_ptr() != second.classifier.weight.data_ptr()
    assert second.body.config._attn_implementation == "eager" != first.body.config._attn_implementation
    assert pool.config.vocab_size == first.body.config.vocab_size
    with pytest.raises(UnknownArgumentError, match="did you mean `labels`"):
        classifier_from_sentence_transformer(setfit, label=LABELS)
