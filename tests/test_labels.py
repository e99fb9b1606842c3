# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Labels go by name: permuted heads, names that cannot be matched, labels without names, silent checkpoints."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMultipleChoice,
    BertForTokenClassification,
)

from hf_securerouter import (
    SecureRouterConfig,
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
    SecureRouterWarning,
)
from tests.tiny import FAMILIES, family_config


build = SecureRouterForSequenceClassification.from_expert_pretrained
COSTS = {"expert_costs": [1.0, 2.0]}
ABC = ["a", "b", "c"]


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a classifier with labels of these names; returns its folder. Fields of config.json can be left out."""

    def save(name, names, without=(), family="bert", auto=AutoModelForSequenceClassification, **fields):
        labels = {"num_labels": names} if isinstance(names, int) else {"id2label": dict(enumerate(names))}
        if not isinstance(names, int):
            labels["label2id"] = {label: index for index, label in enumerate(names)}
        config = family_config(family, **labels | fields)
        model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        written = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
        path.write_text(json.dumps(written))
        return str(tmp_path / name)

    return save


def answers(folder, batch, **fields):
    inputs = {name: value for name, value in batch.items() if name != "token_type_ids"}
    return AutoModelForSequenceClassification.from_pretrained(folder, **fields).eval()(**inputs).logits


def expert_answers(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "token_type_ids"}
    return [expert(**inputs).logits for expert in model.experts]


def test_heads_are_permuted_with_or_without_num_labels_and_architectures(save, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecureRouterWarning)
        for number, without in enumerate(([], ["architectures"], ["architectures", "label2id"])):
            for count in (None, 3):
                first = save(f"first{number}", ABC, without)
                second = save(f"second{number}", ["c", "a", "b"], without)
                model = build(first, [first, second], num_labels=count, **COSTS)
                assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
                assert model.experts[1].config.id2label == model.config.id2label
                found = expert_answers(model, batch)
                torch.testing.assert_close(found[0], answers(first, batch))
                torch.testing.assert_close(found[1], answers(second, batch)[:, [1, 2, 0]])


@pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta", "gpt2"])
def test_heads_of_every_family_are_permuted(save, batch, family, monkeypatch):
    if family not in FAMILIES:
        from transformers import GPT2Config, XLMRobertaConfig

        other = {"gpt2": GPT2Config(vocab_size=27, n_embd=16, n_layer=1, n_head=2, pad_token_id=0, n_positions=24)}
        roberta = family_config("roberta").to_dict() | {"model_type": "xlm-roberta"}
        other["xlm-roberta"] = XLMRobertaConfig(**roberta)
        monkeypatch.setattr(
            "tests.test_labels.family_config", lambda name, **fields: _with(other[family], fields), raising=True
        )
    folders = [save("one", ABC, family=family), save("two", ["b", "c", "a"], ["architectures"], family=family)]
    model = build(None, folders, **COSTS)
    torch.testing.assert_close(expert_answers(model, batch)[1], answers(folders[1], batch)[:, [2, 0, 1]])


def _with(config, fields):
    return type(config)(**config.to_dict() | fields)


def test_names_are_matched_whatever_their_case_and_separators(save, batch):
    first = save("first", ["entailment", "not_entailment"])
    second = save("second", ["Not-Entailment", "ENTAILMENT"])
    model = build(first, [first, second], **COSTS)
    torch.testing.assert_close(expert_answers(model, batch)[1], answers(second, batch).flip(1))


def test_names_that_cannot_be_matched_are_refused_and_label_order_is_the_remedy(save, batch):
    first, second = save("first", ["no", "yes"]), save("second", ["good", "bad"])
    for given in ({}, {"num_labels": 2}, {"id2label": {0: "no", 1: "yes"}}, {"id2label": {0: "x", 1: "y"}}):
        with pytest.raises(SecureRouterValueError, match="cannot be matched .*pass `label_order`"):
            build(first, [first, second], **given)
    for entry in (["bad", "good"], [1, 0], ("bad", 0)):
        model = build(first, [first, second], label_order=[None, entry], **COSTS)
        assert model.config.id2label == {0: "no", 1: "yes"}
        torch.testing.assert_close(expert_answers(model, batch)[1], answers(second, batch).flip(1))
    names = {0: "-", 1: "+"}
    model = build(first, [first, second], label_order=[[0, 1], ["bad", "good"]], id2label=names, **COSTS)
    assert model.config.id2label == names
    torch.testing.assert_close(expert_answers(model, batch)[0], answers(first, batch))


def test_wrong_label_orders_are_refused(save):
    first, base = save("first", ["no", "yes"]), save("base", 2, auto=AutoModel)
    cases = (
        ([None], "one entry for each of the 2 experts"),
        ("no", "one entry for each"),
        ([["no", "no"], None], "list each label of .*first' once"),
        ([["no", "maybe"], None], "list each label"),
        ([[0], None], "list each label"),
        ([[False, True], None], "list each label"),
        ([None, [0, 1]], "whose head is new: pass None"),
    )
    for order, message in cases:
        with pytest.raises(SecureRouterValueError, match=message):
            build(first, [first, base], label_order=order)


def test_labels_without_names_are_taken_by_place_with_a_warning(save, batch):
    named, numbered, other = save("named", ["no", "yes"]), save("numbered", 2), save("other", 2, ["architectures"])
    for experts, names in (([numbered, named], ["no", "yes"]), ([numbered, other], ["LABEL_0", "LABEL_1"])):
        with pytest.warns(SecureRouterWarning, match="by number only.*`label_order`"):
            model = build(named, experts, **COSTS)
        assert list(model.config.id2label.values()) == names
        torch.testing.assert_close(expert_answers(model, batch)[0], answers(numbered, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecureRouterWarning)
        build(named, [numbered, named], label_order=[[0, 1], None], **COSTS)
        build(named, [save("base", 2, auto=AutoModel), named], **COSTS)
        build(named, [numbered], expert_costs=[1.0])


def test_a_checkpoint_that_contradicts_itself_is_refused(save):
    first = save("first", ["no", "yes"])
    path = Path(first) / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"label2id": {"no": 1, "yes": 0}}))
    with pytest.raises(SecureRouterValueError, match="`label2id` of .*first'.*says"):
        build(first, [first])
    path.write_text(json.dumps(written | {"id2label": {"0": "no", "1": "no"}}))
    with pytest.raises(SecureRouterValueError, match="gives the name 'no' to several labels"):
        build(first, [first])
    for id2label in ({0: "a", 1: "a"}, ["a", "b"], {}, {"x": "a"}):
        with pytest.raises(SecureRouterValueError, match="`id2label`"):
            build(first, [first], id2label=id2label)


def test_a_head_is_seen_in_the_weights(save, batch):
    # Three labels that the config does not name: only the caller can know that they are three.
    silent = save("silent", 3, ["architectures", "id2label", "label2id"])
    with pytest.raises(SecureRouterValueError, match="another head than one of 2 labels.*`num_labels`"):
        build(silent, [silent])
    model = build(silent, [silent], num_labels=3, expert_costs=[1.0])
    torch.testing.assert_close(expert_answers(model, batch)[0], answers(silent, batch, num_labels=3))
    # A base checkpoint that says nothing gets a new head.
    base = save("base", 2, ["architectures"], auto=AutoModel)
    assert build(base, [base], num_labels=4, expert_costs=[1.0]).experts[0].classifier.out_features == 4


def test_heads_of_other_tasks_are_refused(save):
    for kind in (BertForTokenClassification, BertForMultipleChoice):
        folder = save(kind.__name__, 2, auto=kind)
        with pytest.raises(SecureRouterValueError, match=f"a {kind.__name__}, whose head does another task"):
            build(folder, [folder])


def test_loaded_experts_of_another_order_are_refused(save):
    experts = [
        AutoModelForSequenceClassification.from_pretrained(save(name, names))
        for name, names in (("one", ABC), ("two", ["c", "b", "a"]))
    ]
    configs = [expert.config for expert in experts]
    for labels in ({"num_labels": 3}, {}):
        with pytest.raises(SecureRouterValueError, match="name their labels differently"):
            SecureRouterConfig(router_config=family_config("bert"), expert_configs=configs, **labels)
    config = SecureRouterConfig(
        router_config=family_config("bert"), expert_configs=configs, id2label=dict(enumerate(ABC)), **COSTS
    )
    with pytest.raises(SecureRouterValueError, match=r"`experts\[1\]` has the labels \['c', 'b', 'a'\], and the pool"):
        SecureRouterForSequenceClassification(config, experts=experts)
