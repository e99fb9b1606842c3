# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The interface of a two-party protocol: a `Sharing` for the owner and the client, a `Program` for each role.

A protocol is a folder of this package whose module `protocol` has four functions:

    problems(members, device, provider)       reasons against a conversion; `members` are encoder specs by module path
    prepare(provider)                         called before a model is converted
    sharing(manifest)                         a `Sharing`, in the process of the owner or the client
    program(role, manifest, setup, ledger)    a `Program`, in the role's own process
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

# Tensors by role; each role gets only its own.
Shares = dict[str, dict[str, Tensor]]


class Sharing(ABC):
    """Splits secrets between the roles, and reconstructs logits.

    Args:
        manifest (`Manifest`): The manifest of the converted model.
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
        """The logits, (B, C) float32, from the parties' answers."""

    def in_bounds(self, shares: dict[str, dict[str, Tensor]]) -> bool | None:
        """Whether all values of a batch were within their bounds, from the parties' answers; None without a guard."""
        return None


class Program(ABC):
    """One role of a protocol, in its own process."""

    @abstractmethod
    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        """Take a part of this role's tensors of `Sharing.weights`; called several times."""

    @abstractmethod
    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Answer one batch.

        Args:
            header (`dict`): `{"batch": B}`.
            tensors (`dict[str, torch.Tensor]`): This role's tensors of `Sharing.inputs`.

        Returns:
            `{"experts": [...]}`, the expert of each row if servers may know it, and this role's share of the logits.
        """


def load_protocol(name: str) -> ModuleType:
    """The module `protocol` of a protocol's folder.

    Raises:
        `SecureRouterValueError`: No protocol has this name.
    """
    if name not in PROTOCOLS:
        raise SecureRouterValueError(f"`protocol` should be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    return importlib.import_module(f"{__package__}.{name}.protocol")


def require(setup: Mapping[str, Any], *names: str) -> None:
    """Refuses a set-up message that lacks one of these entries.

    Raises:
        `SecureRouterValueError`: It names all that are missing.
    """
    missing = [name for name in names if name not in setup]
    if missing:
        raise SecureRouterValueError(
            f"`setup` should have {', '.join(names)}, and lacks {', '.join(missing)}: pass what a session sends, as "
            "in `mpc/sessions/local.py`."
        )


def make_program(role: str, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of one role, from the set-up message that its process received.

    Args:
        role (`str`): One of the manifest's roles.
        setup (`dict`): With the `manifest` as `Manifest.to_dict` gives it, and what the protocol needs.
        ledger (`Ledger`): Counts what the role sends.

    Raises:
        `SecureRouterValueError`: `setup` lacks something, or the model has no such role or protocol.
    """
    require(setup, "manifest")
    try:
        manifest = Manifest.from_dict(setup["manifest"])
    except KeyError as error:
        raise SecureRouterValueError(
            f"`setup['manifest']` lacks {error}: pass what `Manifest.to_dict` gives."
        ) from error
    if role not in manifest.roles:
        raise SecureRouterValueError(f"`role` should be one of {', '.join(manifest.roles)}, got {role!r}.")
    return load_protocol(manifest.protocol).program(role, manifest, setup, ledger)
