# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A linear classification head from a safetensors file, from scikit-learn or from PyTorch. Nothing is unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import SecureRouterValueError


@dataclass(frozen=True)
class LinearValues:
    """The values of a linear layer.

    Args:
        weight (`torch.Tensor`): float32 (out, in).
        bias (`torch.Tensor`): float32 (out,).
        classes (`tuple`, *optional*): What a classifier calls its outputs, if it says so.
    """

    weight: Tensor
    bias: Tensor
    classes: tuple[Any, ...] | None = None


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        `SecureRouterValueError`: The file cannot be read.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SecureRouterValueError(
            f"The safetensors file {os.fspath(path)!r} cannot be read ({error}): save it again."
        ) from error


def linear_values(tensors: Mapping[str, Tensor], where: str) -> LinearValues:
    """A linear layer from its tensors; a missing bias is 0.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): `weight` (out, in) and `bias` (out,), or both after `linear.`.
        where (`str`): Where they come from; for messages.

    Raises:
        `SecureRouterValueError`: A tensor is missing, has another shape, or belongs to something else.
    """
    named = {key.removeprefix("linear."): value.detach().to("cpu", torch.float32) for key, value in tensors.items()}
    weight, bias = named.pop("weight", None), named.pop("bias", None)
    if weight is None or weight.dim() != 2 or named or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        raise SecureRouterValueError(
            f"{where} should hold `weight` of shape (outputs, inputs) and `bias` of shape (outputs,), got {shapes}: "
            "save these two."
        )
    return LinearValues(weight, torch.zeros(len(weight)) if bias is None else bias)


def read_head(head: Any) -> LinearValues:
    """A head with one output for each class.

    Args:
        head (`str`, `os.PathLike` or `object`): A safetensors file, a fitted linear classifier of scikit-learn, or a
            linear module of PyTorch such as SetFit's differentiable head.

    Raises:
        `SecureRouterValueError`: It is none of these, or has several labels for a text.
    """
    if isinstance(head, (str, os.PathLike)):
        if Path(head).suffix != ".safetensors":
            raise SecureRouterValueError(
                f"`head` {os.fspath(head)!r} is no safetensors file, and no other kind is read: save `weight` and "
                "`bias` with `safetensors.torch.save_file`."
            )
        return _with_both_classes(linear_values(read_tensors(head), f"`head` {os.fspath(head)!r}"))
    return _with_both_classes(_of_module(head) if isinstance(head, nn.Module) else _of_fitted(head))


def _of_module(head: nn.Module) -> LinearValues:
    """A linear module, or SetFit's head, which divides its logits by a temperature."""
    linear = getattr(head, "linear", head)
    if not isinstance(linear, nn.Linear) or getattr(head, "multitarget", False):
        raise SecureRouterValueError(
            f"`head` is a {type(head).__name__} that is not linear, or has several labels for a text: pass an "
            "`nn.Linear`, or SetFit's head of one label for a text."
        )
    values = linear_values(dict(linear.state_dict()), "`head`")
    temperature = float(getattr(head, "temperature", 1.0)) + float(getattr(head, "eps", 0.0))
    return LinearValues(values.weight / temperature, values.bias / temperature)


def _of_fitted(head: Any) -> LinearValues:
    """A linear classifier of scikit-learn, by its attributes."""
    weight, bias, classes = (getattr(head, part, None) for part in ("coef_", "intercept_", "classes_"))
    if weight is None or bias is None or classes is None:
        raise SecureRouterValueError(
            f"`head` is a {type(head).__name__} without `coef_`, `intercept_` and `classes_`: pass a fitted linear "
            "classifier of one label for a text, such as `LogisticRegression`, or a safetensors file."
        )
    if len(classes) > 2 and (
        getattr(head, "multi_class", None) == "ovr" or getattr(head, "solver", None) == "liblinear"
    ):
        raise SecureRouterValueError(
            "`head` was fitted one class against the rest, so that a softmax of its logits is not its probabilities: "
            "fit a `LogisticRegression` with the solver 'lbfgs'."
        )
    weight, bias = torch.as_tensor(weight), torch.as_tensor(bias).reshape(-1)
    if len(bias) == 1:
        bias = bias.expand(len(weight))  # `fit_intercept=False` gives a single 0
    values = linear_values({"weight": weight, "bias": bias}, "`head`")
    return LinearValues(values.weight, values.bias, tuple(classes.tolist()))


def _with_both_classes(values: LinearValues) -> LinearValues:
    """One output is a binary classifier's: the softmax over -z/2 and z/2 is the sigmoid of z."""
    if len(values.weight) > 1:
        return values
    weight, bias = values.weight / 2, values.bias / 2
    return LinearValues(torch.cat([-weight, weight]), torch.cat([-bias, bias]), values.classes)
