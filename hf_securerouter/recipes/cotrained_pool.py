# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
A run whose experts are made for encryption: copies of another run's exact experts, which cost less on shares.

Each expert takes the steps of `variants` one after the other, to a reduced precision, to fewer heads and neurons or to
cheaper functions. Each step distils a copy from the exact expert layer by layer, and starts from the last copy. The
steps end with the first copy that loses more than `most_lost` points on rows that no expert has seen. A copy computes
with the weights that are shared, rounds at random as truncation on shares does, and is penalised for values beyond
their bounds; then heads whose scores come too close to their bounds are scaled down. A copy with values beyond their
bounds is not taken, but the next step may start from it. The last copy that is good enough is taken.

Where the other run was cross-fitted, its experts of each fold are copied too. Those of the first fold decide, on the
rows that neither they nor their copies have seen, which steps the copies of all folds and the final ones take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, set_seed

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.mpc_friendly import use_functions
from hf_securerouter.number_format import current_precision
from hf_securerouter.recipes.arguments import RunArguments, option
from hf_securerouter.recipes.artifacts import announce, once, save_once
from hf_securerouter.recipes.costs import Costs, measure_expert
from hf_securerouter.recipes.data import rows_digest, shortened
from hf_securerouter.recipes.distillation import distil_layers, distillation_rows, widest_value
from hf_securerouter.recipes.experts import EXACT, load_expert, train_pool
from hf_securerouter.recipes.fitting import Fit, Row
from hf_securerouter.recipes.head_pruning import measure_importance, prune, pruned_shape
from hf_securerouter.recipes.prediction import decide, expert_inputs, labels_of, predict, to_device
from hf_securerouter.recipes.routed_pool import RoutedPoolRun
from hf_securerouter.recipes.score_scaling import scale_down_queries


CHANGES = {
    "reduced": {"precision": "reduced"},
    "slim": {},
    "quadratic": {"hidden_act": "quadratic"},
    "relu": {"hidden_act": "relu"},
    "2quad": {"softmax": "2quad"},
    "2relu": {"softmax": "2relu"},
}

# What both runs must have in common, or experts would be asked for rows that they have seen.
SAME_ROWS = ("task_name", "max_train_samples", "cross_fit_folds", "seed")

# Shares that a slim expert keeps unless it is told. In reduced precision, 12 heads and 32 tokens, it opens half of the
# bytes.
HEADS, NEURONS = 2 / 3, 5 / 6

BATCH = 64
SAMPLE_BATCHES = 16  # by which heads and neurons are ranked, and scores are measured


@refuses_unknown_init
@dataclass
class CotrainArguments(RunArguments):
    """Those of a run, and where its exact experts are."""

    exact_dir: str | None = option(None, "The output folder of a finished run of run_glue.py with the same rows.")
    most_lost: float = option(0.5, "Points of the score that an expert may lose by becoming cheaper.")
    variants: list[str] = option(
        ["reduced", "reduced+slim"], f"What to try, in this order: any of {', '.join(CHANGES)}, joined by +."
    )
    slim_heads: float | None = option(None, "Share of its heads that a slim copy keeps at most; default: two thirds.")
    slim_neurons: float | None = option(None, "Share of its neurons that a slim copy keeps; default: five sixths.")
    copied_experts: int | None = option(
        None, "Copy so many experts, the cheapest ones; the others, which serve few inputs, stay exact. Default: all."
    )

    def __post_init__(self) -> None:
        self.variants = current_variants(self.variants)

    @property
    def slim_shares(self) -> tuple[float, float]:
        """Shares of its heads and of its neurons that a slim copy keeps."""
        heads = HEADS if self.slim_heads is None else self.slim_heads
        return heads, NEURONS if self.slim_neurons is None else self.slim_neurons

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """As for a run; variants by their old names are the same."""
        return super().differences({**found, "variants": current_variants(found.get("variants", []))})


def current_variants(names: Sequence[str]) -> list[str]:
    """The names that variants have now: before 0.1 `reduced` was called `w8a8`."""
    return ["+".join(map(current_precision, name.split("+"))) for name in names]


