# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What stands around a pool in training, and adapters of PEFT: the router learns beside them by default."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from hf_securerouter.errors import SecureRouterValueError, warn
from hf_securerouter.known_arguments import nearest


_PERCEPTRON = ("router.dense", "router.out_proj")  # new in every pool, so that an adapter alone would leave it random


def pool_inside(model: Any) -> Any:
    """The pool itself, inside what distributed training, a compiler or PEFT wrapped around it. These give attributes
    of the pool as if they were their own, but keep what is set on them to themselves.

    Raises:
        `SecureRouterValueError`: There is no pool.
    """
    for module in model.modules():
        if "annealed_temperature" in vars(module):
            return module
    raise SecureRouterValueError(
        f"`model` should be a `SecureRouterForSequenceClassification`, got a {type(model).__name__}: train other "
        "models with `transformers.Trainer`."
    )


def adapter_of(model: Any) -> tuple[str, Any] | None:
    """The name and the config of the adapter that a pool is trained with; None if there is none.

    Args:
        model: A pool with an adapter of its own (`add_adapter`), or what `peft.get_peft_model` made of
            it.
    """
    pool = pool_inside(model)
    if model is pool and not getattr(pool, "_hf_peft_config_loaded", False):
        return None
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active: Any = getattr(model, "active_adapters", None)
    names = active() if callable(active) else active
    name = names[0] if names else next(iter(configs))
    return name, configs[name]


def train_router_beside_adapter(model: Any, frozen: Sequence[str] = ()) -> list[str]:
    """Lets the router's perceptron learn with the adapter, and be saved with it, unless it does already.

    PEFT trains only what its config names, and of a pool it knows the experts' heads alone.

    Args:
        model: A pool, with or without an adapter.
        frozen (sequence of `str`): Patterns of [`freeze`]; a perceptron that they name is left as it is.

    Returns:
        `list[str]`: The modules that were added to the adapter's `modules_to_save`.
    """
    found, pool = adapter_of(model), pool_inside(model)
    if found is None:
        return []
    name, config = found
    if not config.base_model_name_or_path:
        warn(
            "The pool under the adapter has no name, and an adapter can only be loaded onto the pool that it was "
            "trained on: save the pool, load it from there, and make the adapter of that."
        )
    perceptron = {
        f"{layer}.{path}": parameter
        for layer in _PERCEPTRON
        for path, parameter in pool.get_submodule(layer).named_parameters()
    }
    learns = any(parameter.requires_grad for parameter in perceptron.values())
    if learns or all(any(_fits(path, pattern) for pattern in frozen) for path in perceptron):
        return []
    from peft.utils import set_additional_trainable_modules

    own = copy.copy(config)
    own.modules_to_save = list(_PERCEPTRON)
    set_additional_trainable_modules(model, own, pool.config.to_dict(), name)
    config.modules_to_save = [*(config.modules_to_save or []), *_PERCEPTRON]
    return list(_PERCEPTRON)


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Freezes the parameters of a pool by their names.

    Args:
        model: A pool, or something around it.
        patterns (sequence of `str`): As of file names, for the pool's own names: `experts.*.embeddings.*`; a name
            without a `*` is that of a module as well.

    Raises:
        `SecureRouterValueError`: A pattern fits no parameter, or all are frozen.
    """
    pool = pool_inside(model)
    parameters = dict(pool.named_parameters())
    for pattern in patterns:
        fitting = [name for name in parameters if _fits(name, pattern)]
        if not fitting:
            parts = {".".join(name.split(".")[:depth]) for name in parameters for depth in range(1, 9)}
            other = nearest(pattern, parts)
            raise SecureRouterValueError(
                f"`freeze` has {pattern!r}, which fits no parameter of the pool"
                + (f"; the nearest name is {other!r}." if other else ".")
                + " `model.named_parameters()` has all names."
            )
        for name in fitting:
            parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise SecureRouterValueError(
            f"`freeze` should leave something to train, got {list(patterns)!r}: remove a pattern."
        )


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
