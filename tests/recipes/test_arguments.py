# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Arguments: the documented commands, what the card says, and what a resumed run has to have in common."""

import importlib
import json
import re
import shlex

import pytest
import run_glue
import run_glue_no_trainer

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.recipes.arguments import DataArguments, RunArguments, command_line
from hf_securerouter.recipes.cotrained_pool import CotrainArguments
from hf_securerouter.recipes.data import open_data
from hf_securerouter.recipes.experts import plan_pool
from hf_securerouter.recipes.fit_with_trainer import parse_args
from tests.recipes.made_up import arguments, loop_run
from tests.support import ROOT


@pytest.mark.parametrize(("processes", "launcher"), [("1", "python"), ("2", "torchrun --nproc_per_node 2")])
def test_a_command_says_how_many_processes_ran_and_no_place(monkeypatch, processes, launcher):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    command = command_line("training/run_glue.py", ["--data_dir", "/somewhere/glue", "--task_name", "rte"])
    assert command == f"{launcher} training/run_glue.py --data_dir glue --task_name rte"


@pytest.mark.parametrize(
    "given", [["--hub_token", "hf_secret"], ["--hub-token=hf_secret"], ["--push_to_hub_token", "hf_secret"]]
)
def test_a_command_has_no_token_and_no_place_behind_an_equals_sign(given):
    command = command_line("training/run_glue.py", [*given, "--output_dir=/home/me/out", "--seed", "-1"])
    assert command == "python training/run_glue.py --output_dir=out --seed -1"


def test_an_abbreviated_option_is_refused():
    with pytest.raises(ValueError, match="not used"):
        parse_args(["--output_dir", "x", "--use_cpu", "--hub_tok", "hf_secret"], RunArguments, "")


def test_the_documented_commands_are_understood():
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "cotraining")]
    texts = "\n".join(pages) + run_glue.__doc__ + run_glue_no_trainer.__doc__
    commands = re.findall(
        r"^ *(?:python|accelerate launch) training/(run_glue\w*|cotrain)\.py((?:.*\\\n)*.*)$", texts, re.M
    )
    assert len(commands) >= 4 and "cotrain" in dict(commands)
    parsers = {
        "run_glue": lambda argv: parse_args(argv, RunArguments, ""),
        "run_glue_no_trainer": run_glue_no_trainer.parse_args,
    }
    pool = [("narrow", None, None), ("cut", 2, None), ("cut", 6, None), ("cut", 12, None)]
    for script, options in commands:
        argv = shlex.split(options.replace("\\\n", " "))
        if script == "cotrain":
            args, _ = parse_args(argv, CotrainArguments, "")
            assert plan_pool(args) == pool
            assert args.exact_dir == "mrpc-router"
            continue
        args, _ = parsers[script](argv)
        assert plan_pool(args) == pool
        assert args.share_router_encoder and args.router_objective == "utility"
        assert not parsers[script]([*argv, "--share_router_encoder", "false"])[0].share_router_encoder


def test_arguments_of_before_are_the_same_run():
    args = CotrainArguments(task_name="mrpc", variants=["reduced", "2quad"])
    found = args.fingerprint()
    assert args.differences(found) == []
    for name in ("text_column", "text_pair_column", "label_column", "dataset_name"):  # which there were not
        del found[name]
    assert args.differences(found | {"variants": ["w8a8", "2quad"]}) == []
    assert args.differences(found | {"alpha": 7.0, "variants": ["w8a8"]}) == ["alpha", "variants"]
    assert (
        RunArguments(task_name="mrpc", train_file="a.csv").differences(RunArguments(task_name="mrpc").fingerprint())
        == []
    )


def test_a_run_does_not_go_on_with_another_optimizer():
    args, _ = parse_args(["--output_dir", "x", "--use_cpu", "--weight_decay", "0.1"], RunArguments, "")
    found = json.loads(json.dumps(args.fingerprint()))
    other, _ = parse_args(["--output_dir", "x", "--use_cpu", "--optim", "sgd"], RunArguments, "")
    assert args.differences(found) == [] and other.differences(found) == ["optim", "weight_decay"]
    larger, _ = parse_args(["--output_dir", "x", "--use_cpu", "--gradient_accumulation_steps", "2"], RunArguments, "")
    assert larger.differences(found) == ["rows_of_an_update", "weight_decay"]
    del found["training"]  # a run of before
    assert other.differences(found) == []


