# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Experts: which are planned, what they start from, and what they learn from."""

import copy

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    EuroBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from hf_securerouter import (
    PooledEncoderConfig,
    PooledEncoderForSequenceClassification,
    SecureRouterError,
    SecureRouterValueError,
)
from hf_securerouter.errors import FileError
from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes import experts as recipe
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.experts import (
    Member,
    check_length,
    check_narrow,
    load_classifier,
    narrow,
    plan_pool,
    reinitialize,
    train_pool,
)
from hf_securerouter.recipes.fit_with_trainer import parse_args
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import TRAINER, arguments, loop_run
from tests.tiny import family_config


EUROBERT = {"vocab_size": 30, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1, "bos_token_id": 1}
EUROBERT |= {"num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "mask_token_id": 3}


@pytest.mark.parametrize("lengths", [["16"], ["1", "16"], ["8", "15"]])
def test_pools_of_lengths_that_do_not_fit_are_refused(made, lengths):
    argv = arguments(made, "out", *TRAINER, "--expert_max_lengths", *lengths)
    args, _ = parse_args(argv, RunArguments, "")
    with pytest.raises(SecureRouterValueError, match="`expert_max_lengths` should hold .* each of 2 .* 16 or more"):
        plan_pool(args)
    args.expert_max_lengths = [8, 16]  # a run's longest input
    assert [member.length for member in plan_pool(args)] == [8, 16]


def test_a_pool_of_one_is_refused():
    args = RunArguments(task_name="mrpc", model_name_or_path="x")
    with pytest.raises(SecureRouterValueError, match="two experts or more"):
        plan_pool(args)


def test_inputs_longer_than_the_largest_expert_reads_are_refused_before_training(tmp_path):
    family_config("bert", max_position_embeddings=64).save_pretrained(tmp_path)
    args = RunArguments(task_name="mrpc", model_name_or_path=str(tmp_path), max_seq_length=65)
    with pytest.raises(SecureRouterValueError, match="`max_seq_length` is 65, .* has 64 positions: pass"):
        check_length(args)
    args.max_seq_length = 64
    check_length(args)
    args.max_seq_length, args.expert_layers, args.output_dir = 65, [1, 2], str(tmp_path / "out")
    with pytest.raises(SecureRouterValueError, match="`max_seq_length` is 65"):
        RoutedPoolRun(args, lambda *_: None, "")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_be_got_is_named_before_anything_is_trained(made, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    offline, here = "nobody/nothing", str(made / "checkpoint")
    for given, error, message in (
        ({"model_name_or_path": offline}, SecureRouterError, "`model_name_or_path` 'nobody/nothing' was not got from"),
        ({"experts": [offline, here]}, SecureRouterError, "`experts` 'nobody/nothing' was not got from the Hub"),
        ({"model_name_or_path": here, "router_name_or_path": offline}, SecureRouterError, "`router_name_or_path` 'no"),
        (
            {"model_name_or_path": str(tmp_path / "none")},
            SecureRouterValueError,
            "none' is not on the Hub, or .* corr",
        ),
        ({"model_name_or_path": str(tmp_path / "empty")}, FileError, "empty' has no config.json .*: pass the folder"),
    ):
        args = RunArguments(task_name="mrpc", expert_layers=[] if "experts" in given else [1, 2], **given)
        args.cache_dir, args.output_dir = str(tmp_path / "cache"), str(tmp_path / "out")
        with pytest.raises(error, match=message):
            RoutedPoolRun(args, lambda *_: None, "")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (family_config("bert", width=64), "adds an expert of width 128, and the embeddings of .* have the width 64: "),
        (family_config("electra", width=128, embedding_size=64), "have the width 64: leave it out"),
        (EuroBertConfig(**EUROBERT), "which a checkpoint of 'eurobert' keeps in another place: leave it out"),
    ],
    ids=["width", "embeddings", "family"],
)
def test_a_narrow_expert_that_cannot_be_made_is_refused_before_training(config, reason, tmp_path):
    config.save_pretrained(tmp_path)
    args = RunArguments(task_name="mrpc", model_name_or_path=str(tmp_path), narrow_expert=True, max_seq_length=16)
    args.profile_seq_length, args.output_dir = 16, str(tmp_path / "out")
    with pytest.raises(SecureRouterValueError, match=f"`narrow_expert` .*{reason}"):
        RoutedPoolRun(args, lambda *_: None, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [{"width": 128}, {"family": "electra", "width": 64, "embedding_size": 128}])
