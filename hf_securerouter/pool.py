# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Loads checkpoints as one pool: same tokenizer, same labels in the same order, whole weights."""

from __future__ import annotations

import copy
import inspect
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file

from .configuration_securerouter import SecureRouterConfig, is_hub_id
from .errors import SecureRouterValueError, SecureRouterWarning
from .families import encoder_config, usable_positions, why_not_cut
from .sentence_transformer import classifier_from_sentence_transformer, is_sentence_classifier


_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_NO_LIMIT = 10**6  # a tokenizer without a length limit has a far larger number


@dataclass
class Pool:
    """Loaded members of a pool, the labels of the pool, and the longest input that all members take."""

    router_encoder: PreTrainedModel | None
    experts: list[PreTrainedModel]
    id2label: dict[int, str]
    max_length: int | None


@dataclass
class _Tokenizer:
    parts: dict[str, Any]
    max_length: int | None


def build_pool(
    router: str | os.PathLike | None,
    experts: Sequence[str | os.PathLike],
    expert_layers: Sequence[int] | None,
    num_labels: int | None,
    id2label: dict[int, str] | None,
    dtype: torch.dtype,
) -> Pool:
    """Loads the members of a pool; the arguments are those of
    [`SecureRouterForSequenceClassification.from_expert_pretrained`].

    Raises:
        `SecureRouterValueError`: The checkpoints cannot form a pool; the message names the checkpoint and a remedy.
    """
    if isinstance(experts, (str, os.PathLike)) or not experts:
        raise SecureRouterValueError(f"`experts` should be a list of at least one id or folder, got {experts!r}.")
    names = [os.fspath(name) for name in experts]
    if expert_layers is not None and (len(names) != 1 or not expert_layers):
        raise SecureRouterValueError(
            f"`expert_layers` cuts one checkpoint to several depths, got {list(expert_layers)!r} with {len(names)} "
            "experts: pass one expert and at least one depth, or leave `expert_layers` out."
        )
    members = {} if router is None else {"router": os.fspath(router)}
    members |= {f"experts[{i}]": name for i, name in enumerate(names)}
    whole = {name: classifier_from_sentence_transformer(name) for name in names if is_sentence_classifier(name)}
    configs = {
        name: whole[name][0].config if name in whole else _load_config(argument, name)
        for argument, name in members.items()
    }
    max_length = _shared_max_length(members, configs, {name: tokenizer for name, (_, tokenizer) in whole.items()})

    id2label = _wanted_labels(num_labels, id2label)
    count = len(id2label) if id2label else _common_count({name: configs[name] for name in names}, num_labels)
    loaded = [
        _load_expert(f"experts[{i}]", name, configs[name], count, dtype, whole[name][0] if name in whole else None)
        for i, name in enumerate(names)
    ]
    fine_tuned = [_is_fine_tuned(configs[name]) for name in names]
    id2label = _agree_on_labels(names, loaded, fine_tuned, id2label)
    if expert_layers is not None:
        loaded = [cut_layers(loaded[0], layers) for layers in expert_layers]

    encoder = None if router is None else _load(AutoModel, "router", members["router"], dtype)
    routers = [] if encoder is None else [encoder]
    for name, model in (*zip(members.values(), routers, strict=False), *zip(names, loaded, strict=False)):
        wrong = not_finite(model)
        if wrong:
            raise SecureRouterValueError(
                f"The checkpoint {name!r} has infinite or NaN values, first in {wrong[0]}: train or download it again."
            )
    for model in (*routers, *loaded):
        if not is_hub_id(model.config.name_or_path or ""):
            model.config.name_or_path = ""  # a saved config must not reveal a path of this machine
    return Pool(encoder, loaded, id2label, max_length)


def cut_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of a classifier with its first layers only, and with its embeddings, pooler and head.

    Args:
        model (`PreTrainedModel`): The whole classifier.
        layers (`int`): Layers to keep, from 1 to all.

    Raises:
        `SecureRouterValueError`: The classifier has fewer layers, or its family cannot be cut.
    """
    depth = encoder_config(model.config).num_hidden_layers
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= depth:
        raise SecureRouterValueError(
            f"`expert_layers` should hold depths from 1 to {depth}, which the checkpoint has, got {layers!r}."
        )
    if (refused := why_not_cut(model.config)) is not None:
        reason, remedy = refused
        raise SecureRouterValueError(f"`expert_layers` cannot cut a checkpoint with {reason}: {remedy}.")
    config = copy.deepcopy(model.config)
    encoder_config(config).num_hidden_layers = layers
    cut = type(model)._from_config(config, dtype=model.dtype)
    missing, _ = cut.load_state_dict(model.state_dict(), strict=False)
    if missing:
        raise SecureRouterValueError(
            f"`expert_layers` cannot cut {type(model).__name__}: its first {layers} layers lack {missing[0]}."
        )
    return cut.eval()


def not_finite(model: nn.Module) -> list[str]:
    """Names of the weights that hold an infinity or a NaN."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all())
    ]


