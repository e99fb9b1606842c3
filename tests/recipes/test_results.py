# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The table of tasks, from the folders of finished runs."""

import json

import pytest
import results as script

from hf_securerouter.recipes import results


def test_seeds_of_a_task_become_one_row(tmp_path):
    def row(task, seed, score, qnc):
        audc = {"utility": score / 100, "gumbel": 0.5, "zero": 0.5, "oracle": 0.9}
        return dict.fromkeys(results.FIELDS, 1.0) | {
            "task": task, "metric": "f1", "experts": ["bert 3x16"], "cut": [0.25, 0], "seeds": [seed],
            "routed_score": score, "qnc": qnc, "audc": audc, "command": "python",
        }  # fmt: skip

    for name, values in {"a": ("rte", 1, 60.0, 0.4), "b": ("rte", 2, 62.0, None), "c": ("cola", 1, 50.0, 0.3)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "row.json").write_text(json.dumps(row(*values)))
        for file in results.COPIED:
            (tmp_path / name / file).write_text(f"{name}/{file}")
    table = tmp_path / "cards" / "results.json"
    script.main([str(tmp_path / "a"), "--results_file", str(table)])
    script.main([str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "c"), "--results_file", str(table)])
    cola, rte = json.loads(table.read_text())["tasks"]
    assert (cola["task"], cola["routed_score"], cola["qnc"]) == ("cola", 50.0, 0.3)
    assert rte["seeds"] == [1, 2] and rte["routed_score"] == 61.0 and rte["qnc"] is None
    assert rte["audc"]["utility"] == pytest.approx(0.61)
    assert "spread" not in cola
    assert rte["spread"] == pytest.approx({"largest_score": 0.0, "routed_score": 2**0.5, "lost": 2**0.5})
    assert (table.parent / "rte" / "README.md").read_text() == "b/README.md"
    page = (table.parent / "results.md").read_text()
    assert "| 1.00 | 50.00 | -49.00 | 1.000 |" in page
    assert "| [rte](rte/README.md) | f1 | bert 3x16 | 25% / 0% | 1.00 ± 0.00 | 61.00 ± 1.41 | -60.00 ± 1.41 |" in page
    assert "| never | 1, 2 |" in page
    assert "| rte | 75.45 | 75.09 | 0.36 | 1.49 | 1.00 | 61.00 | -60.00 | 1.00 |" in page
    assert page.index("[cola]") < page.index("[rte]") < page.index("```bash")


def test_runs_without_measured_costs_do_not_stand_beside_the_paper():
    row = dict.fromkeys(results.FIELDS, 1.0)
    for other in ({"task": "rte", "relative_cost": None}, {"task": "reviews", "relative_cost": 0.5}):
        assert results.paper_lines([row | other]) == []


def test_variants_stand_beside_their_exact_experts():
    def variant(expert, score, functions, scale, **more):
        names = dict(zip(("hidden_act", "softmax", "precision"), functions.split(), strict=True))
        return {"expert": expert, "score": score, **names, "seconds": scale, "bytes": 10 * scale, "rounds": 7, **more}

    row = dict.fromkeys(results.FIELDS, 1.0)
    assert results.variant_lines([row]) == []
    row |= {
        "task": "rte",
        "variants": [
            variant(0, 0.6, "exact exact full", 2.0),
            variant(0, 0.59, "quadratic 2quad reduced", 1.0, widest=0.5),
            variant(1, 0.7, "exact exact full", 8.0),
            variant(1, 0.71, "exact exact w8a8", 5.0, widest=0.25),
        ],
    }
    assert results.variant_lines([row])[3:-1] == [
        "| rte | 0 | exact | 60.00 | 0.00 |  | 1.000 | 1.000 | 7 |",
        "| rte | 0 | quadratic, 2quad, reduced | 59.00 | 1.00 | 0.50 | 0.500 | 0.500 | 7 |",
        "| rte | 1 | exact | 70.00 | 0.00 |  | 1.000 | 1.000 | 7 |",
        "| rte | 1 | reduced | 71.00 | -1.00 | 0.25 | 0.625 | 0.625 | 7 |",
    ]
