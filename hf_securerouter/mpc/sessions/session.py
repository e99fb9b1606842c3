# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A session, wherever its roles are: splits inputs into batches, shares each batch, and reconstructs the logits."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ...known_arguments import refuses_unknown
from ...routing import fill_batch
from ..conversion.client import Client, Text
from ..models.manifest import Manifest
from ..net.channel import Channel, ChannelError
from ..net.cost import Cost
from ..protocols.base import Sharing


class SessionError(SecureRouterError):
    """A session ended: a role died, did not answer in time, or reported an error."""


@dataclass
class SecureResult:
    """The result of one call of a session.

    Args:
        logits (`torch.Tensor`): (B, C) float32, in the order of the inputs.
        labels (`list[str]` or `list[float]`): The label of each input, or the predicted number of a regression.
        expert_indices (`list[int]`, *optional*): The expert that served each input; None unless the routing is
            `revealed`.
        cost (`Cost`): Bytes, rounds, seconds and memory of the call.
    """

    logits: Tensor
    labels: list[str] | list[float]
    expert_indices: list[int] | None
    cost: Cost


class Session(ABC):
    """Answers queries through channels to roles.

    Args:
        manifest (`Manifest`): The public description of the model.
        client (`Client`): The embeddings and the tokenizer.
        sharing (`Sharing`): The sharing of the manifest's protocol.
        timeout (`float`): Seconds to wait for the answer to each input of a query.
        batch_size (`int`): Most inputs of a batch. Under `quota` a batch has as many inputs as the quotas sum to; a
            smaller one is filled up with copies of its inputs, which no role can tell from other inputs.
    """

    def __init__(self, manifest: Manifest, client: Client, sharing: Sharing, timeout: float, batch_size: int) -> None:
        self.manifest, self.client, self.sharing = manifest, client, sharing
        self.timeout = timeout
        self.batch_size = manifest.batch or batch_size
        self.setup_seconds = 0.0
        self._channels: dict[str, Channel] = {}
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        start = time.perf_counter()
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.setup_seconds = time.perf_counter() - start
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _open(self) -> None:
        """Connect to every role, so that queries can follow."""

    @refuses_unknown
    def __call__(
        self,
        inputs: Sequence[Text] | Mapping[str, Tensor],
        progress: Callable[[int, int], None] | None = None,
    ) -> SecureResult:
        """Classify texts.

        Args:
            inputs (`list` or `Mapping`): Texts and (text, pair) tuples, or a tokenizer's tensors.
            progress (callable, *optional*): Called with the number of inputs done and of all inputs.

        Returns:
            `SecureResult`

        Raises:
            `SecureRouterValueError`: The inputs are no texts or token ids; the session stays open.
            `SessionError`: The session is not open, or a role failed, which ends the session.
        """
        if not self._channels:
            raise SessionError("The session is not open: use it in a `with` block, or start a new one.")
        encoded = self.client.tokenize(inputs)
        count = len(encoded["input_ids"])
        logits, experts, costs = [], [], []
        try:
            for start in range(0, count, self.batch_size):
                batch = {name: values[start : start + self.batch_size] for name, values in encoded.items()}
                size = min(self.batch_size, count - start)
                part, chosen, cost = self._query(self._filled(batch))
                logits.append(part[:size])
                experts += chosen or []
                costs.append(cost)
                if progress is not None:
                    progress(min(start + self.batch_size, count), count)
        except BaseException:
            self.close()
            raise
        joined = torch.cat(logits)
        revealed = len(experts) == count
        return SecureResult(
            logits=joined,
            labels=self.client.labels(joined),
            expert_indices=experts if revealed else None,
            cost=Cost.total(costs),
        )

    @abstractmethod
    def close(self) -> None:
        """Disconnect from all roles at once. Safe to call twice."""

    @abstractmethod
    def _failure(self, role: str, event: Any) -> SessionError:
        """The error for the user, when a role reported an error or its channel failed."""

    def _header(self, size: int) -> dict[str, Any]:
        """The header of a query of `size` inputs."""
        return {"kind": "query", "batch": size}

    def _add(self, name: str, channel: Channel) -> None:
        self._channels[name] = channel
        threading.Thread(target=self._listen, args=(name, channel), daemon=True).start()

    def _listen(self, name: str, channel: Channel) -> None:
        """Queue a role's messages, and last the error of its closed channel."""
        while True:
            try:
                self._events.put((name, channel.receive(timeout=None)))
            except ChannelError as error:
                self._events.put((name, error))
                return

    def _send(self, role: str, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        try:
            self._channels[role].send(header, tensors, timeout=self.timeout)
        except ChannelError as error:
            raise self._failure(role, error) from error

    def _collect(self, kind: str, timeout: float) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
        """Wait until every role has answered; the first failure ends the wait.

        Raises:
            `SessionError`: A role failed, or did not answer within `timeout` seconds.
        """
        answers: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < len(self._channels):
            try:
                role, event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                missing = ", ".join(role for role in self._channels if role not in answers)
                raise SessionError(
                    f"No answer from {missing} within {timeout:g} seconds; the session is over. "
                    "Raise `timeout` if the model is that slow."
                ) from None
            if isinstance(event, ChannelError) or event[0].get("kind") != kind:
                raise self._failure(role, event)
            answers[role] = event
        return answers

    def _filled(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch, filled up with copies of its rows to the size that the quotas sum to."""
        size = len(batch["input_ids"])
        if self.manifest.batch is None or size == self.batch_size:
            return batch
        rows = fill_batch(size, self.batch_size)
        return {name: values[rows] for name, values in batch.items()}

    def _query(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[int] | None, Cost]:
        channels = [channel for name, channel in self._channels.items() if name != "dealer"]
        before = sum(channel.bytes_sent + channel.bytes_received for channel in channels)
        size = len(batch["input_ids"])
        shares = self.sharing.inputs(self.client.embed(batch), batch["attention_mask"])
        header = self._header(size)
        for role in self._channels:
            self._send(role, header, shares.get(role))
        answers = self._collect("result", self.timeout * size)
        moved = sum(channel.bytes_sent + channel.bytes_received for channel in channels) - before
        logits = self.sharing.logits({role: tensors for role, (_, tensors) in answers.items()})
        cost = Cost.from_ledgers(
            {role: header["ledger"] for role, (header, _) in answers.items()},
            client_bytes=moved,
            setup_seconds=self.setup_seconds,
        )
        return logits, answers["party0"][0]["experts"], cost
