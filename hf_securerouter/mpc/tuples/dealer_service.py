# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The dealer's end of the connection to the parties: sets of tuples, gate by gate, ahead of their use.

A party orders a set by the program's name and the plan's digest. When both parties have ordered the same set, the
dealer draws two seeds, sends each party its own, and streams the corrections to P0, which spools them to a file: no
role ever holds a whole set in memory. At most one set is ordered ahead of the one in use. The dealer sends keep-alive
frames every second; a party that waits gives up after `SILENCE` seconds without a byte.

Who sees what: each party one seed; P0 the corrections, which P1's seed makes uniform; the dealer names and plans.
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
from ..net.channel import Channel, ChannelError
from ..ring.randomness import new_seed
from .deal import deal_set
from .dealer_client import CHUNK, SIGN_OF_LIFE, SILENCE, SupplyError
from .party_set import SetLabel
from .plan import Plan


class DealerService:
    """The dealer's end: deals the sets that both parties order, in the background.

    Args:
        channels (`tuple[Channel, Channel]`): To P0 and P1; the service owns them from now on.
        plan_of (callable): From a program's name to the plan that the dealer traced.
        weight_mask (callable, *optional*): From the name of a fixed weight to its mask B, on `device`.
        timeout (`float`): Seconds within which a party must take a message.
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
        self._finished: tuple[queue.SimpleQueue, queue.SimpleQueue] = (queue.SimpleQueue(), queue.SimpleQueue())
        self._dealt = threading.Condition()
        self._costs: dict[str, tuple[float, int]] = {}  # by set id, in order: seconds of dealing, bytes sent
        self._failure: Exception | None = None
        self._over = threading.Event()
        for target, arguments in (
            (self._listen, (0,)),
            (self._listen, (1,)),
            (self._deal, ()),
            (self._keep_alive, ()),
        ):
            threading.Thread(target=target, args=arguments, daemon=True).start()

    def wait(self, timeout: float | None) -> tuple[float, int]:
        """Wait until both parties have finished a query.

        Args:
            timeout (`float`, *optional*): Seconds to wait. None waits until a party is gone.

        Returns:
            `tuple[float, int]`: Seconds of dealing, and bytes sent to both parties, for the sets that the query used.

        Raises:
            `SupplyError`: A party is gone or did not finish within `timeout` seconds, or the parties ordered or used
                different sets.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        used: list[list[str]] = []
        for finished in self._finished:
            try:
                sets = finished.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise SupplyError(f"The parties did not finish within {timeout:g} seconds.") from None
            if sets is None:
                raise SupplyError(str(self._failure), getattr(self._failure, "gone", None)) from self._failure
            used.append(sets)
        if used[0] != used[1]:
            raise SupplyError("The parties used different sets.")
        with self._dealt:
            # The parties may have used a set a moment before its cost is recorded here.
            if not self._dealt.wait_for(lambda: self._costs.keys() >= set(used[0]), timeout=SILENCE):
                raise SupplyError("The parties used a set that was not dealt here.")
            costs = [self._costs[identity] for identity in used[0]]
            # Sets are dealt in order: one before the last that was used, and not used, was ordered ahead in vain.
            while not self._costs.keys().isdisjoint(used[0]):
                del self._costs[next(iter(self._costs))]
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
                    self._finished[rank].put([str(identity) for identity in header["sets"]])
                else:
                    raise SupplyError(f"party{rank} sent something else than an order.")
        except ChannelError as error:
            self._fail(SupplyError(f"party{rank} is gone ({error})", f"party{rank}"))
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

    def _keep_alive(self) -> None:
        """Send keep-alive frames. A channel that is busy with a message needs none."""
        while not self._over.wait(SIGN_OF_LIFE):
            for channel, lock in zip(self._channels, self._locks, strict=True):
                if lock.acquire(blocking=False):
                    try:
                        channel.send({"kind": "alive"}, timeout=SILENCE)
                    except SecureRouterError:
                        pass  # `_listen` notices that the party is gone
                    finally:
                        lock.release()

    def _fail(self, error: Exception) -> None:
        """End the service, once: send both parties the error text and close their channels."""
        with self._dealt:
            if self._over.is_set():
                return
            self._over.set()
        self._failure = error
        text = str(error) if isinstance(error, SecureRouterError) else type(error).__name__
        gone = getattr(error, "gone", None)
        for channel, lock in zip(self._channels, self._locks, strict=True):
            # An error frame cannot interrupt a message; then the closed channel must suffice.
            if lock.acquire(timeout=2.0):
                try:
                    channel.send({"kind": "error", "error": text, "gone": gone}, timeout=2.0)
                except SecureRouterError:
                    pass
                lock.release()
            channel.close()
        for waiting in (*self._orders, *self._finished):
            waiting.put(None)
