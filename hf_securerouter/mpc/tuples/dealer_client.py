# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's end of the connection to the dealer: orders sets of tuples, and receives them in the background."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..net.channel import Channel, ChannelError, ChannelTimeout
from ..ring.randomness import SEED_BYTES
from .corrections import Spool
from .party_set import PartySet, SetLabel
from .plan import Plan


SIGN_OF_LIFE = 1.0  # seconds between the dealer's keep-alive frames
SILENCE = 60.0  # seconds without a byte after which a role counts as hung; a dead one closes its connection at once
CHUNK = 4 << 20  # bytes of corrections that are sent and received at once


class SupplyError(SecureRouterError):
    """Tuples were not delivered: the other end is gone, late, or sent an unexpected frame.

    Args:
        text (`str`): What happened.
        gone (`str`, *optional*): The role that is gone, if that is the cause.
    """

    def __init__(self, text: str, gone: str | None = None) -> None:
        super().__init__(text)
        self.gone = gone


class DealerClient:
    """A party's end: orders sets of tuples, and spools them in the background.

    Args:
        channel (`Channel`): To the dealer; the client owns it from now on.
        rank (`int`): 0 or 1.
        timeout (`float`): Seconds from the order of a set within which it must arrive.
        silence (`float`): Seconds without a byte from the dealer after which it counts as lost.
    """

    def __init__(self, channel: Channel, rank: int, timeout: float = 600.0, silence: float = SILENCE) -> None:
        self.rank, self._channel, self._timeout, self._silence = rank, channel, timeout, silence
        self._changed = threading.Condition()
        self._ordered: dict[str, int] = {}  # program name to order number, of sets not taken yet
        self._plans: dict[int, Plan] = {}
        self._ready: dict[int, PartySet] = {}
        self._count = 0
        self._heard = time.monotonic()
        self._failure: Exception | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def order(self, name: str, plan: Plan) -> None:
        """Order a set ahead of its use. A set that was ordered ahead under another name is discarded.

        Raises:
            `SupplyError`: The dealer is gone, or took no frame for `silence` seconds.
        """
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
        """Wait for a fresh set; it is ordered now unless `order` did so before.

        Args:
            name (`str`): Name of the program.
            plan (`Plan`): The program's plan.

        Raises:
            `SupplyError`: The dealer is gone, was silent for `silence` seconds, did not deliver within `timeout`
                seconds, or refused the order because its plan for `name` differs.
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
        """Check that the dealer is alive, while no set is awaited.

        Raises:
            `SupplyError`: The dealer is gone, was silent for `silence` seconds, or has left because the other party is
                gone; or this party could not keep what the dealer sent.
        """
        with self._changed:
            failure, silent = self._failure, time.monotonic() - self._heard
        if isinstance(failure, SupplyError):
            raise SupplyError(f"{failure}", failure.gone) from failure
        if isinstance(failure, ChannelError):
            raise SupplyError(f"The dealer is gone: {failure}") from failure
        if failure is not None:  # of this party's own, such as a full disk
            raise SupplyError(f"No tuples can be received: {failure}") from failure
        if silent >= self._silence:
            raise SupplyError(f"The dealer was silent for {self._silence:g} seconds.")

    def lost(self, wait: float) -> str | None:
        """The role whose loss ended the supply: a party, by the dealer's last word, or the dealer; else None, such as
        where this party's own disk is full.

        Args:
            wait (`float`): Seconds to wait for the end of the supply.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None, wait)
            failure, late = self._failure, time.monotonic() - self._heard >= self._silence
        if isinstance(failure, SupplyError):
            return failure.gone
        return "the dealer" if isinstance(failure, ChannelError) or failure is None and late else None

    def finished(self, labels: list[SetLabel]) -> None:
        """Tell the dealer that a query is over, and which sets the query used.

        Raises:
            `SupplyError`: The dealer is gone, or took no frame for `silence` seconds.
        """
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
        """The next frame that is not a keep-alive, and its length in bytes."""
        while True:
            before = self._channel.bytes_received
            header, tensors = self._channel.receive(timeout=None)
            self._heard = time.monotonic()
            if header.get("kind") == "error":
                raise SupplyError(str(header.get("error")), _role(header.get("gone")))
            if header.get("kind") != "alive":
                return header, tensors, self._channel.bytes_received - before

    def _receive_set(self) -> None:
        header, tensors, received = self._next()
        seed = tensors.get("seed")
        if header.get("kind") != "set" or seed is None or seed.dtype != torch.uint8 or seed.numel() != SEED_BYTES:
            raise SupplyError("the dealer sent something else than a set of tuples.")
        try:
            label = SetLabel(header["id"], header["nonce"], header["plan"])
            number = int(header["number"])
        except (KeyError, TypeError, ValueError) as error:
            raise SupplyError("the dealer sent a set of tuples without its label.") from error
        with self._changed:
            plan = self._plans.get(number)  # None: the order was discarded
        if plan is not None and label.plan != plan.digest:
            raise SupplyError("the dealer sent a set for another plan.")
        spool = Spool(plan) if plan is not None and self.rank == 0 else None
        while True:
            header, _, length = self._next()
            received += length
            if header.get("kind") == "complete":
                break
            if header.get("kind") != "corrections" or self.rank != 0:
                raise SupplyError("the dealer sent something else than corrections within a set.")
            received += self._spool(int(header["bytes"]), spool)
        corrections = spool.finish() if spool is not None else None
        found = PartySet(label, self.rank, bytes(seed.tolist()), corrections, received)
        with self._changed:
            if self._plans.pop(number, None) is not None:
                self._ready[number] = found
            self._changed.notify_all()

    def _spool(self, size: int, spool: Spool | None) -> int:
        """Receive the corrections of one gate into the spool; without a spool, discard them."""
        buffer = memoryview(bytearray(min(size, CHUNK)))
        left = size
        while left:
            part = buffer[: min(left, CHUNK)]
            try:
                self._channel.receive_into(part, timeout=self._silence)
            except ChannelTimeout as error:  # within a set the dealer must keep sending
                raise SupplyError(f"the dealer was silent for {self._silence:g} seconds.") from error
            self._heard = time.monotonic()
            if spool is not None:
                spool.write(part)
            left -= len(part)
        return size


def _role(name: Any) -> str | None:
    return name if name in ("party0", "party1") else None