class CotrainedRun(RoutedPoolRun):
    """
    A run whose experts are copies of another run's.

    Args:
        args ([`CotrainArguments`]): What to do.
        fit (callable), command (`str`), train_pool (callable): As for [`RoutedPoolRun`].

    Raises:
        `SecureRouterValueError`: `exact_dir` is missing or divided its rows in another way, a variant has an unknown
            name, or `slim_heads` or `slim_neurons` is given without a slim one; and as for [`RoutedPoolRun`].
    """

    args: CotrainArguments

    @refuses_unknown
    def __init__(
        self,
        args: CotrainArguments,
        fit: Fit,
        command: str,
        train_pool: Callable[..., list[Path]] = train_pool,
    ) -> None:
        if args.exact_dir is None:
            raise SecureRouterValueError("`exact_dir` should name the output folder of a finished run, got nothing.")
        unknown = sorted({change for name in args.variants for change in name.split("+")} - set(CHANGES))
        if unknown:
            raise SecureRouterValueError(
                f"`variants` should join {', '.join(CHANGES)} by +, got {', '.join(map(repr, unknown))}."
            )
        unused = [name for name in ("slim_heads", "slim_neurons") if getattr(args, name) is not None]
        if unused and not any("slim" in name.split("+") for name in args.variants):
            raise SecureRouterValueError(
                f"`{unused[0]}` is of slim copies, and `variants` names none, got {' '.join(args.variants)}: add "
                f"`slim`, or leave out `{unused[0]}`."
            )
        self.exact_dir = Path(args.exact_dir)
        super().__init__(args, fit, command, train_pool)
        self._check_rows()

    def _check_rows(self) -> None:
        """Refuses another run that divided its rows in another way."""
        path = self.exact_dir / "arguments.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        for name in SAME_ROWS:
            own = getattr(self.args, name)
            if name in found and found[name] != own:
                raise SecureRouterValueError(
                    f"`{name}` should be that of `exact_dir` {str(self.exact_dir)!r}, {found[name]!r}, so that both "
                    f"hold the same rows out; got {own!r}."
                )

    def load_rows(self, split: str) -> list[Row]:
        """As for [`RoutedPoolRun`]; the training rows are those of the other run, too."""
        rows, other = super().load_rows(split), self.exact_dir / f"rows-{split}.json"
        if split == "train" and other.exists() and json.loads(other.read_text()) != rows_digest(self.task, rows):
            raise SecureRouterValueError(
                f"`exact_dir` {str(self.exact_dir)!r} holds a run with other training rows, whose experts may have "
                "seen what is held out here: pass the rows of that run."
            )
        return rows

    def trained(self, name: str, rows: Sequence[Row], part: Sequence[int]) -> list[Path]:
        """
        Folders of the copies that are taken of the other run's experts of this name; their functions go into
        `functions`.

        Raises:
            `SecureRouterValueError`: The other run has no such expert.
        """
        decides = name == ("fold-0" if self.args.cross_fit_folds else "final")
        others = sorted(set(range(len(rows))) - set(part))
        folders: list[Path] = []
        variants: list[dict[str, Any]] = []
        steps: list[list[str]] = []
        for index, length in enumerate(self.lengths):
            exact = self.exact(index, name)
            if not exact.exists():
                raise SecureRouterValueError(
                    f"`exact_dir` {str(self.exact_dir)!r} holds no expert {index} ({name}): let its run end first."
                )
            config = AutoConfig.from_pretrained(exact)
            seen, unseen = (shortened([rows[row] for row in chosen], length, config) for chosen in (part, others))
            if decides:
                taken, tried, own = self.search(name, index, exact, seen, unseen)
                variants, steps = [*variants, *tried], [*steps, own]
            else:
                own = json.loads((self.folder / "steps_taken.json").read_text())[index]
                taken = self.repeat(name, index, exact, own, seen, unseen or seen)
            folders.append(taken)
        if decides:
            once(self.folder / "variants.json", lambda: variants)
            once(self.folder / "steps_taken.json", lambda: steps)
        return folders

    def search(
        self, name: str, index: int, exact: Path, seen: Sequence[Row], unseen: Sequence[Row]
    ) -> tuple[Path, list[dict[str, Any]], list[str]]:
        """
        Tries the variants of one expert.

        Args:
            name (`str`): Of the set of experts.
            index (`int`): Of the expert.
            exact (`Path`): The folder of the exact expert.
            seen (sequence of `dict`): Rows that copies are trained on.
            unseen (sequence of `dict`): Rows that decide which copy is taken.

        Returns:
            `tuple`: The folder of the copy that is taken, the exact one if none is good; what was tried; and the
            steps that lead to that copy.
        """
        taken, last, steps = exact, exact, list[str]()
        tried = [self.measured(index, exact, EXACT, unseen)]
        least = tried[0]["score"] - self.args.most_lost / 100
        copied = self.args.copied_experts is None or index < self.args.copied_experts
        for count, variant in enumerate(self.args.variants if copied else (), start=1):
            candidate, functions = self.step(name, index, variant, last, exact, seen)
            tried.append(self.measured(index, candidate, functions, unseen))
            if tried[-1]["score"] < least:
                break
            last = candidate
            if tried[-1].get("widest", 0) <= 1:
                taken, steps, self.functions[candidate] = candidate, self.args.variants[:count], functions
        return taken, tried, steps

    def repeat(
        self, name: str, index: int, exact: Path, steps: Sequence[str], seen: Sequence[Row], checked: Sequence[Row]
    ) -> Path:
        """The folder of a copy that takes the steps that were decided on, whatever it loses. It is the exact expert's
        where there are no steps, or where values of the copy leave their bounds on the rows `checked`."""
        last, functions = exact, EXACT
        for variant in steps:
            last, functions = self.step(name, index, variant, last, exact, seen)
        if functions["precision"] != "full" and self.widest(to_device(load_expert(last, functions)), checked) > 1:
            announce(f"Expert {index} ({name}) stays exact: values of its copy leave their bounds.")
            return exact
        if steps:
            self.functions[last] = functions
        return last

    def step(
        self, name: str, index: int, variant: str, last: Path, exact: Path, seen: Sequence[Row]
    ) -> tuple[Path, dict[str, str]]:
        """Makes one copy after the copy `last`; returns its folder and its functions."""
        changes = variant.split("+")
        functions = EXACT | {key: value for change in changes for key, value in CHANGES[change].items()}
        candidate = self.copy_folder(index, variant, name)
        start = last if "slim" in changes else self.whole(last, exact)
        self.follow(candidate, start, exact, functions, "slim" in changes, seen)
        return candidate, functions

    def copy_folder(self, index: int, variant: str, name: str = "final") -> Path:
        """Where a copy is or will be, such as `experts/0-reduced+slim`, or `experts/fold-0/0-reduced+slim` of a
        cross-fitted run; a run of before 0.1 goes on in its folders."""
        if self.args.cross_fit_folds:
            return self.folder / "experts" / name / f"{index}-{variant}"
        folder = self.folder / "experts" / f"{index}-{variant}"
        old = folder.with_name(folder.name.replace("reduced", "w8a8"))
        return old if old.exists() or (self.folder / "steps" / old.name).exists() else folder

    def whole(self, last: Path, exact: Path) -> Path:
        """The last copy, or the exact expert if that copy is slim."""
        return last if _shape(load_expert(last)) == _shape(load_expert(exact)) else exact

    def report(
        self,
        models: Mapping[str, SecureRouterForSequenceClassification],
        folders: Sequence[Path],
        costs: Costs,
        tuning: Mapping[str, Any],
    ) -> dict[str, Any]:
        """As for [`RoutedPoolRun`], with the `variants` that were tried."""
        variants = json.loads((self.folder / "variants.json").read_text())
        return super().report(models, folders, costs, tuning) | {"variants": variants}

    def largest(self, folders: Sequence[Path]) -> PreTrainedModel:
        """The largest exact expert."""
        return load_expert(self.exact(len(self.members) - 1))

    def largest_answers(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Logits (N, C) of the largest exact expert, which is none of the pool's."""
        return predict(to_device(self.largest(())), rows, self.collate)[0]

    def describe(self, model: SecureRouterForSequenceClassification, index: int) -> str:
        """As for [`RoutedPoolRun`], with heads and neurons of a pruned expert."""
        heads, neurons = shape = _shape(model.experts[index])
        is_pruned = shape != _shape(load_expert(self.exact(index)))
        return super().describe(model, index) + (f", {heads} heads, {neurons} neurons" if is_pruned else "")

    def exact(self, index: int, name: str = "final") -> Path:
        """The folder of an exact expert, of those with this name."""
        return self.exact_dir / "experts" / name / str(index)

    def follow(
        self,
        folder: Path,
        start: Path,
        exact: Path,
        functions: Mapping[str, str],
        is_pruned: bool,
        rows: Sequence[Row],
    ) -> None:
        """
        Distils one copy, unless its folder is there already.

        Args:
            folder (`Path`): Where the copy is saved.
            start (`Path`): The expert that it begins as.
            exact (`Path`): The expert that it is distilled from.
            functions (`Mapping`): What it computes with.
            is_pruned (`bool`): Whether it loses heads and neurons, if `start` has all of them.
            rows (sequence of `dict`): Tokenized training rows.
        """
        args, teacher = self.args, to_device(load_expert(exact))
        expert = load_expert(start)
        if is_pruned and _shape(expert) == _shape(teacher):
            expert = self.pruned(expert, teacher, rows)
        use_functions(expert, **functions)

        def train() -> None:
            name = "-".join(folder.relative_to(self.folder / "experts").parts)
            announce(f"Distilling {name}, a copy of an expert, on {len(rows)} rows ...")
            copies, special_ids = args.perturbed_copies, set(self.tokenizer.all_special_ids)
            data = distillation_rows(rows, teacher, self.collate, self.task, copies, special_ids, args.seed)
            epochs, rate = args.distillation_epochs, args.learning_rate
            distil_layers(name, expert, teacher.cpu(), data, self.train, epochs, rate)
            if functions["precision"] != "full" and functions["softmax"] == "exact":
                self.scale_scores(expert, rows)

        save_once(folder, expert, self.tokenizer, train)

    def scale_scores(self, expert: PreTrainedModel, rows: Sequence[Row]) -> None:
        """Scales heads down, in the place, whose scores come too close to their bounds."""
        scale_down_queries(expert, self.sample(rows, expert))

    def pruned(self, expert: PreTrainedModel, exact: PreTrainedModel, rows: Sequence[Row]) -> PreTrainedModel:
        """A copy of an expert without the heads and neurons that matter least to the exact one."""
        exact.set_attn_implementation("eager")  # no other implementation returns attention weights
        importance = measure_importance(exact, self.sample(rows, exact))
        set_seed(self.args.seed)
        return prune(expert, *pruned_shape(exact.config, *self.args.slim_shares), importance)

    def sample(self, rows: Sequence[Row], expert: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
        """The first batches of the rows, as an expert reads them, on its device."""
        rows = list(rows[: SAMPLE_BATCHES * BATCH])
        batches = (self.collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))
        read = (expert_inputs(expert, batch) for batch in batches)
        return [{name: value.to(expert.device) for name, value in batch.items()} for batch in read]

    def measured(
        self, index: int, folder: Path, functions: Mapping[str, str], unseen: Sequence[Row]
    ) -> dict[str, Any]:
        """What `variants.json` holds of one copy: its score on rows that no expert has seen; the cost of a query, if
        costs are measured; and of a reduced precision, the largest value over its bound. Above 1 a bound is exceeded
        and the encrypted result is wrong. The main process finds it for all, and nothing else runs."""
        path = self.folder / f"variant-{folder.name}.json"
        return once(path, lambda: self._measured(index, folder, functions, unseen))

    def _measured(
        self, index: int, folder: Path, functions: Mapping[str, str], unseen: Sequence[Row]
    ) -> dict[str, Any]:
        expert = load_expert(folder, functions)
        heads, neurons = _shape(expert)
        found: dict[str, Any] = {"expert": index, "heads": heads, "neurons": neurons, **functions}
        found["score"] = self.score(folder, functions, unseen)
        if functions["precision"] != "full":
            found["widest"] = self.widest(to_device(expert), unseen)
        if self.args.expert_costs:
            return found
        name = f"expert {index + 1} of {len(self.members)} with {', '.join(functions.values())}"
        return found | measure_expert(self.args, expert.cpu(), self.lengths[index], name)

    def widest(self, expert: PreTrainedModel, rows: Sequence[Row]) -> float:
        """The largest value of an expert over its bound."""
        return widest_value(expert, rows, self.collate)

    def score(self, folder: Path, functions: Mapping[str, str], rows: Sequence[Row]) -> float:
        """The score of one expert."""
        (logits,) = predict(to_device(load_expert(folder, functions)), rows, self.collate)
        return self.task.score()(decide(self.task, logits), labels_of(rows).numpy())


def _shape(expert: Any) -> tuple[int, int]:
    """Heads and neurons of a layer."""
    return pruned_shape(expert.config, 1, 1)
