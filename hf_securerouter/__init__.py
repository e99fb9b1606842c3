# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Cost-aware routing over a pool of Hugging Face encoders, in clear text and under two-party computation.

Importing this package imports nothing else: public names are loaded when they are first used, as in transformers, and
the model is registered in transformers' auto classes once they are imported (`registration.py`). Role processes need
no model class, and importing transformers would dominate their start-up time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import registration


if TYPE_CHECKING:
    from .async_client import AsyncSecureRouterClient
    from .client import SecureRouterClient
    from .configuration_moe import SecureMoeConfig
    from .configuration_pooled import PooledEncoderConfig
    from .configuration_securerouter import SecureRouterConfig
    from .errors import SecureRouterError, SecureRouterValueError, SecureRouterWarning, UnknownArgumentError
    from .modeling_moe import SecureMoeForSequenceClassification
    from .modeling_pooled import PooledEncoderForSequenceClassification
    from .modeling_securerouter import (
        SecureRouterForSequenceClassification,
        SecureRouterOutput,
        SecureRouterPreTrainedModel,
    )
    from .mpc.convert import to_mpc
    from .sentence_transformer import classifier_from_sentence_transformer


__version__ = "0.1.0"

__all__ = [
    "AsyncSecureRouterClient",
    "PooledEncoderConfig",
    "PooledEncoderForSequenceClassification",
    "SecureMoeConfig",
    "SecureMoeForSequenceClassification",
    "SecureRouterClient",
    "SecureRouterConfig",
    "SecureRouterError",
    "SecureRouterForSequenceClassification",
    "SecureRouterOutput",
    "SecureRouterPreTrainedModel",
    "SecureRouterValueError",
    "SecureRouterWarning",
    "UnknownArgumentError",
    "classifier_from_sentence_transformer",
    "to_mpc",
]

_HOMES = {
    "async_client": ("AsyncSecureRouterClient",),
    "client": ("SecureRouterClient",),
    "configuration_moe": ("SecureMoeConfig",),
    "configuration_pooled": ("PooledEncoderConfig",),
    "configuration_securerouter": ("SecureRouterConfig",),
    "errors": ("SecureRouterError", "SecureRouterValueError", "SecureRouterWarning", "UnknownArgumentError"),
    "modeling_moe": ("SecureMoeForSequenceClassification",),
    "modeling_pooled": ("PooledEncoderForSequenceClassification",),
    "modeling_securerouter": (
        "SecureRouterForSequenceClassification",
        "SecureRouterOutput",
        "SecureRouterPreTrainedModel",
    ),
    "mpc.convert": ("to_mpc",),
    "sentence_transformer": ("classifier_from_sentence_transformer",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.when_transformers_is_imported()
