# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What an expert of a narrow precision computes in clear: its weights as they are shared, folded and rounded, and, in
training, its values rounded up or down at random, as truncation on shares rounds them. Gradients pass straight
through. Without training values are left as they are: truncation is right in the mean, so that these logits are the
mean of the encrypted ones, to which they are nearer than those of values rounded to nearest.

Weights stay what they were, in the place and under the name where they were: only the modules' classes change.

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
from .number_format import NumberFormat, deviation_ratio, number_format
from .range_penalty import watch


_NOISE = 1 << 23  # numbers of a table, 32 MB


@cache
def _noise() -> torch.Tensor:
    """The same in every process, of a generator of its own: what a seed gives does not hang on what ran before."""
    return torch.rand(_NOISE, generator=torch.Generator().manual_seed(0))


def _uniform(values: torch.Tensor) -> torch.Tensor:
    """Between 0 and 1, of the shape of the values, float32. On a CPU, where drawing takes longer than all of the
    rounding, a window of a table that is drawn once."""
    count = values.numel()
    if values.device.type != "cpu" or count > _NOISE // 2:
        return torch.rand(values.shape, device=values.device)
    start = int(torch.randint(_NOISE - count, ()))
    return _noise()[start : start + count].view(values.shape)


class _StraightThrough(torch.autograd.Function):
    """Values to multiples of 2^-`bits`: to the nearest, or at random to one of the two around, in the mean the same.
    The gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, bits: int, at_random: bool) -> torch.Tensor:
        scale = 2.0**bits
        if at_random:  # in float32: bfloat16 has too few bits to tell the two apart
            return torch.add(_uniform(values), values, alpha=scale).floor_().mul_(1 / scale).to(values.dtype)
        return torch.mul(values, scale).round_().mul_(1 / scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grads[0], None, None


def rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Values to the nearest multiple of 2^-`bits`; the gradient is that of the identity."""
    return _StraightThrough.apply(values, bits, False)


def truncated(values: torch.Tensor, bits: int, training: bool) -> torch.Tensor:
    """In training, values to one of the two multiples of 2^-`bits` around, in the mean the same; else as they are."""
    return _StraightThrough.apply(values, bits, True) if training else values


# Layers.


@dataclass(frozen=True)
class LinearFormat:
    """How a matrix is shared, and what stands before and behind it.

    Args:
        weights (`int`): Fraction bits of the folded matrix.
        norm (`tuple`): The LayerNorm whose weight is folded into it, if any; a tuple, as no module owns another here.
        scale (`float`): What else is folded in.
        centred (`bool`): Whether the mean of its outputs is removed.
        inputs (`int`, *optional*): Fraction bits to which inputs are truncated, if they are here.
        outputs (`int`, *optional*): The same for outputs, after `scale`.
        bound (`int`, *optional*): log2 of what outputs stay below, before `scale`.
    """

    weights: int
    norm: tuple[FixedPointLayerNorm, ...] = ()
    scale: float = 1.0
    centred: bool = False
    inputs: int | None = None
    outputs: int | None = None
    bound: int | None = None


class FixedPointLinear(nn.Linear):
    """A linear layer that multiplies by the matrix that is shared. Its `weight` is the one that is trained."""

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
        """Weight and bias as shares have them; rounded once more, they stay the same."""
        change, norm = self._rounding(), self.format.norm
        # What the LayerNorm adds goes into the bias on shares, before anything is rounded.
        return self.weight + change, self.bias - change @ norm[0].bias if norm else self.bias

    @torch.no_grad()
    def _rounding(self) -> torch.Tensor:
        """What rounding changes in `weight`."""
        chosen = self.format
        weight = self.weight.float()
        factor = weight.new_tensor(chosen.scale)
        if chosen.norm:
            factor = factor * chosen.norm[0].shared()[0]
        folded = weight * factor
        if chosen.centred:
            folded = folded - folded.mean(0)
        change = rounded(folded, chosen.weights) - folded
        return torch.where(factor == 0, 0.0, change / factor).to(self.weight.dtype)


class FixedPointLayerNorm(nn.LayerNorm):
    """A LayerNorm whose input and output are truncated, and whose weight is the one that is shared."""

    format: NumberFormat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bits, bounds, dtype = self.format.bits, self.format.bounds, x.dtype
        x = x.float()
        x = x - x.mean(-1, keepdim=True)
        watch(x, 2.0**bounds.residual)
        x = truncated(x, bits.normal, self.training)
        variance = x.square().mean(-1, keepdim=True) + self.eps
        watch(variance, 15 / 16 * 2.0**bounds.variance_high)
        watch(1 / variance, 2.0**-bounds.variance_low)
        x = x * torch.rsqrt(variance)
        ratio = self._ratio
        x = truncated(x / ratio, bits.hidden, self.training) * ratio
        weight, bias = self.shared()
        return (x * weight + bias).to(dtype)

    @property
    def _ratio(self) -> float:
        return deviation_ratio(self.normalized_shape[0])

    def shared(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias as shares have them."""
        return rounded(self.weight.float() * self._ratio, self.format.bits.gamma) / self._ratio, self.bias


class FixedPointEmbeddingNorm(nn.LayerNorm):
    """The embeddings' LayerNorm, which the client computes; it rounds what it shares."""

    format: NumberFormat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rounded(super().forward(x), self.format.bits.hidden)


def use_fixed_point(expert: PreTrainedModel, precision: str, softmax: str, hidden_act: str) -> None:
    """Lets a classifier compute with the weights that are shared, in the place, and round as shares do in training.

    Args:
        expert (`PreTrainedModel`): A classifier of BERT, DistilBERT or RoBERTa.
        precision (`str`): Its precision, not `"full"`.
        softmax (`str`), hidden_act (`str`): As in `expert_mpc`.

    Raises:
        `SecureRouterValueError`: Of another family, whose weights are folded in a way that no layer of its own shows.
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
