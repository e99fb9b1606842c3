# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Layers of an expert of reduced precision, in clear.

They compute with the folded and rounded weights that are shared. In training they also round values up or down at
random, as truncation on shares does; gradients pass straight through. In evaluation values are not rounded: truncation
is right in the mean, so these logits are the mean of the encrypted logits, and nearer to them than with rounding.

The classes of an expert's modules change in place; parameters keep their values and their names.

Reference:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432 (straight through).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from .errors import SecureRouterValueError
from .families import FOLDED_FAMILIES, head_of, layers_of
from .number_format import HIGHEST, NumberFormat, deviation_ratio, number_format
from .range_penalty import watch


_NOISE = 1 << 23  # random numbers in the table, 32 MB


@cache
def _noise() -> torch.Tensor:
    """A table of random numbers from a generator of its own, so that a seed's results do not depend on its making."""
    return torch.rand(_NOISE, generator=torch.Generator().manual_seed(0))


def _uniform(values: torch.Tensor) -> torch.Tensor:
    """Random numbers between 0 and 1, float32, in the shape of `values`. On a CPU, where drawing takes longer than
    rounding, a random window of the table."""
    count = values.numel()
    if values.device.type != "cpu" or count > _NOISE // 2:
        return torch.rand(values.shape, device=values.device)
    start = int(torch.randint(_NOISE - count, ()))
    return _noise()[start : start + count].view(values.shape)


class _StraightThrough(torch.autograd.Function):
    """Rounds values to multiples of 2^-`bits`: to the nearest, or up or down at random with the right mean. The
    gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, bits: int, at_random: bool) -> torch.Tensor:
        scale = 2.0**bits
        if at_random:  # in float32: bfloat16 has too few bits to round up or down
            return torch.add(_uniform(values), values, alpha=scale).floor_().mul_(1 / scale).to(values.dtype)
        return torch.mul(values, scale).round_().mul_(1 / scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grads[0], None, None


def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round values to the nearest multiple of 2^-`bits`; the gradient is that of the identity."""
    return _StraightThrough.apply(values, bits, False)


def truncated(values: torch.Tensor, bits: int, training: bool) -> torch.Tensor:
    """In training, round values up or down at random to a multiple of 2^-`bits`; in evaluation, leave them."""
    return _StraightThrough.apply(values, bits, True) if training else values


# Layers.


@dataclass(frozen=True)
class LinearFormat:
    """How a matrix is shared, and how its inputs and outputs are truncated.

    Args:
        weights (`int`): Fraction bits of the folded matrix.
        norm (`tuple`): The LayerNorm whose weight is folded into the matrix, if any; in a tuple, so that the linear
            module does not register the LayerNorm as its own.
        scale (`float`): A factor that is folded into the matrix.
        centred (`bool`): Whether the mean of the outputs is removed.
        inputs (`int`, *optional*): Fraction bits to which inputs are truncated; None if they are not.
        outputs (`int`, *optional*): Fraction bits to which outputs are truncated, after `scale`; None if they are not.
        bound (`int`, *optional*): log2 bound of the outputs, before `scale`.
    """

    weights: int
    norm: tuple[FixedPointLayerNorm, ...] = ()
    scale: float = 1.0
    centred: bool = False
    inputs: int | None = None
    outputs: int | None = None
    bound: int | None = None


