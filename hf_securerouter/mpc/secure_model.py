# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A converted model, and what its owner can do with it: try it on this machine, or share it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from .conversion.client import Client
from .conversion.converted import Converted
from .deployment.save_shares import save_shares
from .models.manifest import BATCH_SIZE, Manifest
from .protocols import Sharing
from .sessions.local import LocalSession


class SecureModel:
    """A converted model, in the hands of its owner, who is also the client of a local session; made by `to_mpc`.

    Args:
        converted (`Converted`): What conversion made of the model.
    """

    def __init__(self, converted: Converted) -> None:
        self.converted = converted

    @property
    def manifest(self) -> Manifest:
        """What is public of the model."""
        return self.converted.manifest

    @property
    def client(self) -> Client:
        """The embeddings and the tokenizer, in clear."""
        return self.converted.client

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Everything else of the model, in clear; shared afresh by every session and every `save_shares`."""
        return self.converted.weights

    @property
    def sharing(self) -> Sharing:
        """How the model's protocol shares weights and inputs."""
        return self.converted.sharing

    def local_session(
        self, timeout: float = 600.0, batch_size: int = BATCH_SIZE, delay_ms: float | None = None
    ) -> LocalSession:
        """Both parties and the dealer as processes of this machine.

        Args:
            timeout (`float`): Seconds that set-up, and each input of a query, may take before the session gives up.
            batch_size (`int`): Inputs that run together; more of them are split. Under `quota` a batch is the sum of
                the quotas.
            delay_ms (`float`, *optional*): Milliseconds that everything between the two parties takes, one way, to
                measure what a network would do; takes root on Linux, see `DelayedNetwork`.

        Returns:
            `LocalSession`: A context manager; call it with texts.

        Raises:
            `SecureRouterValueError`: `delay_ms` is out of range, or the protocol's dealer cannot be delayed.

        Example:
            ```python
            with secure.local_session() as session:
                result = session(["first text", ("a text", "and its pair")])
            ```
        """
        return LocalSession(self.converted, timeout, batch_size, delay_ms)

    def save_shares(self, folder: str | os.PathLike) -> None:
        """Write fresh shares, one folder a role: `party0`, `party1`, `dealer` and `client`.

        Args:
            folder (`str` or `os.PathLike`): A new folder, for its owner's eyes only; see
                `hf_securerouter.mpc.deployment.save_shares`.

        Raises:
            `SecureRouterValueError`: `folder` exists.
        """
        save_shares(self.converted, folder)

    def __repr__(self) -> str:
        return f"SecureModel({self.manifest.protocol}, {len(self.manifest.experts)} experts)"
