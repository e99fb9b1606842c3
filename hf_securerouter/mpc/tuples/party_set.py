# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party's part of a set of tuples: a label, a seed and, for P0, the corrections of every gate.

A set serves one run. Sent again under the same masks, a query would open the difference of two inputs; so a set opens
once, and is never kept beyond the process that received it.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass

from ...errors import SecureRouterError
from .corrections import Corrections
from .plan import Plan
from .tuple_set import TupleSet


class TupleReusedError(SecureRouterError):
    """A set of tuples was about to serve a second run."""


@dataclass(frozen=True)
class SetLabel:
    """What both parties compare before they use a set. Public.

    Args:
        id (`str`): 32 hex digits, drawn for this set.
        nonce (`str`): 32 hex digits, drawn when the set is dealt: two deals under one id differ in it.
        plan (`str`): Digest of the plan.
    """

    id: str
    nonce: str
    plan: str

    @classmethod
    def new(cls, plan: Plan) -> SetLabel:
        """A fresh label for a set of `plan`."""
        return cls(secrets.token_hex(16), secrets.token_hex(16), plan.digest)

    def to_dict(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


class PartySet:
    """One party's part of a set, which can be opened once.

    Args:
        label (`SetLabel`): Its label.
        rank (`int`): Whose it is.
        seed (`bytes`): The party's seed, 32 bytes.
        corrections (`Corrections`, *optional*): Rank 0's.
        received (`int`): Bytes that came from the dealer for it.
    """

    def __init__(
        self, label: SetLabel, rank: int, seed: bytes, corrections: Corrections | None = None, received: int = 0
    ) -> None:
        self.label, self.rank, self.received = label, rank, received
        self._seed: bytes | None = seed
        self._corrections = corrections

    def open(self, plan: Plan, device: str = "cpu") -> TupleSet:
        """Hand the tuples out, once. The seed and the corrections are forgotten here.

        Args:
            plan (`Plan`): As traced by this party.
            device (`str`): Where the party computes.

        Raises:
            `TupleReusedError`: It was opened before.
            `SecureRouterError`: It was dealt for another plan.
        """
        if self._seed is None:
            raise TupleReusedError(f"Set {self.label.id} has served a run; take a new one.")
        if plan.digest != self.label.plan:
            raise SecureRouterError("A set of tuples was dealt for another plan; deal sets for this model and shape.")
        found = TupleSet(plan, self.rank, self._seed, self._corrections, device)
        self._seed = self._corrections = None
        return found
