# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The model card that is written beside the weights, of a pool or of an adapter on one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_securerouter.adapters import adapter_of, pool_inside
from hf_securerouter.card_figures import weights_digest, without_figures
from hf_securerouter.configuration_securerouter import EXPERT_MPC_CHOICES
from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.families import encoder_config
from hf_securerouter.files import write_text
from hf_securerouter.hub_ids import is_hub_id


logger = logging.get_logger(__name__)


TEMPLATE = Path(__file__).with_name("model_card_template.md")


# The last generated line. Its digest shows whether a person has edited the card, or it may be written again.
_END = re.compile(r"<!-- Written by hf_securerouter \(digest ([0-9a-f]{16})\)\. Text below this line is kept\. -->\n?")


_PRIVACY = {
    "revealed": "under encryption the servers learn which expert each query used.",
    "quota": "under encryption the servers learn the public quotas, fixed before any data is seen.",
    "oblivious": "under encryption the servers learn nothing about the choice; every expert runs for every query, "
    "or one that is selected among experts of one shape.",
}


_COST_NOTES = {
    "estimate": "Costs are an estimate: parameter counts relative to the smallest expert, not measured.",
    "given": "Costs were given by the author of the model.",
    "measured": "Costs are measured, in relative seconds of encrypted inference.",
}


class SecureRouterModelCardData(ModelCardData):
    """The metadata of a card: huggingface_hub's, and this package's measurements.

    A model carries it as `model.model_card_data`; [`~hf_securerouter.card_callback.ModelCardCallback`] fills it in
    training. Every argument of [`~huggingface_hub.ModelCardData`] is accepted (`datasets`, `language`, `license`,
    `model_name`, `eval_results` as a list of [`~huggingface_hub.EvalResult`], ...). Base models are added from the
    experts.

    Args:
        securerouter: Metadata without a field on the Hub: `routing_shares` (K fractions of the evaluated texts),
            `routing_cost` (mean cost of a text, in the units of `expert_costs`), `metrics` (name to value, shown if no
            dataset is named), `outdated` (whether training went on after these were measured), `evaluation_sets`
            (these four by the name of an evaluation set, if there are several),
            `training` (name to value), `weights` (digest of the weights that all this is of), `report` (of
            [`~hf_securerouter.reports.make_report`]) and `figure` (file name of the report's figure, beside the card).

    Example:
        ```python
        model.model_card_data = SecureRouterModelCardData(
            datasets=["nyu-mll/glue"], language="en", license="apache-2.0", model_name="sst2-router"
        )
        ```
    """

    def __init__(self, *, securerouter: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.securerouter = securerouter or {}

    def _to_dict(self, data_dict: dict[str, Any]) -> None:
        if self.eval_results:
            self.model_name = self.model_name or "securerouter"  # the Hub lists results under a model's name
        else:
            self.eval_results = None
        super()._to_dict(data_dict)

    def to_dict(self) -> dict[str, Any]:
        """The metadata as a dict, as in the card; empty entries are left out."""
        return {key: value for key, value in super().to_dict().items() if value not in ([], {})}


class SecureRouterModelCard(ModelCard):
    """A model card whose metadata are [`SecureRouterModelCardData`]."""

    card_data_class = SecureRouterModelCardData
    default_template_path = TEMPLATE


def generate_model_card(
    model: PreTrainedModel,
    card_data: SecureRouterModelCardData | None = None,
    repo_id: str | None = None,
) -> str:
    """Render the card of a pool, or of an adapter of PEFT on one.

    Args:
        model: The pool, whose config gives experts, costs and routing, or the model that `peft.get_peft_model` made.
        card_data: Metadata; defaults to `model.model_card_data`, if it has one.
        repo_id: The name shown in the code example; defaults to the card's `model_name`.

    Returns:
        The card: YAML metadata, text, and a last line that lets a later call recognise an unedited card.

    Raises:
        SecureRouterValueError: `model` is no pool, or `routing_shares` has not one entry for each expert.
    """
    adapter, model = adapter_of(model), pool_inside(model)
    config: Any = model.config  # its optional fields are set once a model is built
    data = card_data or getattr(model, "model_card_data", None) or SecureRouterModelCardData()
    data = SecureRouterModelCardData(**data.to_dict() | {"library_name": "peft" if adapter else "transformers"})
    data.pipeline_tag = "text-classification"
    kind = [adapter[1].peft_type.lower()] if adapter else []
    data.tags = list(dict.fromkeys([*(data.tags or []), "securerouter", "routing", "private-inference", *kind]))
    base = adapter[1].base_model_name_or_path if adapter else None
    if adapter:
        data.base_model = base if is_hub_id(base or "") else None
        data.base_model_relation = "adapter"  # type: ignore[attr-defined]
    else:
        data.base_model = _base_models(config, data.base_model) or None
    name = data.model_name or (repo_id.rsplit("/", 1)[-1] if repo_id else "securerouter")
    if data.eval_results:
        data.model_name = name
        data.metrics = sorted({result.metric_type for result in data.eval_results})
    evaluations = {"evaluated": data.securerouter} | data.securerouter.get("evaluation_sets", {})
    shares = {name: own["routing_shares"] for name, own in evaluations.items() if own.get("routing_shares")}
    for own in shares.values():
        if len(own) != config.num_experts:
            raise SecureRouterValueError(
                f"`routing_shares` should have one entry for each of the {config.num_experts} experts, got {own!r}."
            )
    card = SecureRouterModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=name,
        repo_id=repo_id or name,
        config=config,
        labels=[_plain(config.id2label[index]) for index in range(config.num_labels)],
        max_length=config.max_length,
        adapter=_described_adapter(model, *adapter) if adapter else None,
        base=data.base_model or "folder-of-the-pool",
        expert_table=_expert_table(model, shares),
        report=data.securerouter.get("report"),
        report_tables=_report_tables(data.securerouter.get("report")),
        measured_table=_measured_table(data.securerouter.get("report")),
        variant_table=_variant_table(data.securerouter.get("report")),
        calibration_table=_calibration_table(data.securerouter.get("report")),
        figure=data.securerouter.get("figure"),
        outdated=[name for name, own in evaluations.items() if own.get("outdated")],
        routing_costs={name: own["routing_cost"] for name, own in evaluations.items() if own.get("routing_cost")},
        router_parameters=_count(model.router),
        cost_source=config.expert_costs_source or "estimate",
        cost_note=_COST_NOTES[config.expert_costs_source or "estimate"],
        privacy=_PRIVACY[config.routing_privacy],
        result_table=_result_table(data),
        training_table=_table(["argument", "value"], list(data.securerouter.get("training", {}).items())),
    )
    card.text = card.text.rstrip("\n") + "\n\n"
    card.text += f"<!-- Written by hf_securerouter (digest {_digest(card.text)}). Text below this line is kept. -->\n"
    return card.content


