# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked engine: masked openings in shrinking rings, with a dealer that never sees an opening.

The owner masks every weight: D = W - B0 - B1. Both parties get D, each party the seed of one mask (B0 or B1), the
dealer both seeds. The client masks every input: party 0 gets the masked input, party 1 the seed of the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models import EncoderSpec
from ...models.manifest import Manifest
from ...models.spec import Problem
from ...net.ledger import Ledger
from ...ring.device import DEVICES, what_is_missing
from ..base import Program, Sharing, require
from .sharing import MaskedSharing


def problems(members: Mapping[str, EncoderSpec], device: str, provider: str) -> list[Problem]:
    """Reasons why this protocol cannot run a model; `members` holds encoder specs by module path."""
    found = []
    if device not in DEVICES:
        found.append(
            Problem(
                "device",
                f"protocol 'masked' computes on one of {', '.join(DEVICES)}, got {device!r}",
                "Pass `device='cpu'`",
            )
        )
    elif (missing := what_is_missing(device)) is not None:
        found.append(Problem("device", *missing))
    if provider != "ttp":
        found.append(
            Problem("provider", f"protocol 'masked' has a dealer process, got {provider!r}", "Pass `provider='ttp'`")
        )
    return found


def prepare(provider: str) -> None:
    """Do nothing: this protocol needs no optional package, and no warning."""


def sharing(manifest: Manifest) -> Sharing:
    """The sharing of weights, by the owner, and of inputs, by the client."""
    return MaskedSharing(manifest)


def program(role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of `role` in a local session; returns once all roles have met.

    Raises:
        `SecureRouterValueError`: `setup` lacks something.
    """
    require(setup, "folder", "timeout", *(() if role == "dealer" else ("debug", "ahead", "silence")))
    from ...net.loopback import accept_parties, connect_dealer, connect_parties
    from .roles import MaskedDealer, MaskedParty

    folder, timeout = Path(setup["folder"]), setup["timeout"]
    if role == "dealer":
        dealer = MaskedDealer(manifest, ledger, timeout)
        dealer.meet(accept_parties(folder, timeout))
        return dealer
    party = MaskedParty(int(role.removeprefix("party")), manifest, ledger, setup["debug"], setup["ahead"])
    dealer_channel, link = (
        connect_dealer(folder, party.rank, timeout),
        connect_parties(folder, party.rank, ledger, timeout),
    )
    party.meet(dealer_channel, link, timeout, setup["silence"])
    return party
