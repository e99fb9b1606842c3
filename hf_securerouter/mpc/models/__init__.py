# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Encrypted counterparts of Hugging Face architectures: one file each, found by `model_type`."""

from . import albert, bert, distilbert, electra, roberta  # noqa: F401  (they register themselves)
from .architecture import Architecture, architecture_for, register, supported_model_types
from .spec import EncoderSpec, HeadSpec


__all__ = ["Architecture", "EncoderSpec", "HeadSpec", "architecture_for", "register", "supported_model_types"]
