# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The GLUE scripts: data, experts, a whole run of each on a few made-up lines, and going on after a stop."""

import functools
import gzip
import json
import random
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cotrain
import pytest
import results
import rounding  # noqa: F401
import run_glue
import run_glue_no_trainer
import torch
from accelerate.state import AcceleratorState
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.metrics import glue_score
from hf_securerouter.pool import cut_layers
from hf_securerouter.recipes import costs as glue_costs
from hf_securerouter.recipes import data as glue_data
from hf_securerouter.recipes import encrypted_check as glue_encrypted
from hf_securerouter.recipes import experts as glue_experts
from hf_securerouter.recipes import head_pruning as slim  # noqa: F401
from hf_securerouter.recipes import score_scaling as scale_down_queries  # noqa: F401
from tests.support import ROOT
from tests.tiny import family_config


def made_up_rows(count, seed, regression=False):
    """Pairs that are equivalent when both adjectives are of one kind."""
    rng = random.Random(seed)
    kinds = [["bad", "dull", "awful", "slow"], ["good", "bright", "great", "fast"]]
    rows = []
    for index in range(count):
        first, second = rng.randrange(2), rng.randrange(2)
        label = 5.0 * (first == second) if regression else int(first == second)
        texts = [f"the film is {rng.choice(kinds[kind])}" for kind in (first, second)]
        rows.append({"sentence1": texts[0], "sentence2": texts[1], "label": label, "idx": index})
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """A folder with data of two tasks and a checkpoint of three layers."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("mrpc", "stsb"):
        (folder / "data" / task).mkdir(parents=True)
        for split, count, seed in (("train", 120, 0), ("validation", 40, 1)):
            with gzip.open(folder / "data" / task / f"{split}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in made_up_rows(count, seed, task == "stsb"))
    torch.manual_seed(0)
    model = BertForSequenceClassification(family_config("bert", layers=3, width=16))
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    return folder


def arguments(made, output, *more, task="mrpc"):
    return [
        *("--task_name", task, "--data_dir", str(made / "data"), "--output_dir", str(output)),
        *("--model_name_or_path", str(made / "checkpoint"), "--expert_layers", "1", "3"),
        *("--max_seq_length", "16", "--expert_costs", "1", "4", "--num_train_epochs", "1"),
        *("--distillation_epochs", "1", "--router_num_train_epochs", "2", "--quota_batch_size", "8"),
        *("--bootstrap_resamples", "20", "--per_device_train_batch_size", "8", "--use_cpu", *more),
    ]


TRAINER = ("--report_to", "none", "--disable_tqdm", "true")
SCRIPTS = {"trainer": (run_glue, TRAINER), "loop": (run_glue_no_trainer, ())}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """The figure and the intervals, which take the longest, have tests of their own."""
    monkeypatch.setattr("hf_securerouter.reports.bootstrap", lambda statistic, count, *rest: (0.0, 1.0))
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.draw_report", lambda report, path, *rest: Path(path).write_bytes(b"png")
    )
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.glue_metric",
        lambda task: lambda p, r: {"accuracy": float((p == r).mean())},
    )


@pytest.mark.parametrize("script, task", [("trainer", "mrpc"), ("loop", "mrpc"), ("loop", "stsb")])
def test_a_run_leaves_a_checkpoint_a_report_and_a_row(made, tmp_path, script, task, monkeypatch):
    module, more = SCRIPTS[script]
    table = tmp_path / "results.json"
    out = tmp_path / "out"
    uploads = []
    if script == "trainer":
        more = (*more, "--push_to_hub", "--hub_model_id", "you/router")
        monkeypatch.setattr(
            "hf_securerouter.recipes.routed_pool.HfApi.create_repo",
            lambda self, name, **kwargs: SimpleNamespace(repo_id=name),
        )
        monkeypatch.setattr(
            "hf_securerouter.recipes.routed_pool.HfApi.upload_folder", lambda self, **kwargs: uploads.append(kwargs)
        )
    report = module.main(arguments(made, out, *more, "--results_file", str(table), task=task))

    model = SecureRouterForSequenceClassification.from_pretrained(out)
    assert model.config.router_objective == "utility" and model.config.router_shares_expert == 0
    assert model.config.expert_costs == [1.0, 5.0] and sum(model.config.quotas) == 8
    assert model.config.routing_lambda == report["tuning"]["utility"]["routing_lambda"]
    assert AutoTokenizer.from_pretrained(out).model_max_length == 24

    (row,) = json.loads(table.read_text())["tasks"]
    assert tuple(row) == results.FIELDS and row["task"] == task
    assert row["metric"] == {"mrpc": "f1", "stsb": "pearson+spearmanr"}[task]
    assert row["routed_score"] == pytest.approx(100 * report["policies"]["utility, quotas"]["score"])
    assert set(row["audc"]) == {"utility", "gumbel", "zero", "oracle"}
    # Every query pays for the router, 1 of a budget of 2, which leaves a quarter of the larger expert.
    assert model.config.quotas[1] <= 2 and report["policies"]["utility, quotas"]["relative_cost"] <= 0.5 + 1e-9
    assert row["relative_cost"] is None and row["relative_bytes"] is None  # nothing was measured
    assert row["command"].startswith(f"python training/{Path(module.__file__).name} --task_name {task}")
    card = (out / "README.md").read_text()
    assert "Quality over cost" in card and "curve.png" in card and "utility, quotas" in card
    assert str(tmp_path) not in card and str(made) not in card
    for upload in uploads:
        names = [path.name for path in out.iterdir()]
        files = set(filter_repo_objects(names, allow_patterns=upload["allow_patterns"]))
        assert upload["repo_id"] == "you/router" and {"config.json", "model.safetensors", "tokenizer.json"} < files
        assert {"README.md", "curve.png", "report.json"} < files and not files & {"row.json", "answers.safetensors"}
    assert len(uploads) == (script == "trainer")


def test_experts_read_as_much_as_the_run_says(made, tmp_path, monkeypatch):
    longest, train_pool = {}, run_glue.RoutedPoolRun.__init__.__globals__["train_pool"]

    def recording_pool(args, task, members, rows, folder, tokenizer, collate, fit):
        def recording_fit(name, model, data, *rest):
            longest[name] = max(len(row["input_ids"]) for row in data)
            fit(name, model, data, *rest)

        return train_pool(args, task, members, rows, folder, tokenizer, collate, recording_fit)

    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.train_pool", recording_pool)
    table = tmp_path / "results.json"
    more = ("--expert_max_lengths", "10", "128", "--results_file", str(table))
    report = run_glue_no_trainer.main(arguments(made, tmp_path / "out", *more, task="stsb"))
    assert longest == {"final-expert-1": 11, "final-expert-0": 10}
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_max_lengths == [10, 128]
    (row,) = json.loads(table.read_text())["tasks"]
    assert row["experts"] == ["bert 1x16, 10 tokens", "bert 3x16, 16 tokens"] and row["cut"] == report["cut"] == [1, 0]
    assert 0 < abs(report["experts"][0]["score"]) < 1
    # The largest expert learned its embeddings, and the one that was cut from it has kept them.
    small, large = (expert.get_input_embeddings().weight for expert in model.experts)
    start = AutoModelForSequenceClassification.from_pretrained(made / "checkpoint").get_input_embeddings().weight
    assert torch.equal(small, large) and not torch.equal(large, start)
    # What the report says of the smaller expert is what the model computes.
    rows = glue_data.tokenize(
        glue_data.TASKS["stsb"], made_up_rows(40, 1, True), AutoTokenizer.from_pretrained(made / "checkpoint"), 16
    )
    inputs = {name: torch.tensor([r[name] for r in rows]) for name in ("input_ids", "attention_mask")}
    inputs["token_type_ids"] = torch.tensor([r["token_type_ids"] for r in rows])
    found = model.run_experts(inputs, torch.zeros(40, dtype=torch.long))[:, 0].detach()
    score = glue_score("stsb")(found.numpy(), torch.tensor([r["labels"] for r in rows]).numpy())
    assert report["experts"][0]["score"] == pytest.approx(score)


@pytest.mark.parametrize("lengths", [["128"], ["1", "128"], ["8", "64"]])
def test_pools_of_lengths_that_do_not_fit_are_refused(made, lengths):
    args, _ = run_glue.parse_args(arguments(made, "out", *TRAINER, "--expert_max_lengths", *lengths))
    with pytest.raises(SecureRouterValueError, match="`expert_max_lengths` should hold .* each of 2 .* 128 or more"):
        glue_experts.plan_pool(args)


def test_the_validation_split_is_read_once_and_last(made, tmp_path, monkeypatch):
    seen = []
    load_split = glue_data.load_split

    def recording(args, split):
        done = sorted(path.name for path in (tmp_path / "out").iterdir())
        seen.append((split, "tuning-utility.json" in done and "tuning-gumbel.json" in done))
        return load_split(args, split)

    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.load_split", recording)
    run_glue_no_trainer.main(arguments(made, tmp_path / "out"))
    run_glue_no_trainer.main(arguments(made, tmp_path / "out"))
    assert seen == [("train", False), ("validation", True), ("train", True)]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stopped_run_goes_on_where_it_was(made, tmp_path, script, monkeypatch):
    module, more = SCRIPTS[script]
    if script == "trainer":
        more = (*more, "--save_strategy", "steps", "--save_steps", "4")
    else:
        more = (*more, "--checkpointing_steps", "4")
    more = arguments(made, "out", *more, "--num_train_epochs", "2")  # the later of two values holds
    whole, stopped = ([*more, "--output_dir", str(tmp_path / name)] for name in ("whole", "stopped"))
    module.main(whole)

    steps, loss, limit = [0], glue_experts.expert_loss, 16  # the largest expert takes 22, its pupil 21

    def counted(*args):
        steps[0] += 1
        if steps[0] > limit:
            raise Stopped
        return loss(*args)

    monkeypatch.setattr(module, "expert_loss", counted)
    with pytest.raises(Stopped):
        module.main(stopped)
    steps[0], limit = 0, 100
    module.main(stopped)
    # The checkpoint of a step that ended is written before the next one begins.
    assert steps[0] == 22 - 16 + 21
    found = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("whole", "stopped")]
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in found), strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_experts_train_in_half_precision_and_routers_do_not(made, tmp_path, script, monkeypatch):
    seen = {"expert": set(), "router": set()}
    expert, router = BertForSequenceClassification.forward, SecureRouterForSequenceClassification.forward

    def recording(name, forward):
        @functools.wraps(forward)
        def run(self, *args, **kwargs):
            if self.training:
                seen[name].add(torch.is_autocast_enabled("cpu"))
            return forward(self, *args, **kwargs)

        return run

    monkeypatch.setattr(BertForSequenceClassification, "forward", recording("expert", expert))
    monkeypatch.setattr(SecureRouterForSequenceClassification, "forward", recording("router", router))
    module, more = SCRIPTS[script]
    more = (*more, *(("--bf16",) if script == "trainer" else ("--mixed_precision", "bf16")))
    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.GlueRun.report", lambda *args: {"read": "elsewhere"})
    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.GlueRun.save", lambda *args: None)
    module.main(arguments(made, tmp_path / "out", *more))
    assert seen == {"expert": {True}, "router": {False}}


def test_a_folder_of_another_run_is_refused(made, tmp_path):
    (tmp_path / "arguments.json").write_text(json.dumps({"task_name": "rte"}))
    with pytest.raises(SecureRouterValueError, match="another .*`task_name`.*name another folder"):
        run_glue_no_trainer.main(arguments(made, tmp_path))


def test_cross_fitted_answers_come_from_experts_that_have_not_seen_the_row(made, tmp_path, monkeypatch):
    trained, answered = {}, {}
    train_pool, answers = run_glue_no_trainer.RoutedPoolRun.__init__.__globals__["train_pool"], None
    run_class = run_glue_no_trainer.RoutedPoolRun

    def recording_pool(args, task, members, rows, folder, *rest):
        trained[folder.name] = {id(row) for row in rows}
        return train_pool(args, task, members, rows, folder, *rest)

    answers = run_class.answers

    def recording_answers(self, folders, rows):
        answered[folders[0].parent.name] = {id(row) for row in rows}
        return answers(self, folders, rows)

    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.train_pool", recording_pool)
    monkeypatch.setattr(run_class, "answers", recording_answers)
    run_glue_no_trainer.main(arguments(made, tmp_path / "out", "--cross_fit_folds", "2"))
    assert len(trained["final"]) == 120
    for fold in ("fold-0", "fold-1"):
        assert trained[fold].isdisjoint(answered[fold]) and len(trained[fold] | answered[fold]) == 120
    assert answered["fold-0"].isdisjoint(answered["fold-1"])


def test_two_tasks_of_one_seed_begin_with_different_heads(tokenizer, tmp_path, monkeypatch):
    BertForSequenceClassification(family_config("bert", layers=2, width=16, num_labels=5)).save_pretrained(tmp_path)
    monkeypatch.setattr("glue_experts.taught", lambda *args: [])
    args = SimpleNamespace(experts=[], model_name_or_path=str(tmp_path), cache_dir=None, seed=42, learning_rate=1e-3)
    args.num_train_epochs = args.distillation_epochs = args.self_distillation = 0

    def heads(name, folder):
        task, members = glue_data.TASKS[name], [("checkpoint", str(tmp_path), None), ("cut", 2, None)]
        folders = glue_experts.train_pool(args, task, members, [], tmp_path / folder, tokenizer, None, None)
        experts = [AutoModelForSequenceClassification.from_pretrained(own) for own in folders]
        return torch.stack([expert.classifier.weight.flatten() for expert in experts])

    first, again, other = heads("mrpc", "first"), heads("mrpc", "again"), heads("qqp", "other")
    assert torch.equal(first, again)
    for own, others in zip(first, other, strict=True):
        assert torch.corrcoef(torch.stack([own, others]))[0, 1].abs() < 0.5


def test_the_largest_expert_learns_from_its_own_answers(made, tmp_path, monkeypatch):
    distillation_rows, lessons, train_pool = {}, {}, run_glue.RoutedPoolRun.__init__.__globals__["train_pool"]

    def recording_pool(*args):
        *others, fit = args

        def recording_fit(name, model, data, *rest):
            distillation_rows[name] = sum("teacher_logits" in row for row in data), len(data)
            lessons[name] = [row.get("teacher_logits") for row in data]
            fit(name, model, data, *rest)

        return train_pool(*others, recording_fit)

    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.train_pool", recording_pool)
    run_glue_no_trainer.main(arguments(made, tmp_path / "out", "--self_distillation"))
    own = distillation_rows["final-expert-teacher"][1]
    copies = distillation_rows["final-expert-1"]
    expected = {"final-expert-teacher": (0, own), "final-expert-1": copies, "final-expert-0": copies}
    assert distillation_rows == expected and [*distillation_rows] == [*expected]
    assert copies[0] == copies[1] > own
    assert lessons["final-expert-0"] != lessons["final-expert-1"]  # the small one's teacher has learned again
    experts = tmp_path / "out" / "experts" / "final"
    teacher, largest = (AutoModelForSequenceClassification.from_pretrained(experts / own) for own in ("teacher", "1"))
    assert torch.equal(teacher.get_input_embeddings().weight, largest.get_input_embeddings().weight)
    assert not torch.equal(teacher.classifier.weight, largest.classifier.weight)


@pytest.mark.parametrize("most, held_out", [(2000, 24 + 12), (6, 6 + 12)])
def test_a_router_takes_no_more_rows_from_the_experts_than_it_can_use(made, tmp_path, monkeypatch, most, held_out):
    sizes = []
    final_experts = run_glue_no_trainer.RoutedPoolRun.final_experts

    def recording(self, rows, own, unseen):
        sizes.append((len(own), len(unseen)))
        return final_experts(self, rows, own, unseen)

    monkeypatch.setattr(run_glue_no_trainer.RoutedPoolRun, "final_experts", recording)
    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.ROUTER_ROWS", most)
    run_glue_no_trainer.main(arguments(made, tmp_path / "out"))
    assert sizes == [(120 - held_out, held_out)]


def measured_arguments(made, tmp_path, *more):
    args, training_args = run_glue.parse_args(arguments(made, tmp_path, *TRAINER, *more))
    args.expert_costs = []
    return args.adopt(training_args)


def measured(monkeypatch, *seconds):
    """Every measurement replaced: they take these seconds, one after the other."""
    asked, seconds = [], iter(seconds)

    def run(secure, batch):
        manifest = secure.manifest
        asked.append((manifest.quotas or manifest.experts[0].num_layers, manifest.max_length, batch))
        return {"seconds": next(seconds), "bytes": 800 * len(asked)}

    monkeypatch.setattr(glue_costs, "_run", run)
    return asked


def test_a_measurement_is_the_median_of_three_after_a_warm_up():
    seconds = iter([50.0, 3.0, 9.0, 4.0])

    class Session:
        def __call__(self, inputs):
            assert inputs["input_ids"].shape == (2, 8)
            cost = {"online_seconds": next(seconds), "online_bytes": 800, "rounds": 7}
            return SimpleNamespace(cost=SimpleNamespace(**cost))

    secure = SimpleNamespace(manifest=SimpleNamespace(max_length=8), local_session=lambda: nullcontext(Session()))
    assert glue_costs._run(secure, 2) == {"seconds": 4.0, "bytes": 800, "rounds": 7}


def pool_of(shares):
    experts = [family_config("bert", layers=layers, width=16) for layers in (1, 2)]
    router = {"router_shares_expert": 0} if shares else {"router_config": experts[0]}
    config = SecureRouterConfig(expert_configs=experts, expert_costs=[1.0, 2.0], **router)
    return SecureRouterForSequenceClassification(config).eval()


def two_experts(made, tmp_path):
    model = BertForSequenceClassification.from_pretrained(made / "checkpoint")
    cut_layers(model, 1).save_pretrained(tmp_path / "shallow")
    return [glue_experts.load_expert(folder) for folder in (tmp_path / "shallow", made / "checkpoint")]


@pytest.mark.parametrize("shares", [True, False])
def test_the_router_costs_what_a_routed_batch_takes_beyond_its_experts(made, tmp_path, monkeypatch, shares):
    args = measured_arguments(made, tmp_path)
    asked = measured(monkeypatch, 8.0, 32.0, 40.0)
    pools = []

    def make_pool(costs):
        pools.append(costs["routed_seconds"])
        return pool_of(shares)

    small, large = two_experts(made, tmp_path)
    costs = glue_costs.measure_costs(args, [small, large], [12, 30], large, make_pool)
    assert asked == [(1, 12, 8), (3, 24, 8), ((4, 4), 24, 8)] and pools == [[1.0, 4.0]]
    assert (
        costs["seconds"] == [1.0, 4.0]
        and costs["largest_seconds"] == 4.0
        and costs["bytes"] == [100, 200]
        and costs["source"] == "measured"
    )
    # 40 seconds for eight: the larger expert's four take 16; the smaller's take nothing more where it has run already.
    router = (40 - 16) / 8 if shares else (40 - 16 - 4) / 8
    assert costs["routed_seconds"] == pytest.approx([router + (0 if shares else 1), router + 4])


def test_runs_of_equal_shapes_share_what_was_measured(made, tmp_path, monkeypatch):
    experts, pool = two_experts(made, tmp_path), pool_of(True)
    shared = ("--costs_dir", str(tmp_path / "costs"))
    asked = measured(monkeypatch, 8.0, 32.0, 40.0, 10.0, 4.0, 16.0, 20.0)
    first, second = (measured_arguments(made, tmp_path / name, *shared) for name in ("mrpc", "rte"))
    found = glue_costs.measure_costs(first, experts, [None, None], experts[1], lambda costs: pool)
    routed = glue_costs.measure_routed(first, experts[1], pool, [6, 2])
    # The larger expert has been measured alone already.
    assert len(asked) == 4 and routed["seconds"] == {"routed": 10.0, "largest": 32.0, "relative": 10 / 32}
    assert glue_costs.measure_costs(second, experts, [None, None], experts[1], lambda costs: pool) == found
    assert glue_costs.measure_routed(second, experts[1], pool, [6, 2]) == routed and len(asked) == 4
    # Nor does the number of labels make another shape.
    three = BertForSequenceClassification.from_pretrained(
        made / "checkpoint", num_labels=3, ignore_mismatched_sizes=True
    )
    assert glue_costs.measure_routed(second, three, pool, [6, 2]) == routed and len(asked) == 4
    second.profile_seq_length = 12
    glue_costs.measure_costs(second, experts, [None, None], experts[1], lambda costs: pool)
    assert asked[4:] == [(1, 12, 8), (3, 12, 8), ((4, 4), 12, 8)]


def test_given_costs_count_a_shared_encoder_once(made, tmp_path):
    args = measured_arguments(made, tmp_path)
    args.expert_costs = [1.0, 4.0]
    assert glue_costs.measure_costs(args, [None] * 2, [None] * 2, None, None)["routed_seconds"] == [1.0, 5.0]
    args.share_router_encoder = False
    assert glue_costs.measure_costs(args, [None] * 2, [None] * 2, None, None)["routed_seconds"] == [2.0, 5.0]


def test_a_routed_batch_is_measured_against_the_largest_expert(made, tmp_path, monkeypatch):
    args = measured_arguments(made, tmp_path)
    asked = measured(monkeypatch, 10.0, 25.0)
    found = glue_costs.measure_routed(args, glue_experts.load_expert(made / "checkpoint"), pool_of(True), [6, 2])
    assert asked == [((6, 2), 24, 8), (3, 24, 8)]
    assert found["seconds"] == {"routed": 10.0, "largest": 25.0, "relative": 0.4}


def test_encrypted_answers_are_compared_with_the_clear_policy():
    task, labels = glue_data.TASKS["mrpc"], torch.tensor([0, 1, 1])
    scores = torch.tensor([[0.5, 0.9], [0.5, 0.6], [0.5, 0.7]])  # batches of two: 0 | 1, then 2 and its copy
    logits = torch.tensor([[[0.0, 1.0], [3.0, 2.0]], [[4.0, 5.0], [7.0, 6.0]], [[0.0, 1.0], [3.0, 2.0]]])
    clear = torch.stack([logits[0, 1], logits[1, 0], logits[2, 1]])
    found = glue_encrypted.compare_with_clear(task, clear + 0.25, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["largest_error"] == 0.25 and found["labels_equal"] == found["inputs"] == 3
    assert found["served_elsewhere"] == 0
    assert found["metrics"] == found["clear_metrics"]
    swapped = torch.stack([logits[0, 0], logits[1, 1], logits[2, 1]])
    found = glue_encrypted.compare_with_clear(task, swapped, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["served_elsewhere"] == 2 and found["largest_error"] == 0
    # Rounded answers of an expert lie further from its clear ones, and may be nearer to those of another.
    near = torch.stack([clear, clear + 0.3], dim=1)
    rounded = task, clear + 0.2, scores, near, [1, 1], [2.0, 1.0], labels
    assert glue_encrypted.compare_with_clear(*rounded)["served_elsewhere"] > 0
    assert glue_encrypted.compare_with_clear(*rounded, narrow=True)["served_elsewhere"] == 0
    other = clear.flip(1)
    found = glue_encrypted.compare_with_clear(task, other, scores, logits, [1, 1], [1.0, 2.0], labels)
    assert found["labels_equal"] == 0 and found["metrics"] != found["clear_metrics"]


def test_validation_rows_are_classified_on_secret_shares(made, tmp_path):
    report = run_glue_no_trainer.main(
        arguments(made, tmp_path / "out", "--encrypted_eval_samples", "9", "--quota_batch_size", "4")
    )
    found = report["encrypted"]
    assert found["inputs"] == found["labels_equal"] == 9 and found["largest_error"] < 0.02


@pytest.mark.slow
def test_costs_are_measured_under_encryption(made, tmp_path):
    args = measured_arguments(made, tmp_path, "--quota_batch_size", "2")
    pool = pool_of(True)
    expert = glue_experts.load_expert(made / "checkpoint")
    costs = glue_costs.measure_costs(args, [expert] * 2, [24, 24], expert, lambda costs: pool)
    assert all(value > 0 for value in costs["seconds"] + costs["routed_bytes"])
    found = glue_costs.measure_routed(args, expert, pool, [1, 1])
    assert 0 < found["bytes"]["relative"] < 2


def test_the_narrow_expert_starts_from_the_principal_components(made):
    torch.manual_seed(0)
    large = BertForSequenceClassification(family_config("bert", width=256, vocab_size=300))
    table = torch.randn(300, 100) @ torch.randn(100, 256)
    large.bert.embeddings.word_embeddings.weight.data = table
    small = glue_experts.narrow(large)
    assert (small.config.num_hidden_layers, small.config.hidden_size, small.config.intermediate_size) == (2, 128, 512)
    kept = small.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(kept @ kept.T, table @ table.T, rtol=1e-3, atol=0.5)
    assert large.config.hidden_size == 256


def test_a_distilled_expert_learns_from_perturbed_copies_too(made, tokenizer):
    rows = glue_data.tokenize(glue_data.TASKS["mrpc"], made_up_rows(30, 2), tokenizer, 16)
    special = set(tokenizer.all_special_ids)
    copies = glue_data.perturb(rows, 2, special, seed=0)
    assert len(copies) == 60
    for row, copy in zip(rows * 2, copies, strict=True):
        assert len(row["input_ids"]) == len(copy["input_ids"])
        changed = [a for a, b in zip(row["input_ids"], copy["input_ids"], strict=True) if a != b]
        assert not special & set(changed) and not special & (set(copy["input_ids"]) - set(row["input_ids"]))
    assert sum(a["input_ids"] != b["input_ids"] for a, b in zip(rows * 2, copies, strict=True)) > 20


@pytest.mark.parametrize(("processes", "launcher"), [("1", "python"), ("2", "torchrun --nproc_per_node 2")])
def test_a_command_says_how_many_processes_ran_and_no_place(monkeypatch, processes, launcher):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    command = run_glue.command_line("training/run_glue.py", ["--data_dir", "/somewhere/glue", "--task_name", "rte"])
    assert command == f"{launcher} training/run_glue.py --data_dir glue --task_name rte"


def test_parts_are_disjoint_and_seeded():
    rows = made_up_rows(100, 0)
    parts = glue_data.split_rows(glue_data.TASKS["mrpc"], rows, [0.2, 0.1], 0)
    assert [len(part) for part in parts] == [70, 20, 10] and sorted(sum(parts, [])) == list(range(100))
    assert parts == glue_data.split_rows(glue_data.TASKS["mrpc"], rows, [0.2, 0.1], 0)
    assert parts != glue_data.split_rows(glue_data.TASKS["mrpc"], rows, [0.2, 0.1], 1)


@pytest.mark.parametrize("task", sorted(glue_data.TASKS))
def test_every_task_is_encoded(task, tokenizer):
    task = glue_data.TASKS[task]
    row = {column: f"the film {index}" for index, column in enumerate(task.columns)} | {"label": 1, "idx": 3}
    (encoded,) = glue_data.tokenize(task, [row], tokenizer, 16)
    assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert encoded["input_ids"].count(tokenizer.sep_token_id) == len(task.columns)
    assert isinstance(encoded["labels"], float) == (task.name == "stsb")


def test_a_file_of_the_users_comes_before_the_folder(made, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 0}) + "\n")
    args, _ = run_glue.parse_args(arguments(made, "out", *TRAINER, "--train_file", str(file)))
    assert glue_data.load_split(args, "train") == [{"sentence1": "a", "sentence2": "b", "label": 0}]
    assert len(glue_data.load_split(args, "validation")) == 40
    file.write_text(json.dumps({"text": "a", "label": 0}))
    with pytest.raises(SecureRouterValueError, match="wants rows with label, sentence1, sentence2"):
        glue_data.load_split(args, "train")


def test_a_pool_of_one_is_refused(made):
    args, _ = run_glue.parse_args(["--task_name", "mrpc", "--model_name_or_path", "x", "--output_dir", "y", *TRAINER])
    with pytest.raises(SecureRouterValueError, match="two experts or more"):
        glue_experts.plan_pool(args)


def test_the_documented_commands_are_understood():
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "cotraining")]
    texts = "\n".join(pages) + run_glue.__doc__ + run_glue_no_trainer.__doc__
    commands = re.findall(
        r"^ *(?:python|accelerate launch) training/(run_glue\w*|cotrain)\.py((?:.*\\\n)*.*)$", texts, re.M
    )
    assert len(commands) >= 4 and "cotrain" in dict(commands)
    pool = [("narrow", None, None), ("cut", 2, None), ("cut", 6, None), ("cut", 12, None)]
    for script, options in commands:
        argv = shlex.split(options.replace("\\\n", " "))
        if script == "cotrain":
            args, _ = run_glue.parse_args(argv, cotrain.CotrainArguments)
            assert glue_experts.plan_pool(args) == pool
            assert args.exact_dir == "mrpc-router"
            continue
        module = {"run_glue": run_glue, "run_glue_no_trainer": run_glue_no_trainer}[script]
        args, _ = module.parse_args(argv)
        assert glue_experts.plan_pool(args) == pool
        assert args.share_router_encoder and args.router_objective == "utility"
        assert not module.parse_args([*argv, "--share_router_encoder", "false"])[0].share_router_encoder
