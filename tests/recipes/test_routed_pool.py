# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A whole run of each script on made-up lines, and going on after a stop."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_glue_no_trainer
import torch
from accelerate import PartialState
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.metrics import glue_score
from hf_securerouter.recipes import fit_with_trainer
from hf_securerouter.recipes.data import tokenize
from hf_securerouter.recipes.distillation import expert_loss
from hf_securerouter.recipes.experts import train_pool
from hf_securerouter.recipes.results import FIELDS
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import SCRIPTS, arguments, loop_run, made_up_rows


@pytest.mark.parametrize("script, task", [("trainer", "mrpc"), ("loop", "mrpc"), ("loop", "stsb")])
def test_a_run_leaves_a_checkpoint_a_report_and_a_row(made, tmp_path, script, task, monkeypatch, capsys):
    module, more = SCRIPTS[script]
    table = tmp_path / "results.json"
    out = tmp_path / "out"
    uploads = []
    if script == "trainer":
        more = (*more, "--push_to_hub", "--hub_model_id", "you/router")
        monkeypatch.setattr(
            "hf_securerouter.recipes.pushing.HfApi.create_repo",
            lambda self, name, **kwargs: SimpleNamespace(repo_id=name),
        )
        monkeypatch.setattr(
            "hf_securerouter.recipes.pushing.HfApi.upload_folder", lambda self, **kwargs: uploads.append(kwargs)
        )
    report = module.main(arguments(made, out, *more, "--results_file", str(table), task=task))

    model = SecureRouterForSequenceClassification.from_pretrained(out)
    assert model.config.router_objective == "utility" and model.config.router_shares_expert == 0
    assert model.config.expert_costs == [1.0, 5.0] and sum(model.config.quotas) == 8
    assert model.config.routing_lambda == report["tuning"]["utility"]["routing_lambda"]
    assert AutoTokenizer.from_pretrained(out).model_max_length == 24

    # The saved experts are those of the run, but for the temperatures of their heads.
    ids = torch.tensor([[2, 7, 9, 3]])
    temperatures = [1.0, 1.0] if task == "stsb" else report["calibration"]["temperatures"]
    assert (report["calibration"] is None) == (task == "stsb")
    for expert, folder, temperature in zip(model.experts, ("0", "1"), temperatures, strict=True):
        alone = AutoModelForSequenceClassification.from_pretrained(out / "experts" / "final" / folder)
        torch.testing.assert_close(expert(ids).logits, alone(ids).logits / temperature)
    assert len({1.0, *temperatures}) > 1 or task == "stsb"

    (row,) = json.loads(table.read_text())["tasks"]
    assert tuple(row) == FIELDS and row["task"] == task
    assert row["metric"] == {"mrpc": "f1", "stsb": "pearson+spearmanr"}[task]
    assert row["routed_score"] == pytest.approx(100 * report["policies"]["utility, quotas"]["score"])
    assert set(row["audc"]) == {"utility", "gumbel", "cascade", "zero", "oracle"}
    # Every query pays for the router, 1 of a budget of 2, which leaves a quarter of the larger expert.
    assert model.config.quotas[1] <= 2 and report["policies"]["utility, quotas"]["relative_cost"] <= 0.5 + 1e-9
    assert row["relative_cost"] is None and row["relative_bytes"] is None  # nothing was measured
    assert row["command"].startswith(f"python training/{Path(module.__file__).name} --task_name {task}")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{out}: {row['metric']} {row['routed_score'] / 100:.4f} at 0.") for line in lines)
    assert "Expert 2 of 2 answers 36 rows ..." in lines and "Fitting the gumbel router on 24 rows ..." in lines
    card = (out / "README.md").read_text()
    assert ("Probabilities are calibrated" in card) == (task != "stsb")
    assert "Quality over cost" in card and "curve.png" in card and "utility, quotas" in card
    assert str(tmp_path) not in card and str(made) not in card
    for upload in uploads:
        names = [path.name for path in out.iterdir()]
        files = set(filter_repo_objects(names, allow_patterns=upload["allow_patterns"]))
        assert upload["repo_id"] == "you/router" and {"config.json", "model.safetensors", "tokenizer.json"} < files
        assert {"README.md", "curve.png", "report.json"} < files and not files & {"row.json", "answers.safetensors"}
    assert len(uploads) == (script == "trainer")


