# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a classifier on a pooled row of an encoder, as sentence-transformers and SetFit build it."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .errors import SecureRouterValueError
from .hub_ids import without_local_paths
from .known_arguments import refuse_misspelt
from .value_checks import integer, one_of, optional


Pooling = Literal["mean", "first"]
DenseActivation = Literal["identity", "tanh", "relu", "gelu"]

_CHECKS = {
    "pooling": one_of("pooling", get_args(Pooling)),
    "dense_size": optional(integer("dense_size", 1)),
    "dense_act": one_of("dense_act", get_args(DenseActivation)),
    "normalize": one_of("normalize", (True, False)),
}


@strict
class PooledEncoderConfig(PreTrainedConfig):
    r"""Configuration of [`PooledEncoderForSequenceClassification`].

    `PooledEncoderConfig()` describes no encoder, and no model can be made from it.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Config of the encoder, such as MPNet.
        pooling (`str`, *optional*, defaults to `"mean"`):
            Which row of the last hidden states is classified: `"mean"`, the mean of all tokens' rows without padding,
            or `"first"`, the first token's.
        dense_size (`int`, *optional*):
            Width of a linear layer on the pooled row; None for no such layer.
        dense_act (`str`, *optional*, defaults to `"identity"`):
            Activation of that layer: `"identity"`, `"tanh"`, `"relu"` or `"gelu"`.
        normalize (`bool`, *optional*, defaults to `False`):
            Whether the row is divided by its Euclidean length before it is classified.

    Raises:
        `SecureRouterValueError`: `text_config` is no config, or the dict of none that transformers knows; or another
            field has no such value, or is misspelt.

    Example:
        ```python
        >>> from transformers import MPNetConfig
        >>> from hf_securerouter import PooledEncoderConfig, PooledEncoderForSequenceClassification

        >>> config = PooledEncoderConfig(text_config=MPNetConfig(num_hidden_layers=2), num_labels=3)
        >>> model = PooledEncoderForSequenceClassification(config)
        ```

    Reference:
        Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, arXiv 1908.10084;
        Tunstall et al., Efficient Few-Shot Learning Without Prompts (SetFit), arXiv 2209.11055.
    """

    model_type = "pooled_encoder"

    text_config: PreTrainedConfig | dict | None = None
    pooling: Pooling = "mean"
    dense_size: int | None = None
    dense_act: DenseActivation = "identity"
    normalize: bool = False

    def __post_init__(self, **kwargs):
        if self.text_config is not None:
            self.text_config = _as_config(self.text_config)
        super().__post_init__(**kwargs)
        refuse_misspelt(f"`{type(self).__name__}`", kwargs, ("text_config", *_CHECKS))
        for name, check in _CHECKS.items():
            check(getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict that JSON can hold, without a path of this machine."""
        return without_local_paths(super().to_dict())


def _as_config(value: Any) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return copy.deepcopy(value)
    if not isinstance(value, dict):
        raise SecureRouterValueError(
            f"`text_config` should be an encoder's config, or its dict with a `model_type`, got {value!r}."
        )
    kind = value.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise SecureRouterValueError(
            f"`text_config` has `model_type` {kind!r}, which transformers does not know: pass an encoder's config, or "
            "its dict."
        )
    return AutoConfig.for_model(**value)


# Here and not in `registration`: a pool's checkpoint on the Hub brings this file, and perhaps not the package.
AutoConfig.register(PooledEncoderConfig.model_type, PooledEncoderConfig, exist_ok=True)


__all__ = ["PooledEncoderConfig"]
