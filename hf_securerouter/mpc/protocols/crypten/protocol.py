# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The reference: CrypTen's two-party protocol with its trusted third party as dealer.

It inherits CrypTen's random generator (torch's, which is not cryptographic), its truncation (which fails with
probability |v| 2**-32 for a product v) and its pickled dealer messages: a baseline to compare with, not to deploy.
Shares of weights and inputs come from this package's cryptographic generator.

With `device="cuda"` parties and dealer compute with CrypTen's own CUDA tensors, which multiply words in blocks of
float64. Messages go through host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ....errors import warn
from ...models import EncoderSpec
from ...models.manifest import Manifest
from ...models.spec import Problem
from ...net.ledger import Ledger
from ...ring.device import DEVICES
from ..base import Program, Sharing, require
from .compat import import_crypten
from .sharing import CryptenSharing


WARNING = (
    "`protocol='crypten'` is a reference: it inherits CrypTen's random generator (not cryptographic), its truncation "
    "(which fails at random, rarely) and its pickled dealer messages, and reveals which expert each query used. "
    "Do not deploy it with data that matters."
)


TFP_WARNING = (
    "`provider='tfp'` lets party 0 make all correlated randomness, so that it can unmask every input and weight: use "
    "it to debug or to measure only."
)


def problems(members: Mapping[str, EncoderSpec], device: str, provider: str) -> list[Problem]:
    """Reasons why this protocol cannot run a model; `members` holds encoder specs by module path."""
    found = []
    if device not in DEVICES:
        found.append(Problem("device", f"it should be one of {', '.join(DEVICES)}, got {device!r}", "Pass 'cpu'"))
    elif device != "cpu" and not torch.cuda.is_available():
        found.append(Problem("device", "torch finds no CUDA device here", "Pass `device='cpu'`"))
    if provider not in ("ttp", "tfp"):
        found.append(
            Problem(
                "provider",
                f"it should be 'ttp' (a dealer process) or 'tfp' (debugging only), got {provider!r}",
                "Pass `provider='ttp'`",
            )
        )
    for name, spec in members.items():
        # Experts of reduced precision are no problem: their rounded weights run with CrypTen's 16 fraction bits.
        for field, known in (("hidden_act", ("gelu", "relu", "silu")), ("softmax", ("exact",))):
            value = getattr(spec, field)
            if value not in known:
                found.append(
                    Problem(
                        f"{name}.{field}",
                        f"protocol 'crypten' has no {value!r}",
                        f"Leave it out of `config.expert_mpc` (known here: {', '.join(known)})",
                    )
                )
        if spec.sparse_layers:
            found.append(
                Problem(
                    f"{name}.config.num_experts",
                    "protocol 'crypten' has no mixture of experts",
                    "Pass `protocol='masked'`",
                )
            )
        if spec.head.activation not in ("gelu", "relu", "silu", "tanh", "identity"):
            found.append(
                Problem(
                    f"{name}.head",
                    f"protocol 'crypten' has no {spec.head.activation!r}",
                    "Pass `protocol='masked'`",
                )
            )
        if spec.head.normalize and not spec.head.centred:
            found.append(
                Problem(
                    f"{name}.normalize",
                    "protocol 'crypten' has no division of a row by its length",
                    "Pass `protocol='masked'`",
                )
            )
    return found


def prepare(provider: str) -> None:
    """Import CrypTen, and warn of the weaknesses that the protocol inherits from it.

    Raises:
        `ImportError`: `crypten` is not installed; the message holds the install line.
    """
    import_crypten()
    warn(WARNING)
    if provider == "tfp":
        warn(TFP_WARNING)


def sharing(manifest: Manifest) -> Sharing:
    """The sharing of weights, by the owner, and of inputs, by the client."""
    return CryptenSharing(manifest)


def program(role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of `role` in a local session; returns once all roles have met.

    Raises:
        `ImportError`: `crypten` is not installed.
        `SecureRouterValueError`: `setup` lacks something.
    """
    require(setup, "folder", "timeout")
    from .roles import CryptenDealer, CryptenParty

    kind = CryptenDealer if role == "dealer" else CryptenParty
    return kind(role, manifest, setup, ledger)
