# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Building a pool from checkpoints: weights, depth cuts, tokenizers, labels, refusals."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerFast,
)

from hf_securerouter import (
    SecureRouterForSequenceClassification,
    SecureRouterValueError,
    SecureRouterWarning,
)
from hf_securerouter.pool import _load_tokenizer
from tests.tiny import FAMILIES, MAX_POSITIONS, VOCABULARY, family_config


build = SecureRouterForSequenceClassification.from_expert_pretrained
NAMED = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a tiny checkpoint with its tokenizer; returns its folder."""

    def save(name, family="bert", auto=AutoModelForSequenceClassification, tokenizer=tokenizer, **fields):
        folder = tmp_path / name
        model = auto.from_config(family_config(family, **fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def router(save):
    return save("router", auto=AutoModel, width=8)


def same(state, other, prefix=""):
    return all(torch.equal(value, other[prefix + name]) for name, value in state.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_checkpoints(save, router, family, batch):
    experts = [save("small", family), save("large", family, layers=3)]
    model = build(router=router, experts=experts, expert_costs=[1.0, 3.0])
    assert not model.training and model.config.num_experts == 2
    for folder, expert in zip(experts, model.experts, strict=True):
        original = AutoModelForSequenceClassification.from_pretrained(folder)
        assert type(expert) is type(original)
        assert same(original.state_dict(), expert.state_dict())
    encoder = AutoModel.from_pretrained(router).state_dict()
    kept = {name: value for name, value in encoder.items() if not name.startswith("pooler")}
    assert kept.keys() == model.router.encoder.state_dict().keys() and same(kept, model.router.encoder.state_dict())
    assert torch.isfinite(model(**batch).logits).all()


def test_config_fields_are_passed_on(save, router):
    model = build(router, [save("a"), save("b")], expert_costs=[1.0, 9.0], alpha=0.5, router_objective="utility")
    assert (model.config.alpha, model.config.router_objective) == (0.5, "utility")
    assert model.config.expert_costs == [1.0, 9.0] and model.config.expert_costs_source == "given"


def test_base_checkpoints_get_a_new_head(save, router):
    experts = [save("base", auto=AutoModel), save("masked", auto=AutoModelForMaskedLM)]
    model = build(router, experts, num_labels=3, expert_costs=[1.0, 2.0])
    assert [expert.classifier.out_features for expert in model.experts] == [3, 3]
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    original = AutoModel.from_pretrained(experts[0]).state_dict()
    assert same(original, model.experts[0].bert.state_dict())


def test_new_heads_have_two_labels_unless_told(save, router):
    assert build(router, [save("base", auto=AutoModel)], expert_costs=[1.0]).config.num_labels == 2
    regression = build(router, [save("again", auto=AutoModel)], num_labels=1, expert_costs=[1.0])
    assert regression.experts[0].classifier.out_features == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_cuts_keep_the_first_layers_embeddings_and_head(save, router, family, batch):
    folder = save("deep", family, layers=3)
    model = build(router, [folder], expert_layers=[1, 2, 3], expert_costs=[1.0, 2.0, 3.0])
    whole = AutoModelForSequenceClassification.from_pretrained(folder)
    assert [expert.config.num_hidden_layers for expert in model.experts] == [1, 2, 3]
    for expert in model.experts:
        assert same(expert.state_dict(), whole.state_dict())
    inputs = {name: value for name, value in batch.items() if name != "token_type_ids"}
    torch.testing.assert_close(model.experts[2](**inputs).logits, whole(**inputs).logits)
    hidden = whole(**inputs, output_hidden_states=True).hidden_states
    cut = model.experts[0](**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(cut[-1], hidden[1])
    # The cuts train by themselves.
    with torch.no_grad():
        for parameter in model.experts[0].parameters():
            parameter.zero_()
    assert not same(model.experts[0].state_dict(), model.experts[1].state_dict())


@pytest.mark.parametrize("layers", [[0], [4], [1.5], [True]])
def test_wrong_depths_are_refused(save, router, layers):
    with pytest.raises(SecureRouterValueError, match=f"`expert_layers`.*depths from 1 to 3.*got {layers[0]}"):
        build(router, [save("deep", layers=3)], expert_layers=layers)


def test_no_depths_are_refused(save, router):
    with pytest.raises(SecureRouterValueError, match="one expert and at least one depth"):
        build(router, [save("deep", layers=3)], expert_layers=[])


def test_depths_of_several_experts_are_refused(save, router):
    with pytest.raises(SecureRouterValueError, match="one expert and at least one depth"):
        build(router, [save("a"), save("b")], expert_layers=[1, 2])


def test_grouped_albert_cannot_be_cut(save, router):
    folder = save("grouped", "albert", layers=4, num_hidden_groups=2)
    with pytest.raises(SecureRouterValueError, match="2 groups of shared layers"):
        build(router, [folder], expert_layers=[2])


def test_cased_and_uncased_are_refused_though_their_vocabularies_agree(save, router):
    cased = save("cased", tokenizer=BertTokenizer(vocab=VOCABULARY, do_lower_case=False))
    with pytest.raises(SecureRouterValueError, match=r"`experts\[1\]`.*`router`.*normalizer"):
        build(router, [save("uncased"), cased])


def test_other_vocabulary_of_the_same_size_is_refused(save, router):
    swapped = VOCABULARY | {"good": VOCABULARY["bad"], "bad": VOCABULARY["good"]}
    other = save("other", tokenizer=BertTokenizer(vocab=swapped))
    with pytest.raises(SecureRouterValueError, match="different tokenizers.*vocabulary"):
        build(router, [other])


def test_router_with_another_tokenizer_is_refused(save):
    router = save("cased", auto=AutoModel, tokenizer=BertTokenizer(vocab=VOCABULARY, do_lower_case=False))
    with pytest.raises(SecureRouterValueError, match="different tokenizers"):
        build(router, [save("uncased")])


def test_same_tokenizer_in_other_files_is_accepted(save, router, tmp_path, recwarn):
    # One checkpoint has tokenizer.json, another an old vocab.txt, the third a generic fast tokenizer.
    old = save("old", tokenizer=None, **NAMED)
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(VOCABULARY))
    generic = save("generic", **NAMED)
    PreTrainedTokenizerFast(tokenizer_file=f"{generic}/tokenizer.json").save_pretrained(generic)
    assert build(router, [old, generic], expert_costs=[1.0, 2.0]).config.num_experts == 2
    assert not [warning for warning in recwarn if issubclass(warning.category, SecureRouterWarning)]


def test_padded_vocabulary_sizes_are_accepted(save, router):
    experts = [save("exact"), save("padded", vocab_size=len(VOCABULARY) + 6)]
    assert build(router, experts, expert_costs=[1.0, 2.0]).config.num_experts == 2


def test_tokenizer_without_a_limit_has_none(save):
    limited = save("limited")
    unlimited = save("unlimited", tokenizer=BertTokenizer(vocab=VOCABULARY))
    assert _load_tokenizer(limited).max_length == MAX_POSITIONS and _load_tokenizer(unlimited).max_length is None


def test_missing_tokenizer_is_warned_about(save, router):
    with pytest.warns(SecureRouterWarning, match=r"`experts\[0\]`.*came without a tokenizer"):
        build(router, [save("silent", tokenizer=None)], expert_costs=[1.0])


def test_max_length_is_the_smallest_of_the_pool(save, router, tokenizer):
    short = save("short", max_position_embeddings=10)
    assert build(router, [save("long"), short], expert_costs=[1.0, 2.0]).config.max_length == 10
    assert build(router, [save("l2")], expert_costs=[1.0], max_length=5).config.max_length == 5
    limited = save("limited", tokenizer=BertTokenizer(vocab=VOCABULARY, model_max_length=7))
    assert build(router, [limited], expert_costs=[1.0]).config.max_length == 7
    assert tokenizer.model_max_length == MAX_POSITIONS


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_permuted_to_the_first_experts_labels(save, router, family, batch):
    first = save("first", **NAMED)
    reordered = save(
        "reordered", family, id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1}
    )
    model = build(router, [first, reordered], expert_costs=[1.0, 2.0])
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.experts[1].config.id2label == model.config.id2label
    inputs = {name: value for name, value in batch.items() if name != "token_type_ids"}
    original = AutoModelForSequenceClassification.from_pretrained(reordered)
    torch.testing.assert_close(model.experts[1](**inputs).logits, original(**inputs).logits.flip(1))
    unchanged = AutoModelForSequenceClassification.from_pretrained(first)
    torch.testing.assert_close(model.experts[0](**inputs).logits, unchanged(**inputs).logits)


def test_three_labels_are_permuted_the_right_way_round(save, router, batch):
    orders = [["a", "b", "c"], ["c", "a", "b"]]
    folders = [
        save(f"e{i}", id2label=dict(enumerate(names)), label2id={n: j for j, n in enumerate(names)})
        for i, names in enumerate(orders)
    ]
    model = build(router, folders, expert_costs=[1.0, 2.0])
    original = AutoModelForSequenceClassification.from_pretrained(folders[1])(**batch).logits
    # The second expert's outputs are c, a, b; the pool's are a, b, c.
    torch.testing.assert_close(model.experts[1](**batch).logits, original[:, [1, 2, 0]])


def test_new_head_takes_the_names_of_the_trained_ones(save, router):
    model = build(router, [save("base", auto=AutoModel), save("tuned", **NAMED)], expert_costs=[1.0, 2.0])
    assert model.experts[0].config.id2label == NAMED["id2label"]


def test_id2label_also_orders_the_heads(save, router, batch):
    folder = save("first", **NAMED)
    model = build(router, [folder], id2label={0: "positive", 1: "negative"}, expert_costs=[1.0])
    original = AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits
    torch.testing.assert_close(model.experts[0](**batch).logits, original.flip(1))


@pytest.mark.parametrize("fields", [{"num_labels": 3}, {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}])
def test_wrong_label_count_is_refused(save, router, fields):
    with pytest.raises(SecureRouterValueError, match="classifier of 2 labels, and the pool has 3"):
        build(router, [save("tuned")], **fields)


def test_experts_with_different_label_counts_are_refused(save, router):
    with pytest.raises(SecureRouterValueError, match="different numbers of labels"):
        build(router, [save("two"), save("three", num_labels=3)])


@pytest.mark.parametrize("id2label, num_labels", [({0: "a", 2: "b"}, None), ({0: "a", 1: "b"}, 3)])
def test_id2label_that_does_not_number_the_labels_is_refused(save, router, id2label, num_labels):
    with pytest.raises(SecureRouterValueError, match="`id2label` should name labels 0 to"):
        build(router, [save("tuned")], id2label=id2label, num_labels=num_labels)


@pytest.mark.parametrize("num_labels", [0, -1, "two", True])
def test_num_labels_that_is_no_count_is_refused(save, router, num_labels):
    with pytest.raises(SecureRouterValueError, match="`num_labels` should be an integer"):
        build(router, [save("base", auto=AutoModel)], num_labels=num_labels)


@pytest.mark.parametrize("experts", [[], (), "folder"])
def test_no_list_of_experts_is_refused(router, experts):
    with pytest.raises(SecureRouterValueError, match="`experts` should be a list of at least one"):
        build(router, experts)


def test_missing_folder_is_named(save, router, tmp_path):
    with pytest.raises(SecureRouterValueError, match=r"`experts\[0\]` is .*nowhere"):
        build(router, [str(tmp_path / "nowhere")])


def test_adapter_is_refused_with_the_remedy(save, router, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    with pytest.raises(SecureRouterValueError, match="PEFT adapter: merge the adapter first"):
        build(router, [str(folder)])


def test_quantised_checkpoint_is_refused(save, router, tmp_path):
    folder = save("quantised")
    path = tmp_path / "quantised" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(SecureRouterValueError, match="quantised checkpoint: pass the checkpoint that it was"):
        build(router, [folder])


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_dtype_is_that_of_all_weights(save, router, dtype):
    model = build(router, [save("a"), save("b")], dtype=dtype, expert_costs=[1.0, 2.0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype is torch.bfloat16


def test_half_precision_checkpoints_are_loaded_in_float32_to_train(save, router):
    folder = save("half")
    AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    model = build(router, [folder, save("full")], expert_costs=[1.0, 2.0])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_no_path_of_this_machine_is_saved(save, router, tmp_path):
    model = build(router, [save("a")], expert_costs=[1.0])
    out = tmp_path / "out"
    model.save_pretrained(out)
    assert str(tmp_path) not in (out / "config.json").read_text() + (out / "README.md").read_text()


def test_relative_folder_is_not_taken_for_a_hub_id(save, router, tmp_path, monkeypatch):
    save("local-model")
    monkeypatch.chdir(tmp_path)
    model = build("router", ["local-model"], expert_costs=[1.0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("out")
    saved = tmp_path / "elsewhere" / "out"
    assert "local-model" not in (saved / "config.json").read_text() + (saved / "README.md").read_text()


def test_built_pool_survives_without_its_sources(save, router, tmp_path, batch):
    model = build(router, [save("a"), save("b", "distilbert")], expert_costs=[1.0, 2.0])
    model.save_pretrained(tmp_path / "out")
    for name in ("router", "a", "b"):
        shutil.rmtree(tmp_path / name)
    loaded = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