def test_experts_read_as_much_as_the_run_says(made, tmp_path):
    longest = {}

    def recording_pool(*args):
        *others, train = args

        def recording_train(name, model, data, *rest):
            longest[name] = max(len(row["input_ids"]) for row in data)
            train(name, model, data, *rest)

        return train_pool(*others, recording_train)

    table = tmp_path / "results.json"
    more = ("--expert_max_lengths", "10", "128", "--results_file", str(table))
    report = loop_run(arguments(made, tmp_path / "out", *more, task="stsb"), train_pool=recording_pool)()
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
    tokenizer = AutoTokenizer.from_pretrained(made / "checkpoint")
    rows = tokenize(TASKS["stsb"], made_up_rows(40, 1, True), tokenizer, 16)
    inputs = {name: torch.tensor([r[name] for r in rows]) for name in ("input_ids", "attention_mask")}
    inputs["token_type_ids"] = torch.tensor([r["token_type_ids"] for r in rows])
    found = model.run_experts(inputs, torch.zeros(40, dtype=torch.long))[:, 0].detach()
    score = glue_score("stsb")(found.numpy(), torch.tensor([r["labels"] for r in rows]).numpy())
    assert report["experts"][0]["score"] == pytest.approx(score)


def test_the_validation_split_is_read_once_and_last(made, tmp_path):
    seen = []

    class Recording(RoutedPoolRun):
        def load_rows(self, split):
            done = sorted(path.name for path in self.folder.iterdir())
            seen.append((split, "tuning-utility.json" in done and "tuning-gumbel.json" in done))
            return super().load_rows(split)

    loop_run(arguments(made, tmp_path / "out"), Recording)()
    assert seen == [("train", False), ("validation", True)]


def test_a_finished_run_is_not_published_with_other_rows(made, tmp_path):
    loop_run(arguments(made, tmp_path / "out"))()
    lines = [json.dumps(row) + "\n" for row in made_up_rows(40, 7)]
    (tmp_path / "dev.jsonl").write_text("".join(lines))
    other = ("--validation_file", str(tmp_path / "dev.jsonl"))
    with pytest.raises(SecureRouterValueError, match="a run with other validation rows"):
        loop_run(arguments(made, tmp_path / "out", *other))()


def test_another_budget_may_be_named_until_quotas_are_found(made, tmp_path):
    argv = arguments(made, tmp_path / "out")
    loop_run(argv)
    run = loop_run([*argv, "--budget_seconds", "3"])
    assert json.loads((tmp_path / "out" / "arguments.json").read_text())["budget_seconds"] == 3.0
    (run.folder / "tuning-utility.json").write_text("{}")
    with pytest.raises(SecureRouterValueError, match="a run with another `budget_seconds`"):
        loop_run(argv)


def test_what_all_experts_cut_off_counts_as_cut(made, tmp_path):
    report = loop_run(arguments(made, tmp_path / "out", "--max_seq_length", "8"))()
    assert report["cut"] == [1, 1]  # the rows have 10 tokens and more


