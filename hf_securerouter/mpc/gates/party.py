# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A computing party: takes tuples, runs protocols, exchanges openings with the other party."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..net.ledger import Ledger
from ..ring.device import Staging, kept_on
from ..ring.words import MAX_BITS, reduce, seal, signed, unpack
from .gate import Gate, Opening, SecretProtocol, Tuple
from .guard import Guard
from .secret import Secret
from .weight_share import WeightShare


T = TypeVar("T")


class Exchange(Protocol):
    """The part of the parties' link that openings need: one round, equal lengths both ways."""

    def exchange(self, parts: Sequence[Any]) -> list[Any]: ...


class BoundError(SecureRouterError):
    """Debugging only: a value exceeds the bound for which its ring was planned."""


class Party:
    """Runs protocols for one of the two parties.

    Args:
        rank (`int`): 0 or 1.
        link (`Exchange`): The link to the other party.
        tuples (callable): From a gate to its tuple; a `TupleSet` checks that the plan has that gate next.
        weights (`Mapping[str, WeightShare]`): This party's shares of the fixed weights.
        ledger (`Ledger`, *optional*): Counts seconds by gate; the link counts bytes and rounds in the same ledger.
        debug (`bool`): `checked` opens its value in the clear and raises `BoundError` if the bound does not hold. For
            tests on made-up data only: every checked value is revealed.
        device (`str`): Device of the shares.
        guard (`Guard`, *optional*): Notes which values are beyond their bounds; see `gates/guard.py`.
    """

    def __init__(
        self,
        rank: int,
        link: Exchange,
        tuples: Callable[[Gate], Tuple],
        weights: Mapping[str, WeightShare] | None = None,
        ledger: Ledger | None = None,
        debug: bool = False,
        device: str = "cpu",
        guard: Guard | None = None,
    ):
        self.rank, self.link, self.weights, self.debug = rank, link, weights or {}, debug
        self.device, self.guard = device, guard
        self._staging = Staging(device)
        self.ledger = ledger or Ledger()
        self._tuples = tuples
        self._since = time.perf_counter()

    def take(self, gate: Gate) -> Tuple:
        """The tuple for `gate`, which must be the plan's next gate; `Tuple.prepared` is set."""
        found = self._tuples(gate)
        found.guard = self.guard
        if found.prepared is None:
            found.prepared = gate.prepare(found, self.weights)
        return found

    def secret(self, words: Tensor, width: int, scale: int, bound: int) -> Secret:
        """This party's share as a `Secret`."""
        return Secret(words, width, scale, bound, self.rank)

    def constant(self, values: Tensor) -> Tensor:
        """A public tensor on the device of the shares."""
        return kept_on(self.device, values)

    def run(self, protocol: SecretProtocol[T]) -> T:
        """Drive a protocol to its end, one exchange a round; and then what the guard has kept for later.

        Returns:
            The protocol's result.
        """
        if self.guard is not None:
            protocol = self.guard.finished(protocol)
        opened: list[Tensor] | None = None
        self._since = time.perf_counter()
        while True:
            try:
                openings = protocol.send(opened)  # type: ignore[arg-type]
            except StopIteration as stop:
                return stop.value
            opened = self._open(openings)

    def _open(self, openings: list[Opening]) -> list[Tensor]:
        own, parts = zip(*(seal(opening.words, opening.mask) for opening in openings), strict=True)
        gate = openings[0].gate
        # The time since the last round counts under the gate of this round's first opening.
        self.ledger.spent(gate, time.perf_counter() - self._since)
        with self.ledger.gate(gate):
            received = self._swap(parts)
        opened = []
        for opening, mine, message in zip(openings, own, received, strict=True):
            bits = opening.mask.bits
            opened.append(reduce(mine + unpack(message, mine.shape, bits), bits))
        self._since = time.perf_counter()
        return opened

    def _swap(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Send flat uint8 tensors, and receive tensors of the same lengths."""
        return self._staging.to_device(self.link.exchange(self._staging.to_host(parts)))

    def checked(self, secret: Secret, what: str, low: int | None = None) -> SecretProtocol[Secret]:
        """If `debug`, reveal `secret` and check its bound, in one round; otherwise do nothing.

        Args:
            secret (`Secret`): Its absolute values should be below 2^`secret.bound`.
            what (`str`): The place and the kind of the value, for the error.
            low (`int`, *optional*): The values should be at least 2^`low`.

        Returns:
            `Secret`: `secret` itself.

        Raises:
            `BoundError`: The bound does not hold; both parties raise, with `what` but without the value.
        """
        if self.debug and secret.words.numel():
            yield from ()
            bits = secret.width
            mine = reduce(secret.words, bits).to(torch.int64).contiguous()
            (message,) = self._swap([mine.view(torch.uint8).reshape(-1)])
            values = signed(mine + unpack(message, mine.shape, MAX_BITS), bits)
            if max(int(values.max()), -int(values.min())) >= 2 ** (secret.scale + secret.bound):
                raise BoundError(
                    f"`{what}` exceeds its bound of 2^{secret.bound}; raise the bound or calibrate again."
                )
            if low is not None and int(values.min()) < 2 ** (secret.scale + low):
                raise BoundError(f"`{what}` is below its bound of 2^{low}; lower the bound or calibrate again.")
        return secret
