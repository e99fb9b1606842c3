# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the parties and the dealer do under the masked protocol."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import SecureRouterError
from ..evaluation import Evaluator
from ..ledger import Ledger
from ..manifest import Manifest
from ..plan import Plan
from ..randomness import SEED_BYTES, Csprng, Pad
from ..rendezvous import accept_parties, connect_dealer, connect_parties
from ..ring import seal
from ..supply import DealerService, LiveSets
from ..transport import Link
from ..tuples import SetLabel
from ..weights import WeightShare, weight_mask, weight_share
from .base import Program
from .masked import LIVE, SEED, all_weight_shapes, as_seed, input_share, input_width, logit_width
from .masked_programs import secure_program
from .masked_routing import answer, first_program


class MaskedDealer(Program):
    """Deals what the parties order. It gets the seeds of the weights' masks, never D, an input or an opening."""

    def __init__(self, role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> None:
        self.manifest, self.ledger, self.timeout = manifest, ledger, setup["timeout"]
        self._shapes = all_weight_shapes(manifest)
        self._seeds: list[bytes] = []
        self._plans: dict[str, Plan] = {}
        channels = accept_parties(Path(setup["folder"]), self.timeout)
        self._service = DealerService(channels, self._plan, self._weight_mask, self.timeout, manifest.device)

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        if set(tensors) != {f"{SEED}0", f"{SEED}1"}:
            raise SecureRouterError("The dealer was sent something else than the seeds of the weights' masks.")
        self._seeds = [as_seed(tensors[f"{SEED}{rank}"]) for rank in (0, 1)]

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        seconds, sent = self._service.wait(self.timeout)
        self.ledger.phases["dealer"] += seconds
        self.ledger.dealer(sent)
        return {}, {}

    def _plan(self, name: str) -> Plan:
        if name not in self._plans:
            self._plans[name] = secure_program(self.manifest, name).plan(self.manifest.cipher)
        return self._plans[name]

    def _weight_mask(self, name: str) -> Tensor:
        cipher, device = self.manifest.cipher, self.manifest.device
        first, second = (weight_mask(seed, name, self._shapes[name], cipher, device) for seed in self._seeds)
        return first.add_(second)


class MaskedParty(Program):
    """A computing party: holds D and its own seed, and one share of every input."""

    def __init__(self, role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> None:
        self.manifest, self.ledger = manifest, ledger
        self.rank = int(role.removeprefix("party"))
        self._seed: bytes | None = None
        self._weights: dict[str, WeightShare] = {}
        folder, timeout = Path(setup["folder"]), setup["timeout"]
        self._sets = LiveSets(connect_dealer(folder, self.rank, timeout), self.rank, timeout)
        self._link = connect_parties(folder, self.rank, ledger, timeout)
        self._zero_seed = agree_on_seed(self._link)
        self._evaluator = Evaluator(self.rank, self._link, self._sets, self._weights, ledger, manifest.device)

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        if self._seed is None:
            self._seed = as_seed(tensors.pop(SEED, None))
        for name, masked in tensors.items():
            self._weights[name] = weight_share(
                self.rank, self._seed, name, masked, self.manifest.cipher, self.manifest.device
            )

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        batch, length, cipher = header["batch"], self.manifest.max_length, self.manifest.cipher
        inputs = {LIVE: input_share(self.rank, tensors, LIVE, (batch, length), 1, cipher)}
        for member, spec in self.manifest.inputs.items():
            if member == "router" and not self.manifest.routes:
                continue
            shape = (batch, length, spec.input_size)
            width = input_width(self.manifest, member)
            inputs[member] = input_share(self.rank, tensors, member, shape, width, cipher)
        self._evaluator.used.clear()
        on_device = {name: words.to(self.manifest.device) for name, words in inputs.items()}
        chosen, logits = answer(self.manifest, self._run, on_device)
        packed = self._packed(logits.cpu(), logit_width(self.manifest), self._evaluator.used[-1])
        self._sets.finished(self._evaluator.used)
        # Most often the next query has the same shape: its first set is dealt meanwhile.
        first = first_program(self.manifest, batch)
        self._sets.order(first, self._evaluator.plan(secure_program(self.manifest, first)))
        return {"experts": chosen}, {"logits": packed}

    def _run(self, name: str, inputs: Mapping[str, Tensor]) -> Any:
        return self._evaluator.run(secure_program(self.manifest, name), inputs)

    def _packed(self, logits: Tensor, width: int, label: SetLabel) -> Tensor:
        """A share of the logits for the client, covered by a share of zero that only the parties can make."""
        zero = Csprng(self._zero_seed, b"logits/" + label.id.encode()).ring(logits.shape, width)
        return seal(logits, Pad(zero if self.rank == 0 else -zero, width))[1]


def agree_on_seed(link: Link) -> bytes:
    """A seed that only the two parties know: the hash of 32 fresh bytes of each. One round."""
    own = secrets.token_bytes(SEED_BYTES)
    theirs = bytes(link.exchange([own])[0])
    ordered = own + theirs if link.rank == 0 else theirs + own
    return hashlib.blake2b(ordered, digest_size=SEED_BYTES, person=b"zero share").digest()
