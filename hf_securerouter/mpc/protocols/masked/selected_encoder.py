# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder with the weights of one expert, which secret bits select for each row among experts of one shape.

Only products with weights depend on the number of experts: attention, LayerNorm and activations run once.

Reference:
    SecMoE: select, then compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...gates.gate import SecretProtocol
from ...gates.party import Party
from ...gates.secret import Secret
from ...gates.selected_linear import SelectedLinear
from .encoder import MaskedEncoder


@dataclass(frozen=True)
class SelectedEncoder(MaskedEncoder):
    """One encoder whose weights are selected among several experts', for one batch.

    Args:
        members (`tuple[str, ...]`): Prefixes of the experts' weights.
        bits (`torch.Tensor`): XOR shares of the one-hot of the chosen expert, uint8 (experts, B).
    """

    members: tuple[str, ...] = ()
    bits: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.uint8), compare=False)

    def _has(self, party: Party, name: str) -> bool:
        return f"{self.members[0]}{name}" in party.weights

    def _columns(self, party: Party, name: str) -> int:
        return party.weights[f"{self.members[0]}{name}"].masked.shape[1]

    def _products(
        self,
        party: Party,
        rows: Secret,
        matrices: Mapping[str, int],
        diagonals: Mapping[str, int],
        bound: int,
    ) -> SecretProtocol[list[Secret]]:
        batch = self.bits.shape[1]
        gate = SelectedLinear(
            rows=batch,
            length=rows.shape[0] // batch,
            features=rows.shape[1],
            width=rows.width,
            candidates=self.members,
            matrices=tuple((name, self._columns(party, name)) for name in matrices),
            diagonals=tuple(diagonals),
        )
        return (yield from gate.run(party, rows, self.bits, (*matrices.values(), *diagonals.values()), bound))