def test_a_narrow_expert_is_made_of_embeddings_of_its_own_width(more, tmp_path):
    config = family_config(**{"family": "bert"} | more)
    config.save_pretrained(tmp_path)
    check_narrow(RunArguments(model_name_or_path=str(tmp_path), narrow_expert=True))
    assert narrow(AutoModelForSequenceClassification.from_config(config)).config.hidden_size == 128


def test_two_tasks_of_one_seed_begin_with_different_heads(tokenizer, tmp_path, monkeypatch):
    BertForSequenceClassification(family_config("bert", layers=2, width=16, num_labels=5)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(recipe, "distillation_rows", lambda *args: [])
    args = RunArguments(model_name_or_path=str(tmp_path), distillation_epochs=0)
    args.num_train_epochs = 0

    def heads(name, folder):
        task, members = TASKS[name], [Member("checkpoint", str(tmp_path), None), Member("cut", 2, None)]
        folders = train_pool(args, task, members, [], tmp_path / folder, tokenizer, None, None)
        experts = [AutoModelForSequenceClassification.from_pretrained(own) for own in folders]
        return torch.stack([expert.classifier.weight.flatten() for expert in experts])

    first, again, other = heads("mrpc", "first"), heads("mrpc", "again"), heads("qqp", "other")
    assert torch.equal(first, again)
    for own, others in zip(first, other, strict=True):
        assert torch.corrcoef(torch.stack([own, others]))[0, 1].abs() < 0.5


def test_an_expert_on_a_causal_encoder_learns_from_texts_without_their_end(made, tokenizer, tmp_path, monkeypatch):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_positions=24, pad_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    rows = [{"input_ids": [2, 7, 8, 9, 3, 10, 11, 3], "attention_mask": [1] * 8, "labels": 1}]
    monkeypatch.setattr(recipe, "distillation_rows", lambda *args: rows)
    args, read = RunArguments(model_name_or_path=str(made / "checkpoint")), {}
    members = [Member("checkpoint", str(tmp_path / "causal"), 5), Member("cut", 1, 5), Member("cut", 3, None)]

    def train(name, model, data, *rest):
        read[name] = data[0]["input_ids"]

    train_pool(args, TASKS["mrpc"], members, rows, tmp_path / "final", tokenizer, None, train)
    assert read["final-expert-0"] == [2, 7, 8, 9, 3] and read["final-expert-2"] == rows[0]["input_ids"]
    assert read["final-expert-1"] == [2, 7, 3, 10, 3]  # separators of another one stay


def test_the_largest_expert_learns_from_its_own_answers(made, tmp_path):
    distilled, lessons = {}, {}

    def recording_pool(*args):
        *others, train = args

        def recording_train(name, model, data, *rest):
            distilled[name] = sum("teacher_logits" in row for row in data), len(data)
            lessons[name] = [row.get("teacher_logits") for row in data]
            train(name, model, data, *rest)

        return train_pool(*others, recording_train)

    loop_run(arguments(made, tmp_path / "out", "--self_distillation"), train_pool=recording_pool)()
    own = distilled["final-expert-teacher"][1]
    copies = distilled["final-expert-1"]
    expected = {"final-expert-teacher": (0, own), "final-expert-1": copies, "final-expert-0": copies}
    assert distilled == expected and [*distilled] == [*expected]
    assert copies[0] == copies[1] > own
    assert lessons["final-expert-0"] != lessons["final-expert-1"]  # the small one's teacher has learned again
    experts = tmp_path / "out" / "experts" / "final"
    teacher, largest = (AutoModelForSequenceClassification.from_pretrained(experts / own) for own in ("teacher", "1"))
    assert torch.equal(teacher.get_input_embeddings().weight, largest.get_input_embeddings().weight)
    assert not torch.equal(teacher.classifier.weight, largest.classifier.weight)


@pytest.mark.parametrize("family", ["bert", "mpnet", "distilbert"])
def test_the_last_layers_are_drawn_again_and_nothing_else(family):
    model = AutoModelForSequenceClassification.from_config(family_config(family, layers=3))
    fresh, again, other = (reinitialize(model, 2, seed) for seed in (5, 5, 6))
    cut = set(cut_layers(model, 1).state_dict())
    own, new, others = model.state_dict(), fresh.state_dict(), other.state_dict()
    assert all(torch.equal(own[name], new[name]) for name in cut)
    drawn = [name for name in own.keys() - cut if own[name].dim() == 2]
    assert len(drawn) >= 12
    assert not any(torch.equal(own[name], new[name]) or torch.equal(others[name], new[name]) for name in drawn)
    assert all(torch.equal(new[name], value) for name, value in again.state_dict().items())


@pytest.mark.parametrize("family, layers", [("bert", 0), ("bert", 2), ("albert", 1)])
def test_layers_that_cannot_be_drawn_again_are_refused(family, layers):
    model = AutoModelForSequenceClassification.from_config(family_config(family, layers=2))
    with pytest.raises(SecureRouterValueError, match="`reinitialized_layers`"):
        reinitialize(model, layers, seed=0)


def test_a_run_draws_the_last_layers_of_its_largest_expert_alone(made, tmp_path):
    started = {}

    def recording_pool(*args):
        *others, _ = args
        return train_pool(
            *others, lambda name, model, *rest: started.update({name: copy.deepcopy(model.state_dict())})
        )

    argv = arguments(made, tmp_path / "out", "--reinitialized_layers", "1")
    run = loop_run(argv, train_pool=recording_pool)
    run.trained("final", run.rows(run.load_rows("train")), range(20))
    kept = load_classifier(made / "checkpoint", TASKS["mrpc"], 42).state_dict()
    first = "bert.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(started["final-expert-1"][first.format(0)], kept[first.format(0)])
    assert not torch.equal(started["final-expert-1"][first.format(2)], kept[first.format(2)])
    assert torch.equal(started["final-expert-0"][first.format(0)], kept[first.format(0)])


def test_experts_that_learn_from_the_largest_have_a_rate_of_their_own(made, tmp_path):
    rates = {}

    def recording_pool(*args):
        *others, _ = args
        return train_pool(*others, lambda name, model, rows, epochs, rate: rates.update({name: rate}))

    argv = arguments(made, tmp_path / "out", "--learning_rate", "1e-3", "--distillation_learning_rate", "2e-3")
    run = loop_run(argv, train_pool=recording_pool)
    run.trained("final", run.rows(run.load_rows("train")), range(20))
    assert rates == {"final-expert-1": 1e-3, "final-expert-0": 2e-3}


def test_the_narrow_expert_starts_from_the_principal_components():
    torch.manual_seed(0)
    large = BertForSequenceClassification(family_config("bert", width=256, vocab_size=300))
    table = torch.randn(300, 100) @ torch.randn(100, 256)
    large.bert.embeddings.word_embeddings.weight.data = table
    small = narrow(large)
    assert (small.config.num_hidden_layers, small.config.hidden_size, small.config.intermediate_size) == (2, 128, 512)
    kept = small.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(kept @ kept.T, table @ table.T, rtol=1e-3, atol=0.5)
    assert large.config.hidden_size == 256


def test_a_pooled_encoder_has_a_narrow_expert_too():
    torch.manual_seed(0)
    config = PooledEncoderConfig(text_config=family_config("bert", width=256), dense_size=32)
    small = narrow(PooledEncoderForSequenceClassification(config))
    assert small.config.text_config.hidden_size == 128 and small.config.dense_size == 32
    ids = torch.tensor([[2, 7, 9, 3]])
    assert small(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)
