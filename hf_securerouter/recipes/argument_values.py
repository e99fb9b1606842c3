# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which values the arguments of a run may have: wrong ones are refused before anything is read or trained."""

from __future__ import annotations

from typing import Any

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.mpc.conversion.validation import MAX_BATCH
from hf_securerouter.recipes.arguments import DataArguments
from hf_securerouter.value_checks import Check, integer, number, one_for_each_expert, optional


def _folds(value: Any) -> None:
    integer("cross_fit_folds", 0)(value)
    if value == 1:
        raise SecureRouterValueError(
            "`cross_fit_folds` should be 2 or more, or 0 for a run that holds rows out, got 1: of one fold no expert "
            "would have rows to learn from."
        )


def _batch(value: Any) -> None:
    integer("quota_batch_size", 1)(value)
    if value > MAX_BATCH:
        raise SecureRouterValueError(
            f"`quota_batch_size` should be at most {MAX_BATCH}, as so many queries are shuffled together under "
            f"encryption, got {value}."
        )


_CHECKS: dict[str, Check] = {
    **{name: optional(integer(name, 1)) for name in ("max_train_samples", "max_eval_samples")},
    **{name: integer(name, 0) for name in ("perturbed_copies", "encrypted_eval_samples")},
    **{name: integer(name, 2) for name in ("max_seq_length", "profile_seq_length")},
    **{name: number(name, above=0) for name in ("temperature", "min_temperature", "narrow_learning_rate")},
    **{name: number(name, at_least=0) for name in ("alpha", "router_num_train_epochs", "distillation_epochs")},
    **{name: optional(number(name, above=0)) for name in ("budget_seconds", "distillation_learning_rate")},
    **{name: optional(number(name, above=0, at_most=1)) for name in ("slim_heads", "slim_neurons")},
    "copied_experts": optional(integer("copied_experts", 1)),
    "beta": optional(number("beta", at_least=0)),
    "bootstrap_resamples": integer("bootstrap_resamples", 1),
    "cross_fit_folds": _folds,
    "expert_costs": one_for_each_expert("expert_costs", number("expert_costs", above=0)),
    "quota_batch_size": _batch,
}


@refuses_unknown
def check_values(args: DataArguments) -> None:
    """
    Refuses values that no run can have.

    Args:
        args ([`DataArguments`]): Those of a run, or of its data alone.

    Raises:
        `SecureRouterValueError`: A number is out of range; the message names the argument.
    """
    for name, check in _CHECKS.items():
        if hasattr(args, name):
            check(getattr(args, name))
