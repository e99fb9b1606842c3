# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Sets of tuples from a dealer process, gate by gate, ahead of the parties.

A party orders a set by the program's name and the plan's digest. When both have ordered the same, the dealer draws two
seeds, sends each party its own, and streams the corrections to P0, which spools them to a file: no role ever holds a
whole set in memory. At most one set is ordered ahead of the one in use. The dealer tells that it lives every second;
a party that hears nothing for `SILENCE` seconds while it waits gives up.

Who sees what: each party one seed, P0 the corrections, which P1's seed makes uniform; the dealer names and plans.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import SecureRouterError
from ..net.channel import Channel, ChannelTimeout
from ..ring.randomness import SEED_BYTES, new_seed
from .deal import deal_set
from .party_set import PartySet, SetLabel, Spool
from .plan import Plan


SIGN_OF_LIFE = 1.0
SILENCE = 8.0
CHUNK = 4 << 20


class SupplyError(SecureRouterError):
    """The dealer is gone, too late, or sent something else than was ordered."""


class LiveSets:
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
        # Of one length whatever the number, as everything that is counted.
        self._send({"kind": "order", "number": f"{number:010d}", "name": name, "plan": plan.digest})

    def take(self, name: str, plan: Plan, link: Any = None) -> PartySet:
        """A fresh set, ordered now unless it was before.

        Args:
            name (`str`): Of the program.
            plan (`Plan`): Its plan.
            link: Not needed here; a `TupleStore` needs it.

        Raises:
            `SupplyError`: The dealer is gone, silent or too late, or refuses; the text tells.
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


class DealerService:
    """The dealer's end: deals what both parties order, in the background.

    Args:
        channels (`tuple[Channel, Channel]`): To P0 and P1; owned from now on.
        plan_of (callable): From a program's name to its plan, as the dealer traced it.
        weight_mask (callable, *optional*): As for `deal_set`.
        timeout (`float`): Seconds in which a party has to take a message.
        device (`str`): Where the dealer computes.
    """

    def __init__(
        self,
        channels: tuple[Channel, Channel],
        plan_of: Callable[[str], Plan],
        weight_mask: Callable[[str], Tensor] | None = None,
        timeout: float = 600.0,
        device: str = "cpu",
    ) -> None:
        self._channels, self._plan_of, self._weight_mask, self._device = channels, plan_of, weight_mask, device
        self._timeout, self._locks = timeout, (threading.Lock(), threading.Lock())
        self._orders: tuple[queue.SimpleQueue, queue.SimpleQueue] = (queue.SimpleQueue(), queue.SimpleQueue())
        self._finished: queue.SimpleQueue[tuple[int, list[str]] | None] = queue.SimpleQueue()
        self._dealt = threading.Condition()
        self._costs: dict[str, tuple[float, int]] = {}  # by id: seconds of dealing, bytes sent
        self._failure: Exception | None = None
        self._over = threading.Event()
        for target, arguments in ((self._listen, (0,)), (self._listen, (1,)), (self._deal, ()), (self._live, ())):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def wait(self, timeout: float | None) -> tuple[float, int]:
        """Wait until both parties have finished a query.

        Args:
            timeout (`float`, *optional*): Seconds to wait. With None, as long as both parties are there.

        Returns:
            `tuple[float, int]`: Seconds of dealing, and bytes sent to both parties, for the sets that the query used.

        Raises:
            `SupplyError`: A party is gone, ordered something else than the other one, or is not done in time.
        """
        used: dict[int, list[str]] = {}
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(used) < 2:
            try:
                done = self._finished.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise SupplyError(f"The parties did not finish within {timeout:g} seconds.") from None
            if done is None:
                raise SupplyError(f"The dealer stopped: {self._failure}") from self._failure
            used[done[0]] = done[1]
        if used[0] != used[1]:
            raise SupplyError("The parties used different sets.")
        with self._dealt:
            # A set is complete at the parties a moment before it is booked here.
            if not self._dealt.wait_for(lambda: self._costs.keys() >= set(used[0]), timeout=SILENCE):
                raise SupplyError("The parties used a set that was not dealt here.")
            costs = [self._costs.pop(identity) for identity in used[0]]
        return sum(seconds for seconds, _ in costs), sum(sent for _, sent in costs)

    def close(self) -> None:
        """Stop, and close both channels."""
        self._over.set()
        for channel in self._channels:
            channel.close()

    def _listen(self, rank: int) -> None:
        try:
            while True:
                header, _ = self._channels[rank].receive(timeout=None)
                if header.get("kind") == "order":
                    self._orders[rank].put((str(header["number"]), str(header["name"]), str(header["plan"])))
                elif header.get("kind") == "finished":
                    self._finished.put((rank, [str(identity) for identity in header["sets"]]))
                else:
                    raise SupplyError(f"party{rank} sent something else than an order.")
        except Exception as error:
            self._fail(error)

    def _deal(self) -> None:
        try:
            while True:
                orders = [orders.get() for orders in self._orders]
                if None in orders:
                    return
                number, name, digest = orders[0]
                plan = self._plan_of(name)
                if not orders[0] == orders[1] == (number, name, plan.digest):
                    raise SupplyError(
                        f"the plans of `{name}` differ between the parties and the dealer; do all have the same model "
                        "and version?"
                    )
                self._deal_set(number, plan)
        except Exception as error:
            self._fail(error)

    def _deal_set(self, number: str, plan: Plan) -> None:
        label, seeds = SetLabel.new(plan), (new_seed(), new_seed())
        sent = 0
        for rank, seed in enumerate(seeds):
            header = {"kind": "set", "number": number, **label.to_dict()}
            sent += self._send(rank, header, {"seed": torch.tensor(list(seed), dtype=torch.uint8)})
        start, seconds = time.perf_counter(), 0.0
        for corrections in deal_set(plan, seeds, self._weight_mask, self._device):
            seconds += time.perf_counter() - start
            if corrections.numel():
                sent += self._send(0, {"kind": "corrections", "bytes": corrections.numel()}, data=corrections)
            start = time.perf_counter()
        sent += sum(self._send(rank, {"kind": "complete"}) for rank in (1, 0))
        with self._dealt:
            self._costs[label.id] = seconds, sent
            self._dealt.notify_all()

    def _send(
        self,
        rank: int,
        header: dict[str, Any],
        tensors: dict[str, Tensor] | None = None,
        data: Tensor | None = None,
    ) -> int:
        channel = self._channels[rank]
        with self._locks[rank]:
            before = channel.bytes_sent
            channel.send(header, tensors, timeout=self._timeout)
            if data is not None:
                for start in range(0, data.numel(), CHUNK):
                    channel.send_bytes(data[start : start + CHUNK].numpy().data, timeout=self._timeout)
            return channel.bytes_sent - before

    def _live(self) -> None:
        """Say that the dealer lives; not where a message is under way, which says the same."""
        while not self._over.wait(SIGN_OF_LIFE):
            for channel, lock in zip(self._channels, self._locks, strict=True):
                if lock.acquire(blocking=False):
                    try:
                        channel.send({"kind": "alive"}, timeout=SILENCE)
                    except SecureRouterError:
                        pass  # whoever waits for that party notices
                    finally:
                        lock.release()

    def _fail(self, error: Exception) -> None:
        """End everything: tell both parties why, once."""
        with self._dealt:
            if self._over.is_set():
                return
            self._over.set()
        self._failure = error
        text = str(error) if isinstance(error, SecureRouterError) else type(error).__name__
        for channel, lock in zip(self._channels, self._locks, strict=True):
            # In the middle of a message nothing else can be said; the closed channel says enough.
            if lock.acquire(timeout=2.0):
                try:
                    channel.send({"kind": "error", "error": text}, timeout=2.0)
                except SecureRouterError:
                    pass
                lock.release()
            channel.close()
        for waiting in (*self._orders, self._finished):
            waiting.put(None)
