# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Everything that keeps a model from being converted, listed at once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from ...configuration_securerouter import ROUTING_PRIVACY_MODES
from ...errors import SecureRouterValueError
from ...families import encoder_config, usable_positions
from ...routing import are_counts
from ...value_checks import is_number
from ..models import supported_model_types
from ..models.spec import EncoderSpec, Problem
from ..net.network_model import NETWORKS
from ..protocols import PROTOCOLS, load_protocol
from .description import (
    Member,
    Options,
    chosen_length,
    chosen_privacy,
    chosen_quotas,
    count_experts,
    describe,
    is_pool,
    router_spec,
    spec_of,
)


MAX_BATCH = 256  # queries that are shuffled together; the dealer's permutation has a word for every pair of them
_QUANTISED = "its weights are quantised", "Load the checkpoint in float32"
_ADAPTER = "it carries a PEFT adapter", "Merge the adapter first, with `merge_and_unload()`"


class ConversionError(SecureRouterValueError):
    """A model cannot be converted; the message lists every reason, and `problems` holds them.

    Args:
        problems (`list[Problem]`): All of them.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        listed = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"The model cannot be converted, for {len(problems)} reason(s):{listed}")


def validate(model: Any, tokenizer: Any = None, options: Options | None = None) -> list[Problem]:
    """Everything that keeps a model from being converted, at once.

    Args:
        model (`SecureRouterForSequenceClassification` or `PreTrainedModel`): As for `to_mpc`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): As for `to_mpc`.
        options (`Options`, *optional*): The other arguments of `to_mpc`; defaults to its defaults.

    Returns:
        `list[Problem]`: Empty if the model can be converted.
    """
    options = options or Options()
    found = []
    if options.protocol not in PROTOCOLS:
        found.append(Problem("protocol", f"there is no {options.protocol!r}", f"Pass one of {', '.join(PROTOCOLS)}"))
    if options.network not in NETWORKS:
        found.append(Problem("network", f"there is no {options.network!r}", f"Pass one of {', '.join(NETWORKS)}"))
    if isinstance(tokenizer, (str, os.PathLike)):
        remedy = f"Pass `AutoTokenizer.from_pretrained({str(tokenizer)!r})`"
        found.append(Problem("tokenizer", "it is a name, not a tokenizer", remedy))
        tokenizer = None
    if options.guard and options.protocol == "crypten":
        found.append(Problem("guard", "protocol 'crypten' has none", "Pass `protocol='masked'`"))
    found += _routing_problems(model, options) if is_pool(model) else _classifier_problems(model, options)
    if _has_adapter(model):
        found.append(Problem("model", *_ADAPTER))

    if any(parameter.is_meta for parameter in model.parameters()):
        return [
            *found,
            Problem("model", "it has no values, only shapes (device `meta`)", "Load it, `from_pretrained`"),
        ]
    if any(callable(getattr(part, "weight", None)) for part in model.modules()):  # PyTorch's own quantised layers
        return [*found, Problem("model", *_QUANTISED)]

    members = describe(model)
    specs: dict[str, EncoderSpec] = {}
    for member in members:
        reasons = _module_problems(member)
        found += reasons
        if reasons:
            continue
        try:
            specs[member.path] = spec_of(model, member)
        except SecureRouterValueError as error:
            found.append(Problem(member.path, str(error).rstrip("."), "Make it with exact functions"))
    found += _pooling_problems(model, members, specs)
    found += _length_problems(model, tokenizer, members, options)
    if options.protocol in PROTOCOLS:
        found += load_protocol(options.protocol).problems(specs, options.device, options.provider)
    return found


def _classifier_problems(model: Any, options: Options) -> list[Problem]:
    """What is wrong with a plain classifier: options that only a pool has, and a model without its family's head."""
    found = [
        Problem(
            name,
            f"one plain classifier has no routing, and {value!r} was asked for",
            f"Leave `{name}` out, or make a pool with `from_expert_pretrained`",
        )
        for name in ("routing_privacy", "routing_lambda", "quotas")
        if (value := getattr(options, name)) is not None
    ]
    wanted: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    if wanted is not None and not isinstance(model, wanted) and not _has_adapter(model):
        found.append(
            Problem(
                "model",
                f"{type(model).__name__} has no head of a sequence classifier",
                f"Load a fine-tuned checkpoint as {wanted.__name__}",
            )
        )
    return found