def test_a_run_goes_on_in_no_folder_of_another_kind():
    args, other = RunArguments(task_name="mrpc"), CotrainArguments(task_name="mrpc", exact_dir="exact")
    own = ["copied_experts", "exact_dir", "most_lost", "slim_heads", "slim_neurons", "variants"]
    assert args.differences(other.fingerprint()) == own
    assert "exact_dir" in other.differences(args.fingerprint())


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (("--max_train_steps", "5"), "max_train_steps"),
        (("--warmup_ratio", "0.5"), "warmup_ratio"),
        (("--mixed_precision", "fp16"), "mixed_precision"),
    ],
)
def test_the_loop_does_not_go_on_with_other_steps(option, name):
    given = ["--output_dir", "x", "--use_cpu", "--task_name", "mrpc"]
    args, _ = run_glue_no_trainer.parse_args(given)
    found = json.loads(json.dumps(args.fingerprint()))
    assert args.differences(found) == []
    other, _ = run_glue_no_trainer.parse_args([*given, *option])
    assert other.differences(found) == [name]
    trainer, _ = parse_args(given, RunArguments, "")
    assert "arguments" in trainer.differences(found)  # the loops of the two scripts are not the same


def test_variants_of_before_have_new_names():
    args, _ = parse_args(["--output_dir", "x", "--use_cpu", "--variants", "w8a8", "w8a8+slim"], CotrainArguments, "")
    assert args.variants == ["reduced", "reduced+slim"] == CotrainArguments().variants


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "training").glob("*.py")))
def test_every_script_has_help(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--" in text
    if script.startswith("run_glue"):
        assert "Draws for the 95 % intervals." in text and f"training/{script}.py --task_name mrpc" in text


@pytest.mark.parametrize(
    "option",
    [
        ("--freeze", "experts.0"),
        ("--class_weights", "1", "2"),
        ("--eval_strategy", "epoch"),
        ("--label_smoothing_factor", "0.1"),
    ],
)
def test_arguments_of_the_trainer_that_a_run_does_not_use_are_refused(option):
    with pytest.raises(SecureRouterValueError, match=f"`{option[0]}` has no effect on a run"):
        parse_args(["--output_dir", "out", *option], RunArguments, "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_eval_samples", -3, "should be an integer of at least 1, got -3"),
        ("max_train_samples", 0, "should be an integer of at least 1, got 0"),
        ("encrypted_eval_samples", -1, "should be an integer of at least 0, got -1"),
        ("perturbed_copies", -1, "should be an integer of at least 0, got -1"),
        ("quota_batch_size", 0, "should be an integer of at least 1, got 0"),
        ("quota_batch_size", 300, "should be at most 256, .* got 300"),
        ("cross_fit_folds", 1, "should be 2 or more, or 0 .* got 1"),
        ("bootstrap_resamples", 0, "should be an integer of at least 1, got 0"),
        ("temperature", 0.0, "should be a finite number above 0, got 0.0"),
        ("alpha", -1.0, "should be a finite number at least 0, got -1.0"),
        ("expert_costs", -1.0, "should be a finite number above 0, got -1.0"),
        ("distillation_epochs", float("nan"), "should be a finite number at least 0, got nan"),
    ],
)
def test_a_number_that_no_run_can_have_is_refused_before_anything_is_read(made, tmp_path, name, value, message):
    more = [str(value), "4"] if name == "expert_costs" else [str(value)]
    with pytest.raises(SecureRouterValueError, match=f"`{name}` {message}"):
        loop_run(arguments(made, tmp_path / "out", f"--{name}", *more))
    assert not (tmp_path / "out").exists()
    if name.endswith("_samples") and name.startswith("max"):
        with pytest.raises(SecureRouterValueError, match=f"`{name}` {message}"):
            open_data(DataArguments(task_name="mrpc", **{name: value}))
