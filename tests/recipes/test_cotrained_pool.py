# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Co-training: which copies of an expert are taken, and that a copy follows the exact one."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.families import layers_of
from hf_securerouter.mpc_friendly import use_functions
from tests.recipes.test_routed_pool import (
    TRAINER,
    _fast,  # noqa: F401
    arguments,
    cotrain,
    glue_data,
    glue_encrypted,
    glue_experts,
    made,  # noqa: F401
    made_up_rows,
    run_glue,
    two_experts,
)


# ruff: noqa: F811

W8A8 = {"hidden_act": "exact", "softmax": "exact", "precision": "w8a8"}
FRIENDLY = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "w8a8"}


@pytest.fixture
def exact_dir(made, tmp_path):
    """What a run leaves of its experts."""
    folder = tmp_path / "exact" / "experts" / "final"
    for index, expert in enumerate(two_experts(made, tmp_path)):
        expert.config.problem_type = "single_label_classification"
        expert.save_pretrained(folder / str(index))
        AutoTokenizer.from_pretrained(made / "checkpoint").save_pretrained(folder / str(index))
    return tmp_path / "exact"


@pytest.fixture
def starts(monkeypatch):
    """What each copy started from, by their names."""
    names, follow = {}, cotrain.CotrainedRun.follow

    def recording_follow(self, folder, start, *rest):
        names[folder.name] = start.name
        follow(self, folder, start, *rest)

    monkeypatch.setattr(cotrain.CotrainedRun, "follow", recording_follow)
    return names


def cotrained(made, exact_dir, out, *more):
    return cotrain.main(arguments(made, out, *TRAINER, "--exact_dir", str(exact_dir), *more))


