# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A converted model, which its owner can run on this machine or share between servers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import SecureRouterValueError
from ..known_arguments import refuses_unknown
from ..value_checks import check_integer
from .conversion.client import Client
from .conversion.converted import Converted
from .conversion.ranges import Range
from .deployment.save_shares import save_shares
from .models.manifest import BATCH_SIZE, Manifest
from .protocols import Sharing
from .protocols.masked.memory import BatchCost, batch_cost
from .sessions.local import LocalSession
from .tuples.dealer_client import SILENCE


class SecureModel:
    """A converted model, for its owner only; made by `to_mpc`.

    Args:
        converted (`Converted`): The result of the conversion.
    """

    def __init__(self, converted: Converted) -> None:
        self.converted = converted

    @property
    def manifest(self) -> Manifest:
        """The public description of the model."""
        return self.converted.manifest

    @property
    def client(self) -> Client:
        """The embeddings and the tokenizer, in clear."""
        return self.converted.client

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """All other weights, in clear; every session and every `save_shares` shares them afresh."""
        return self.converted.weights

    @property
    def sharing(self) -> Sharing:
        """The sharing of weights and inputs under the model's protocol."""
        return self.converted.sharing

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What sample inputs reach in every layer, beside the bounds; for the model's owner only."""
        return self.converted.ranges

    @refuses_unknown
    def local_session(
        self,
        timeout: float = 600.0,
        batch_size: int = BATCH_SIZE,
        delay_ms: float | None = None,
        silence: float = SILENCE,
        debug: bool = False,
        memory: int | None = None,
    ) -> LocalSession:
        """A session with both parties and the dealer as processes of this machine.

        Args:
            timeout (`float`): Seconds to wait for set-up, and for the answer to each input of a query.
            batch_size (`int`): Most inputs of a batch. Under `quota` a batch has as many inputs as the quotas sum to.
            delay_ms (`float`, *optional*): One-way delay between the two parties, in milliseconds, to measure the
                effect of a network; needs root on Linux, see `DelayedNetwork`.
            silence (`float`): Seconds without a sign of life from the dealer after which a party counts it as hung; a
                process that has ended is noticed at once.
            debug (`bool`): The parties open every value that has a bound, in one more round each, and end the session
                with an error that names the layer and the value beyond its bound. For made-up inputs only: the
                parties see all of these values. Servers of a deployment cannot be started so.
            memory (`int`, *optional*): Bytes that the three roles together may take. Batches are made so small that
                they fit, which changes no answer; what is left holds words drawn ahead. By default half of what is
                free now; see `plan`.

        Returns:
            `LocalSession`: A context manager; call it with texts.

        Raises:
            `SecureRouterValueError`: `timeout` or `silence` is no time to wait, `delay_ms` is out of range, the
                protocol's dealer cannot be delayed, its bounds cannot be checked, `batch_size` or `memory` is no
                number above 0, or not even one text, or under `quota` one batch, fits into `memory`.

        Example:
            ```python
            with secure.local_session() as session:
                result = session(["first text", ("a text", "and its pair")])
            ```
        """
        return LocalSession(self.converted, timeout, batch_size, delay_ms, silence, debug, memory)

    def plan(self, batch: int | None = None) -> BatchCost:
        """What a batch costs, and takes of each role's memory, known before any role starts.

        Args:
            batch (`int`, *optional*): Texts of the batch; by default the most that a server takes at once, or under
                `quota` the sum of the quotas, which is the only size there.

        Returns:
            `BatchCost`: Peak bytes at each role, bytes between the parties, rounds, bytes from the dealer.

        Raises:
            `SecureRouterValueError`: The protocol is not `masked`, or no batch has this size.

        Example:
            ```python
            print(secure.plan(batch=1).memory / 1e9, "GB")
            ```
        """
        if self.manifest.protocol != "masked":
            raise SecureRouterValueError(
                f"Only protocol 'masked' has plans, got {self.manifest.protocol!r}: convert with `protocol='masked'`."
            )
        batch = self.manifest.largest_batch if batch is None else check_integer("batch", batch, 1)
        return batch_cost(self.manifest, batch)

    @refuses_unknown
    def save_shares(self, folder: str | os.PathLike, keys: Sequence[str | os.PathLike] = ()) -> None:
        """Write fresh shares, one folder per role: `party0`, `party1`, `dealer` and `client`.

        Args:
            folder (`str` or `os.PathLike`): A new folder, which only its owner can open; see
                `hf_securerouter.mpc.deployment.save_shares`.
            keys (`Sequence[str | os.PathLike]`, *optional*): Certificates that the roles and clients made by
                `securerouter keygen`. Without, all keys are made here: for trials, because whoever holds the folders
                can then pose as both servers.

        Raises:
            `SecureRouterValueError`: `folder` exists already, or `keys` has not one certificate of each role.
        """
        save_shares(self.converted, folder, keys)

    def __repr__(self) -> str:
        return f"SecureModel({self.manifest.protocol}, {len(self.manifest.experts)} experts)"