class FixedPointLinear(nn.Linear):
    """A linear layer that multiplies by the shared matrix; `weight` is the matrix that is trained."""

    format: LinearFormat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.format
        if chosen.inputs is not None:
            x = truncated(x, chosen.inputs, self.training)
        y = functional.linear(x, *self.shared())
        if chosen.bound is not None:
            watch(y, 2.0**chosen.bound)
        if chosen.outputs is None:
            return y
        return truncated(y * chosen.scale, chosen.outputs, self.training) / chosen.scale

    def shared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as they are shared; rounding them again does not change them."""
        change, norm = self._rounding(), self.format.norm
        if not norm:
            return self.weight + change, self.bias
        # On shares the LayerNorm's bias is folded into this bias, from the weight before rounding. The LayerNorm may
        # be on another device: that of another layer, or of the module of which this one is a replica.
        return self.weight + change, self.bias - change @ norm[0].bias.to(change.device)

    @torch.no_grad()
    def _rounding(self) -> torch.Tensor:
        """The change of `weight` by rounding the folded matrix."""
        chosen = self.format
        weight = self.weight.float()
        factor = weight.new_tensor(chosen.scale)
        if chosen.norm:
            factor = factor * chosen.norm[0].shared()[0].to(factor.device)
        folded = weight * factor
        if chosen.centred:
            folded = folded - folded.mean(0)
        change = rounded(folded, chosen.weights) - folded
        return torch.where(factor == 0, 0.0, change / factor).to(self.weight.dtype)


class FixedPointLayerNorm(nn.LayerNorm):
    """A LayerNorm with truncated input and output, and with the shared weight."""

    format: NumberFormat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bits, bounds, dtype = self.format.bits, self.format.bounds, x.dtype
        x = x.float()
        x = x - x.mean(-1, keepdim=True)
        watch(x, 2.0**bounds.residual)
        x = truncated(x, bits.normal, self.training)
        variance = x.square().mean(-1, keepdim=True) + self.eps
        ratio = self._ratio
        shared = variance * ratio**2  # as shares divide the sum of squares
        watch(shared, HIGHEST * 2.0**bounds.variance_high)
        watch(1 / shared, 2.0**-bounds.variance_low)
        x = x * torch.rsqrt(variance)
        x = truncated(x / ratio, bits.hidden, self.training) * ratio
        weight, bias = self.shared()
        return (x * weight + bias).to(dtype)

    @property
    def _ratio(self) -> float:
        return deviation_ratio(self.normalized_shape[0])

    def shared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as they are shared."""
        return rounded(self.weight.float() * self._ratio, self.format.bits.gamma) / self._ratio, self.bias


class FixedPointEmbeddingNorm(nn.LayerNorm):
    """The embeddings' LayerNorm, which the client computes; its output is rounded as the client's shares are."""

    format: NumberFormat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rounded(super().forward(x), self.format.bits.hidden)


def use_fixed_point(expert: PreTrainedModel, precision: str, softmax: str, hidden_act: str) -> None:
    """Change a classifier, in place, to compute with the shared weights, and in training to round as shares do.

    Args:
        expert (`PreTrainedModel`): A classifier of one of `FOLDED_FAMILIES`.
        precision (`str`): Its precision, not `"full"`.
        softmax (`str`), hidden_act (`str`): As in `expert_mpc`.

    Raises:
        `SecureRouterValueError`: The classifier is of another family, whose weights do not fold layer by layer.
    """
    family = expert.config.model_type
    if family not in FOLDED_FAMILIES:
        raise SecureRouterValueError(
            f"`precision` {precision!r} is there for experts of {', '.join(FOLDED_FAMILIES)}, got {family!r}: leave "
            "it at 'full'."
        )
    chosen = number_format(precision, softmax)
    bits, bounds = chosen.bits, chosen.bounds
    dense, classifier = head_of(expert)
    heads = cast(Any, expert.config).num_attention_heads

    # A module changes its class rather than being replaced, so the names in `state_dict`, and references, stay valid.
    def linear(module: nn.Module, layout: LinearFormat) -> None:
        module.__class__ = FixedPointLinear
        module.format = layout  # type: ignore[assignment]

    def norm(module: nn.Module, kind: type[nn.LayerNorm]) -> Any:
        module.__class__ = kind
        module.format = chosen  # type: ignore[assignment]
        return module

    norm(cast(Any, expert.base_model).embeddings.LayerNorm, FixedPointEmbeddingNorm)
    before: tuple[Any, ...] = ()
    for query, key, value, attention_output, attention_norm, intermediate, output, output_norm in layers_of(expert):
        shrink = (query.weight.shape[0] // heads) ** -0.5
        linear(query, LinearFormat(bits.query_weights, before, shrink, outputs=bits.query))
        linear(key, LinearFormat(bits.key_weights, before, outputs=bits.key))
        linear(value, LinearFormat(bits.value_weights, before, outputs=bits.value, bound=bounds.value))
        linear(attention_output, LinearFormat(bits.attention_output_weights, centred=True, inputs=bits.mixed))
        before = (norm(attention_norm, FixedPointLayerNorm),)
        inner = bits.active if hidden_act == "relu" else bits.inner
        linear(intermediate, LinearFormat(bits.intermediate_weights, before, outputs=inner, bound=bounds.inner))
        linear(output, LinearFormat(bits.output_weights, centred=True, inputs=bits.active))
        before = (norm(output_norm, FixedPointLayerNorm),)
    linear(dense, LinearFormat(bits.head_weights, before, outputs=bits.head_inner, bound=bounds.head))
    linear(classifier, LinearFormat(bits.head_weights, inputs=bits.head_active, bound=bounds.logits))
