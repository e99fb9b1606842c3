# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The model of a command, with its tokenizer: a pool, or one plain classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_securerouter.errors import SecureRouterValueError


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pool, or a fine-tuned classifier of a supported family, in float32 and evaluation mode.

    Args:
        path: A folder, or a name on the Hub; also one of sentence-transformers or SetFit with a head in
            `model_head.safetensors`.

    Returns:
        A `SecureRouterForSequenceClassification` or a plain sequence classifier, and the tokenizer.

    Raises:
        SecureRouterValueError: `path` is neither, its family is not supported, or its classifier is not whole: it has
            no trained head or no tokenizer, is an adapter or quantised, or has weights that are not finite.
    """
    from transformers import PreTrainedConfig
    from transformers.utils import find_adapter_config_file

    from hf_securerouter.classification import checked_name, load_checkpoint
    from hf_securerouter.configuration_securerouter import SecureRouterConfig
    from hf_securerouter.sentence_transformer import classifier_from_sentence_transformer, is_sentence_classifier

    name = checked_name(path)
    if find_adapter_config_file(name) is not None:
        raise SecureRouterValueError(
            f"`model` {name!r} is a PEFT adapter: merge it (`merge_and_unload()`), save the result, and pass that."
        )
    if is_sentence_classifier(name):
        return _checked(name, *classifier_from_sentence_transformer(name))
    config, _ = PreTrainedConfig.get_config_dict(name)
    if not config:
        raise SecureRouterValueError(f"`model` {name!r} has no config.json: pass the folder of a saved model.")
    if config.get("model_type") == SecureRouterConfig.model_type:
        return load_checkpoint(name)
    _check_classifier(name, config)
    return _load_classifier(name)


def _check_classifier(name: str, config: dict[str, Any]) -> None:
    """Refuse a config that is not of a fine-tuned classifier of a supported family, before its weights are read."""
    from hf_securerouter.mpc.models import supported_model_types
    from hf_securerouter.pool import has_tokenizer

    families = supported_model_types()
    if config.get("model_type") not in families:
        raise SecureRouterValueError(
            f"`model` {name!r} has the `model_type` {config.get('model_type')!r}: pass a pool, or a "
            f"classifier of one of the families {', '.join(families)}."
        )
    heads = config.get("architectures") or []  # older checkpoints name none
    if heads and not any(head.endswith("ForSequenceClassification") for head in heads):
        raise _without_head(name, f"its `architectures` are {', '.join(heads)}")
    if config.get("quantization_config") is not None:
        raise SecureRouterValueError(
            f"`model` {name!r} is quantised: pass the checkpoint that it was quantised from, in float32 or bfloat16."
        )
    if not has_tokenizer(name):
        raise SecureRouterValueError(
            f"`model` {name!r} has no tokenizer, without which no text can be read: save it there, with "
            "`tokenizer.save_pretrained`."
        )


def _load_classifier(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise SecureRouterValueError(
            f"`model` {name!r} has a corrupt safetensors file ({error}): download or copy it again."
        ) from error
    new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if new:
        raise _without_head(name, f"it lacks {', '.join(new[:4])}{' and more' if new[4:] else ''}")
    return _checked(name, model.eval(), AutoTokenizer.from_pretrained(name))


def _checked(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier whose weights are finite."""
    from hf_securerouter.pool import not_finite

    if wrong := not_finite(model):
        raise SecureRouterValueError(
            f"`model` {name!r} has infinite or NaN values, first in {wrong[0]}: train or download it again."
        )
    return model, tokenizer


def _without_head(name: str, reason: str) -> SecureRouterValueError:
    return SecureRouterValueError(
        f"`model` {name!r} is no fine-tuned sequence classifier, as {reason}: its answers would come from random "
        "weights. Fine-tune it with `AutoModelForSequenceClassification` and save it, or pass a fine-tuned checkpoint."
    )
