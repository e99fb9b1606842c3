# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The model of a command, with its tokenizer: a pool, or one plain classifier."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from hf_securerouter.errors import SecureRouterValueError


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pool, or a fine-tuned classifier of a supported family, in float32 and evaluation mode.

    Args:
        path: A folder, or a name on the Hub; also one of sentence-transformers or SetFit with a head in
            `model_head.safetensors`.

    Returns:
        A `SecureRouterForSequenceClassification` or a plain sequence classifier, and the tokenizer.

    Raises:
        FileError: A file of the checkpoint is missing, cut or wrong; the file and the field are named.
        SecureRouterValueError: `path` is neither, its family is not supported, or its classifier is not whole: it has
            no trained head, is an adapter or quantised, or has weights that are not finite.
        SecureRouterError: The Hub was not reached.
    """
    from transformers.utils import find_adapter_config_file

    from hf_securerouter.checkpoint_files import read_config, read_tokenizer
    from hf_securerouter.classification import checked_name
    from hf_securerouter.configuration_securerouter import SecureRouterConfig
    from hf_securerouter.loading import Source
    from hf_securerouter.sentence_transformer import is_sentence_classifier, read_sentence_classifier

    name = checked_name(path)
    is_adapter = False
    if Path(name).is_file():
        raise SecureRouterValueError(f"`model` {name!r} is a file: pass the folder of a saved model.")
    with contextlib.suppress(OSError):  # a Hub that was not reached, as `read_config` will say
        is_adapter = find_adapter_config_file(name) is not None
    if is_adapter:
        raise SecureRouterValueError(
            f"`model` {name!r} is a PEFT adapter: merge it (`merge_and_unload()`), save the result, and pass that."
        )
    if is_sentence_classifier(Source(name)):
        model, tokenizer = read_sentence_classifier(Source(name))
        return _finite(name, model), tokenizer
    config = read_config(name)
    is_pool = isinstance(config, SecureRouterConfig)
    if not is_pool:
        _check_classifier(name, config)
    tokenizer = read_tokenizer(name)
    return (_load_pool if is_pool else _load_classifier)(name), tokenizer


def commit_of(name: str) -> str | None:
    """The commit of a model that was loaded by its name on the Hub, from this machine's cache; None if it has none."""
    from huggingface_hub import try_to_load_from_cache

    from hf_securerouter.checkpoint_files import CONFIG
    from hf_securerouter.sentence_transformer import MODULES

    found = (try_to_load_from_cache(name, file) for file in (CONFIG, MODULES))
    return next((Path(path).parent.name for path in found if isinstance(path, str)), None)


def _check_classifier(name: str, config: PreTrainedConfig) -> None:
    """Refuse a config that is not of a fine-tuned classifier of a supported family, before its weights are read."""
    from hf_securerouter.mpc.models import supported_model_types

    families = supported_model_types()
    if config.model_type not in families:
        raise SecureRouterValueError(
            f"`model` {name!r} has the `model_type` {config.model_type!r}: pass a pool, or a classifier of one of the "
            f"families {', '.join(families)}."
        )
    heads = config.architectures or []  # older checkpoints name none
    if heads and not any(head.endswith("ForSequenceClassification") for head in heads):
        raise _without_head(name, f"its `architectures` are {', '.join(heads)}")
    if getattr(config, "quantization_config", None) is not None:
        raise SecureRouterValueError(
            f"`model` {name!r} is quantised: pass the checkpoint that it was quantised from, in float32 or bfloat16."
        )


def _load_pool(name: str) -> PreTrainedModel:
    import torch

    from hf_securerouter.checkpoint_files import reading_weights
    from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification

    with reading_weights(name):
        return SecureRouterForSequenceClassification.from_pretrained(name, dtype=torch.float32).eval()


def _load_classifier(name: str) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForSequenceClassification

    from hf_securerouter.checkpoint_files import reading_weights

    with reading_weights(name):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if new:
        raise _without_head(name, f"it lacks {', '.join(new[:4])}{' and more' if new[4:] else ''}")
    return _finite(name, model)


def _finite(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """A classifier, in evaluation mode, whose weights are finite."""
    from hf_securerouter.pool import not_finite

    if wrong := not_finite(model):
        raise SecureRouterValueError(
            f"`model` {name!r} has infinite or NaN values, first in {wrong[0]}: train or download it again."
        )
    return model.eval()


def _without_head(name: str, reason: str) -> SecureRouterValueError:
    return SecureRouterValueError(
        f"`model` {name!r} is no fine-tuned sequence classifier, as {reason}: its answers would come from random "
        "weights. Fine-tune it with `AutoModelForSequenceClassification` and save it, or pass a fine-tuned checkpoint."
    )
