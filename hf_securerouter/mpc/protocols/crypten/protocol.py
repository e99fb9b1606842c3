# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference: CrypTen's two-party protocol with its trusted third party as dealer.

It inherits CrypTen's random generator (torch's, which is not cryptographic), its truncation (which fails with
probability |v| 2**-32 a product v) and its pickled dealer messages; it is a baseline to compare with, not one to
deploy. The shares of weights and inputs are made here, from a cryptographic generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...models import EncoderSpec
from ...models.architecture import Problem
from ...models.manifest import Manifest
from ...net.ledger import Ledger
from ...ring.randomness import Csprng, new_seed
from ..base import Program, Shares, Sharing


FRACTION_BITS = 16

# Added to the score of a masked key: its exp is 0 while the scores of a row, these included, span less than 490.
MASKED_SCORE = -200.0

WARNING = (
    "`protocol='crypten'` is a reference: it inherits CrypTen's random generator (not cryptographic), its truncation "
    "(which fails at random, rarely) and its pickled dealer messages, and reveals which expert each query used. "
    "Do not deploy it with data that matters."
)
TFP_WARNING = (
    "`provider='tfp'` lets party 0 make all correlated randomness, so that it can unmask every input and weight: use "
    "it to debug or to measure only."
)


def encode(values: Tensor) -> Tensor:
    """round(2**16 x) as int64 (CrypTen's encoder rounds towards zero)."""
    return torch.round(values.double() * 2**FRACTION_BITS).long()


def decode(words: Tensor) -> Tensor:
    """The float64 numbers that opened words stand for (CrypTen's decoder returns some negative ones 1.0 too low)."""
    return words.double() / 2**FRACTION_BITS


class CryptenSharing(Sharing):
    """Additive shares of fixed-point numbers with 16 fraction bits, mod 2**64."""

    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[Shares]:
        for name, values in weights.items():
            # Transposed once, so that the parties multiply by contiguous matrices.
            words = encode(values.t() if values.dim() == 2 else values).contiguous()
            first, second = _split(words)
            yield {"party0": {name: first}, "party1": {name: second}}

    def inputs(self, embeddings: dict[str, Tensor], attention_mask: Tensor) -> Shares:
        bias = (1 - attention_mask.double()) * MASKED_SCORE
        shares: Shares = {"party0": {}, "party1": {}}
        for name, values in {**embeddings, "attention_bias": bias}.items():
            shares["party0"][name], shares["party1"][name] = _split(encode(values))
        return shares

    def logits(self, shares: dict[str, dict[str, Tensor]]) -> Tensor:
        return decode(shares["party0"]["logits"] + shares["party1"]["logits"]).float()


def _split(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two additive shares mod 2**64; the first is uniform and drawn from a seed that is used for nothing else."""
    mask = Csprng(new_seed(), b"crypten/share").ring(words.shape, 64)
    return mask, words - mask


def problems(members: Mapping[str, EncoderSpec], device: str, provider: str) -> list[Problem]:
    """Everything that this protocol cannot do; `members` holds the encoders by module path."""
    found = []
    if device != "cpu":
        found.append(
            Problem(
                "device",
                f"protocol 'crypten' computes on the CPU, got {device!r}",
                "Pass `device='cpu'`",
            )
        )
    if provider not in ("ttp", "tfp"):
        found.append(
            Problem(
                "provider",
                f"it should be 'ttp' (a dealer process) or 'tfp' (debugging only), got {provider!r}",
                "Pass `provider='ttp'`",
            )
        )
    for name, spec in members.items():
        # An expert of a narrow precision is computed like any other, from the weights that it computes with in clear.
        for field, known in (("hidden_act", ("gelu", "relu")), ("softmax", ("exact",))):
            value = getattr(spec, field)
            if value not in known:
                found.append(
                    Problem(
                        f"{name}.{field}",
                        f"protocol 'crypten' has no {value!r}",
                        f"Leave it out of `config.expert_mpc` (known here: {', '.join(known)})",
                    )
                )
    return found


def sharing(manifest: Manifest) -> Sharing:
    """How the owner and the client share."""
    return CryptenSharing(manifest)


def program(role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of `role`. Imports CrypTen, and returns once all roles have met.

    Raises:
        `ImportError`: `crypten` is not installed.
    """
    from .roles import CryptenDealer, CryptenParty

    kind = CryptenDealer if role == "dealer" else CryptenParty
    return kind(role, manifest, setup, ledger)
