# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Co-training: which copies of an expert are taken, and that a copy follows the exact one."""

import json
import shutil

import cotrain
import pytest
import torch
from transformers import AutoTokenizer

from hf_securerouter import SecureRouterForSequenceClassification, SecureRouterValueError
from hf_securerouter.families import layers_of
from hf_securerouter.recipes.cotrained_pool import CotrainArguments, CotrainedRun
from hf_securerouter.recipes.data import tokenize
from hf_securerouter.recipes.encrypted_check import compare_with_clear
from hf_securerouter.recipes.experts import EXACT, load_expert
from hf_securerouter.recipes.fit_with_trainer import parse_args, trainer_fit
from hf_securerouter.recipes.prediction import predict
from hf_securerouter.recipes.tasks import TASKS
from tests.recipes.made_up import TRAINER, arguments, made_up_rows


REDUCED = {"hidden_act": "exact", "softmax": "exact", "precision": "reduced"}
FRIENDLY = {"hidden_act": "quadratic", "softmax": "2quad", "precision": "reduced"}


class GradedRun(CotrainedRun):
    """A run whose scores and largest values are given by a test; it notes what each copy started from."""

    scores = {}  # of copies by their names, 0.8 of all others
    largest_values = None  # one after the other

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.starts = {}

    def follow(self, folder, start, *rest):
        self.starts[folder.name] = start.name
        super().follow(folder, start, *rest)

    def score(self, folder, functions, rows):
        return self.scores.get(folder.name, 0.8)

    def widest(self, expert, rows):
        return super().widest(expert, rows) if self.largest_values is None else self.largest_values.pop(0)


def run_of(made, exact_dir, out, *more, kind=GradedRun, **fields):
    argv = arguments(made, out, *TRAINER, "--exact_dir", str(exact_dir), *more)
    args, training_args = parse_args(argv, CotrainArguments, "")
    run = kind(args, trainer_fit(training_args), "python training/cotrain.py")
    for name, value in fields.items():
        setattr(run, name, value)
    return run


