# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder with the weights of one expert, which secret bits select for each row among experts of one shape.

Only products with weights depend on the number of experts: attention, LayerNorm and activations run once. A relative
attention bias, which multiplies nothing, is selected like the embeddings.

Reference:
    SecMoE: select, then compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...gates.gate import SecretProtocol
from ...gates.party import Party
from ...gates.secret import Secret
from ...gates.select import Select
from ...gates.selected_linear import SelectedLinear
from ...ring.words import MAX_BITS
from .encoder import MaskedEncoder
from .steps import NONE


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

    def _without_biases(
        self,
        party: Party,
        rows: Secret,
        matrices: Mapping[str, int],
        bound: int,
        diagonals: Mapping[str, int] = NONE,
    ) -> SecretProtocol[list[tuple[Secret, Secret]]]:
        # The biases are selected too: the product of a row of zeros beside each row is the bias alone.
        both = rows.map(lambda words: torch.stack([words, torch.zeros_like(words)], 1).flatten(0, 1))
        results = yield from self._products(party, both, matrices, diagonals, bound)
        found = []
        for result in results:
            product, bias = (result.map(lambda words, at=at: words[at::2]) for at in (0, 1))
            found.append((replace(product, words=product.words - bias.words), bias))
        return found

    def _relative_table(self, party: Party) -> SecretProtocol[Tensor]:
        shares = torch.stack([party.weights[f"{name}relative_attention_bias"].share for name in self.members])
        rows, scale = self.bits.shape[1], self.rings.bits.query + self.rings.bits.key
        words = shares.flatten(1)[:, None].expand(-1, rows, -1)
        widest = max(rings.score_width for rings in self.layer_rings)
        gate = Select(len(shares), rows, words.shape[-1], widest)
        tables = party.secret(words, MAX_BITS, scale, self.rings.bounds.scores - 1)
        chosen = yield from gate.run(party, self.bits, tables)
        return chosen.words.view(rows, *shares.shape[1:])