def _load_config(argument: str, name: str) -> PreTrainedConfig:
    try:
        is_adapter = find_adapter_config_file(name) is not None
        config = None if is_adapter else AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, which is neither a folder with a config.json nor an id on the Hub: {error}"
        ) from error
    if config is None:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, a PEFT adapter: merge the adapter first (`merge_and_unload()`), save the "
            "merged model, and pass that."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, a quantised checkpoint: pass the checkpoint that it was quantised from, in "
            "float32, bfloat16 or float16."
        )
    return config


def _load(auto_class: Any, argument: str, name: str, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
    """Loads a checkpoint, and refuses one that lacks tensors of its encoder or of its trained head."""
    try:
        model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, with a corrupt safetensors file ({error}): download or copy it again."
        ) from error
    # A base checkpoint may come without the head, and some come without a pooler.
    prefix = model.base_model_prefix + "."
    missing = [key for key in info["missing_keys"] if auto_class is AutoModel or key.startswith(prefix)]
    missing = sorted(key for key in missing if "pooler" not in key)
    if not missing and _is_fine_tuned(model.config) and auto_class is not AutoModel:
        missing = sorted(info["missing_keys"])
    if missing:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, which lacks {len(missing)} tensors of its architecture, first {missing[0]}: "
            "download or save the checkpoint again."
        )
    return model


def _load_expert(
    argument: str,
    name: str,
    config: PreTrainedConfig,
    num_labels: int,
    dtype: torch.dtype,
    whole: PreTrainedModel | None,
) -> PreTrainedModel:
    """The expert of a name; `whole` is that of a folder of sentence-transformers, which is loaded already."""
    if not _is_fine_tuned(config):
        return _load(AutoModelForSequenceClassification, argument, name, dtype, num_labels=num_labels)
    if config.num_labels != num_labels:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, a classifier of {config.num_labels} labels, and the pool has {num_labels}: "
            "leave it out, or pass its base checkpoint, which gets a new head."
        )
    if whole is not None:
        return cast(Any, copy.deepcopy(whole)).to(dtype)  # a name may stand for several experts
    return _load(AutoModelForSequenceClassification, argument, name, dtype)


def _is_fine_tuned(config: PreTrainedConfig) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or [])


def _wanted_labels(num_labels: int | None, id2label: dict[int, str] | None) -> dict[int, str] | None:
    if num_labels is not None and (isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1):
        raise SecureRouterValueError(f"`num_labels` should be an integer of at least 1, got {num_labels!r}.")
    if id2label is None:
        return None
    labels = {int(index): name for index, name in id2label.items()}
    if sorted(labels) != list(range(len(labels))) or num_labels not in (None, len(labels)):
        raise SecureRouterValueError(
            f"`id2label` should name labels 0 to {(num_labels or len(labels)) - 1}, got {id2label!r}."
        )
    return labels


def _common_count(configs: dict[str, PreTrainedConfig], num_labels: int | None) -> int:
    counts = {name: cast(int, config.num_labels) for name, config in configs.items() if _is_fine_tuned(config)}
    if num_labels is None and len(set(counts.values())) > 1:
        raise SecureRouterValueError(
            f"`experts` have different numbers of labels, {counts}: leave out those that do not fit the task."
        )
    return num_labels or next(iter(counts.values()), 2)


def _agree_on_labels(
    names: list[str], experts: list[PreTrainedModel], fine_tuned: list[bool], id2label: dict[int, str] | None
) -> dict[int, str]:
    """Brings the trained heads to one order of labels: the order of `id2label`, or of the first trained head."""
    trained = [(name, expert) for name, expert, tuned in zip(names, experts, fine_tuned, strict=True) if tuned]
    if not trained:
        return id2label or _labels(experts[0])
    wanted = id2label or _labels(trained[0][1])
    for name, expert in trained:
        own = _labels(expert)
        if sorted(own.values()) == sorted(wanted.values()):
            index = {label: i for i, label in own.items()}
            _permute_head(expert, [index[wanted[i]] for i in range(len(wanted))])
        elif id2label is None:
            raise SecureRouterValueError(
                f"`experts` name their labels differently, {wanted} in {trained[0][0]!r} and {own} in {name!r}: if "
                "their order is the same, pass `id2label` to say which names hold."
            )
    return wanted


def _labels(model: PreTrainedModel) -> dict[int, str]:
    return dict(cast(dict[int, str], model.config.id2label))


def _permute_head(expert: PreTrainedModel, order: list[int]) -> None:
    if order == list(range(len(order))):
        return
    last = [module for module in expert.modules() if isinstance(module, nn.Linear)][-1]
    if last.out_features != len(order):
        raise SecureRouterValueError(
            f"The head of {type(expert).__name__} has no last linear layer of {len(order)} labels, so that its labels "
            "cannot be reordered: save the expert with the order of the others."
        )
    with torch.no_grad():
        last.weight.copy_(last.weight[order].clone())
        if last.bias is not None:
            last.bias.copy_(last.bias[order].clone())


