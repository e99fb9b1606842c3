# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""
From a data set to a routed pool with its report.

1. The experts: the largest is fine-tuned, the others are distilled from it.
2. Their answers to training rows that they have not seen, computed once.
3. The cost of each expert and of the router, measured under encryption.
4. A router for each objective, trained on those answers.
5. Lambda and quotas for the budget, on a seeded tenth of the training rows that the router has not seen either. The
   final experts of a cross-fitted run have seen it, and are surer of it than of new rows, of which lambda then sends
   more to the larger experts than the budget says. Quotas keep it on any rows.
6. The cost of a batch with these quotas under encryption, against that of the largest expert alone.
7. The validation split, once: the report, the figure, the card.

Each step leaves a file in the output folder and is skipped if that file exists, so that a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, set_seed

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.families import encoder_config
from hf_securerouter.files import write_json
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.loading import only_download_bars
from hf_securerouter.losses import expert_utilities
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.recipes.argument_values import check_values
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.artifacts import announce, once, once_tensors
from hf_securerouter.recipes.calibration import calibration_report, fit_temperatures, fold_temperature
from hf_securerouter.recipes.card import card_data
from hf_securerouter.recipes.cascade import cascade_scores
from hf_securerouter.recipes.costs import Costs, check_conversion, check_costs, measure_costs, measure_routed
from hf_securerouter.recipes.data import open_data, rows_digest, shortened, token_counts, tokenize
from hf_securerouter.recipes.encrypted_check import SAMPLES, compare_with_clear, encrypted_logits
from hf_securerouter.recipes.experts import (
    EXACT,
    check_checkpoints,
    check_length,
    check_narrow,
    largest_name,
    load_expert,
    plan_pool,
    train_pool,
)
from hf_securerouter.recipes.fitting import Fit, Row
from hf_securerouter.recipes.packages import FIGURE, check_packages
from hf_securerouter.recipes.prediction import decide, labels_of, predict, to_device
from hf_securerouter.recipes.pushing import push_run
from hf_securerouter.recipes.results import publish
from hf_securerouter.recipes.router_training import summarize_rows, train_router, with_answers
from hf_securerouter.recipes.row_parts import check_count, check_validation, split_training_rows
from hf_securerouter.recipes.shared_encoder import SHARED, refuse_another_encoder, shared_expert
from hf_securerouter.reports import PoolAnswers, draw_report, make_report
from hf_securerouter.routing import choose_expert, lambda_for_budget, quotas_for_budget, serve_by_quota


CROSS_FITTED_ROWS = 20_000  # at most, of cross-fitted rows: each is kept with all that a router reads of it
OBJECTIVES = ("gumbel", "utility")

Parts = tuple[Sequence[int], Sequence[int]]  # indices of the router's rows, and of the tuning rows