def write_model_card(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    card_data: SecureRouterModelCardData | None = None,
    repo_id: str | None = None,
    same_weights: bool = False,
) -> bool:
    """Write the card to `folder`/README.md, without losing a person's text.

    A generated card is written again; metadata that were added to it and the text below its last generated line stay,
    and its figures as long as the folder holds the weights that they were measured of. A README.md that a person
    wrote, or edited above that line, is left as it is, with a warning.

    Args:
        model: The pool, or the model that `peft.get_peft_model` made.
        folder: Where model and card are saved.
        card_data: Metadata; defaults to `model.model_card_data`, if it has one.
        repo_id: The name shown in the code example; defaults to the card's `model_name`.
        same_weights: Take an earlier card that does not say which weights it is of for that of the folder's weights.

    Returns:
        Whether the card was written.

    Raises:
        SecureRouterValueError: As for [`generate_model_card`].
        OSError: The file cannot be written, such as in a folder that is not there.
    """
    path = Path(folder) / "README.md"
    data = card_data or getattr(pool_inside(model), "model_card_data", None) or SecureRouterModelCardData()
    kept, weights = "", weights_digest(folder)
    if path.exists():
        existing = _load_card(path)
        end = None if existing is None else _END.search(existing.text)
        if existing is None or end is None or end.group(1) != _digest(existing.text[: end.start()]):
            logger.warning(
                "%s was written or edited by hand and is left as it is. To have it generated, move your text below "
                "the line that starts with `<!-- Written by hf_securerouter`, or remove the file.",
                path,
            )
            return False
        kept = existing.text[end.end() :]
        before = cast(SecureRouterModelCardData, existing.data)
        known = before.securerouter.get("weights")
        if known != weights and not (same_weights and known is None):
            if before.eval_results or before.securerouter.keys() - {"weights"}:
                whose = "are of other weights" if known else "may be of other weights, which the card did not tell"
                logger.warning("The figures in %s %s: they were left out.", path, whose)
            before = without_figures(before)
        data = _merge(before, data)
    if weights is not None:
        data = SecureRouterModelCardData(**data.to_dict())
        data.securerouter["weights"] = weights
    write_text(generate_model_card(model, data, repo_id) + kept, path)
    return True


