# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Runs a program on shares, from a description that is the same in all roles.

The dealer traces the plan of the description, the parties run it: a router, an expert, or a single gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...gates.gate import SecretProtocol
from ...gates.guard import Guard
from ...gates.party import Party
from ...gates.secret import Secret
from ...gates.weight_share import WeightShare
from ...net.ledger import Ledger
from ...net.link import Link
from ...ring.device import finish, free_memory
from ...ring.randomness import AES, Csprng, cipher_for
from ...tuples.party_set import PartySet, SetLabel
from ...tuples.plan import Plan, trace


@dataclass(frozen=True)
class SecureProgram:
    """A function of secret inputs and weights, for inputs of one shape. Public.

    Args:
        name (`str`): Program and shape, such as `experts.0/8`.
        run (callable): Makes the protocol from a party and its shares of the inputs.
        inputs (`Mapping[str, torch.Tensor or Secret]`): Shape and dtype of each share, on the `meta` device; a
            `Secret` where an earlier program leaves the share, in a ring of at least that width.
        weights (`Mapping[str, tuple[int, ...]]`): Shapes of the shared weights.
        guarded (`bool`): Whether the parties have a guard.

    Example:
        ```python
        program = SecureProgram(
            "relu/8",
            lambda party, shares: ReLU((8,), 20, 32).run(party, party.secret(shares["x"], 20, 14, 4)),
            {"x": torch.empty(8, dtype=torch.int64, device="meta")},
        )
        result = Evaluator(rank, link, sets).run(program, {"x": share})
        ```
    """

    name: str
    run: Callable[[Party, Mapping[str, Any]], SecretProtocol[Any]]
    inputs: Mapping[str, Tensor | Secret]
    weights: Mapping[str, tuple[int, ...]]
    guarded: bool = False

    def plan(self, cipher: str = AES) -> Plan:
        """Trace the plan, for roles that expand seeds with `cipher`."""
        weights = {}
        for name, shape in self.weights.items():
            words = torch.empty(shape, dtype=torch.int64, device="meta")
            weights[name] = WeightShare(words, words)
        return trace(lambda party: self.run(party, self.inputs), weights, cipher, self.guarded)


class Sets(Protocol):
    """The source of a party's sets of tuples: a `DealerClient`."""

    def take(self, name: str, plan: Plan) -> PartySet: ...


class Evaluator:
    """Runs programs at one party.

    Args:
        rank (`int`): 0 or 1.
        link (`Link`): To the other party.
        sets (`Sets`): The source of sets of tuples.
        weights (`Mapping[str, WeightShare]`, *optional*): This party's shares of the weights.
        ledger (`Ledger`, *optional*): Counts bytes and rounds; defaults to the link's ledger.
        device (`str`): Where the party computes; inputs and weights are on it.
        plans (`dict[str, Plan]`, *optional*): Plans of an earlier evaluator of the same model; new plans are added.
        debug (`bool`): Reveal every value that has a bound and check it; see `Party`.
        ahead (`int`, *optional*): Bytes that may be taken for what is computed before an input arrives; by default an
            eighth of what is free then.
        guard_seed (`bytes`, *optional*): A seed that only the two parties know, for programs with a guard.

    Attributes:
        guard_share (`int`): This party's share of the word of all guards (`gates/guard.py`) since it was set to 0.
    """

    def __init__(
        self,
        rank: int,
        link: Link,
        sets: Sets,
        weights: Mapping[str, WeightShare] | None = None,
        ledger: Ledger | None = None,
        device: str = "cpu",
        plans: dict[str, Plan] | None = None,
        debug: bool = False,
        ahead: int | None = None,
        guard_seed: bytes | None = None,
    ) -> None:
        self.rank, self.link, self.sets, self.device = rank, link, sets, device
        self.debug, self.guard_share, self._guard_seed = debug, 0, guard_seed
        self.weights = {} if weights is None else weights
        self.ledger = ledger or link.ledger
        self.used: list[SetLabel] = []
        self._plans = {} if plans is None else plans
        self._ahead = ahead

    def plan(self, program: SecureProgram) -> Plan:
        """The program's plan, traced once."""
        if program.name not in self._plans:
            self._plans[program.name] = program.plan(cipher_for(self.device))
        return self._plans[program.name]

    def run(self, program: SecureProgram, inputs: Mapping[str, Tensor | Secret]) -> Any:
        """Take a set of tuples, prepare, evaluate.

        Args:
            program (`SecureProgram`): What to run; the other party runs the same at the same time.
            inputs (`Mapping[str, torch.Tensor or Secret]`): This party's shares.

        Returns:
            The program's result.

        Raises:
            `LinkError`, `SupplyError`: The other party or the dealer has left, is late, or is at another program, plan
                or set of tuples. Nothing has been opened with a set that the parties do not share.

        Cost: The plan's, and 16 bytes a round; first, one round of about 200 bytes to compare the sets' labels.
        """
        plan = self.plan(program)
        tuples = self.sets.take(program.name, plan)
        with self.ledger.phase("preprocess"), self.ledger.gate("tuples"):
            self.link.agree({"program": program.name, **tuples.label.to_dict()})
            self._book(plan, tuples)
            randomness = tuples.open(plan, self.device)
            guard = self._guard(tuples.label) if program.guarded else None
            party = Party(self.rank, self.link, randomness, self.weights, self.ledger, self.debug, self.device, guard)
            ahead = (free_memory(self.device) or 0) // 8 if self._ahead is None else self._ahead
            randomness.prepare(self.weights, ahead)
            finish(self.device)
        self.used.append(tuples.label)
        with self.ledger.phase("online"):
            result = party.run(program.run(party, inputs))
            finish(self.device)
        if guard is not None:
            self.guard_share ^= guard.share
        return result

    def _guard(self, label: SetLabel) -> Guard:
        """A guard whose words no other set of tuples has."""
        assert self._guard_seed is not None
        words = Csprng(self._guard_seed, b"guard/" + label.id.encode(), cipher_for(self.device), self.device)
        return Guard(self.rank, words)

    def _book(self, plan: Plan, tuples: PartySet) -> None:
        """Count the dealer's bytes: corrections by gate, all others under the caller's gate."""
        rest = tuples.received
        if self.rank == 0:
            for gate, count in plan.by_gate.items():
                with self.ledger.gate(gate):
                    self.ledger.dealer(count.dealer)
                rest -= count.dealer
        self.ledger.dealer(rest)
