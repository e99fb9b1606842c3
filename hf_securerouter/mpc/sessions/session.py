# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A session, wherever its roles are: splits inputs into batches, shares each batch, and reconstructs the logits."""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import queue
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Self

import torch
from torch import Tensor

from ...abstention import AbstainBelow
from ...errors import SecureRouterError, SecureRouterValueError, warn
from ...known_arguments import refuses_unknown
from ...routing import fill_batch
from ...windows import Windows
from ..conversion.client import Client, Inputs
from ..models.manifest import Manifest
from ..net.channel import Channel, ChannelError
from ..net.cost import Cost
from ..net.sockets import check_seconds
from ..protocols.base import Sharing
from .verification import agree, differing_inputs, inputs_beyond_bounds, tolerance


P = ParamSpec("P")
_DRAW = secrets.SystemRandom()


class SessionError(SecureRouterError):
    """A session ended: a role died, did not answer in time, or reported an error.

    Args:
        text (`str`): What happened.
        again (`float`, *optional*): Seconds after which asking again, with fresh shares, may help; None if it would
            not.
        refused (`bool`): Whether a role refused the query for now, without having begun it.
    """

    def __init__(self, text: str, again: float | None = None, refused: bool = False) -> None:
        super().__init__(text)
        self.again, self.refused = again, refused


@dataclass
class SecureResult:
    """The result of one call of a session.

    Args:
        logits (`torch.Tensor`): (B, C) float32, in the order of the inputs.
        labels (`list[str]`, `list[float]` or `list[list[str]]`): The label of each input, None where it is withheld;
            or the predicted number of a regression; of a multi-label model, all labels more likely than not.
        expert_indices (`list[int]` or `list[list[int]]`, *optional*): The expert that served each input, or each
            window of an input that is read in windows; None unless the routing is `revealed`.
        cost (`Cost`): Bytes, rounds, seconds and memory of the call.
        verified (`list[bool | None]`): Whether each input was asked twice with the same answer; None: asked once.
        in_bounds (`list[bool | None]`): Whether all values of each input's batch were within their bounds; None: the
            model was converted without `guard`.
        probabilities (`torch.Tensor`, *optional*): The probability of each label, (B, C), a sigmoid for each if the
            model is multi-label; None for a regression.
        choice (`str`): By what the experts were chosen: `"quotas 2/1"`, which each batch fills in the order of the
            router's scores; `"scores"`, each input's best one; or `"one expert"`, of a classifier without a router.
    """

    logits: Tensor
    labels: list[str | None] | list[float] | list[list[str]]
    expert_indices: list[int] | list[list[int]] | None
    cost: Cost
    verified: list[bool | None]
    in_bounds: list[bool | None]
    probabilities: Tensor | None = None
    choice: str = "scores"


@dataclass
class Answer:
    """The answer to one batch.

    Args:
        logits (`torch.Tensor`): (B, C) float32.
        experts (`list[int]`, *optional*): The expert of each row, where the servers know it.
        in_bounds (`list[bool | None]`): As in `SecureResult`, for each row.
        cost (`Cost`): Of the batch.
    """

    logits: Tensor
    experts: list[int] | None
    in_bounds: list[bool | None]
    cost: Cost


def _one_at_a_time(call: Callable[Concatenate[Any, P], SecureResult]) -> Callable[Concatenate[Any, P], SecureResult]:
    """A session's method whose calls from several threads wait for each other. A fork may not call it: two processes
    on one connection would take each other's answers, and encrypt under one keystream."""

    @functools.wraps(call)
    def waiting(self: Any, *args: P.args, **kwargs: P.kwargs) -> SecureResult:
        self.refuse_in_a_fork()
        with self._lock:
            return call(self, *args, **kwargs)

    return waiting


