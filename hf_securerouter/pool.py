# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Loads checkpoints as one pool: same tokenizer, same labels in the same order, whole weights."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, find_adapter_config_file

from .admission import check_expert, check_router
from .configuration_securerouter import SecureRouterConfig
from .errors import SecureRouterValueError, warn
from .families import encoder_config, usable_positions, why_not_cut
from .hub_ids import is_hub_id
from .known_arguments import refuse_unknown
from .labels import LabelOrder, LoadedExpert, agree_on_labels, common_count, wanted_labels
from .loading import (
    LOADER_ARGUMENTS,
    Loading,
    Source,
    member_loading,
    only_download_bars,
    pool_dtype,
    refuse_not_taken,
)
from .modeling_moe import SecureMoeForSequenceClassification  # noqa: F401  (an expert: it registers itself)
from .modeling_pooled import PooledEncoderForSequenceClassification
from .sentence_transformer import is_sentence_classifier, read_sentence_classifier


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


# Fields of the config that a pool reads from its checkpoints, or that say nothing to it.
_FROM_CHECKPOINTS = frozenset(
    "architectures chunk_size_feed_forward expert_configs is_encoder_decoder label2id router_config "
    "transformers_version".split()
)


def pool_arguments(
    given: Mapping[str, Any], parameters: Iterable[str]
) -> tuple[dict[str, Any], torch.dtype, dict[str, Any]]:
    """What is given to `from_expert_pretrained` beside its own parameters.

    Args:
        given (`Mapping`): Loader arguments, a dtype, and fields of the config.
        parameters (iterable of `str`): Its own, for the message.

    Returns:
        `tuple`: Loader arguments, the dtype, and fields of the config.

    Raises:
        `SecureRouterValueError`: An argument is none of these, or one that a pool cannot take.
    """
    refuse_not_taken(given)
    rest = dict(given)
    loading = {name: rest.pop(name) for name in LOADER_ARGUMENTS if name in rest}
    dtype = pool_dtype(rest.pop("dtype", None), rest.pop("torch_dtype", None))
    fields = {field.name for field in dataclasses.fields(SecureRouterConfig)} - _FROM_CHECKPOINTS
    refuse_unknown("`from_expert_pretrained`", rest, {*parameters, *LOADER_ARGUMENTS, *fields} - {"kwargs"})
    return loading, dtype, rest


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
    label_order: LabelOrder | None,
    dtype: torch.dtype,
    loading: dict[str, Any],
    router_kwargs: dict[str, Any] | None,
    expert_kwargs: Sequence[dict[str, Any] | None] | None,
) -> Pool:
    """Loads the members of a pool; the arguments are those of
    [`SecureRouterForSequenceClassification.from_expert_pretrained`], whose loader arguments are `loading`.

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
    own, of_experts = member_loading(loading, router_kwargs, expert_kwargs, len(names))
    members = {} if router is None else {"router": Source(os.fspath(router), own)}
    members |= {f"experts[{i}]": Source(names[i], of_experts[i]) for i in range(len(names))}
    whole = {
        argument: read_sentence_classifier(source)
        for argument, source in members.items()
        if argument != "router" and is_sentence_classifier(source)
    }
    configs = {
        argument: whole[argument][0].config if argument in whole else _load_config(argument, source)
        for argument, source in members.items()
    }
    for argument, member in configs.items():
        (check_router if argument == "router" else check_expert)(argument, member)
    max_length = _shared_max_length(members, configs, {argument: whole[argument][1] for argument in whole})

    wanted = wanted_labels(num_labels, id2label)
    asked = num_labels if wanted is None else len(wanted)
    loaded = {
        argument: _load_expert(argument, source, configs[argument], asked, dtype)
        if argument not in whole
        else _with_own_head(argument, source, whole[argument][0], dtype)
        for argument, source in members.items()
        if argument != "router"
    }
    count = common_count([*loaded.values()], asked)
    found = [_with_labels(name, members[name], expert, count, dtype) for name, expert in loaded.items()]
    labels = agree_on_labels(found, wanted, label_order)
    models = [expert.model for expert in found]
    if expert_layers is not None:
        models = [cut_layers(models[0], layers) for layers in expert_layers]

    encoder = None if router is None else _load(AutoModel, "router", members["router"], dtype)[0]
    routers = [] if encoder is None else [encoder]
    sources = [*(["router"] if routers else []), *(loaded if expert_layers is None else ["experts[0]"] * len(models))]
    for argument, model in zip(sources, (*routers, *models), strict=True):
        wrong = not_finite(model)
        if wrong:
            raise SecureRouterValueError(
                f"The checkpoint {members[argument].name!r} has infinite or NaN values, first in {wrong[0]}: train or "
                "download it again."
            )
    for model in models:
        model.config.id2label = dict(labels)
    for model in (*routers, *models):
        if not is_hub_id(model.config.name_or_path or ""):
            model.config.name_or_path = ""  # a saved config must not reveal a path of this machine
    return Pool(encoder, models, labels, max_length)


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


def _load_config(argument: str, source: Source) -> PreTrainedConfig:
    name, loading = source.name, source.loading
    try:
        is_adapter = find_adapter_config_file(name, **loading.files) is not None
        config = None if is_adapter else AutoConfig.from_pretrained(name, **loading.config)
    except (OSError, ValueError) as error:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, which is neither a folder with a config.json nor an id on the Hub: "
            f"{loading.without_secrets(error)}"
        ) from (None if loading.without_secrets(error) != str(error) else error)
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


def _load(
    auto_class: Any, argument: str, source: Source, dtype: torch.dtype, **kwargs: Any
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """Loads a checkpoint, and refuses one that lacks tensors of its encoder, or has them in another shape.

    Returns:
        `tuple`: The model, the tensors of its head that the checkpoint lacks, and those of another shape.
    """
    name = source.name
    try:
        with only_download_bars():
            model, info = auto_class.from_pretrained(
                name,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **source.loading.weights,
                **kwargs,
            )
    except SafetensorError as error:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, with a corrupt safetensors file ({error}): download or copy it again."
        ) from error
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    prefix = model.base_model_prefix + "."
    is_base = auto_class is AutoModel
    in_encoder = {key for key in model.state_dict() if is_base or key.startswith(prefix)}
    # Some base checkpoints come without a pooler.
    lacking = set(info["missing_keys"]) - mismatched
    missing = sorted(key for key in lacking if key in in_encoder and "pooler" not in key)
    trained_head = _declared(model.config) == "classifier" and not is_base
    if trained_head and not missing:
        missing = sorted(lacking)
    if missing:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, which lacks {len(missing)} tensors of its architecture, first {missing[0]}: "
            "download or save the checkpoint again."
        )
    wrong = sorted(mismatched if trained_head else mismatched & in_encoder)
    if wrong:
        raise SecureRouterValueError(
            f"`{argument}` is {name!r}, whose tensor {wrong[0]} has another shape than its config.json says: correct "
            "the config (`id2label`, for the head), or download the checkpoint again."
        )
    _warn_of_own_code(argument, name, model)
    return model, lacking - in_encoder, mismatched - in_encoder


def _warn_of_own_code(argument: str, name: str, model: PreTrainedModel) -> None:
    if type(model).__module__.startswith("transformers_modules"):
        warn(
            f"`{argument}` is {name!r}, which runs code of its own ({type(model).__name__}). A saved pool does not "
            "hold this code: register its classes with transformers' auto classes before loading the pool."
        )


def _declared(config: PreTrainedConfig) -> str:
    """What a config says of its checkpoint: a `classifier` of texts, of another `task`, a `base`, or nothing (``)."""
    names = config.architectures or []
    if any("ForSequenceClassification" in name for name in names):
        return "classifier"
    if any(re.search("For(Token|MultipleChoice|QuestionAnswering|Image|Audio|Video)", name) for name in names):
        return "task"
    return "base" if names else ""


def _load_expert(
    argument: str, source: Source, config: PreTrainedConfig, asked: int | None, dtype: torch.dtype
) -> LoadedExpert:
    """An expert with the head of its checkpoint, or with a new one.

    Which of both is seen in the weights: older configs do not say it.
    """
    if _declared(config) == "task":
        raise SecureRouterValueError(
            f"`{argument}` is {source.name!r}, a {(config.architectures or [''])[0]}, whose head does another task: "
            "pass its base checkpoint, which gets a new head."
        )
    model, missing, mismatched = _load(AutoModelForSequenceClassification, argument, source, dtype)
    if mismatched and asked not in (None, config.num_labels):  # a config without `id2label` says two labels
        again: dict[str, Any] = {"num_labels": asked}
        model, missing, mismatched = _load(AutoModelForSequenceClassification, argument, source, dtype, **again)
    head = {name for name in model.state_dict() if not name.startswith(model.base_model_prefix + ".")}
    if mismatched or 0 < len(missing & head) < len(head):
        raise SecureRouterValueError(
            f"`{argument}` is {source.name!r}, which holds another head than one of {config.num_labels} labels (see "
            f"{min(mismatched | missing)}): correct `id2label` in its config.json, pass `num_labels`, or pass its "
            "base checkpoint."
        )
    return LoadedExpert(source.name, model, fine_tuned=not missing)


def _with_own_head(
    argument: str, source: Source, classifier: PooledEncoderForSequenceClassification, dtype: torch.dtype
) -> LoadedExpert:
    """The expert that a folder of sentence-transformers holds, which is read already."""
    _warn_of_own_code(argument, source.name, classifier.body)
    return LoadedExpert(source.name, cast(Any, classifier).to(dtype), fine_tuned=True)


def _with_labels(argument: str, source: Source, expert: LoadedExpert, count: int, dtype: torch.dtype) -> LoadedExpert:
    """The expert, whose new head has as many labels as the pool."""
    if expert.fine_tuned or len(expert.labels) == count:
        return expert
    model, _, _ = _load(AutoModelForSequenceClassification, argument, source, dtype, num_labels=count)
    return LoadedExpert(source.name, model, False)


def _shared_max_length(
    members: dict[str, Source], configs: dict[str, PreTrainedConfig], read: dict[str, PreTrainedTokenizerBase]
) -> int | None:
    """Refuses different tokenizers, and returns the longest input that all members and tokenizers take; `read` are the
    tokenizers that came with their members."""
    tokenizers: dict[str, _Tokenizer | None] = {name: _parts_of(tokenizer) for name, tokenizer in read.items()}
    loaded: list[tuple[Source, _Tokenizer | None]] = []
    for argument, source in members.items():
        if argument not in read:
            same = [tokenizer for other, tokenizer in loaded if other == source]
            tokenizers[argument] = same[0] if same else _load_tokenizer(source.name, source.loading)
            loaded.append((source, tokenizers[argument]))
    _check_vocabularies(tokenizers, configs)
    silent = [f"`{argument}` ({members[argument].name!r})" for argument in members if tokenizers[argument] is None]
    if silent and len({source.name for source in members.values()}) > 1:
        warn(
            f"{', '.join(silent)} came without a tokenizer, so that it could not be compared: make sure that all "
            "members of the pool were trained with the same one."
        )
    known = [(argument, tokenizer) for argument, tokenizer in tokenizers.items() if tokenizer is not None]
    for argument, other in known[1:]:
        first_argument, first = known[0]
        name, first_name = members[argument].name, members[first_argument].name
        different = [part for part in first.parts if first.parts[part] != other.parts.get(part)]
        if different:
            raise SecureRouterValueError(
                f"`{argument}` ({name!r}) and `{first_argument}` ({first_name!r}) have different tokenizers (in "
                f"{', '.join(different)}), and a query is tokenized once for the whole pool: choose "
                "checkpoints with the same tokenizer."
            )
    lengths = [usable_positions(config) for config in configs.values()]
    lengths += [tokenizer.max_length for _, tokenizer in known]
    return min((length for length in lengths if length is not None), default=None)


def _check_vocabularies(tokenizers: dict[str, _Tokenizer | None], configs: dict[str, PreTrainedConfig]) -> None:
    """Refuses a member whose embeddings lack ids that its pool's tokenizer gives, and, where there is no tokenizer to
    compare, members of different vocabularies."""
    sizes = {argument: getattr(config.get_text_config(), "vocab_size", 2**31) for argument, config in configs.items()}
    ids = [max(tokenizer.parts["vocabulary"].values()) for tokenizer in tokenizers.values() if tokenizer is not None]
    short = [argument for argument, size in sizes.items() if ids and size <= max(ids)]
    if short:
        raise SecureRouterValueError(
            f"`{short[0]}` has embeddings for {sizes[short[0]]} tokens, and the tokenizer gives ids up to {max(ids)}: "
            "choose checkpoints with the same tokenizer, or resize the embeddings and save the checkpoint again."
        )
    if len(set(sizes.values())) > 1 and None in tokenizers.values():
        raise SecureRouterValueError(
            f"The vocabularies have different sizes, {sizes}, and not every checkpoint came with its tokenizer: save "
            "each member's tokenizer with it, so that they can be compared."
        )


def has_tokenizer(name: str, loading: Loading | None = None) -> bool:
    """Whether a checkpoint, a folder or an id on the Hub, holds a vocabulary."""
    files = {} if loading is None else loading.files
    return any(
        cached_file(name, file, _raise_exceptions_for_missing_entries=False, **files) is not None
        for file in _TOKENIZER_FILES
    )


def _load_tokenizer(name: str, loading: Loading | None = None) -> _Tokenizer | None:
    """The parts of a checkpoint's tokenizer; None if there is no tokenizer."""
    if not has_tokenizer(name, loading):
        return None
    return _parts_of(AutoTokenizer.from_pretrained(name, **({} if loading is None else loading.config)))


def _parts_of(tokenizer: PreTrainedTokenizerBase) -> _Tokenizer:
    """The parts of a tokenizer that decide how a text becomes ids, and its limit."""
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