def test_changes_are_taken_step_by_step_while_little_is_lost(made, exact_dir, tmp_path, monkeypatch, starts):
    scores = {"0-w8a8": 0.795, "0-w8a8+slim": 0.7}
    monkeypatch.setattr(
        cotrain.CotrainedRun, "score", lambda self, folder, functions, rows: scores.get(folder.name, 0.8)
    )
    # Encrypted answers that are a little off are not those of another expert, since these experts are narrow.
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.encrypted_answers",
        lambda pool, quotas, rows, *rest: torch.zeros(len(rows), 2),
    )
    compare, narrow = glue_encrypted.compare_with_clear, []
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.compare_with_clear",
        lambda *given: narrow.append(given[-1]) or compare(*given),
    )
    changes = "w8a8", "w8a8+slim", "w8a8+slim+quadratic+2quad"
    report = cotrained(made, exact_dir, tmp_path / "out", "--encrypted_eval_samples", "4", "--variants", *changes)
    assert narrow == [True]

    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [W8A8, FRIENDLY]
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert report["variants"] == tried
    assert [tuple(one.values())[:7] for one in tried] == [
        (0, 2, 32, "exact", "exact", "full", 0.8),
        (0, 2, 32, "exact", "exact", "w8a8", 0.795),
        (0, 1, 26, "exact", "exact", "w8a8", 0.7),
        (1, 2, 32, "exact", "exact", "full", 0.8),
        (1, 2, 32, "exact", "exact", "w8a8", 0.8),
        (1, 1, 26, "exact", "exact", "w8a8", 0.8),
        (1, 1, 26, "quadratic", "2quad", "w8a8", 0.8),
    ]
    assert starts == {
        "0-w8a8": "0",
        "0-w8a8+slim": "0-w8a8",
        "1-w8a8": "1",
        "1-w8a8+slim": "1-w8a8",
        "1-w8a8+slim+quadratic+2quad": "1-w8a8+slim",
    }
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    assert row["experts"] == ["bert 1x16, w8a8", "bert 3x16, quadratic, 2quad, w8a8, 1 heads, 26 neurons"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(text in card for text in ("| 0 | w8a8, 1 heads, 26 neurons | 0.7000 |", "| 1 | exact | 0.8000 |"))
    rows = glue_data.tokenize(
        glue_data.TASKS["mrpc"], made_up_rows(40, 1), AutoTokenizer.from_pretrained(made / "checkpoint"), 16
    )
    collate = run_glue.RoutedPoolRun.__init__.__globals__["DataCollatorWithPadding"](
        AutoTokenizer.from_pretrained(made / "checkpoint")
    )
    for index, own in enumerate(model.experts):
        (kept,) = glue_experts.predict(own, rows, collate)
        chosen = model.config.expert_mpc[index]
        folder = tmp_path / "out" / "experts" / ("0-w8a8", "1-w8a8+slim+quadratic+2quad")[index]
        (made_with,) = glue_experts.predict(glue_experts.load_expert(folder, chosen), rows, collate)
        torch.testing.assert_close(kept, made_with)
    # The exact expert is what quality is compared with.
    (exact,) = glue_experts.predict(two_experts(made, tmp_path)[1], rows, collate)
    labels = torch.tensor([row["labels"] for row in rows])
    assert report["largest_metrics"] == {"accuracy": (exact.argmax(dim=1) == labels).float().mean().item()}


def test_a_variant_with_all_heads_does_not_start_from_a_slim_one(made, exact_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cotrain.CotrainedRun, "score", lambda *arguments: 0.8)
    cotrained(made, exact_dir, tmp_path / "out", "--variants", "w8a8+slim", "w8a8", "w8a8+quadratic")
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [one["heads"] for one in tried] == [2, 1, 2, 2] * 2


def test_a_narrow_expert_with_values_out_of_bounds_is_not_taken(made, exact_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cotrain.CotrainedRun, "score", lambda *arguments: 0.8)
    widest = iter([1.0, 1.01, 1.01, 1.01])
    monkeypatch.setattr(cotrain, "widest", lambda *arguments: next(widest))
    cotrained(made, exact_dir, tmp_path / "out")
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [W8A8, glue_experts.EXACT]
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [one.get("widest") for one in tried] == [None, 1.0, 1.01, None, 1.01, 1.01]


def test_the_next_step_may_bring_values_into_bounds(made, exact_dir, tmp_path, monkeypatch, starts):
    monkeypatch.setattr(cotrain.CotrainedRun, "score", lambda *arguments: 0.8)
    widest = iter([1.01, 0.9, 1.01, 0.9])
    monkeypatch.setattr(cotrain, "widest", lambda *arguments: next(widest))
    cotrained(made, exact_dir, tmp_path / "out")
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert [expert.config.num_attention_heads for expert in model.experts] == [1, 1]
    assert starts == {"0-w8a8": "0", "0-w8a8+slim": "0-w8a8", "1-w8a8": "1", "1-w8a8+slim": "1-w8a8"}


def test_heads_of_a_copy_are_scaled_down_before_it_is_kept(made, exact_dir, tmp_path, monkeypatch):
    def scale_down_queries(expert, batches):
        seen.append((expert.expert_mpc["softmax"], sum(len(batch["labels"]) for batch in batches)))
        layers_of(expert)[0][0].bias.data.fill_(0.5)

    seen = []
    monkeypatch.setattr(cotrain, "temper", scale_down_queries)
    monkeypatch.setattr(cotrain.CotrainedRun, "score", lambda *arguments: 0.8)
    cotrained(made, exact_dir, tmp_path / "out", "--variants", "w8a8", "w8a8+2quad", "quadratic")
    assert [softmax for softmax, _ in seen] == ["exact", "exact"]
    assert seen[0][1] == seen[1][1] > 0
    for name, tempered in (("0-w8a8", True), ("0-w8a8+2quad", False), ("0-quadratic", False)):
        expert = glue_experts.load_expert(tmp_path / "out" / "experts" / name)
        assert layers_of(expert)[0][0].bias.eq(0.5).all() == tempered


def test_an_expert_stays_exact_where_all_else_loses(made, exact_dir, tmp_path, monkeypatch):
    scores = {"0": 0.8, "1": 0.8}  # and what is less for all others
    monkeypatch.setattr(
        cotrain.CotrainedRun, "score", lambda self, folder, functions, rows: scores.get(folder.name, 0.7)
    )
    cotrained(made, exact_dir, tmp_path / "out", "--most_lost", "9.9")
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [glue_experts.EXACT] * 2


def test_cotraining_wants_a_finished_run(made, exact_dir, tmp_path):
    with pytest.raises(SecureRouterValueError, match="`exact_dir` '.*' holds no expert 0"):
        cotrained(made, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SecureRouterValueError, match="`exact_dir` should name"):
        cotrain.main(arguments(made, tmp_path / "out", *TRAINER))


def test_unknown_variants_are_refused(made, exact_dir, tmp_path):
    with pytest.raises(
        SecureRouterValueError, match="`variants` should join w8a8, slim, .* by \\+, got '3quad', 'w4'"
    ):
        cotrained(made, exact_dir, tmp_path / "out", "--variants", "w8a8", "w4+3quad")


@pytest.mark.parametrize("functions", [W8A8, FRIENDLY])
def test_a_follower_comes_nearer_to_the_exact_expert(made, tmp_path, functions):
    _, exact = two_experts(made, tmp_path)
    expert = glue_experts.load_expert(made / "checkpoint")
    use_functions(expert, **functions)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in expert.base_model.encoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    words = expert.get_input_embeddings().weight.clone()
    follower = cotrain.Follower(expert, exact).train()
    assert expert.training and not exact.training
    batch = {"input_ids": torch.randint(3, 20, (8, 12)), "attention_mask": torch.ones(8, 12, dtype=torch.int64)}
    batch["attention_mask"][:4, 9:] = 0
    before = follower.eval()(**batch).loss.item()
    optimizer = torch.optim.Adam([weight for weight in follower.parameters() if weight.requires_grad], lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        follower(**batch).loss.backward()
        optimizer.step()
    assert follower(**batch).loss.item() < 0.7 * before
    assert all(weight.grad is None for weight in exact.parameters())
    assert torch.equal(expert.get_input_embeddings().weight, words)
    assert not any(module.p for module in expert.modules() if isinstance(module, torch.nn.Dropout))