class RoutedPoolRun:
    """
    One data set, one seed. To call the run takes all steps.

    Args:
        args ([`RunArguments`]): What to do.
        fit (callable): Trains the parameters of a model that require a gradient; see
            [`~hf_securerouter.recipes.fitting.Fit`].
        command (`str`): The command of the run, for the card.
        train_pool (callable): Trains the experts; see [`~hf_securerouter.recipes.experts.train_pool`].

    Raises:
        `SecureRouterValueError`: The output folder holds a run with other arguments or other labels, a number is out
            of range, the experts do not make a pool, or the data are not as
            [`~hf_securerouter.recipes.data.open_data`] wants them.
        `MissingPackageError`: What draws the figure or reads the data is not installed.
    """

    @refuses_unknown
    def __init__(
        self, args: RunArguments, fit: Fit, command: str, train_pool: Callable[..., list[Path]] = train_pool
    ) -> None:
        self.args, self.command, self.train_pool = args, command, train_pool
        self.train = partial(fit, self)
        check_values(args)
        check_packages(args, FIGURE)
        self.members = plan_pool(args)
        check_checkpoints(args)
        check_length(args)
        check_narrow(args)
        check_costs(args, len(self.members))
        check_conversion(args)
        self.functions: dict[Path, dict[str, str]] = {}  # of the experts that are not exact, by their folders
        self.temperatures: dict[Path, float] = {}  # of the experts, once they have answered
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        different = args.differences(once(self.folder / "arguments.json", args.fingerprint))
        if different == ["budget_seconds"] and not any(self.folder.glob("tuning-*.json")):
            if PartialState().is_main_process:  # who names a budget before costs are known may name another one then
                write_json(args.fingerprint(), self.folder / "arguments.json")
        elif different:
            raise SecureRouterValueError(
                f"`output_dir` {str(self.folder)!r} holds a run with another `{'`, `'.join(different)}`: name another "
                "folder, or remove that one."
            )
        self.data = open_data(args)
        self.task = self.data.task
        self._keep_labels()
        # Experts that are trained alone see the padding that they see in a pool, on the right.
        self.tokenizer = AutoTokenizer.from_pretrained(
            largest_name(args), cache_dir=args.cache_dir, padding_side="right"
        )
        self.collate: Any = DataCollatorWithPadding(self.tokenizer)

    def _keep_labels(self) -> None:
        """Refuses own data whose labels are others than those that the run began with."""
        if self.task.is_glue:
            return
        labels = list(self.task.labels)
        found = once(self.folder / "labels.json", lambda: labels)
        if found != labels:
            raise SecureRouterValueError(
                f"`output_dir` {str(self.folder)!r} holds a run with the labels {', '.join(found) or 'of a number'}, "
                f"and the training rows have {', '.join(labels) or 'numbers'}: restore them, or name another folder."
            )

    def __call__(self) -> dict[str, Any]:
        """Takes all steps, and returns the report."""
        with only_download_bars():
            return self._take_steps()

    def _take_steps(self) -> dict[str, Any]:
        raw = self.load_rows("train")
        check_validation(self.task, len(self.data.rows("validation")))
        folders, rows, parts = self.experts_and_answers(raw)
        costs = self.costs(folders)
        models, tuning = self.routers(folders, rows, parts, costs)
        model = models[self.args.router_objective]
        if costs["source"] == "measured":
            once(
                self.folder / "routed.json",
                lambda: measure_routed(self.args, self.largest(folders), model.cpu(), model.config.quotas or []),
            )
        if PartialState().is_main_process and (self.folder / "report.json").exists():
            self.load_rows("validation")  # it refuses other rows than those of the report
        report = once(self.folder / "report.json", lambda: self.report(models, folders, costs, tuning))
        if PartialState().is_main_process:
            self.save(model, report)
        return report

    def load_rows(self, split: str) -> list[Row]:
        """The rows of "train" or "validation", not tokenized.

        Raises:
            `SecureRouterValueError`: They are others than those that the run began with, or the training rows are too
                few to be split.
        """
        rows = self.data.rows(split)
        if split == "train":
            check_count(self.task, len(rows), self.args.cross_fit_folds)
        own, path = rows_digest(self.task, rows), self.folder / f"rows-{split}.json"
        if not path.exists() and PartialState().is_main_process:  # no wait: the validation rows are the main process's
            write_json(own, path)
        if path.exists() and json.loads(path.read_text()) != own:
            raise SecureRouterValueError(
                f"`output_dir` {str(self.folder)!r} holds a run with other {split} rows, whose figures are not of "
                "these: name another folder, or restore the rows."
            )
        return rows

    def costs(self, folders: Sequence[Path]) -> Costs:
        """The experts' costs, measured or given; see [`~hf_securerouter.recipes.costs.measure_costs`].

        Raises:
            `SecureRouterValueError`: They, or routers of the folder, are those of another shared encoder.
        """
        make_pool = partial(self.pool, folders, objective="utility")
        costs: Costs = once(
            self.folder / "costs.json",
            lambda: measure_costs(self.args, self.experts(folders), self.lengths, self.largest(folders), make_pool),
        )
        shared = shared_expert(self.args, costs, folders)
        refuse_another_encoder(self.folder, shared, costs, partial(self.experts, folders))
        return costs

    @property
    def lengths(self) -> list[int | None]:
        """Tokens that each expert reads; None for all."""
        return [member.length for member in self.members]

    def rows(self, raw: Sequence[Row]) -> list[Row]:
        """Rows as token ids."""
        return tokenize(self.task, raw, self.tokenizer, self.args.max_seq_length)

    def experts_and_answers(self, raw: Sequence[Row]) -> tuple[list[Path], list[Row], Parts]:
        """
        Trains the experts and asks them for their answers.

        Args:
            raw (sequence of `dict`): The training rows, not tokenized.

        Returns:
            `tuple`: The final experts' folders; all rows tokenized, with `expert_logits` of experts that have not seen
            them; and the indices of the router's and of the tuning rows, which alone have answers unless
            `cross_fit_folds` is set.
        """
        args, rows = self.args, self.rows(raw)
        logits = torch.zeros(len(rows), len(self.members), len(self.task.id2label))
        splits = split_training_rows(self.task, raw, args.cross_fit_folds, args.seed)
        if args.cross_fit_folds >= 2:
            folds, (router_part, tuning_part) = splits
            for number, fold in enumerate(folds):
                announce(f"Fold {number + 1} of {len(folds)}: experts that have not seen its {len(fold)} rows ...")
                others = sorted(set(range(len(rows))) - set(fold))
                unseen = [rows[index] for index in fold]
                logits[fold] = once_tensors(
                    self.folder / f"answers-{number}.safetensors",
                    lambda n=number, o=others, u=unseen: self.answers(self.trained(f"fold-{n}", rows, o), u),  # type: ignore[misc]
                )["logits"]
            if len(router_part) > CROSS_FITTED_ROWS:
                router_part = sorted(random.Random(args.seed).sample(router_part, CROSS_FITTED_ROWS))
            folders = self.trained("final", rows, range(len(rows)))
        else:
            ((own, router_part, tuning_part),) = splits
            part = router_part + tuning_part
            folders = self.final_experts(rows, own, part)
            logits[part] = once_tensors(
                self.folder / "answers.safetensors", lambda: self.answers(folders, [rows[index] for index in part])
            )["logits"]
        labels = labels_of([rows[index] for index in router_part])
        found = fit_temperatures(self.folder / "temperatures.json", self.task, logits[router_part], labels)
        self.temperatures = dict(zip(folders, found, strict=True))
        logits /= torch.tensor(found)[:, None]  # the router learns from the experts' probabilities, too
        return folders, with_answers(rows, logits), (router_part, tuning_part)

    def trained(self, name: str, rows: Sequence[Row], part: Sequence[int]) -> list[Path]:
        """Folders of experts that are trained on a part of the rows."""
        return self.train_pool(
            self.args,
            self.task,
            self.members,
            [rows[index] for index in part],
            self.folder / "experts" / name,
            self.tokenizer,
            self.collate,
            self.train,
        )

    def final_experts(self, rows: Sequence[Row], own: Sequence[int], held_out: Sequence[int]) -> list[Path]:
        """Folders of the pool's experts, which have seen the rows `own` and not the rows `held_out`."""
        return self.trained("final", rows, own)

    def experts(self, folders: Sequence[Path]) -> list[PreTrainedModel]:
        """The trained experts, each with its functions."""
        return [load_expert(folder, self.functions.get(folder, EXACT)) for folder in folders]

    def largest(self, folders: Sequence[Path]) -> PreTrainedModel:
        """The expert that the routed pool is compared with."""
        return self.experts(folders[-1:])[0]

    def largest_answers(self, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Logits (N, C) of the expert that the pool is compared with, given those of all experts (N, K, C)."""
        return logits[:, -1]

    def answers(self, folders: Sequence[Path], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """`logits` (N, K, C) of the experts."""
        found = []
        for index, (expert, length) in enumerate(zip(self.experts(folders), self.lengths, strict=True), start=1):
            announce(f"Expert {index} of {len(folders)} answers {len(rows)} rows ...")
            found += predict(to_device(expert), shortened(rows, length, expert.config), self.collate)
        return {"logits": torch.stack(found, dim=1)}

    def pool(
        self, folders: Sequence[Path], costs: Costs, objective: str, lengths: Sequence[int | None] | None = None
    ) -> SecureRouterForSequenceClassification:
        """
        A pool with a fresh router.

        Args:
            folders (sequence of `Path`): The experts.
            costs (`dict`): Their costs, with `seconds`, `routed_seconds` and `source`. They say whose encoder the
                router reads; see [`~hf_securerouter.recipes.shared_encoder.shared_expert`].
            objective (`str`): Of the router.
            lengths (sequence of `int`, *optional*): Tokens that each of these experts reads, if they are not all of
                the run's.
        """
        args, seconds = self.args, costs["routed_seconds"]
        set_seed(args.seed)
        router: str | Path | None = args.router_name_or_path
        shared = shared_expert(args, costs, folders)
        if router is None and shared is None:
            router = folders[int(np.argmin(costs["seconds"]))]
        model = SecureRouterForSequenceClassification.from_expert_pretrained(
            router=router,
            experts=folders,
            router_shares_expert=shared,
            id2label=self.task.id2label,
            problem_type=self.task.problem_type,
            router_objective=objective,
            expert_costs=seconds,
            expert_costs_source=costs["source"],
            expert_mpc=[self.functions.get(folder, EXACT) for folder in folders],
            expert_max_lengths=(lengths or self.lengths) if args.expert_max_lengths else None,
            alpha=args.alpha,
            beta=0.13 / seconds[-1] if args.beta is None else args.beta,
            temperature=args.temperature,
            min_temperature=args.min_temperature,
            max_length=args.max_seq_length,
        )
        for folder, expert in zip(folders, model.experts, strict=True):
            fold_temperature(cast(PreTrainedModel, expert), self.temperature(folder))
        return model

    def temperature(self, folder: Path) -> float:
        """What the logits of an expert are divided by; 1 for one of reduced precision, whose head has too few bits."""
        reduced = self.functions.get(folder, EXACT)["precision"] != "full"
        return 1.0 if reduced else self.temperatures.get(folder, 1.0)

    def routers(
        self, folders: Sequence[Path], rows: Sequence[Row], parts: Parts, costs: Costs
    ) -> tuple[dict[str, SecureRouterForSequenceClassification], dict[str, Any]]:
        """A trained pool for each objective; and for each, the budget with its lambda and quotas."""
        training, tenth = ([rows[index] for index in part] for part in parts)
        models, tuning = {}, {}
        for objective in OBJECTIVES:
            model = self.pool(folders, costs, objective)
            path = self.folder / f"router-{objective}.safetensors"
            shared = model.config.router_shares_expert
            record = None if shared is None else {SHARED: str(shared)}
            weights = once_tensors(path, partial(self.train_router, model, training), record)
            model.router.load_state_dict({name: value.to(model.dtype) for name, value in weights.items()})
            models[objective] = model.eval()
            settings = once(self.folder / f"tuning-{objective}.json", partial(self.tune, model, tenth, costs))
            model.config.routing_lambda, model.config.quotas = settings["routing_lambda"], settings["quotas"]
            tuning[objective] = settings
        return models, tuning

    def train_router(
        self, model: SecureRouterForSequenceClassification, rows: Sequence[Row]
    ) -> dict[str, torch.Tensor]:
        """The router's weights, trained on the experts' answers; see
        [`~hf_securerouter.recipes.router_training.train_router`]."""
        epochs, rate = self.args.router_num_train_epochs, self.args.router_learning_rate
        return train_router(model, rows, self.task, self.collate, self.train, epochs, rate)

    def tune(self, model: SecureRouterForSequenceClassification, rows: Sequence[Row], costs: Costs) -> dict[str, Any]:
        """The budget, and lambda and quotas that keep it on held-out rows."""
        args, seconds = self.args, costs["routed_seconds"]
        scores = predict(to_device(model), rows, self.collate, ("router_logits",))[0]
        budget = args.budget_seconds
        if budget is None:
            budget = max(max(costs["seconds"]) / 2, min(seconds))
        return {
            "budget_seconds": budget,
            "routing_lambda": lambda_for_budget(scores, seconds, budget),
            "quotas": quotas_for_budget(scores, seconds, budget, args.quota_batch_size),
        }

    def report(
        self,
        models: Mapping[str, SecureRouterForSequenceClassification],
        folders: Sequence[Path],
        costs: Costs,
        tuning: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Everything that is found on the validation split, which no other step learns from."""
        texts = self.load_rows("validation")
        whole = token_counts(self.task, texts, self.tokenizer)  # first: a tokenizer is saved as it was used last
        rows = self.rows(texts)
        raw = self.answers(folders, rows)["logits"]
        temperatures = [self.temperature(folder) for folder in folders]
        logits = raw / torch.tensor(temperatures)[:, None]
        task, seconds, labels = self.task, costs["routed_seconds"], labels_of(rows)
        predictions = decide(task, logits)
        answers = PoolAnswers(
            predictions,
            labels.numpy(),
            expert_utilities(logits, labels, task.problem_type).numpy(),
            costs["seconds"],
            seconds,
            decide(task, self.largest_answers(logits, rows)),
            costs["largest_seconds"],
            task.score(),
        )
        scores: dict[str, torch.Tensor] = {}
        chosen: dict[str, np.ndarray] = {}
        read = summarize_rows(next(iter(models.values())), with_answers(rows, logits), self.collate)
        for objective, model in models.items():
            scores[objective] = predict(to_device(model), read, self.collate, ("router_logits",))[0]
            settings = tuning[objective]
            by_lambda = choose_expert(scores[objective], seconds, settings["routing_lambda"])
            by_quota = serve_by_quota(scores[objective], settings["quotas"], seconds)
            chosen |= {f"{objective}, lambda": by_lambda.numpy(), f"{objective}, quotas": by_quota.numpy()}
        announce(f"Drawing {self.args.bootstrap_resamples} samples for the intervals of the report ...")
        compared = scores | {"cascade": cascade_scores(task, logits, seconds)}
        found = make_report(answers, compared, chosen, self.args.bootstrap_resamples)
        metric, everyone = task.metric(), np.arange(len(rows))
        for name, served in chosen.items():
            found["policies"][name]["metrics"] = metric(predictions[everyone, served], answers.references)
        found["calibration"] = calibration_report(
            task, raw, temperatures, labels, {name: torch.from_numpy(served) for name, served in chosen.items()}
        )
        found["largest_metrics"] = metric(answers.largest, answers.references)
        if count := self.args.encrypted_eval_samples:
            objective, some = self.args.router_objective, slice(count)
            model, quotas = models[objective].cpu(), tuning[objective]["quotas"]
            announce(f"Classifying {len(rows[some])} validation rows under encryption ...")
            samples, longest_input = self.rows(self.load_rows("train")[:SAMPLES]), self.args.max_seq_length
            encrypted, query = encrypted_logits(model, quotas, rows[some], self.collate, longest_input, samples)
            policy = scores[objective][some], logits[some], quotas, seconds
            reduced = any(own["precision"] != "full" for own in model.config.expert_mpc or ())
            found["encrypted"] = compare_with_clear(task, encrypted, *policy, labels[some], reduced) | query
        longest = [min(own or self.args.max_seq_length, self.args.max_seq_length) for own in self.lengths]
        found["cut"] = [np.mean([count > own for count in whole]) for own in longest]
        found |= {"task": task.name, "metric": task.score_name, "tuning": tuning}
        return found if task.is_glue else found | {"labels": list(task.labels)}

    def save(self, model: SecureRouterForSequenceClassification, report: dict[str, Any]) -> None:
        """The model with its card and its row of results, then the figure: one that fails loses nothing else."""
        objective, args = self.args.router_objective, self.args
        policy = report["policies"][f"{objective}, quotas"]
        path = self.folder / "routed.json"
        measured = json.loads(path.read_text()) if path.exists() else None
        row = {
            "task": self.task.name,
            "metric": report["metric"],
            "seeds": [args.seed],
            "experts": [self.describe(model, index) for index in range(len(model.experts))],
            "cut": report["cut"],
            "largest_score": 100 * report["largest_score"],
            "routed_score": 100 * policy["score"],
            "relative_cost": measured and measured["seconds"]["relative"],
            "relative_bytes": measured and measured["bytes"]["relative"],
            "audc": report["audc"],
            "qnc": report["qnc"][objective],
            "command": self.command,
        }
        row |= {name: report[name] for name in ("variants", "labels") if name in report}
        write_json(row, self.folder / "row.json")
        card = card_data(self.task, args.seed, report, policy, measured, self.command)
        model.cpu().model_card_data = card  # type: ignore[assignment]
        self.tokenizer.save_pretrained(self.folder)
        model.save_pretrained(self.folder)
        draw_report(report, self.folder / "curve.png", f"{self.task.name}, seed {args.seed}", report["metric"])
        if args.results_file:
            publish(args.results_file, [self.folder])
        shutil.rmtree(self.folder / "steps", ignore_errors=True)  # checkpoints of steps that are finished
        announce(
            f"{self.folder}: {report['metric']} {policy['score']:.4f} at {policy['relative_cost']:.2f} of the cost of "
            f"the largest expert, which reaches {report['largest_score']:.4f}."
        )

    def describe(self, model: SecureRouterForSequenceClassification, index: int) -> str:
        """An expert in a few words, such as "bert 2x128, 64 tokens, quadratic"."""
        config = encoder_config(model.experts[index].config)
        functions = (model.config.expert_mpc or [])[index]
        length = [f"{model.config.length_of(index)} tokens"] if model.config.expert_max_lengths else []
        special = [choice for choice in functions.values() if choice not in ("exact", "full")]
        return ", ".join([f"{config.model_type} {config.num_hidden_layers}x{config.hidden_size}", *length, *special])

    def push(self, repo_id: str, token: str | None = None, private: bool | None = None) -> None:
        """Upload the run; see [`~hf_securerouter.recipes.pushing.push_run`]."""
        push_run(self.folder, repo_id, token, private)