def _base_models(config, named: str | Sequence[str] | None) -> list[str]:
    names = [named] if isinstance(named, str) else list(named or [])
    names += [sub.name_or_path for sub in (*config.expert_configs, config.router_config) if sub is not None]
    return list(dict.fromkeys(name for name in names if name and is_hub_id(name)))


def _described_adapter(pool: PreTrainedModel, name: str, config: Any) -> str:
    """An adapter in a few words, such as "lora of rank 8 with 1,234 trained parameters"."""
    trained = sum(parameter.numel() for path, parameter in pool.named_parameters() if f".{name}." in f".{path}.")
    rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
    return f"{config.peft_type.lower()}{rank} with {trained:,} trained parameters"


def _expert_table(model: PreTrainedModel, shares: Mapping[str, Sequence[float]]) -> str:
    config: Any = model.config
    source = config.expert_costs_source or "estimate"
    header = ["expert", "architecture", "layers", "hidden size", "parameters", f"cost ({source})"]
    rows: list[list[Any]] = []
    for index, (expert, cost) in enumerate(zip(config.expert_configs, config.expert_costs, strict=True)):
        name = f"{index} (`{expert.name_or_path}`)" if is_hub_id(expert.name_or_path or "") else str(index)
        parameters = _count(cast(Any, model.experts)[index])
        inner = encoder_config(expert)
        rows.append([name, inner.model_type, inner.num_hidden_layers, inner.hidden_size, parameters, f"{cost:.4g}"])
    if config.expert_max_lengths is not None:
        header.append("tokens read")
        for index, row in enumerate(rows):
            row.append(config.length_of(index))
    if any(chosen[name] != "exact" for chosen in config.expert_mpc for name in ("hidden_act", "softmax")):
        header += ["activation", "attention"]
        for row, chosen in zip(rows, config.expert_mpc, strict=True):
            row += [chosen["hidden_act"], chosen["softmax"]]
    precisions = [chosen["precision"] for chosen in config.expert_mpc]
    if set(precisions) != {"full"}:
        header.append("precision")
        for row, precision in zip(rows, precisions, strict=True):
            row.append(precision)
    for name, own in shares.items():
        header.append(f"share of {name} texts")
        for row, share in zip(rows, own, strict=True):
            row.append(f"{share:.1%}")
    return _table(header, rows)