def test_a_step_goes_on_from_its_newest_whole_checkpoint(tmp_path):
    for step, state in ((9, True), (100, True), (200, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert fit_with_trainer.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert fit_with_trainer.last_checkpoint(tmp_path / "none") is None


def without_record(folder, costs=True):
    """A run's folder as an older version left it: nothing says whose encoder its router reads."""
    if costs:
        values = json.loads((folder / "costs.json").read_text())
        values.pop("router_shares_expert", None)
        (folder / "costs.json").write_text(json.dumps(values))
    for path in folder.glob("router-*.safetensors"):
        save_file(load_file(path), path)


@pytest.mark.parametrize("costs, agree", [(("1", "4"), True), (("4", "1"), False)])
def test_a_run_does_not_go_on_with_a_router_that_reads_another_encoder(made, tmp_path, costs, agree):
    argv = arguments(made, tmp_path / "out", "--expert_costs", *costs)
    fitted = loop_run(argv)
    fitted()
    router = fitted.folder / "router-utility.safetensors"
    with safe_open(router, "pt") as file:
        assert file.metadata() == {"router_shares_expert": str(int(not agree))}
    expected = loop_run(argv)()  # a folder of this version goes on
    folders = [fitted.folder / "experts" / "final" / name for name in "01"]
    # An older version shared the encoder of the expert with the fewest parameters, here the first one.
    for costs_too in (False, True):
        without_record(fitted.folder, costs_too)
        if agree:
            assert loop_run(argv)() == expected
            continue
        remedy = "remove " + "costs.json, " * costs_too + "router-gumbel.safetensors, router-utility.safetensors, "
        remedy += "tuning-gumbel.json, tuning-utility.json, report.json"
        with pytest.raises(SecureRouterValueError, match=f"encoder of expert 1.* that of expert 2.*{remedy} there"):
            loop_run(argv)()
    if not agree:
        for name in remedy.removeprefix("remove ").split(", ")[1:]:
            (fitted.folder / name).unlink()
        with pytest.raises(SecureRouterValueError, match=r"remove costs.json there"):  # it charges the other expert
            loop_run(argv).costs(folders)
        (fitted.folder / "costs.json").unlink()
        assert loop_run(argv)()["routed_costs"] == expected["routed_costs"]


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

    steps, limit = [0], 16  # the largest expert takes 22, the one that is distilled from it 21

    def counted(*args):
        steps[0] += 1
        if steps[0] > limit:
            raise Stopped
        return expert_loss(*args)

    where = fit_with_trainer if script == "trainer" else run_glue_no_trainer
    monkeypatch.setattr(where, "expert_loss", counted)
    with pytest.raises(Stopped):
        module.main(stopped)
    with pytest.raises(SecureRouterValueError, match="a run with another `rows_of_an_update`"):
        module.main([*stopped, "--per_device_train_batch_size", "16"])
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
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.RoutedPoolRun.report", lambda *args: {"read": "elsewhere"}
    )
    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.RoutedPoolRun.save", lambda *args: None)
    module.main(arguments(made, tmp_path / "out", *more))
    assert seen == {"expert": {True}, "router": {False}}


def test_a_folder_of_another_run_is_refused(made, tmp_path):
    (tmp_path / "arguments.json").write_text(json.dumps({"task_name": "rte"}))
    with pytest.raises(SecureRouterValueError, match="another .*`task_name`.*name another folder"):
        run_glue_no_trainer.main(arguments(made, tmp_path))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_run_does_not_go_on_with_other_rows(made, tmp_path, split):
    run = loop_run(arguments(made, tmp_path / "out"))
    rows = run.load_rows(split)
    assert loop_run(arguments(made, tmp_path / "out")).load_rows(split) == rows
    run.data.rows = lambda split: [*rows[:-1], rows[-1] | {"label": 1 - rows[-1]["label"]}]
    with pytest.raises(SecureRouterValueError, match=f"a run with other {split} rows.*name another folder"):
        run.load_rows(split)


def test_the_report_waits_for_no_other_process(made, tmp_path, monkeypatch):
    """It is made in the main process alone."""

    class Run(RoutedPoolRun):
        def report(self, *arguments):
            with monkeypatch.context() as patched:
                patched.setattr(PartialState, "wait_for_everyone", lambda state: pytest.fail("it waits"))
                return super().report(*arguments)

    report = loop_run(arguments(made, tmp_path / "out"), Run)()
    assert report["policies"]


def test_cross_fitted_answers_come_from_experts_that_have_not_seen_the_row(made, tmp_path):
    trained, answered = {}, {}

    def recording_pool(args, task, members, rows, folder, *rest):
        trained[folder.name] = {id(row) for row in rows}
        return train_pool(args, task, members, rows, folder, *rest)

    class Recording(RoutedPoolRun):
        def answers(self, folders, rows):
            answered[folders[0].parent.name] = {id(row) for row in rows}
            return super().answers(folders, rows)

    argv = arguments(made, tmp_path / "out", "--cross_fit_folds", "2")
    loop_run(argv, Recording, train_pool=recording_pool)()
    assert len(trained["final"]) == 120
    for fold in ("fold-0", "fold-1"):
        assert trained[fold].isdisjoint(answered[fold]) and len(trained[fold] | answered[fold]) == 120
    assert answered["fold-0"].isdisjoint(answered["fold-1"])


def test_a_cross_fitted_router_learns_from_so_many_rows_at_most(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_securerouter.recipes.routed_pool.CROSS_FITTED_ROWS", 50)
    loop_run(arguments(made, tmp_path / "out", "--cross_fit_folds", "2"))()
    assert "Fitting the utility router on 50 rows" in capsys.readouterr().out


@pytest.mark.parametrize("most, held_out", [(2000, 24 + 12), (6, 6 + 12)])
def test_a_router_takes_no_more_rows_from_the_experts_than_it_can_use(made, tmp_path, monkeypatch, most, held_out):
    sizes = []

    class Recording(RoutedPoolRun):
        def final_experts(self, rows, own, held_out):
            sizes.append((len(own), len(held_out)))
            return super().final_experts(rows, own, held_out)

    monkeypatch.setattr("hf_securerouter.recipes.row_parts.ROUTER_ROWS", most)
    loop_run(arguments(made, tmp_path / "out"), Recording)()
    assert sizes == [(120 - held_out, held_out)]


def test_validation_rows_are_classified_on_secret_shares(made, tmp_path):
    report = run_glue_no_trainer.main(
        arguments(made, tmp_path / "out", "--encrypted_eval_samples", "9", "--quota_batch_size", "4")
    )
    found = report["encrypted"]
    assert found["inputs"] == found["labels_equal"] == 9 and found["largest_error"] < 0.02
    assert found["sure_labels_equal"] == found["sure"] <= 9
    # 9 queries are three batches of 4, which are filled up: each query pays for them.
    assert found["bytes"] * 9 % 3 == 0 and found["dealer_bytes"] > found["bytes"] > 0 and found["seconds"] > 0
