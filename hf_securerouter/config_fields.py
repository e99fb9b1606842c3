# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which values the fields of a config.json may have.

transformers checks types when it reads the file. A size of -1, a probability of 7 or an activation that does not exist
would fail in the middle of building a model, or give other answers without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.activations import ACT2FN

from .families import FAMILIES


Check = Callable[[Any], str | None]  # what a value should be, or None if it is


def wrong_field(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first field of a config.json, of a pool or of a classifier, with a wrong value.

    Args:
        values (`Mapping`): What the file holds.

    Returns:
        `tuple[str, str]`, *optional*: The field's path, such as `expert_configs[0].hidden_size`, and what it should
        be; None if every field may be as it is. Fields that only pools have are checked by `SecureRouterConfig`.
    """
    for prefix, config in _configs(values):
        family = config.get("model_type")
        of_family = {}
        if isinstance(family, str) and family in FAMILIES:
            of_family = _FAMILY_FIELDS | _OWN_FIELDS.get(family, {})
        for name, value in config.items():
            check = (_FIELDS | of_family).get(name)
            wanted = None if check is None else check(value)
            if wanted is not None:
                return f"{prefix}{name}", f"should be {wanted}, got {shown(value)}"
        for width, heads in (("hidden_size", "num_attention_heads"), ("dim", "n_heads")):
            if of_family and width in config and heads in config and config[width] % config[heads]:
                return f"{prefix}{heads}", f"should divide `{width}`, {config[width]}, got {config[heads]}"
        padding, vocabulary = config.get("pad_token_id"), config.get("vocab_size")
        if of_family and padding is not None and vocabulary is not None and padding >= vocabulary:
            return f"{prefix}pad_token_id", f"should be below `vocab_size`, {vocabulary}, got {padding}"
    return None


def shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _configs(values: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config and the configs of its members, by the prefix of their fields."""
    yield "", values
    members = values.get("expert_configs")
    named = {"router_config.": values.get("router_config")}
    named |= {f"expert_configs[{i}].": one for i, one in enumerate(members if isinstance(members, list) else [])}
    for prefix, config in named.items():
        if isinstance(config, Mapping):
            yield prefix, config


def _whole(least: int, most: int) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if fits else f"an integer from {least} to {most:,}"

    return check


def _number(least: float, most: float, above: bool = False) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        fits = fits and least <= value <= most and not (above and value == least)
        return (
            None
            if fits
            else f"a number {'above' if above else 'from'} {least:g} {'and at most' if above else 'to'} {most:g}"
        )

    return check


def _one_of(*options: Any) -> Check:
    def check(value: Any) -> str | None:
        fits = any(type(value) is type(option) and value == option for option in options)
        return None if fits else " or ".join(map(repr, options))

    return check


def _or_null(check: Check) -> Check:
    def check_or_null(value: Any) -> str | None:
        wanted = None if value is None else check(value)
        return None if wanted is None else f"{wanted}, or null"

    return check_or_null


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _texts(value: Any) -> str | None:
    return None if isinstance(value, list) and all(isinstance(one, str) for one in value) else "a list of texts"


def _label_names(value: Any) -> str | None:
    fits = isinstance(value, Mapping) and len(value) > 0 and all(isinstance(name, str) for name in value.values())
    if fits and sorted(value, key=str) == sorted(map(str, range(len(value)))):
        return None
    return 'a dict that names each label by its number, such as {"0": "bad", "1": "good"}'


def _label_numbers(value: Any) -> str | None:
    numbers = list(value.values()) if isinstance(value, Mapping) else [None]
    if numbers and all(type(number) is int and number >= 0 for number in numbers):
        return None
    return 'a dict that numbers each label by its name, such as {"bad": 0, "good": 1}'


def _activation(value: Any) -> str | None:
    return (
        None if isinstance(value, str) and value in ACT2FN else "the name of an activation, such as 'gelu' or 'relu'"
    )


def _end_tokens(value: Any) -> str | None:
    several = value if isinstance(value, list) and value else [value]
    return "a token id, a list of them, or null" if any(_TOKEN(one) is not None for one in several) else None


def _float_type(value: Any) -> str | None:
    own = getattr(torch, value, None) if isinstance(value, str) else None
    fits = isinstance(own, torch.dtype) and own.is_floating_point
    return None if fits else "a floating-point type, such as 'float32' or 'bfloat16'"


_BOOL = _one_of(True, False)
_SIZE, _DEPTH, _TABLE = _whole(1, 1 << 20), _whole(1, 1 << 10), _whole(1, 1 << 24)
_DROPOUT = _number(0, 1)
_TOKEN = _or_null(_whole(0, (1 << 24) - 1))

# Of every config.
_FIELDS: dict[str, Check] = {
    "architectures": _or_null(_texts),
    "chunk_size_feed_forward": _whole(0, 1 << 20),
    "dtype": _or_null(_float_type),
    "eos_token_id": _end_tokens,
    "id2label": _or_null(_label_names),
    "is_encoder_decoder": _BOOL,
    "label2id": _or_null(_label_numbers),
    "model_type": _text,
    "num_labels": _or_null(_whole(1, 1 << 20)),
    "output_attentions": _BOOL,
    "output_hidden_states": _BOOL,
    "problem_type": _or_null(_one_of("regression", "single_label_classification", "multi_label_classification")),
    "return_dict": _one_of(True),  # a pool reads its members' outputs by name
    "router_hidden_size": _SIZE,
    "tie_word_embeddings": _BOOL,
    "torch_dtype": _or_null(_float_type),
    "transformers_version": _or_null(_text),
}

# Of the families of encoders that this package knows.
_FAMILY_FIELDS: dict[str, Check] = {
    **dict.fromkeys(("hidden_size", "dim", "embedding_size", "intermediate_size", "hidden_dim"), _SIZE),
    **dict.fromkeys(("num_attention_heads", "n_heads", "max_position_embeddings"), _SIZE),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_hidden_groups", "inner_group_num"), _DEPTH),
    **dict.fromkeys(("vocab_size", "type_vocab_size", "relative_attention_num_buckets"), _TABLE),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"), _DROPOUT),
    **dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"), _DROPOUT),
    **dict.fromkeys(("classifier_dropout", "summary_last_dropout"), _or_null(_DROPOUT)),
    **dict.fromkeys(("hidden_act", "activation"), _activation),
    **dict.fromkeys(("is_decoder", "add_cross_attention", "use_cache", "sinusoidal_pos_embds", "tie_weights_"), _BOOL),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), _TOKEN),
    "initializer_range": _number(0, 1e3),
    "layer_norm_eps": _number(0, 1, above=True),
}

# Of one family; they come before those of all families.
_OWN_FIELDS: dict[str, dict[str, Check]] = {
    "deberta-v2": {
        **dict.fromkeys(("relative_attention", "share_att_key", "position_biased_input"), _BOOL),
        **dict.fromkeys(("position_buckets", "max_relative_positions"), _whole(-1, 1 << 20)),
        **dict.fromkeys(("attention_head_size", "pooler_hidden_size"), _SIZE),
        "cls_dropout": _or_null(_DROPOUT),
        "conv_kernel_size": _whole(0, 1 << 10),
        "norm_rel_ebd": _text,
        "pooler_dropout": _DROPOUT,
        "pooler_hidden_act": _activation,
        "type_vocab_size": _whole(0, 1 << 24),  # 0 without token types
    }
}
