# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a two-party protocol has to offer: a way to share, for the owner and the client, and a program for each role.

A protocol is a folder of this package whose module `protocol` has four functions:

    problems(members, device, provider)       what it cannot do; `members` are encoder specs by module path
    prepare(provider)                         called when a model is about to be converted
    sharing(manifest)                         a `Sharing`, in a process that holds secrets
    program(role, manifest, setup, ledger)    a `Program`, in a role's own process
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from ...errors import SecureRouterValueError
from ..models.manifest import Manifest
from ..net.ledger import Ledger


PROTOCOLS = ("crypten", "masked")

# From a role to the tensors that only this role gets.
Shares = dict[str, dict[str, Tensor]]


class Sharing(ABC):
    """How secrets are split between the roles, and put together again.

    Args:
        manifest (`Manifest`): The converted model.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @abstractmethod
    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[Shares]:
        """Fresh shares of all weights, a few at a time.

        Args:
            weights (`Mapping[str, torch.Tensor]`): Float32 under names such as `experts.0.layers.1.query.weight`,
                linear weights as (out, in).
        """

    @abstractmethod
    def inputs(self, embeddings: dict[str, Tensor], attention_mask: Tensor) -> Shares:
        """Fresh shares of one batch.

        Args:
            embeddings (`dict[str, torch.Tensor]`): The embedding output of each of `manifest.inputs`, (B, T, H)
                float32.
            attention_mask (`torch.Tensor`): (B, T), 1 for tokens and 0 for padding.
        """

    @abstractmethod
    def logits(self, shares: dict[str, dict[str, Tensor]]) -> Tensor:
        """The logits, (B, C) float32, from what the parties answered."""


class Program(ABC):
    """One role of a protocol, in its own process."""

    @abstractmethod
    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        """Take what `Sharing.weights` made for this role, in several calls."""

    @abstractmethod
    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Answer one batch.

        Args:
            header (`dict`): `{"batch": B}`.
            tensors (`dict[str, torch.Tensor]`): What `Sharing.inputs` made for this role.

        Returns:
            `{"experts": [...]}` (of each row, where the servers may know them) and this role's part of the logits.
        """


def load_protocol(name: str) -> ModuleType:
    """The module `protocol` of a protocol's folder.

    Raises:
        `SecureRouterValueError`: There is none of this name.
    """
    if name not in PROTOCOLS:
        raise SecureRouterValueError(f"`protocol` should be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    return importlib.import_module(f"{__package__}.{name}.protocol")


def make_program(role: str, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of one role, from the set-up that its process received."""
    manifest = Manifest.from_dict(setup["manifest"])
    return load_protocol(manifest.protocol).program(role, manifest, setup, ledger)
