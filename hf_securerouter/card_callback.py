# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a Trainer tells the model card: its arguments, and the figures of the last evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult
from transformers import TrainerCallback

from hf_securerouter.adapters import pool_inside
from hf_securerouter.model_card import SecureRouterModelCardData


_NOT_METRICS = {"loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time"}

_TRAINING_ARGUMENTS = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "seed",
)


class ModelCardCallback(TrainerCallback):
    """Collects the arguments of training and the metrics of the last evaluation for the card.

    Where the best weights are loaded at the end, these metrics are of the evaluation that chose them, as long as this
    process saw it. Where training goes on after the last evaluation, the card says that its figures are of earlier
    weights.

    The metrics become `EvalResult`s if `model.model_card_data.datasets` names a dataset, else a table in the card.
    [`SecureRouterTrainer`] adds this callback by itself.
    """

    def __init__(self) -> None:
        self._found: dict[int, dict[str, dict[str, Any]]] = {}  # by step and by evaluation set, "" for the only one

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._data(model).securerouter["training"] = {name: getattr(args, name) for name in _TRAINING_ARGUMENTS}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        measured = self._data(model).securerouter
        for own in (measured, *measured.get("evaluation_sets", {}).values()):
            if own.get("metrics") or own.get("routing_shares"):
                own["outdated"] = True

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        metrics = {name: value for name, value in (metrics or {}).items() if name != "epoch"}
        prefix = next((name.removesuffix("runtime") for name in metrics if name.endswith("_runtime")), "eval_")
        metrics = {name.removeprefix(prefix): value for name, value in metrics.items()}
        evaluated = prefix.removeprefix("eval_").removesuffix("_")  # of several evaluation sets the name of one
        found: dict[str, Any] = {"outdated": False}
        shares = [metrics.pop(name) for name in sorted(metrics, key=_share_index) if _share_index(name) >= 0]
        if shares:
            found["routing_shares"] = [round(share, 4) for share in shares]
        if "routing_cost" in metrics:
            found["routing_cost"] = round(metrics.pop("routing_cost"), 4)
        found["metrics"] = {name: value for name, value in metrics.items() if name not in _NOT_METRICS}
        self._found.setdefault(state.global_step, {})[evaluated] = found
        self._show(model, evaluated, found)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if args.load_best_model_at_end and state.best_global_step:
            best = self._found.get(state.best_global_step, {})  # empty if a run before this one evaluated them
            for evaluated in {name for step in self._found.values() for name in step}:
                self._show(model, evaluated, best.get(evaluated, {"metrics": {}, "outdated": False}))

    def _show(self, model: Any, evaluated: str, found: Mapping[str, Any]) -> None:
        """Puts what an evaluation found into the card, in the place of an earlier one of the same set."""
        data = self._data(model)
        if evaluated:
            data.securerouter.setdefault("evaluation_sets", {})[evaluated] = dict(found)
        else:
            for name in ("routing_shares", "routing_cost"):
                data.securerouter.pop(name, None)
            data.securerouter |= found
        if data.datasets:
            datasets = [data.datasets] if isinstance(data.datasets, str) else data.datasets
            others = [result for result in data.eval_results or [] if result.dataset_split != (evaluated or None)]
            data.eval_results = others + [
                EvalResult(
                    task_type="text-classification",
                    dataset_type=datasets[0],
                    dataset_name=f"{datasets[0]} ({evaluated})" if evaluated else datasets[0],
                    dataset_split=evaluated or None,
                    metric_type=name,
                    metric_value=value,
                )
                for name, value in found["metrics"].items()
            ]

    @staticmethod
    def _data(model) -> SecureRouterModelCardData:
        model = pool_inside(model)
        if getattr(model, "model_card_data", None) is None:
            model.model_card_data = SecureRouterModelCardData()
        return model.model_card_data


def _share_index(name: str) -> int:
    index = name.removeprefix("routing_share_")
    return int(index) if index != name and index.isdigit() else -1