def _result_table(data: SecureRouterModelCardData) -> str:
    if data.eval_results:
        found = [(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results]
    else:
        found = [("evaluation data", name, value) for name, value in data.securerouter.get("metrics", {}).items()]
        for evaluated, own in data.securerouter.get("evaluation_sets", {}).items():
            found += [(evaluated, name, value) for name, value in own["metrics"].items()]
    rows = [(dataset, name, f"{v:.4f}" if isinstance(v, float) else v) for dataset, name, v in found]
    return _table(["dataset", "metric", "value"], rows)


def _report_tables(report: dict[str, Any] | None) -> list[str]:
    """Tables of policies and single experts, and of the curves' areas."""
    if not report:
        return []

    def between(value: float | None, interval: Sequence[float] | None = None, digits: int = 4) -> str:
        text = "never" if value is None else f"{value:.{digits}f}"
        return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"

    rows = [
        [f"expert {index} alone", f"{expert['relative_cost']:.3f}", between(expert["score"]), ""]
        for index, expert in enumerate(report["experts"])
    ]
    rows.append(["the largest", "1.000", between(report["largest_score"], report["largest_score_interval"]), ""])
    for name, policy in report["policies"].items():
        cost = between(policy["relative_cost"], policy["relative_cost_interval"], 3)
        score = between(policy["score"], policy["score_interval"])
        rows.append([name, cost, score, between(policy["lost"], policy["lost_interval"])])
    areas = [
        [name, between(area, report["audc_interval"][name]), between(report["qnc"][name], digits=3)]
        for name, area in report["audc"].items()
    ]
    return [
        _table(["policy", "relative cost", "score", "lost against the largest"], rows),
        _table(["curve", "AUDC", "QNC"], areas),
    ]


def _measured_table(report: dict[str, Any] | None) -> str:
    """A batch under encryption, routed and by the largest expert; empty if the report has no measurement."""
    measured = (report or {}).get("measured")
    if not measured:
        return ""
    # Before seconds were counted so, they were those with the input alone.
    counted = "with the input and before it" if measured.get("counted") else "with the input"
    rows = [
        [
            unit,
            *(f"{scale * measured[name][side]:,.4g}" for side in ("routed", "largest")),
            f"{measured[name]['relative']:.3f}",
        ]
        for unit, name, scale in (
            (f"seconds of the servers, {counted}", "seconds", 1),
            ("MB between them", "bytes", 1e-6),
        )
    ]
    return _table(["", "routed", "largest expert alone", "ratio"], rows)


def _variant_table(report: dict[str, Any] | None) -> str:
    """Exact experts and their variants with cheaper functions and numbers; empty if the report has no variants."""
    rows: list[list[Any]] = []
    exact: dict[int, dict[str, Any]] = {}
    for variant in (report or {}).get("variants", []):
        first = exact.setdefault(variant["expert"], variant)
        rows.append([variant["expert"], describe_variant(variant, first), f"{variant['score']:.4f}"])
        if "bytes" in variant:
            rows[-1] += [f"{1e-6 * variant['bytes']:.3g}", variant["rounds"], f"{variant['seconds']:.3g}"]
        else:
            rows[-1] += [""] * 3
    return _table(["expert", "computes", "score", "MB of a query", "rounds of a batch", "seconds of a query"], rows)


def _calibration_table(report: dict[str, Any] | None) -> str:
    """Expected calibration errors before and after the heads were scaled; empty if the report has none."""
    calibration = (report or {}).get("calibration")
    if not calibration:
        return ""
    before, after = calibration["before"], calibration["after"]
    rows = [
        [f"expert {index} alone", f"{temperature:.3f}", *(f"{own['experts'][index]:.4f}" for own in (before, after))]
        for index, temperature in enumerate(calibration["temperatures"])
    ]
    rows += [[name, "", *(f"{own['policies'][name]:.4f}" for own in (before, after))] for name in after["policies"]]
    return _table(["policy", "temperature", "error before", "error"], rows)


def describe_variant(variant: dict[str, Any], exact: dict[str, Any]) -> str:
    """The differences of a variant from the exact expert, such as "reduced, 8 heads, 1280 neurons"."""
    special = [variant[name] for name in EXPERT_MPC_CHOICES if variant[name] not in ("exact", "full")]
    shape = [f"{variant[name]} {name}" for name in ("heads", "neurons") if variant.get(name) != exact.get(name)]
    return ", ".join(special + shape) or "exact"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, or the empty string if there is no row."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) if rows else ""


def _plain(name: str) -> str:
    """A name of a foreign checkpoint, in one line and without a meaning in Markdown."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(name).split()))


def _count(module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().replace("\r\n", "\n").encode()).hexdigest()[:16]


def _load_card(path: Path) -> SecureRouterModelCard | None:
    try:
        return SecureRouterModelCard.load(path)
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # not a generated card, so a person wrote it
        return None


def _merge(old: SecureRouterModelCardData, new: SecureRouterModelCardData) -> SecureRouterModelCardData:
    """The metadata of `old`, overwritten by the metadata of `new`; tags and measurements are joined."""
    merged = old.to_dict() | new.to_dict()
    merged["tags"] = list(dict.fromkeys([*(old.tags or []), *(new.tags or [])]))
    merged["securerouter"] = old.securerouter | new.securerouter
    return SecureRouterModelCardData(**merged)
