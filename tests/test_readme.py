# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The README's code runs, on tiny checkpoints instead of those that it names."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from hf_securerouter import SecureRouterForSequenceClassification, cli
from tests.support import ROOT
from tests.tiny import MAX_POSITIONS, family_config


README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
CHECKPOINTS = {"prajjwal1/bert-tiny": 1, "google-bert/bert-base-uncased": 2, "google-bert/bert-large-uncased": 3}


@pytest.fixture
def workplace(tmp_path, monkeypatch, tokenizer):
    """A folder to work in, with a tiny checkpoint under each name of the README and SST-2 of eight lines."""
    monkeypatch.chdir(tmp_path)
    for name, layers in CHECKPOINTS.items():
        BertForSequenceClassification(family_config("bert", layers=layers)).save_pretrained(name)
        tokenizer.save_pretrained(name)
    rows = {"sentence": ["a good film", "a bad film"] * 4, "label": [1, 0] * 4}

    def load_dataset(*arguments):
        assert arguments == ("nyu-mll/glue", "sst2")
        split = datasets.Dataset.from_dict(rows)
        return datasets.DatasetDict({"train": split, "validation": split})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pushed = []
    monkeypatch.setattr(
        SecureRouterForSequenceClassification, "push_to_hub", lambda self, repo_id: pushed.append(repo_id)
    )
    return pushed


def test_code_of_the_readme_runs_in_its_order(workplace, capsys):
    training, use, encrypted = PYTHON_BLOCKS
    exec(compile(training, "README.md", "exec"), {})
    assert "eval_routing_share_0" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "README.md"} <= {path.name for path in Path("sst2-router").iterdir()}
    exec(compile(use, "README.md", "exec"), {})
    assert workplace == ["you/sst2-router"]

    assert "max_length=64" in encrypted
    exec(compile(encrypted.replace("max_length=64", f"max_length={MAX_POSITIONS}"), "README.md", "exec"), {})
    assert re.search(r"^\['LABEL_\d', 'LABEL_\d'\] None \d+$", capsys.readouterr().out, flags=re.MULTILINE)

    Path("texts.jsonl").write_text('{"text": "a good film"}\n')
    commands = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("securerouter ")]
    # Measurements run for minutes, and servers until they are stopped: of those, only the options are checked.
    used, others = commands[:2], commands[2:]
    assert [command[1] for command in used] == ["predict", "card"]
    for _, name, *options in others:
        offered = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in offered for option in options if option.startswith("--"))
    assert {command[1] for command in others} == {"profile", "demo", "share", "dealer", "party", "client"}
    for _, *arguments in used:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.stderr
    assert '"expert"' in Path("labels.jsonl").read_text()


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_files_and_modules_named_exist():
    root = ROOT
    for name in re.findall(r"`((?:training|model_cards)/[\w./-]+)`", README):
        assert (root / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "model_cards/README.md"])
def test_links_lead_to_files(page):
    path = ROOT / page
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert links
    for link in links:
        assert (path.parent / link).exists(), link
