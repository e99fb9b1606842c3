# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter check`."""

import json

import pytest
import torch
from typer.testing import CliRunner

from hf_securerouter.cli import app
from hf_securerouter.families import layers_of
from tests.support.commands import write_lines
from tests.tiny import MAX_POSITIONS, noisy_classifier


@pytest.fixture
def folder(tmp_path, tokenizer):
    model = noisy_classifier("bert", width=16, heads=2)
    with torch.no_grad():
        layers_of(model)[1].intermediate.weight.mul_(60)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def checked(*arguments):
    done = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_check_names_what_exceeds_the_defaults_and_what_it_costs(folder):
    report = json.loads(checked(folder, "--json"))
    assert report["holds"] and report["widened"] == ["experts.0"] and report["max_length"] == MAX_POSITIONS
    inner = next(one for one in report["ranges"] if (one["layer"], one["kind"]) == (1, "inner"))
    assert inner["reached"] > inner["default"] and inner["bound"] > inner["reached"] and inner["margin_bits"] > 0.5
    (cost,) = report["members"]
    assert cost["online_bytes"] > cost["default_online_bytes"] > 0 and cost["rounds"] > 0 and cost["dealer_bytes"] > 0
    one, eight = report["batches"]
    assert (one["batch"], eight["batch"]) == (1, 8)
    assert one["dealer_bytes"] == cost["dealer_bytes"]
    assert all(0 < one[name] < eight[name] for name in ("party0", "party1", "dealer", "online_bytes", "dealer_bytes"))


def test_share_reports_the_same_and_takes_texts(folder, tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"text": "good film"}, {"text": "a film", "text_pair": "it was bad"}])
    done = CliRunner().invoke(app, ["share", str(folder), str(tmp_path / "one"), "--json"])
    report, expected = json.loads(done.stdout), json.loads(checked(folder, "--json"))
    same = ("holds", "widened", "ranges", "tightest", "least_margin_bits", "samples")
    assert {name: report[name] for name in same} == {name: expected[name] for name in same}
    arguments = ["share", str(folder), str(tmp_path / "two"), "--calibration", str(tmp_path / "texts.jsonl")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "texts.jsonl reach" in done.stdout
    bounds = [
        json.loads((tmp_path / name / "client" / "manifest.json").read_text())["bounds"] for name in ("one", "two")
    ]
    assert bounds[0] != bounds[1] and "experts.0.layers.0" not in bounds[0] and bounds[1]["experts.0.layers.0"]


def test_check_reads_texts_and_prints_tables(folder, tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"text": "good film"}, {"text": "a film", "text_pair": "it was bad"}])
    shown = checked(folder, "--input", tmp_path / "texts.jsonl", "--max-length", 8)
    assert "texts.jsonl reach, within 8 tokens" in shown and "margin" in shown and "MB between" in shown
    assert "memory that a batch takes at each role" in shown
