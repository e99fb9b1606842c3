# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Measured ranges of an encoder's values, the bounds that hold for them, and the report of both.

A bound is at least `MARGIN` times the value that samples reach. Ranges say something of the weights, so they are for
the model's owner; bounds are public.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...number_format import HIGHEST, LOWEST, MARGIN, USUAL, Bounds, widest_distance
from .clear_encoder import Seen


ENCODER_WIDE = ("embedding", "head", "logits")
SQUARES = ("variance", "norm")  # mean squares of a row, which are bounded on both sides


@dataclass(frozen=True)
class Range:
    """What samples reach of one kind of value, and its bound.

    Args:
        member (`str`): `router`, `experts.0`, ...
        layer (`int`, *optional*): Position of the layer in the stack; None for the embeddings and the head.
        kind (`str`): The bound's name in `Bounds`, or `span`: the difference of two attention scores of a row.
        reached (`float`): Largest absolute value of the samples; the least one for a lower bound.
        bound (`float`): Largest absolute value that is computed rightly; the least one for a lower bound.
        default (`float`): The bound before measuring.
    """

    member: str
    layer: int | None
    kind: str
    reached: float
    bound: float
    default: float

    @property
    def margin(self) -> float:
        """Bits between what is reached and the bound; negative beyond the bound."""
        if self.reached <= 0:
            return -math.inf if self.kind in LOWEST else math.inf
        bits = math.log2(self.bound / self.reached)
        return -bits if self.kind in LOWEST else bits

    @property
    def exceeds_default(self) -> bool:
        """Whether the bound allows values that the default does not."""
        return self.bound < self.default if self.kind in LOWEST else self.bound > self.default

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; a margin that is not finite is None."""
        return {**asdict(self), "margin_bits": self.margin if math.isfinite(self.margin) else None}


def limit(bounds: Bounds, kind: str, biased: bool) -> float:
    """The value that a bound allows, from its log2; `biased` is `padding_differs` of `widest_distance`."""
    if kind == "span":
        return widest_distance(bounds, biased)
    if kind == "scores":
        return 2.0 ** (bounds.scores - 1)
    return 2.0 ** getattr(bounds, kind) * (HIGHEST if kind.endswith("_high") else 1)


def reached(seen: Seen, position: int | None) -> dict[str, float]:
    """What samples reach at one position, by kind as in `Range`; from `ClearEncoder.seen`."""
    found: dict[str, float] = {}
    for (place, kind), (low, high) in seen.items():
        if place != position:
            continue
        if kind in SQUARES:
            found |= {f"{kind}_low": low, f"{kind}_high": high}
        elif kind == "attended_variance":
            found[kind] = math.sqrt(low * high)
        else:
            found[kind] = low if kind in LOWEST else max(abs(low), abs(high))
    return found


def bounds_for(found: Mapping[str, float], biased: bool, guarded: bool = False) -> dict[str, int]:
    """log2 bounds with the margin, named as in `Bounds`, for what is reached; `biased` as for `limit`.

    A guard sees scores, not their differences in a row, and wants a range so wide that no difference of scores that it
    does not note is too large.

    A row sum has none: where it is below 1/8, the model divides by 1/8, and shares do not.
    """
    bounds = {}
    for kind in ("value", "residual", "inner", "gate", "routing", "expert", "context", *ENCODER_WIDE):
        if kind in found:
            bounds[kind] = math.ceil(math.log2(max(found[kind] * MARGIN, 2.0 if kind != "context" else 2.0**-4)))
    if "scores" in found:
        widest = max(found["scores"] * MARGIN, 16.0)
        if guarded:
            widest = max(widest, found["scores"] * MARGIN * (4 if biased else 2), 128 if biased else 64)
        scores = math.ceil(math.log2(widest)) + 1
        while widest_distance(Bounds().replaced(scores=scores), biased) < found["span"] * MARGIN:
            scores += 1
        bounds["scores"] = scores
    for kind in SQUARES:
        if f"{kind}_low" in found:
            low, high = max(found[f"{kind}_low"] / MARGIN**2, 1e-9), found[f"{kind}_high"] * MARGIN**2
            bounds[f"{kind}_low"] = math.floor(math.log2(low))
            bounds[f"{kind}_high"] = math.ceil(math.log2(max(high, 2 * low) / HIGHEST))
            bounds[kind] = round(math.log2(max(math.sqrt(low * high), 1e-9)))
    if "attended_variance" in found:
        bounds["attended_variance"] = round(math.log2(max(found["attended_variance"], 1e-9)))
    return bounds


def summary(ranges: Sequence[Range]) -> dict[str, Any]:
    """The ranges of a model in short, as JSON-able values.

    Returns:
        `dict`: `holds`, whether all are within their bounds; `widened`, the members with wider bounds than the default
        ones; `least_margin_bits`, the smallest margin of any value, and `tightest`, its place.
    """
    tightest = min(ranges, key=lambda one: one.margin)
    layer = "" if tightest.layer is None else f" layer {tightest.layer}"
    return {
        "holds": all(one.margin >= 0 for one in ranges),
        "widened": sorted({one.member for one in ranges if one.exceeds_default}),
        "least_margin_bits": tightest.margin if math.isfinite(tightest.margin) else None,
        "tightest": f"{tightest.member}{layer} {tightest.kind}",
    }


def report(
    member: str, layer: int | None, found: Mapping[str, float], bounds: Bounds, default: Bounds, biased: bool
) -> list[Range]:
    """The ranges of one position."""
    return [
        Range(member, layer, kind, value, limit(bounds, kind, biased), limit(default, kind, biased))
        for kind, value in found.items()
        if kind not in USUAL
    ]