def _shared_max_length(
    members: dict[str, str], configs: dict[str, PreTrainedConfig], loaded: dict[str, PreTrainedTokenizerBase]
) -> int | None:
    """Refuses different tokenizers, and returns the longest input that all members and tokenizers take; `loaded` are
    those that are loaded already, by the name of their checkpoint."""
    tokenizers: dict[str, _Tokenizer | None] = {}
    for name in dict.fromkeys(members.values()):
        tokenizers[name] = _load_tokenizer(name, loaded.get(name))
    silent = [f"`{argument}` ({name!r})" for argument, name in members.items() if tokenizers[name] is None]
    if silent and len(tokenizers) > 1:
        warnings.warn(
            f"{', '.join(silent)} came without a tokenizer, so that it could not be compared: make sure that all "
            "members of the pool were trained with the same one.",
            SecureRouterWarning,
        )
    known = [(argument, name) for argument, name in members.items() if tokenizers[name] is not None]
    for argument, name in known[1:]:
        first_argument, first_name = known[0]
        first, other = tokenizers[first_name], tokenizers[name]
        assert first is not None and other is not None
        different = [part for part in first.parts if first.parts[part] != other.parts.get(part)]
        if different:
            raise SecureRouterValueError(
                f"`{argument}` ({name!r}) and `{first_argument}` ({first_name!r}) have different tokenizers (in "
                f"{', '.join(different)}), and a query is tokenized once for the whole pool: choose "
                "checkpoints with the same tokenizer."
            )
    lengths = [usable_positions(config) for config in configs.values()]
    lengths += [tokenizer.max_length for tokenizer in tokenizers.values() if tokenizer is not None]
    return min((length for length in lengths if length is not None), default=None)


def has_tokenizer(name: str) -> bool:
    """Whether a checkpoint, a folder or an id on the Hub, holds a vocabulary."""
    return any(
        cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None for file in _TOKENIZER_FILES
    )


def _load_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> _Tokenizer | None:
    """The parts of a tokenizer that decide how a text becomes ids, and its limit; None if there is no tokenizer."""
    if tokenizer is None:
        if not has_tokenizer(name):
            return None
        tokenizer = AutoTokenizer.from_pretrained(name)
    limit = tokenizer.model_max_length
    max_length = limit if limit < _NO_LIMIT else None
    vocabulary = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _Tokenizer({"class": type(tokenizer).__name__, "vocabulary": vocabulary}, max_length)
    state = json.loads(backend.to_str())
    model = {key: value for key, value in (state["model"] or {}).items() if key != "vocab"}
    return _Tokenizer(
        {
            "vocabulary": vocabulary,
            "normalizer": state["normalizer"],
            "pre-tokenizer": state["pre_tokenizer"],
            "model": model,
            "post-processor": state["post_processor"],
        },
        max_length,
    )


def accepted_inputs(member: nn.Module, inputs: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """The inputs that a member of the pool accepts: some families have no token types, or only one type."""
    if "token_type_ids" in inspect.signature(member.forward).parameters:
        if getattr(encoder_config(member.config), "type_vocab_size", 0) > 1:
            return inputs
    return {name: value for name, value in inputs.items() if name != "token_type_ids"}


def check_buildable(config: SecureRouterConfig) -> None:
    """Checks that a pool can be made from a config.

    Raises:
        `SecureRouterValueError`: The config has no expert or no router, or an expert whose family has no classifier or
            can read padding on the left only.
    """
    remedy = (
        "Build the pool with `SecureRouterForSequenceClassification.from_expert_pretrained(router=..., experts=[...])`"
        ", or load a checkpoint that was saved from one."
    )
    if not config.expert_configs:
        raise SecureRouterValueError(f"`expert_configs` is empty: the pool needs at least one expert. {remedy}")
    if config.router_config is None:
        raise SecureRouterValueError(f"`router_config` is None: the router needs a summary encoder. {remedy}")
    for index, expert in enumerate(config.expert_configs):
        if type(expert) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise SecureRouterValueError(
                f"`expert_configs[{index}]` is a {type(expert).__name__}, for which transformers has no sequence "
                "classifier: use an encoder such as BERT, DistilBERT, RoBERTa, ELECTRA, ALBERT, MPNet or DeBERTa."
            )
        if getattr(expert, "summary_type", None) == "last":
            raise SecureRouterValueError(
                f"`expert_configs[{index}].summary_type` is 'last': a {type(expert).__name__} reads the last place of "
                "a row, where a pool has padding. Use an encoder that reads the first token, such as BERT, "
                "DistilBERT, RoBERTa, ELECTRA or ALBERT."
            )
