# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The cost of queries, over all roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .ledger import ROLES, peak_rss_bytes


@dataclass
class Cost:
    """The cost of one or more queries, over all roles.

    Args:
        online_bytes (`int`): Bytes on the parties' link, both directions.
        rounds (`int`): Sequential exchanges on that link.
        dealer_bytes (`int`): Bytes that the dealer sent to both parties.
        client_bytes (`int`): Bytes between the client and the parties, both directions.
        setup_seconds (`float`): Start of the roles and sharing of the weights; once per session.
        preprocess_seconds (`float`): The parties' computation before the input arrives.
        online_seconds (`float`): From the arrival of the input's shares to shares of the logits.
        dealer_seconds (`float`): The dealer's computation, except what overlaps with its sending.
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
            ledgers (`Mapping`): `Ledger.to_dict()` of `party0`, `party1` and, where there is one, `dealer`. Of
                `Ledger.counts()` the seconds and the memory are 0.
            client_bytes (`int`): Counted by the client.
            setup_seconds (`float`): Set-up time of the query's session.
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
                    "seconds": max(count.get("seconds", 0.0) for count in counts),
                }
            )
        return cls(
            online_bytes=sum(gate["online_bytes"] for gate in by_gate),
            rounds=sum(gate["rounds"] for gate in by_gate),
            dealer_bytes=sum(gate["dealer_bytes"] for gate in by_gate),
            client_bytes=client_bytes,
            setup_seconds=setup_seconds,
            preprocess_seconds=max(party.get("phases", {}).get("preprocess", 0.0) for party in parties),
            online_seconds=max(party.get("phases", {}).get("online", 0.0) for party in parties),
            dealer_seconds=ledgers["dealer"]["phases"]["dealer"] if "dealer" in ledgers else 0.0,
            peak_rss_bytes=dict.fromkeys(ROLES, 0)
            | {role: ledger.get("peak_rss_bytes", 0) for role, ledger in ledgers.items()}
            | {"client": peak_rss_bytes()},
            by_gate=by_gate,
        )

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """The cost of several queries of one session: counts and times add up, memory and set-up take the maximum."""
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
        """The fields as a JSON-able dict; `by_gate` includes the split by gate."""
        values = asdict(self)
        if not by_gate:
            del values["by_gate"]
        return values