def _routing_problems(model: Any, options: Options) -> list[Problem]:
    found = []
    privacy, experts = chosen_privacy(model, options), count_experts(model)
    if privacy not in ROUTING_PRIVACY_MODES:
        remedy = f"Pass one of {', '.join(ROUTING_PRIVACY_MODES)}"
        found.append(Problem("routing_privacy", f"there is no {privacy!r}", remedy))
    elif options.protocol == "crypten" and privacy != "revealed" and experts > 1:
        found.append(
            Problem(
                "routing_privacy",
                f"protocol 'crypten' reveals the chosen expert, and {privacy!r} was asked for",
                "Pass `routing_privacy='revealed'` if the servers may know it, or `protocol='masked'`",
            )
        )
    price = options.routing_lambda
    if price is not None and not (is_number(price) and math.isfinite(price) and price >= 0):
        found.append(Problem("routing_lambda", f"it should be at least 0, got {price!r}", "Pass 0.1"))
    if options.quotas is not None and privacy != "quota":
        found.append(Problem("quotas", f"{privacy!r} has none", "Pass `routing_privacy='quota'`, or no quotas"))
    asked = options.quotas
    counts = chosen_quotas(model, options) if asked is None or are_counts(asked) else asked
    if not are_counts(counts) or len(counts) != experts or not 1 <= sum(counts) <= MAX_BATCH:
        found.append(
            Problem(
                "quotas",
                f"it should hold {experts} counts of a batch of up to {MAX_BATCH} queries, got {counts}",
                "Pass one count for each expert",
            )
        )
    return found


def _pooling_problems(model: Any, members: list[Member], specs: Mapping[str, EncoderSpec]) -> list[Problem]:
    """A router on an expert's encoder that reads another row than the expert's head does."""
    shared = model.config.router_shares_expert if is_pool(model) else None
    expert = next((member for member in members if member.name == f"experts.{shared}"), None)
    if expert is None or expert.path not in specs:
        return []
    own, read = router_spec(model).pooling, specs[expert.path].pooling
    if own == read:
        return []
    return [
        Problem(
            "config.router_shares_expert",
            f"the router reads the row of the pooling {own!r}, and the head of {expert.path} that of {read!r}",
            "Give the router an encoder of its own, or share an expert whose head reads the first token",
        )
    ]


def _has_adapter(module: Any) -> bool:
    return bool(getattr(module, "peft_config", None) or getattr(module, "_hf_peft_config_loaded", False))


def _module_problems(member: Member) -> list[Problem]:
    path, module = member.path, member.module
    config, found = module.config, []
    if member.architecture is None:
        found.append(
            Problem(
                path,
                f"the architecture {config.model_type!r} has no counterpart on shares",
                f"Use a model of one of the types {', '.join(supported_model_types())}",
            )
        )
    else:
        found += member.architecture.problems(config, path)
    if getattr(config, "quantization_config", None) is not None or getattr(module, "is_quantized", False):
        found.append(Problem(path, *_QUANTISED))
    if _has_adapter(module):
        found.append(Problem(path, *_ADAPTER))
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            found.append(Problem(f"{path}.{name}", "it holds values that are not finite", "Load or train it again"))
    return found


def _length_problems(model: Any, tokenizer: Any, members: list[Member], options: Options) -> list[Problem]:
    found, max_length = [], options.max_length
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2):
        return [Problem("max_length", f"it should be an integer of at least 2, got {max_length!r}", "Pass 128")]
    own = model.config.max_length if is_pool(model) else None
    if max_length is not None and own is not None and max_length > own:
        what = f"it is {max_length}, and the pool cuts texts at {own} tokens (`config.max_length`)"
        found.append(Problem("max_length", what, f"Pass `max_length={own}` or less"))
    length = chosen_length(model, tokenizer, members, options)
    for member in members:
        path, config = member.path, member.module.config
        positions = usable_positions(config) or length
        if positions < length:
            found.append(
                Problem(
                    f"{path}.config.max_position_embeddings",
                    f"it has {positions} positions, and `max_length` is {length}",
                    f"Pass `max_length={positions}` or less",
                )
            )
        config = encoder_config(config)
        if tokenizer is not None and len(tokenizer) > config.vocab_size:
            found.append(
                Problem(
                    f"{path}.config.vocab_size",
                    f"it has {config.vocab_size} tokens, and the tokenizer {len(tokenizer)}",
                    "Pass the tokenizer that the model was trained with",
                )
            )
    if tokenizer is not None and tokenizer.pad_token is None:
        found.append(Problem("tokenizer.pad_token", "it is None, and inputs are padded", "Set `tokenizer.pad_token`"))
    return found
