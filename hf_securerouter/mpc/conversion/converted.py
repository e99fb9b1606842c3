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
from .ranges import Range


@dataclass(frozen=True)
class Converted:
    """The result of a conversion, for the model's owner only: its weights are in clear.

    Args:
        manifest (`Manifest`): The public description of the model.
        client (`Client`): The embeddings and the tokenizer.
        weights (`Mapping[str, torch.Tensor]`): All other weights, float32 by canonical name.
        ranges (`tuple[Range, ...]`): What sample inputs reach, and the bounds; empty under `"crypten"`.
    """

    manifest: Manifest
    client: Client
    weights: Mapping[str, Tensor]
    ranges: tuple[Range, ...] = ()

    @cached_property
    def sharing(self) -> Sharing:
        """The sharing of the manifest's protocol."""
        return load_protocol(self.manifest.protocol).sharing(self.manifest)
