# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What crosses the wire, counted where it is sent, and what a query cost.

Every role keeps one `Ledger`. A `Cost` is made from the ledgers of all roles, is JSON-able and adds up over queries.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


PHASES = ("setup", "preprocess", "online", "dealer")
ROLES = ("party0", "party1", "dealer", "client")


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had (VmHWM), in bytes; 0 where the kernel does not tell."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


@dataclass
class GateCount:
    """What one kind of gate cost one party.

    Args:
        sent (`int`): Bytes sent to the other party.
        received (`int`): Bytes received from the other party.
        rounds (`int`): Sequential exchanges with the other party.
        dealer (`int`): Bytes received from the dealer.
        seconds (`float`): Wall time, without that of gates inside this one.
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
        """Count one exchange that the next step has to wait for."""
        self._here().rounds += 1

    def dealer(self, nbytes: int) -> None:
        """Count bytes received from the dealer (in the dealer's own ledger: sent to a party)."""
        self._here().dealer += nbytes

    def spent(self, name: str, seconds: float) -> None:
        """Count wall time under `name` that was measured elsewhere."""
        self.gates.setdefault(name, GateCount()).seconds += seconds

    @contextmanager
    def gate(self, name: str) -> Iterator[None]:
        """Count what happens inside under `name`; of nested gates the innermost counts."""
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
        """Add the wall time spent inside to one of `setup`, `preprocess`, `online` and `dealer`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start

    def total(self, what: str) -> int:
        """The sum over all gates of `sent`, `received`, `rounds` or `dealer`."""
        return sum(getattr(count, what) for count in self.gates.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy, with this process's peak memory."""
        return {
            "gates": {name: asdict(count) for name, count in self.gates.items()},
            "phases": dict(self.phases),
            "peak_rss_bytes": peak_rss_bytes(),
        }


@dataclass
class Cost:
    """What one or more queries cost, over all roles.

    Args:
        online_bytes (`int`): Bytes on the parties' link, both directions.
        rounds (`int`): Sequential exchanges on that link.
        dealer_bytes (`int`): Bytes that the dealer sent to both parties.
        client_bytes (`int`): Bytes between the client and the parties, both directions.
        setup_seconds (`float`): Starting the roles and sharing the weights; once per session.
        preprocess_seconds (`float`): What the parties did without the input.
        online_seconds (`float`): From shares of the input held to shares of the logits ready.
        dealer_seconds (`float`): Time that the dealer computed; what it computed while it sent does not count.
        peak_rss_bytes (`dict`): Peak memory per role, in bytes.
        by_gate (`list`): `{"gate", "online_bytes", "rounds", "dealer_bytes", "seconds"}` of each kind of gate.
    """

    online_bytes: int = 0
    rounds: int = 0
    dealer_bytes: int = 0
    client_bytes: int = 0
    setup_seconds: float = 0.0
    preprocess_seconds: float = 0.0
    online_seconds: float = 0.0
    dealer_seconds: float = 0.0
    peak_rss_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    by_gate: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_ledgers(
        cls, ledgers: Mapping[str, Mapping[str, Any]], *, client_bytes: int = 0, setup_seconds: float = 0.0
    ) -> Cost:
        """The cost of one query.

        Args:
            ledgers (`Mapping`): `Ledger.to_dict()` of `party0`, `party1` and, where there is one, `dealer`.
            client_bytes (`int`): As counted by the client.
            setup_seconds (`float`): Of the session that the query ran in.
        """
        parties = [ledgers["party0"], ledgers["party1"]]
        names = dict.fromkeys(name for party in parties for name in party["gates"])
        by_gate = []
        for name in names:
            counts = [party["gates"][name] for party in parties if name in party["gates"]]
            by_gate.append(
                {
                    "gate": name,
                    "online_bytes": sum(count["sent"] for count in counts),
                    "rounds": max(count["rounds"] for count in counts),
                    "dealer_bytes": sum(count["dealer"] for count in counts),
                    "seconds": max(count["seconds"] for count in counts),
                }
            )
        return cls(
            online_bytes=sum(gate["online_bytes"] for gate in by_gate),
            rounds=sum(gate["rounds"] for gate in by_gate),
            dealer_bytes=sum(gate["dealer_bytes"] for gate in by_gate),
            client_bytes=client_bytes,
            setup_seconds=setup_seconds,
            preprocess_seconds=max(party["phases"]["preprocess"] for party in parties),
            online_seconds=max(party["phases"]["online"] for party in parties),
            dealer_seconds=ledgers["dealer"]["phases"]["dealer"] if "dealer" in ledgers else 0.0,
            peak_rss_bytes=dict.fromkeys(ROLES, 0)
            | {role: ledger["peak_rss_bytes"] for role, ledger in ledgers.items()}
            | {"client": peak_rss_bytes()},
            by_gate=by_gate,
        )

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """The cost of several queries of one session: counts and times add up, memory and set-up do not."""
        result = cls()
        gates: dict[str, dict[str, Any]] = {}
        for cost in costs:
            for name in ("online_bytes", "rounds", "dealer_bytes", "client_bytes"):
                setattr(result, name, getattr(result, name) + getattr(cost, name))
            for name in ("preprocess_seconds", "online_seconds", "dealer_seconds"):
                setattr(result, name, getattr(result, name) + getattr(cost, name))
            result.setup_seconds = max(result.setup_seconds, cost.setup_seconds)
            result.peak_rss_bytes = {
                role: max(result.peak_rss_bytes.get(role, 0), peak) for role, peak in cost.peak_rss_bytes.items()
            }
            for gate in cost.by_gate:
                known = gates.setdefault(gate["gate"], {"gate": gate["gate"]})
                for name, value in gate.items():
                    if name != "gate":
                        known[name] = known.get(name, 0) + value
        result.by_gate = list(gates.values())
        return result

    def to_dict(self, *, by_gate: bool = False) -> dict[str, Any]:
        """The fields as a JSON-able dict; the split by gate only when asked for."""
        values = asdict(self)
        if not by_gate:
            del values["by_gate"]
        return values