class Session(ABC):
    """Answers queries through channels to roles.

    Args:
        manifest (`Manifest`): The public description of the model.
        client (`Client`): The embeddings and the tokenizer.
        sharing (`Sharing`): The sharing of the manifest's protocol.
        timeout (`float`): Seconds to wait for the answer to each input of a query.
        batch_size (`int`): Most inputs of a batch. Under `quota` a batch has as many inputs as the quotas sum to; a
            smaller one is filled up with copies of its inputs, which no role can tell from other inputs.

    Raises:
        `SecureRouterValueError`: `timeout` is no time to wait.
    """

    def __init__(self, manifest: Manifest, client: Client, sharing: Sharing, timeout: float, batch_size: int) -> None:
        self.timeout = check_seconds("timeout", timeout)
        self.manifest, self.client, self.sharing = manifest, client, sharing
        self.batch_size = manifest.batch or batch_size
        self.setup_seconds = 0.0
        self._lock = threading.RLock()
        self._process: int | None = None  # that has the connections
        self._channels: dict[str, Channel] = {}
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self.refuse_in_a_fork()
        start = time.perf_counter()
        try:
            self._open()
        except BaseException:
            self._close_after_an_error()
            raise
        self.setup_seconds = time.perf_counter() - start
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._close_after_an_error()

    def _close_after_an_error(self) -> None:
        """Disconnect; the error that the user has to see is the first one, not one of closing."""
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Disconnect from all roles at once. Safe to call twice. In a fork of the process that opened the session, the
        other process keeps its connections."""
        if not self.in_a_fork:
            self._close()
            self._process = None
        else:
            channels, self._channels = list(self._channels.values()), {}
            for channel in channels:
                channel.forget()

    @property
    def in_a_fork(self) -> bool:
        """Whether the connections belong to another process, of which this one is a fork."""
        return self._process not in (None, os.getpid())

    def refuse_in_a_fork(self) -> None:
        """Check that the connections are this process's own.

        Raises:
            `SessionError`: They belong to the process that this one is a fork of.
        """
        if self.in_a_fork:
            raise SessionError(
                "The session belongs to the process that opened it, and this is a fork of that process: make a new "
                "session, or client, in each process."
            )

    @property
    def is_open(self) -> bool:
        """Whether it can be asked; a failure ends it."""
        return bool(self._channels)

    @abstractmethod
    def _open(self) -> None:
        """Connect to every role, so that queries can follow."""

    @refuses_unknown
    @_one_at_a_time
    def __call__(
        self,
        inputs: Inputs,
        progress: Callable[[int, int], None] | None = None,
        verify: float = 0.0,
        max_windows: int = 1,
        stride: int = 0,
        abstain_below: AbstainBelow | None = None,
    ) -> SecureResult:
        """Classify texts.

        Args:
            inputs (iterable or `Mapping`): Texts and (text, pair) tuples in a list, array, generator or column of a
                table; or what a tokenizer returned, as lists, arrays or tensors.
            progress (callable, *optional*): Called with the number of inputs done and of all inputs.
            verify (`float` or `bool`): Share of the batches, drawn at random, that are asked a second time under
                fresh shares and masks. Two answers within the bounds of the shares differ by rounding only, see
                `tolerance`; beyond the bounds they differ by whole units. A warning names the inputs that differ.
                Where two experts are as good by the router's scores, or under `quota` two inputs as hard, the second
                run may take the other expert, whose answer may be right, too: `in_bounds` then is True, with a guard.
            max_windows (`int`): Windows of `max_length` tokens into which texts are cut; the answer is the mean of
                their logits. Every text costs as many queries, however long it is: windows that it does not need are
                copies, which do not count. The servers see this number, and none of a text's own.
            stride (`int`): Tokens that neighbouring windows share.
            abstain_below (`float` or `Mapping[str, float]`, *optional*): The probability below which a label is
                withheld, for all labels or by label. This is decided here, from the reconstructed logits: no role
                learns of it.

        Returns:
            `SecureResult`

        Raises:
            `BadRowsError`: Rows cannot be read; they are named, nothing was sent, and the session stays open.
            `SecureRouterValueError`: The inputs are no texts or token ids, `verify` or `abstain_below` is not from 0
                to 1 or has no meaning for this model, or `max_windows` or `stride` does not fit; the session stays
                open.
            `SessionError`: The session is not open, or a role failed, which ends the session.
            `VerificationError`: The roles run on the machine of the model's owner, and the first batch's answers are
                not those of the model in clear text; the session is over.
        """
        if not isinstance(verify, numbers.Real) or not 0 <= verify <= 1:
            raise SecureRouterValueError(f"`verify` should be a share of the batches, from 0 to 1, got {verify!r}.")
        self.client.labels.least(abstain_below)
        windows = Windows(max_windows, stride)
        if not self.is_open:
            raise SessionError("The session is not open: use it in a `with` block, or start a new one.")
        encoded, counts = self.client.cut(inputs, windows)
        count = len(encoded["input_ids"])
        logits: list[Tensor] = []
        experts: list[int] = []
        costs: list[Cost] = []
        verified: list[bool | None] = []
        in_bounds: list[bool | None] = []
        try:
            while (start := len(verified)) < count:
                size = min(self.batch_size, count - start)  # the roles may lower it
                batch = {name: values[start : start + size] for name, values in encoded.items()}
                rows = self._rows(size)
                filled = {name: values[rows] for name, values in batch.items()}
                answer = self._query(filled)
                self._compare(filled, answer.logits, answer.experts)
                logits.append(answer.logits[:size])
                experts += answer.experts or []
                costs.append(answer.cost)
                if _DRAW.random() < verify:
                    again = self._query(filled)
                    costs.append(again.cost)
                    verified += agree(answer.logits, again.logits, rows, tolerance(self.manifest))
                    both = zip(answer.in_bounds, again.in_bounds, strict=True)
                    in_bounds += [_all_of(list(pair)) for pair in both][:size]
                else:
                    verified += [None] * size
                    in_bounds += answer.in_bounds[:size]
                if progress is not None:
                    progress((start + size) // max_windows, len(counts))
        except BaseException:
            self._close_after_an_error()
            raise
        joined = windows.averaged(torch.cat(logits), counts)
        revealed = len(experts) == count
        verified = [_all_of(verified[row : row + max_windows]) for row in range(0, count, max_windows)]
        if differing := [index for index, agreed in enumerate(verified) if agreed is False]:
            warn(differing_inputs(differing, self.manifest))
        in_bounds = [_all_of(in_bounds[row : row + max_windows]) for row in range(0, count, max_windows)]
        if beyond := [index for index, inside in enumerate(in_bounds) if inside is False]:
            warn(inputs_beyond_bounds(beyond))
        return SecureResult(
            logits=joined,
            labels=self.client.labels(joined, abstain_below),
            expert_indices=windows.grouped(experts, counts) if revealed else None,
            cost=Cost.total(costs),
            verified=verified,
            in_bounds=in_bounds,
            probabilities=self.client.labels.probabilities(joined),
            choice=self._choice(),
        )

    def _choice(self) -> str:
        if self.manifest.router is None:
            return "one expert"
        quotas = self.manifest.quotas
        return f"quotas {'/'.join(map(str, quotas))}" if quotas else "scores"

    @abstractmethod
    def _close(self) -> None:
        """Disconnect from all roles at once, in the process that opened the session. Safe to call twice."""

    @abstractmethod
    def _failure(self, role: str, event: Any) -> SessionError:
        """The error for the user, when a role reported an error or its channel failed."""

    @abstractmethod
    def _compare(self, batch: Mapping[str, Tensor], logits: Tensor, experts: list[int] | None) -> None:
        """Compare an answer with the model in clear text, where that is at hand.

        Raises:
            `VerificationError`: They differ by more than rounding.
        """

    def _header(self, size: int) -> dict[str, Any]:
        """The header of a query of `size` inputs."""
        return {"kind": "query", "batch": size}

    def _add(self, name: str, channel: Channel) -> None:
        self._channels[name], self._process = channel, os.getpid()
        threading.Thread(target=_listen, args=(name, channel, self._events), daemon=True).start()

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

    def _rows(self, size: int) -> list[int]:
        """The rows of a batch of `size` inputs that are sent, with copies up to the size that the quotas sum to."""
        return list(range(size)) if self.manifest.batch is None else fill_batch(size, self.batch_size).tolist()

    def _query(self, batch: dict[str, Tensor]) -> Answer:
        channels = [channel for name, channel in self._channels.items() if name != "dealer"]
        before = sum(channel.bytes_sent + channel.bytes_received for channel in channels)
        size = len(batch["input_ids"])
        shares = self.sharing.inputs(self.client.embed(batch), batch["attention_mask"])
        header = self._header(size)
        for role in self._channels:
            self._send(role, header, shares.get(role))
        answers = self._collect("result", self.timeout * size)
        moved = sum(channel.bytes_sent + channel.bytes_received for channel in channels) - before
        shares = {role: tensors for role, (_, tensors) in answers.items()}
        logits, in_bounds = self.sharing.logits(shares), self.sharing.in_bounds(shares)
        experts = answers["party0"][0].get("experts")
        if len(logits) != size or not (experts is None or isinstance(experts, list) and len(experts) == size):
            raise SessionError(f"The servers answered {len(logits)} inputs where {size} were asked.")
        cost = Cost.from_ledgers(
            {role: header["ledger"] for role, (header, _) in answers.items()},
            client_bytes=moved,
            setup_seconds=self.setup_seconds,
        )
        return Answer(logits, experts, [in_bounds] * size, cost)


def _all_of(windows: list[bool | None]) -> bool | None:
    """Whether something holds for all windows of an input; None if it is not known of some."""
    if False in windows:
        return False
    return None if None in windows else True


def _listen(name: str, channel: Channel, events: queue.SimpleQueue[tuple[str, Any]]) -> None:
    """Queue a role's messages, and last the error of its closed channel."""
    while True:
        try:
            events.put((name, channel.receive(timeout=None)))
        except ChannelError as error:
            events.put((name, error))
            return
