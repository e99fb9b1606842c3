# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The benchmark's report, from made-up results."""

import json
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))


@pytest.fixture
def report():
    import report

    return report


@pytest.fixture
def benchmark():
    import benchmark

    return benchmark


def cell(protocol, architecture="bert-base", batch_size=1, seq_length=128, delay_ms=None, **changes):
    gates = {"masked": ["Linear", "RowScale", "Activation", "tuples"], "crypten": ["linear", "layernorm", "gelu", "x"]}
    scale = {"masked": 1, "crypten": 10}[protocol]
    return {
        "architecture": architecture,
        "batch_size": batch_size,
        "seq_length": seq_length,
        "protocol": protocol,
        "delay_ms": delay_ms,
        "runs": 3,
        "online_bytes": 4_000_000 * scale,
        "rounds": 316 * scale,
        "dealer_bytes": 500_000_000,
        "preprocess_seconds": 0.5,
        "dealer_seconds": 7.25,
        "online_seconds": 3.0 * scale * (scale if delay_ms else 1),
        "peak_rss_bytes": {"party0": 2**30, "party1": 2**30, "dealer": 2**29, "client": 2**29},
        "estimated_seconds": {"lan": 1.0 * scale, "wan": 2.0 * scale, "delay": 4.0 * scale},
        "by_gate": [
            {"gate": gate, "online_bytes": 10**6 * scale, "rounds": 79 * scale, "seconds": 0.5, "dealer_bytes": 10**6}
            for gate in gates[protocol]
        ],
    } | changes


@pytest.fixture
def results():
    return {
        "machine": "2 cores of a computer, 24 GiB",
        "cells": {
            "bert-base/1x512/masked": cell("masked", seq_length=512, runs=1),
            "bert-base/1x128/masked": cell("masked"),
            "bert-base/1x128/crypten": cell("crypten"),
            "bert-base/1x128/masked/10ms": cell("masked", delay_ms=10.0),
            "bert-base/1x128/crypten/10ms": cell("crypten", delay_ms=10.0, runs=1),
        },
    }


def test_section_has_both_protocols_side_by_side(report, results):
    lines = report.section(results).splitlines()
    assert (
        "| bert-base | 1 × 128 | 4 / 40 (10×) | 316 / 3,160 (10×) | 3 / 30 (10×) | 3 / 3 (1×) | 500 | 0.5 | 7.25 |"
        in lines
    )
    alone = "| bert-base | 1 × 512 | 4 / – | 316 / – | 3* / – | 3 / – | 500 | 0.5 | 7.25 |"
    assert lines.index(alone) == lines.index("| --- | --- | --- | --- | --- | --- | --- | --- | --- |") + 2
    assert "| linear layers | 1 / 10 (10×) | 79 / 790 (10×) | 0.5 / 0.5 (1×) | 1 |" in lines
    assert "| products of attention | 0 / 0 | 0 / 0 | 0 / 0 | 0 |" in lines
    assert "| the rest | 1 / 10 (10×) | 79 / 790 (10×) | 0.5 / 0.5 (1×) | 1 |" in lines
    assert "| bert-base | 1 × 128 | 10 ms | 3 / 300* (100×) | 4 / 40 (10×) | 1 / 10 (10×) | 2 / 20 (10×) |" in lines
    assert sum(line.startswith(("| SHAFT", "| SIGMA", "| FuseFSS")) for line in lines) == len(report.PUBLISHED)
    assert any("published, not run here" in line for line in lines)
    assert "2 cores of a computer, 24 GiB" in lines[0]


def test_gates_of_every_pair_are_split(report, results):
    text = report.gates(results)
    assert text.startswith("bert-base, 1 × 128 tokens\n") and "512" not in text


def test_nothing_measured_yet_is_no_error(report):
    assert "published, not run here" in report.section({"machine": "", "cells": {}})


def test_only_what_is_between_the_marks_is_replaced(report, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    path.chmod(0o640)
    for text in ("new", "newer"):
        report.write_section(path, text)
        assert path.read_text() == f"before\n{report.BEGIN}\n\n{text}\n\n{report.END}\nafter\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [found.name for found in tmp_path.iterdir()] == ["page.md"]
    begin, end = report.BEGIN, report.END
    for content in ("nothing", f"{end} {begin}", f"{begin} {begin} {end}", f"{begin} {end} {end}"):
        path.write_text(content)
        with pytest.raises(ValueError, match="each once"):
            report.write_section(path, "text")
        assert path.read_text() == content


def test_the_page_has_the_marks_and_the_plot(report, benchmark):
    path = benchmark.ROOT / "docs" / "benchmark.md"
    page = path.read_text(encoding="utf-8")
    assert page.index(report.BEGIN) < page.index(report.END)
    assert f"]({report.PLOT})" in page and (path.parent / report.PLOT).exists()
    assert report.BEGIN not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_rerun_measures_what_is_missing_and_keeps_each_cell(benchmark, report, tmp_path, monkeypatch):
    page, kept = tmp_path / "page.md", tmp_path / "results" / "cells.json"
    page.write_text(f"{report.BEGIN}\n{report.END}")
    asked = []

    def measure(asked_cell):
        asked.append(asked_cell.name)
        assert list(json.loads(kept.read_text())["cells"] if kept.exists() else []) == done
        if asked_cell.protocol == "crypten" and len(asked) < 4:
            return None
        done.append(asked_cell.name)
        return cell(asked_cell.protocol, delay_ms=asked_cell.delay_ms)

    done: list[str] = []
    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(report, "plot", lambda *_: None)
    arguments = ["benchmark.py", "--results", str(kept), "--page", str(page), "--only", "bert-base/1x128"]
    monkeypatch.setattr(sys, "argv", arguments)
    names = [f"bert-base/1x128/{protocol}" for protocol in ("masked", "crypten")]
    names += [f"{name}/10ms" for name in names]
    assert benchmark.main() == 1  # the first cell of `crypten` fails
    assert asked == names
    asked.clear()
    asked.extend([""] * 3)
    assert benchmark.main() == 0
    assert asked[3:] == names[1:2]
    assert "| bert-base | 1 × 128 |" in page.read_text()


def test_grid_names_every_cell_once_and_asks_profile_for_it(benchmark):
    cells = list(benchmark.grid())
    assert len({found.name for found in cells}) == len(cells) == 28
    last = cells[-1]
    assert last.name == "bert-base/1x128/crypten/10ms"
    options = "--architecture bert-base --batch-size 1 --seq-length 128 --protocol crypten --delay-ms 10".split()
    assert last.command()[-len(options) :] == options
