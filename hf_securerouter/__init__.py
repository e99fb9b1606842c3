# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Cost-aware routing over a pool of Hugging Face encoders, in clear text and under two-party computation."""

import os


__version__ = "0.1.0"

# A role of a session computes on shares alone. What a model needs takes it longer to import than all else together.
if "SECUREROUTER_ROLE" not in os.environ:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from .configuration_securerouter import SecureRouterConfig
    from .errors import SecureRouterError, SecureRouterValueError, SecureRouterWarning
    from .modeling_securerouter import (
        SecureRouterForSequenceClassification,
        SecureRouterOutput,
        SecureRouterPreTrainedModel,
    )

    AutoConfig.register("secure_router", SecureRouterConfig)
    AutoModelForSequenceClassification.register(SecureRouterConfig, SecureRouterForSequenceClassification)

    __all__ = [
        "SecureRouterConfig",
        "SecureRouterError",
        "SecureRouterForSequenceClassification",
        "SecureRouterOutput",
        "SecureRouterPreTrainedModel",
        "SecureRouterValueError",
        "SecureRouterWarning",
    ]
