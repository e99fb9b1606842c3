# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What is public of an encoder and of a converted model, and where a Hugging Face model keeps its weights.

`architecture` has the base class and the registry by `model_type`; `albert`, `bert`, `deberta_v2`, `distilbert`,
`electra`, `eurobert`, `modernbert`, `moe`, `mpnet`, `nomic_bert` and `roberta` register families, `pooled` one around
any of them. `relative_positions` says which entry of a relative attention bias a pair of tokens reads, `log_buckets`
which entry of DeBERTa's tables, `rotary` by which angle a place turns queries and keys. `spec` is the public shape of
an encoder with its head, `manifest` the public description of a converted model.
"""

# They register themselves.
from . import (  # noqa: F401
    albert,
    bert,
    deberta_v2,
    distilbert,
    electra,
    eurobert,
    modernbert,
    moe,
    mpnet,
    nomic_bert,
    pooled,
    roberta,
)
from .architecture import Architecture, architecture_for, register, supported_model_types
from .spec import EncoderSpec, HeadSpec


__all__ = ["Architecture", "EncoderSpec", "HeadSpec", "architecture_for", "register", "supported_model_types"]
