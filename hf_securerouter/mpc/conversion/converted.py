# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A converted model, before anything of it is shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..models.manifest import Manifest
from ..protocols import Sharing, load_protocol
from .client import Client


@dataclass(frozen=True)
class Converted:
    """What conversion makes of a model, in the hands of its owner.

    Args:
        manifest (`Manifest`): What is public.
        client (`Client`): The embeddings and the tokenizer, in clear.
        weights (`Mapping[str, torch.Tensor]`): Everything else of the model, in clear: float32 by canonical name.
    """

    manifest: Manifest
    client: Client
    weights: Mapping[str, Tensor]

    @cached_property
    def sharing(self) -> Sharing:
        """How the manifest's protocol shares."""
        return load_protocol(self.manifest.protocol).sharing(self.manifest)
