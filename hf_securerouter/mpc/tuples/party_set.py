# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""One party's part of a set of tuples: a label, a seed and, for P0, the corrections of every gate.

A set serves one run: two queries under the same masks would reveal the difference of their inputs. So a set can be
opened once, and is never kept beyond the process that received it.
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
    """The public label of a set, which both parties compare before they use the set.

    Args:
        id (`str`): 32 hex digits, drawn for this set.
        nonce (`str`): 32 hex digits, drawn when the set is dealt: it differs between two deals under one id.
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
        label (`SetLabel`): The label of the set.
        rank (`int`): 0 or 1, the party.
        seed (`bytes`): The party's seed, 32 bytes.
        corrections (`Corrections`, *optional*): P0's corrections; None at P1.
        received (`int`): Bytes that the party received from the dealer for the set.
    """

    def __init__(
        self, label: SetLabel, rank: int, seed: bytes, corrections: Corrections | None = None, received: int = 0
    ) -> None:
        self.label, self.rank, self.received = label, rank, received
        self._seed: bytes | None = seed
        self._corrections = corrections

    def open(self, plan: Plan, device: str = "cpu") -> TupleSet:
        """Open the set for its one run; this object then drops the seed and the corrections.

        Args:
            plan (`Plan`): The plan that this party traced.
            device (`str`): Where the party computes.

        Returns:
            `TupleSet`: Hands the tuples out.

        Raises:
            `TupleReusedError`: The set was opened before.
            `SecureRouterError`: The set was dealt for another plan.
        """
        if self._seed is None:
            raise TupleReusedError(f"Set {self.label.id} has served a run; take a new one.")
        if plan.digest != self.label.plan:
            raise SecureRouterError("A set of tuples was dealt for another plan; deal sets for this model and shape.")
        found = TupleSet(plan, self.rank, self._seed, self._corrections, device)
        self._seed = self._corrections = None
        return found
