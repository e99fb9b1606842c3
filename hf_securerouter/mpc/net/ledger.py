# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Counts of bytes, rounds and seconds by gate, kept where messages are sent and received.

Every role keeps one `Ledger`. The ledgers of all roles together make a `Cost` (`cost.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


PHASES = ("setup", "preprocess", "online", "dealer")


ROLES = ("party0", "party1", "dealer", "client")


def peak_rss_bytes() -> int:
    """The peak resident memory of this process (VmHWM), in bytes; 0 if the kernel does not report it."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


@dataclass
class GateCount:
    """The cost of one kind of gate at one party.

    Args:
        sent (`int`): Bytes sent to the other party.
        received (`int`): Bytes received from the other party.
        rounds (`int`): Sequential exchanges with the other party.
        dealer (`int`): Bytes received from the dealer.
        seconds (`float`): Wall time, without the time of nested gates.
    """

    sent: int = 0
    received: int = 0
    rounds: int = 0
    dealer: int = 0
    seconds: float = 0.0


class Ledger:
    """Counts the messages of one role, by gate, and times its phases.

    Example:
        ```python
        ledger = Ledger()
        with ledger.phase("online"), ledger.gate("softmax"):
            ledger.sent(len(message))
            ledger.received(len(answer))
            ledger.round()
        ledger.to_dict()
        ```
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything counted, for the next query."""
        self.gates: dict[str, GateCount] = {}
        self.phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._since = time.perf_counter()

    def _here(self) -> GateCount:
        return self.gates.setdefault(self._open[-1] if self._open else "other", GateCount())

    def sent(self, nbytes: int) -> None:
        """Count bytes handed to the link to the other party."""
        self._here().sent += nbytes

    def received(self, nbytes: int) -> None:
        """Count bytes taken from the link to the other party."""
        self._here().received += nbytes

    def round(self) -> None:
        """Count one sequential exchange."""
        self._here().rounds += 1

    def dealer(self, nbytes: int) -> None:
        """Count bytes received from the dealer (in the dealer's own ledger: sent to a party)."""
        self._here().dealer += nbytes

    def spent(self, name: str, seconds: float) -> None:
        """Add wall time that was measured elsewhere to gate `name`."""
        self.gates.setdefault(name, GateCount()).seconds += seconds

    @contextmanager
    def gate(self, name: str) -> Iterator[None]:
        """Count everything inside this context under gate `name`, or under the innermost of nested gates."""
        self._lap()
        self._open.append(name)
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._here().seconds += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time spent inside this context to one of `setup`, `preprocess`, `online` and `dealer`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start

    def total(self, what: str) -> int:
        """The sum over all gates of `sent`, `received`, `rounds` or `dealer`."""
        return sum(getattr(count, what) for count in self.gates.values())

    def counts(self) -> dict[str, Any]:
        """A JSON-able copy of the counts alone, which depend on no other query: no seconds and no memory."""
        kept = ("sent", "received", "rounds", "dealer")
        return {"gates": {name: {key: getattr(count, key) for key in kept} for name, count in self.gates.items()}}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy, with this process's peak memory."""
        return {
            "gates": {name: asdict(count) for name, count in self.gates.items()},
            "phases": dict(self.phases),
            "peak_rss_bytes": peak_rss_bytes(),
        }
