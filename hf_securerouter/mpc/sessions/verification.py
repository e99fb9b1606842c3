# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Comparing an encrypted answer with a second one under fresh masks, or with the model in clear text.

Within the bounds of the shares, answers differ by rounding. Beyond a bound a ring wraps, and the answer depends on the
masks: two such answers differ by whole units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..models.manifest import Manifest


class VerificationError(SecureRouterError):
    """An encrypted answer differs from the model in clear text by more than rounding."""


def tolerance(manifest: Manifest) -> float:
    """The largest difference of two logits of usual size, up to 8, that counts as rounding.

    Some ten times what sound answers show in full precision, 0.02 (`docs/fidelity.md`). In reduced precision single
    logits are off by up to 0.4.
    """
    return 0.25 if all(spec.precision == "full" for spec in manifest.experts) else 1.0


def _allowed(logits: Tensor, limit: float) -> Tensor:
    """The difference allowed in each row: rounding grows with the logits."""
    return limit * (logits.abs().amax(1) / 8).clamp(min=1)


def agree(first: Tensor, second: Tensor, rows: Sequence[int], limit: float) -> list[bool]:
    """Whether two answers to a batch are the same up to rounding, for each of its inputs.

    Under `quota` the copies of an input may be answered by different experts, in either run by whichever; then one
    answer of the first run has to be one of the second's.

    Args:
        first (`torch.Tensor`), second (`torch.Tensor`): Logits, (B, C).
        rows (`list[int]`): The input of each row, from 0 to the number of inputs; a copy has its original's number.
        limit (`float`): Of `tolerance`.
    """
    same = (first[:, None] - second[None]).abs().amax(2) <= _allowed(first, limit)[:, None]
    number = torch.tensor(rows)
    return [bool(same[number == index][:, number == index].any()) for index in range(max(rows) + 1)]


def _named(rows: Sequence[int]) -> str:
    """The first of some positions."""
    return ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")


def differing_inputs(rows: Sequence[int], manifest: Manifest) -> str:
    """The warning about inputs that were answered differently under fresh masks.

    Args:
        rows (`list[int]`): Their positions in the call.
        manifest (`Manifest`): Of the model. Where a router chooses, an answer may be another expert's, and right.
    """
    found = f"{len(rows)} inputs were answered differently under fresh masks (positions {_named(rows)})"
    remedy = "have the model converted again with such texts as `calibration=`, and look at `securerouter check`"
    if not manifest.routes:
        return f"{found}: do not use their answers. Their values may exceed the bounds of the shares: {remedy}."
    alike = "rank two inputs nearly alike" if manifest.batch else "are nearly the same for two experts"
    tells = "Its guard tells which" if manifest.guard else "A guard, `securerouter share --guard`, would tell which"
    return (
        f"{found}. Either their values exceed the bounds of the shares: then do not use their answers, and {remedy}. "
        f"Or the router's scores {alike}, so that another expert answered, and both answers may be right. {tells}: "
        "`in_bounds` is true where only the expert is another."
    )


def inputs_beyond_bounds(rows: Sequence[int]) -> str:
    """The warning about inputs, by their positions in the call, of batches in which a value was beyond its bound."""
    return (
        f"{len(rows)} inputs were in batches with a value at or beyond its bound (positions {_named(rows)}): their "
        "answers may be wrong. Have the model converted again with such texts as `calibration=`, and look at "
        "`securerouter check`."
    )


def refuse_other_answers(errors: Tensor, logits: Tensor, limit: float) -> None:
    """Refuse a batch with an answer that is further from the model in clear text than rounding.

    Args:
        errors (`torch.Tensor`): (B,), the largest difference of each row's logits.
        logits (`torch.Tensor`): The answers, (B, C).
        limit (`float`): Of `tolerance`.

    Raises:
        `VerificationError`: An error is larger than rounding.
    """
    wrong = ~(errors <= _allowed(logits, limit))
    if wrong.any():
        raise VerificationError(
            f"{int(wrong.sum())} of the first {len(errors)} encrypted answers are not the model's (a logit is off by "
            f"{float(errors.max()):.3g}), and the session is over. Values exceed the bounds of the shares: convert "
            "again with texts like these as `calibration=`, and look at `securerouter check`."
        )
