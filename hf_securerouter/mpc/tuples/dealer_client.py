# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's end of the supply of tuples."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..net.channel import Channel, ChannelTimeout
from ..ring.randomness import SEED_BYTES
from .corrections import Spool
from .party_set import PartySet, SetLabel
from .plan import Plan


SIGN_OF_LIFE = 1.0


SILENCE = 8.0


CHUNK = 4 << 20


class SupplyError(SecureRouterError):
    """The dealer is gone, too late, or sent something else than was ordered."""


class DealerClient:
    """A party's end: orders sets, and spools them in the background.

    Args:
        channel (`Channel`): To the dealer; owned from now on.
        rank (`int`): Of this party.
        timeout (`float`): Seconds that a set may take from its order.
        silence (`float`): Seconds without a word of the dealer after which a wait for it ends.
    """

    def __init__(self, channel: Channel, rank: int, timeout: float = 600.0, silence: float = SILENCE) -> None:
        self.rank, self._channel, self._timeout, self._silence = rank, channel, timeout, silence
        self._changed = threading.Condition()
        self._ordered: dict[str, int] = {}  # name to number, of what was ordered and not taken
        self._plans: dict[int, Plan] = {}
        self._ready: dict[int, PartySet] = {}
        self._count = 0
        self._heard = time.monotonic()
        self._failure: Exception | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def order(self, name: str, plan: Plan) -> None:
        """Ask for a set ahead of its use; what was ordered ahead under another name is given up."""
        with self._changed:
            if name in self._ordered:
                return
            for number in self._ordered.values():
                self._plans.pop(number, None)
                self._ready.pop(number, None)
            self._ordered = {name: self._count}
            self._plans[self._count] = plan
            number, self._count = self._count, self._count + 1
        # Zero-padded, so that byte counts do not depend on the number.
        self._send({"kind": "order", "number": f"{number:010d}", "name": name, "plan": plan.digest})

    def take(self, name: str, plan: Plan) -> PartySet:
        """A fresh set, ordered now unless it was before.

        Args:
            name (`str`): Of the program.
            plan (`Plan`): Its plan.

        Raises:
            `SupplyError`: The dealer is gone, was silent for `silence` seconds, did not deliver within `timeout`
                seconds, or refused the order because its plan is another one.
        """
        self.order(name, plan)
        start = time.monotonic()
        with self._changed:
            number = self._ordered.pop(name)
            while number not in self._ready:
                if self._failure is not None:
                    raise SupplyError(f"No tuples for `{name}`: {self._failure}") from self._failure
                now = time.monotonic()
                silent, waited = now - max(self._heard, start), now - start
                if silent >= self._silence:
                    raise SupplyError(f"No tuples for `{name}`: the dealer was silent for {self._silence:g} seconds.")
                if waited >= self._timeout:
                    raise SupplyError(f"No tuples for `{name}` within {self._timeout:g} seconds.")
                self._changed.wait(min(self._silence - silent, self._timeout - waited))
            return self._ready.pop(number)

    def check(self) -> None:
        """Make sure, while nothing is waited for, that the dealer is there.

        Raises:
            `SupplyError`: It is gone, or silent.
        """
        with self._changed:
            failure, silent = self._failure, time.monotonic() - self._heard
        if failure is not None:
            raise SupplyError(f"The dealer is gone: {failure}") from failure
        if silent >= self._silence:
            raise SupplyError(f"The dealer was silent for {self._silence:g} seconds.")

    def finished(self, labels: list[SetLabel]) -> None:
        """Tell the dealer that a query is over, and which sets it used."""
        self._send({"kind": "finished", "sets": [label.id for label in labels]})

    def close(self) -> None:
        """Close the channel; the dealer then ends."""
        self._channel.close()

    def _send(self, header: dict[str, Any]) -> None:
        try:
            self._channel.send(header, timeout=self._silence)
        except SecureRouterError as error:
            raise SupplyError(f"The dealer takes no order: {self._failure or error}") from error

    # The background.

    def _listen(self) -> None:
        try:
            while True:
                self._receive_set()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _next(self) -> tuple[dict[str, Any], dict[str, Tensor], int]:
        """The next frame that is more than a sign of life, and its length in bytes."""
        while True:
            before = self._channel.bytes_received
            header, tensors = self._channel.receive(timeout=None)
            self._heard = time.monotonic()
            if header.get("kind") == "error":
                raise SupplyError(str(header.get("error")))
            if header.get("kind") != "alive":
                return header, tensors, self._channel.bytes_received - before

    def _receive_set(self) -> None:
        header, tensors, received = self._next()
        seed = tensors.get("seed")
        if header.get("kind") != "set" or seed is None or seed.dtype != torch.uint8 or seed.numel() != SEED_BYTES:
            raise SupplyError("It sent something else than a set of tuples.")
        label = SetLabel(header["id"], header["nonce"], header["plan"])
        number = int(header["number"])
        with self._changed:
            plan = self._plans.get(number)  # none: the set is not wanted any more
        if plan is not None and label.plan != plan.digest:
            raise SupplyError("It sent a set for another plan.")
        spool = Spool(plan) if plan is not None and self.rank == 0 else None
        while True:
            header, _, length = self._next()
            received += length
            if header.get("kind") == "complete":
                break
            if header.get("kind") != "corrections" or self.rank != 0:
                raise SupplyError("It sent something else than what belongs to a set.")
            received += self._spool(int(header["bytes"]), spool)
        corrections = spool.finish() if spool is not None else None
        found = PartySet(label, self.rank, bytes(seed.tolist()), corrections, received)
        with self._changed:
            if self._plans.pop(number, None) is not None:
                self._ready[number] = found
            self._changed.notify_all()

    def _spool(self, size: int, spool: Spool | None) -> int:
        """Take the corrections of one gate; without a spool, drop them."""
        buffer = memoryview(bytearray(min(size, CHUNK)))
        left = size
        while left:
            part = buffer[: min(left, CHUNK)]
            try:
                self._channel.receive_into(part, timeout=self._silence)
            except ChannelTimeout as error:  # in the middle of a set
                raise SupplyError(f"the dealer was silent for {self._silence:g} seconds.") from error
            self._heard = time.monotonic()
            if spool is not None:
                spool.write(part)
            left -= len(part)
        return size
