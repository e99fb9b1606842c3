# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The labels of a pool: fine-tuned experts are brought to one order of labels, by the labels' names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .admission import probe_texts
from .errors import SecureRouterValueError, warn
from .families import FAMILIES


# The labels of one expert in the order of the pool's, by name or by index of its output.
LabelOrder = Sequence[Sequence[str | int] | None]


@dataclass
class LoadedExpert:
    """An expert and whether the checkpoint of this name came with a head.

    Args:
        name (`str`): Id or folder.
        model (`PreTrainedModel`): The classifier.
        fine_tuned (`bool`): Whether its head was trained; otherwise it is new.
    """

    name: str
    model: PreTrainedModel
    fine_tuned: bool

    @property
    def labels(self) -> list[str]:
        """Names of its outputs, in their order."""
        by_index = cast(dict[int, str], self.model.config.id2label)
        return [str(by_index[index]) for index in sorted(by_index)]


def wanted_labels(num_labels: int | None, id2label: dict[int, str] | None) -> list[str] | None:
    """The names that the caller wants, in order; None if they are to come from the experts.

    Raises:
        `SecureRouterValueError`: `num_labels` is no count, or `id2label` does not number as many different names.
    """
    if num_labels is not None and (isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1):
        raise SecureRouterValueError(f"`num_labels` should be an integer of at least 1, got {num_labels!r}.")
    if id2label is None:
        return None
    try:
        labels = {int(index): str(name) for index, name in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        labels = {}
    if not labels or sorted(labels) != list(range(len(labels))) or num_labels not in (None, len(labels)):
        raise SecureRouterValueError(
            f"`id2label` should name labels 0 to {(num_labels or len(labels) or 2) - 1}, got {id2label!r}."
        )
    names = [labels[index] for index in range(len(labels))]
    _refuse_doubles("`id2label`", names)
    return names


def common_count(experts: Sequence[LoadedExpert], num_labels: int | None) -> int:
    """How many labels the pool has: `num_labels`, or as many as the fine-tuned experts, or 2.

    Raises:
        `SecureRouterValueError`: A fine-tuned expert has another number.
    """
    counts = {expert.name: len(expert.labels) for expert in experts if expert.fine_tuned}
    if num_labels is None and len(set(counts.values())) > 1:
        raise SecureRouterValueError(
            f"`experts` have different numbers of labels, {counts}: leave out those that do not fit the task."
        )
    chosen = num_labels or next(iter(counts.values()), 2)
    for name, count in counts.items():
        if count != chosen:
            raise SecureRouterValueError(
                f"`experts` holds {name!r}, a classifier of {count} labels, and the pool has {chosen}: leave it out, "
                "or pass its base checkpoint, which gets a new head."
            )
    return chosen


def agree_on_labels(
    experts: Sequence[LoadedExpert], wanted: Sequence[str] | None, label_order: LabelOrder | None = None
) -> dict[int, str]:
    """Brings the fine-tuned heads to one order of labels, in place.

    Args:
        experts (`list[LoadedExpert]`): All of the same number of labels.
        wanted (`list[str]`, *optional*): The pool's labels; by default those of the first fine-tuned expert that names
            its own.
        label_order (`list`, *optional*): For each expert its labels, by name or index, in the order of the pool's;
            None for an expert whose labels have the pool's names, or none.

    Returns:
        `dict[int, str]`: The pool's labels.

    Raises:
        `SecureRouterValueError`: Names cannot be matched; or `label_order` does not hold each label of an expert once.
    """
    orders = [_columns(expert, order) for expert, order in zip(experts, _entries(experts, label_order), strict=True)]
    tuned = [(expert, order) for expert, order in zip(experts, orders, strict=True) if expert.fine_tuned]
    for expert, _ in tuned:
        _refuse_contradiction(expert)
    named = [
        [expert.labels[column] for column in order or range(len(expert.labels))]
        for expert, order in tuned or zip(experts, orders, strict=True)
    ]
    names = list(wanted or next((labels for labels in named if not _are_numbers(labels)), named[0]))
    by_place = []
    for expert, order in tuned:
        if order is None:
            order = _by_name(expert.labels, names)
        if order is None and (len(names) == 1 or _are_numbers(expert.labels)):
            order = list(range(len(names)))
        if order is None:
            raise SecureRouterValueError(
                f"`experts` name their labels differently, and {expert.labels} of {expert.name!r} cannot be matched "
                f"with {names}: pass `label_order`, which lists for each expert its own labels in the pool's order "
                f"(None for an expert whose names match), and `id2label` to choose the pool's names."
            )
        if _are_numbers(expert.labels) and len(names) > 1 and not label_order:
            by_place.append(expert.name)
        permute_head(expert.model, order)
    if by_place and (len(tuned) > 1 or not _are_numbers(names)):
        warn(
            f"{', '.join(map(repr, by_place))} name their labels by number only (`LABEL_0`, ...): they are taken by "
            f"place as {names}, which nothing can check. Name them in the checkpoint's `id2label`, or pass "
            "`label_order`."
        )
    return dict(enumerate(names))


def refuse_other_orders(experts: Sequence[PreTrainedModel], id2label: dict[int, str]) -> None:
    """Refuses loaded experts that have the labels of a pool in another order.

    Raises:
        `SecureRouterValueError`: An expert has.
    """
    names = [id2label[index] for index in sorted(id2label)]
    for index, model in enumerate(experts):
        own = LoadedExpert("", model, True).labels
        order = _by_name(own, names)
        if order is not None and order != list(range(len(names))):
            raise SecureRouterValueError(
                f"`experts[{index}]` has the labels {own}, and the pool {names}: build the pool with "
                "`from_expert_pretrained`, which brings heads to one order, or reorder the head."
            )


def permute_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Reorders the outputs of a classifier, in place: output i becomes its former output `order[i]`.

    Raises:
        `SecureRouterValueError`: The head does not end in one linear layer.
    """
    count = len(order)
    if list(order) == list(range(count)):
        return
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.head is not None:
        head: nn.Linear | None = family.head(model).classifier
    else:
        inside = model.base_model_prefix + "."
        outside: list[Any] = [m for name, m in model.named_modules() if not name.startswith(inside)]
        head = next((m for m in reversed(outside) if isinstance(m, nn.Linear) and m.out_features == count), None)
    before = probe_texts(model)
    if head is not None:
        with torch.no_grad():
            head.weight.copy_(head.weight[list(order)].clone())
            if head.bias is not None:
                head.bias.copy_(head.bias[list(order)].clone())
    if head is None or not torch.allclose(probe_texts(model), before[:, list(order)], rtol=1e-3, atol=1e-5):
        raise SecureRouterValueError(
            f"The head of {type(model).__name__} has no last linear layer of {count} labels, so that its labels "
            "cannot be reordered: save the expert with the order of the others."
        )


def _are_numbers(labels: Sequence[str]) -> bool:
    """Whether labels are transformers' default names, which say nothing."""
    return list(labels) == [f"LABEL_{index}" for index in range(len(labels))]


def _plain(name: str) -> str:
    """A name without case, and with blanks for `_` and `-`."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _by_name(own: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """For each of `names` the index of the same name in `own`; None if the two do not hold the same names."""
    for form in (str, _plain):
        places = {form(name): index for index, name in enumerate(own)}
        asked = [form(name) for name in names]
        if len(places) == len(own) and set(asked) == set(places) and len(asked) == len(places):
            return [places[name] for name in asked]
    return None


def _refuse_doubles(where: str, names: Sequence[str]) -> None:
    doubles = sorted({name for name in names if list(names).count(name) > 1})
    if doubles:
        raise SecureRouterValueError(f"{where} gives the name {doubles[0]!r} to several labels: rename one.")


def _refuse_contradiction(expert: LoadedExpert) -> None:
    """Refuses a checkpoint that gives one name to two labels, or whose `label2id` contradicts its `id2label`."""
    _refuse_doubles(f"`id2label` of {expert.name!r}", expert.labels)
    other = cast(dict[str, Any], expert.model.config.label2id) or {}
    own = {name: index for index, name in enumerate(expert.labels)}
    if set(other) == set(own) and any(int(other[name]) != own[name] for name in own):
        raise SecureRouterValueError(
            f"`label2id` of {expert.name!r} is {other}, and its `id2label` says {own}: correct its config.json to the "
            "order in which it was trained."
        )


def _entries(experts: Sequence[LoadedExpert], label_order: LabelOrder | None) -> LabelOrder:
    if label_order is None:
        return [None] * len(experts)
    if not isinstance(label_order, (list, tuple)) or len(label_order) != len(experts):
        raise SecureRouterValueError(
            f"`label_order` should be a list with one entry for each of the {len(experts)} experts, got "
            f"{label_order!r}: an entry lists the expert's own labels in the order of the pool's, or is None."
        )
    return label_order


def _columns(expert: LoadedExpert, order: Sequence[str | int] | None) -> list[int] | None:
    """An entry of `label_order` as indices of the expert's outputs."""
    if order is None:
        return None
    if not expert.fine_tuned:
        raise SecureRouterValueError(
            f"`label_order` orders the labels of {expert.name!r}, whose head is new: pass None for it."
        )
    places: dict[str | int, int] = {name: index for index, name in enumerate(expert.labels)}
    listed = order if isinstance(order, (list, tuple)) else []
    found = [item if type(item) is int else places.get(item, -1) for item in listed]
    if sorted(found) != list(range(len(expert.labels))):
        raise SecureRouterValueError(
            f"`label_order` should list each label of {expert.name!r} once, of {expert.labels} or by index, got "
            f"{order!r}."
        )
    return found