def test_changes_are_taken_step_by_step_while_little_is_lost(made, exact_dir, tmp_path, monkeypatch, two_experts):
    # Rounded answers are a little off, which does not make them those of another expert.
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.encrypted_logits",
        lambda pool, quotas, rows, *rest: (torch.zeros(len(rows), 2), {}),
    )
    reduced = []
    monkeypatch.setattr(
        "hf_securerouter.recipes.routed_pool.compare_with_clear",
        lambda *given: reduced.append(given[-1]) or compare_with_clear(*given),
    )
    changes = "reduced", "reduced+slim", "reduced+slim+quadratic+2quad"
    more = ("--encrypted_eval_samples", "4", "--variants", *changes)
    scores = {"0-reduced": 0.795, "0-reduced+slim": 0.7}
    run = run_of(made, exact_dir, tmp_path / "out", *more, scores=scores)
    report = run()
    assert reduced == [True]

    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [REDUCED, FRIENDLY]
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert report["variants"] == tried
    assert [tuple(one.values())[:7] for one in tried] == [
        (0, 2, 32, "exact", "exact", "full", 0.8),
        (0, 2, 32, "exact", "exact", "reduced", 0.795),
        (0, 1, 26, "exact", "exact", "reduced", 0.7),
        (1, 2, 32, "exact", "exact", "full", 0.8),
        (1, 2, 32, "exact", "exact", "reduced", 0.8),
        (1, 1, 26, "exact", "exact", "reduced", 0.8),
        (1, 1, 26, "quadratic", "2quad", "reduced", 0.8),
    ]
    assert run.starts == {
        "0-reduced": "0",
        "0-reduced+slim": "0-reduced",
        "1-reduced": "1",
        "1-reduced+slim": "1-reduced",
        "1-reduced+slim+quadratic+2quad": "1-reduced+slim",
    }
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    assert row["experts"] == ["bert 1x16, reduced", "bert 3x16, quadratic, 2quad, reduced, 1 heads, 26 neurons"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(text in card for text in ("| 0 | reduced, 1 heads, 26 neurons | 0.7000 |", "| 1 | exact | 0.8000 |"))
    tokenizer = AutoTokenizer.from_pretrained(made / "checkpoint")
    rows, collate = tokenize(TASKS["mrpc"], made_up_rows(40, 1), tokenizer, 16), run.collate
    for index, own in enumerate(model.experts):
        (kept,) = predict(own, rows, collate)
        chosen = model.config.expert_mpc[index]
        folder = tmp_path / "out" / "experts" / ("0-reduced", "1-reduced+slim+quadratic+2quad")[index]
        (made_with,) = predict(load_expert(folder, chosen), rows, collate)
        torch.testing.assert_close(kept, made_with)
    # The exact expert is what quality is compared with.
    (exact,) = predict(two_experts[1], rows, collate)
    labels = torch.tensor([row["labels"] for row in rows])
    assert report["largest_metrics"] == {"accuracy": (exact.argmax(dim=1) == labels).float().mean().item()}


def test_a_copy_is_measured_once(made, exact_dir, tmp_path):
    run = run_of(made, exact_dir, tmp_path / "out")
    given = 0, exact_dir / "experts" / "final" / "0", EXACT, []
    found = run.measured(*given)
    run.score = None
    assert run.measured(*given) == found


def test_a_variant_with_all_heads_does_not_start_from_a_slim_one(made, exact_dir, tmp_path):
    run_of(made, exact_dir, tmp_path / "out", "--variants", "reduced+slim", "reduced", "reduced+quadratic")()
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [one["heads"] for one in tried] == [2, 1, 2, 2] * 2


def test_a_slim_copy_keeps_the_shares_that_are_asked_for(made, exact_dir, tmp_path):
    shares = ("--slim_heads", "1", "--slim_neurons", "0.25", "--copied_experts", "1")
    run_of(made, exact_dir, tmp_path / "out", "--variants", "slim", *shares)()
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [(one["heads"], one["neurons"], one["precision"]) for one in tried][:2] == [(2, 32, "full"), (2, 8, "full")]


@pytest.mark.parametrize("option", ["slim_heads", "slim_neurons"])
@pytest.mark.parametrize("share", ["0", "1.5", "-1", "nan"])
def test_a_slim_copy_keeps_no_more_than_there_is(made, exact_dir, tmp_path, option, share):
    with pytest.raises(SecureRouterValueError, match=f"`{option}` should be a finite number above 0 and at most 1"):
        run_of(made, exact_dir, tmp_path / "out", f"--{option}", share)
    assert not (tmp_path / "out").exists()


def test_shares_of_slim_copies_are_not_ignored(made, exact_dir, tmp_path):
    with pytest.raises(SecureRouterValueError, match="`slim_neurons` is of slim copies, and `variants` names none"):
        run_of(made, exact_dir, tmp_path / "out", "--variants", "reduced", "--slim_neurons", "0.5")


def test_no_number_of_copied_experts_copies_none(made, exact_dir, tmp_path):
    with pytest.raises(SecureRouterValueError, match="`copied_experts` should be an integer of at least 1"):
        run_of(made, exact_dir, tmp_path / "out", "--copied_experts", "-1")


def test_an_expert_with_values_out_of_bounds_is_not_taken(made, exact_dir, tmp_path):
    run_of(made, exact_dir, tmp_path / "out", largest_values=[1.0, 1.01, 1.01, 1.01])()
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [REDUCED, EXACT]
    tried = json.loads((tmp_path / "out" / "variants.json").read_text())
    assert [one.get("widest") for one in tried] == [None, 1.0, 1.01, None, 1.01, 1.01]


def test_the_next_step_may_bring_values_into_bounds(made, exact_dir, tmp_path):
    run = run_of(made, exact_dir, tmp_path / "out", largest_values=[1.01, 0.9, 1.01, 0.9])
    run()
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert [expert.config.num_attention_heads for expert in model.experts] == [1, 1]
    assert run.starts == {
        "0-reduced": "0",
        "0-reduced+slim": "0-reduced",
        "1-reduced": "1",
        "1-reduced+slim": "1-reduced",
    }


def test_heads_of_a_copy_are_scaled_down_before_it_is_kept(made, exact_dir, tmp_path, monkeypatch):
    def scale_down_queries(expert, batches):
        seen.append((expert.expert_mpc["softmax"], sum(len(batch["labels"]) for batch in batches)))
        layers_of(expert)[0].query.bias.data.fill_(0.5)

    seen = []
    monkeypatch.setattr("hf_securerouter.recipes.cotrained_pool.scale_down_queries", scale_down_queries)
    run_of(made, exact_dir, tmp_path / "out", "--variants", "reduced", "reduced+2quad", "quadratic")()
    assert [softmax for softmax, _ in seen] == ["exact", "exact"]
    assert seen[0][1] == seen[1][1] > 0
    for name, is_scaled in (("0-reduced", True), ("0-reduced+2quad", False), ("0-quadratic", False)):
        expert = load_expert(tmp_path / "out" / "experts" / name)
        assert layers_of(expert)[0][0].bias.eq(0.5).all() == is_scaled


def test_an_expert_stays_exact_where_all_else_loses(made, exact_dir, tmp_path):
    scores = {f"{index}-{name}": 0.7 for index in (0, 1) for name in ("reduced", "reduced+slim")}
    run_of(made, exact_dir, tmp_path / "out", "--most_lost", "9.9", scores=scores)()
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [EXACT] * 2


def test_cotraining_wants_a_finished_run(made, exact_dir, tmp_path):
    with pytest.raises(SecureRouterValueError, match="`exact_dir` '.*' holds no expert 0"):
        run_of(made, tmp_path / "nowhere", tmp_path / "out")()
    with pytest.raises(SecureRouterValueError, match="`exact_dir` should name"):
        cotrain.main(arguments(made, tmp_path / "out", *TRAINER))


def test_unknown_variants_are_refused(made, exact_dir, tmp_path):
    with pytest.raises(
        SecureRouterValueError, match="`variants` should join reduced, slim, .* by \\+, got '3quad', 'w4'"
    ):
        run_of(made, exact_dir, tmp_path / "out", "--variants", "reduced", "w4+3quad")


def test_a_run_of_before_goes_on_under_its_old_names(made, exact_dir, tmp_path):
    out = tmp_path / "out"
    run_of(made, exact_dir, out, "--variants", "reduced", "reduced+slim")()
    before = {path.name: path.read_bytes() for path in out.glob("*.json")}
    for path in (out / "experts").iterdir():
        path.rename(path.with_name(path.name.replace("reduced", "w8a8")))
    arguments_of_before = json.loads((out / "arguments.json").read_text())
    arguments_of_before["variants"] = ["w8a8", "w8a8+slim"]
    for name in ("text_column", "dataset_name"):  # there were no such arguments
        del arguments_of_before[name]
    (out / "arguments.json").write_text(json.dumps(arguments_of_before))
    (out / "variants.json").unlink()

    again = run_of(made, exact_dir, out, "--variants", "w8a8", "w8a8+slim")
    again.train = None  # nothing is trained again
    again()
    assert sorted(path.name for path in (out / "experts").iterdir()) == [
        "0-w8a8",
        "0-w8a8+slim",
        "1-w8a8",
        "1-w8a8+slim",
    ]
    after = {path.name: path.read_bytes() for path in out.glob("*.json")}
    assert {name for name in before if after[name] != before[name]} == {"arguments.json"}
    with pytest.raises(SecureRouterValueError, match="a run with another `variants`"):
        run_of(made, exact_dir, out, "--variants", "reduced")


def test_a_step_that_was_stopped_before_goes_on_in_its_own_folder(made, exact_dir, tmp_path):
    run = run_of(made, exact_dir, tmp_path / "out")
    assert run.copy_folder(0, "reduced+slim").name == "0-reduced+slim"
    (run.folder / "steps" / "0-w8a8+slim").mkdir(parents=True)
    assert run.copy_folder(0, "reduced+slim").name == "0-w8a8+slim"
    assert run.copy_folder(0, "2quad").name == "0-2quad"


@pytest.fixture
def cross_fitted(exact_dir):
    """What a run with two folds leaves of its experts."""
    for name in ("fold-0", "fold-1"):
        shutil.copytree(exact_dir / "experts" / "final", exact_dir / "experts" / name)
    return exact_dir


def test_the_first_fold_decides_which_steps_all_copies_take(made, cross_fitted, tmp_path):
    out, scores = tmp_path / "out", {"0-reduced+slim": 0.7, "1-reduced": 0.7}
    seen = []

    class Noted(GradedRun):
        def score(self, folder, functions, rows):
            seen.append((folder.relative_to(tmp_path).parts[-2:], len(rows)))
            return super().score(folder, functions, rows)

    more = ("--cross_fit_folds", "2")
    run_of(made, cross_fitted, out, *more, kind=Noted, scores=scores, largest_values=[0.9] * 9)()
    copies = sorted(str(path.relative_to(out / "experts")) for path in (out / "experts").glob("*/*"))
    assert copies == [
        *("final/0-reduced", "fold-0/0-reduced", "fold-0/0-reduced+slim", "fold-0/1-reduced", "fold-1/0-reduced"),
    ]
    # Only the first fold is graded, on its own half of 120 rows.
    assert {name for (name, _), _ in seen} == {"fold-0"} and {count for _, count in seen} == {60}
    assert json.loads((out / "steps_taken.json").read_text()) == [["reduced"], []]
    model = SecureRouterForSequenceClassification.from_pretrained(out)
    assert model.config.expert_mpc == [REDUCED, EXACT]
    again = run_of(made, cross_fitted, out, *more, scores=scores, largest_values=[0.9])
    again.train = None  # nothing is trained again
    again()


def test_a_final_copy_beyond_its_bounds_is_not_taken(made, cross_fitted, tmp_path):
    values = [0.9] * 4 + [0.9, 0.9] + [0.9, 1.1]  # two steps of both, the second fold's copies, the final ones
    run_of(made, cross_fitted, tmp_path / "out", "--cross_fit_folds", "2", largest_values=values)()
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [REDUCED, EXACT]


@pytest.mark.parametrize("name", ["cross_fit_folds", "seed", "max_train_samples"])
def test_a_run_on_other_rows_is_refused(name, made, exact_dir, tmp_path):
    (exact_dir / "arguments.json").write_text(json.dumps({"cross_fit_folds": 0, "seed": 42, name: 7}))
    with pytest.raises(
        SecureRouterValueError, match=f"`{name}` should be that of `exact_dir` .*, 7, so that both hold"
    ):
        run_of(made, exact_dir, tmp_path / "out")


def test_a_run_on_other_texts_is_refused(made, exact_dir, tmp_path):
    (exact_dir / "rows-train.json").write_text('"the digest of other rows"')
    with pytest.raises(SecureRouterValueError, match="other training rows, whose experts may have seen"):
        run_of(made, exact_dir, tmp_path / "out").load_rows("train")


def test_the_largest_may_stay_exact(made, exact_dir, tmp_path):
    run = run_of(made, exact_dir, tmp_path / "out", "--copied_experts", "1", largest_values=[0.9, 0.9])
    run()
    model = SecureRouterForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.expert_mpc == [REDUCED, EXACT] and set(run.starts) == {"0-reduced", "0-reduced+slim"}
