# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties and the dealer of the masked protocol."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from ....errors import SecureRouterError
from ...gates.weight_share import WeightShare, weight_mask, weight_share
from ...models.manifest import Manifest
from ...net.channel import Channel
from ...net.ledger import Ledger
from ...net.link import Link
from ...ring.randomness import SEED_BYTES, Csprng, Pad
from ...ring.words import seal
from ...tuples.dealer_client import SILENCE, DealerClient
from ...tuples.dealer_service import DealerService
from ...tuples.party_set import SetLabel
from ...tuples.plan import Plan
from ..base import Program
from .evaluator import Evaluator
from .layout import ATTENTION_MASK, SEED, all_weight_shapes, input_width, logit_width
from .programs import Inputs, secure_program
from .schedule import first_program, run_schedule
from .sharing import as_seed, input_share


class MaskedDealer(Program):
    """Deals the sets of tuples that the parties order, with the seeds of the weights' masks; never sees an opening."""

    def __init__(self, manifest: Manifest, ledger: Ledger, timeout: float) -> None:
        self.manifest, self.ledger, self.timeout = manifest, ledger, timeout
        self._shapes = all_weight_shapes(manifest)
        self._seeds: list[bytes] = []
        self._plans: dict[str, Plan] = {}
        self._service: DealerService | None = None

    def meet(self, channels: tuple[Channel, Channel]) -> None:
        """Deal to party 0 and party 1 over these channels from now on."""
        self._service = DealerService(channels, self._plan, self._weight_mask, self.timeout, self.manifest.device)

    def leave(self) -> None:
        """Close the channels. Sets of tuples that were dealt over them and not used are lost."""
        if self._service is not None:
            self._service.close()
            self._service = None

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        if set(tensors) != {f"{SEED}0", f"{SEED}1"}:
            raise SecureRouterError("The dealer takes the two seeds of the weights' masks and nothing else.")
        self._seeds = [as_seed(tensors[f"{SEED}{rank}"]) for rank in (0, 1)]

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        seconds, sent = self._met.wait(self.timeout)
        self.ledger.phases["dealer"] += seconds
        self.ledger.dealer(sent)
        return {}, {}

    def serve(self) -> NoReturn:
        """Deal until a party leaves.

        Raises:
            `SupplyError`: A party has left.
        """
        while True:
            self._met.wait(None)

    @property
    def _met(self) -> DealerService:
        if self._service is None:
            raise SecureRouterError("The dealer has not met the parties.")
        return self._service

    def _plan(self, name: str) -> Plan:
        if name not in self._plans:
            self._plans[name] = secure_program(self.manifest, name).plan(self.manifest.cipher)
        return self._plans[name]

    def _weight_mask(self, name: str) -> Tensor:
        cipher, device = self.manifest.cipher, self.manifest.device
        first, second = (weight_mask(seed, name, self._shapes[name], cipher, device) for seed in self._seeds)
        return first.add_(second)


@dataclass(frozen=True)
class _Meeting:
    """What a party holds while it is connected to the other roles.

    Args:
        link (`Link`): To the other party.
        sets (`DealerClient`): To the dealer.
        evaluator (`Evaluator`): Runs programs over both.
        zero_seed (`bytes`): Of the shares of zero, which only the two parties know.
    """

    link: Link
    sets: DealerClient
    evaluator: Evaluator
    zero_seed: bytes


class MaskedParty(Program):
    """A computing party: holds the masked weights, the seed of its own mask, and one share of every input.

    Args:
        rank (`int`): 0 or 1.
        manifest (`Manifest`): The public description of the model.
        ledger (`Ledger`): Counts the party's messages.
        debug (`bool`): Reveal every value that has a bound and check it; see `Party`.
        ahead (`int`, *optional*): Bytes that may be taken for what is computed before an input arrives; by default an
            eighth of what is free then.
    """

    def __init__(
        self, rank: int, manifest: Manifest, ledger: Ledger, debug: bool = False, ahead: int | None = None
    ) -> None:
        self.rank, self.manifest, self.ledger, self.debug = rank, manifest, ledger, debug
        self._ahead = ahead
        self._seed: bytes | None = None
        self._weights: dict[str, WeightShare] = {}
        self._plans: dict[str, Plan] = {}
        self._meeting: _Meeting | None = None

    def meet(self, dealer: Channel, link: Link, timeout: float, silence: float = SILENCE) -> None:
        """Compute over this link, with sets of tuples from this dealer, from now on.

        Args:
            dealer (`Channel`): To the dealer.
            link (`Link`): To the other party, counting in this party's ledger.
            timeout (`float`): Seconds to wait for a set of tuples.
            silence (`float`): Seconds without a byte from the dealer after which it counts as hung.
        """
        seed = agree_on_seed(link)
        sets = DealerClient(dealer, self.rank, timeout, silence)
        device, plans = self.manifest.device, self._plans
        evaluator = Evaluator(
            self.rank, link, sets, self._weights, self.ledger, device, plans, self.debug, self._ahead
        )
        self._meeting = _Meeting(link, sets, evaluator, seed)

    def leave(self) -> None:
        """Close the channel and the link. Sets of tuples that came over them are never used again."""
        if self._meeting is not None:
            self._meeting.sets.close()
            self._meeting.link.close()
            self._meeting = None

    def check_dealer(self) -> None:
        """Check, between queries, that the dealer is alive.

        Raises:
            `SupplyError`: The dealer has left or is silent.
        """
        self._met.sets.check()

    @property
    def _met(self) -> _Meeting:
        if self._meeting is None:
            raise SecureRouterError("The party has not met the other roles.")
        return self._meeting

    def receive_weights(self, tensors: dict[str, Tensor]) -> None:
        if self._seed is None:
            self._seed = as_seed(tensors.pop(SEED, None))
        for name, masked in tensors.items():
            self._weights[name] = weight_share(
                self.rank, self._seed, name, masked, self.manifest.cipher, self.manifest.device
            )

    def query(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return self.answer(self.inputs(header["batch"], tensors))

    def inputs(self, batch: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This party's shares of a batch, from the client's tensors; nothing is exchanged.

        Raises:
            `SecureRouterError`: The tensors are not shares of `batch` inputs of this model.
        """
        cipher = self.manifest.cipher
        inputs = {
            ATTENTION_MASK: input_share(
                self.rank, tensors, ATTENTION_MASK, (batch, self.manifest.max_length), 1, cipher
            )
        }
        for member, spec in self.manifest.inputs.items():
            if member == "router" and not self.manifest.routes:
                continue
            shape = (batch, self.manifest.length_of(member), spec.input_size)
            width = input_width(self.manifest, member)
            inputs[member] = input_share(self.rank, tensors, member, shape, width, cipher)
        return inputs

    def answer(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Answer a batch together with the other party; the result is that of `query`."""
        met, evaluator = self._met, self._met.evaluator
        evaluator.used.clear()
        on_device = {name: words.to(self.manifest.device) for name, words in inputs.items()}

        def run(name: str, shares: Inputs) -> Any:
            return evaluator.run(secure_program(self.manifest, name), shares)

        chosen, logits = run_schedule(self.manifest, run, on_device)
        width = logit_width(self.manifest)
        packed = refreshed(self.rank, met.zero_seed, evaluator.used[-1], logits.cpu(), width)
        met.sets.finished(evaluator.used)
        # The next query usually has the same shape, so its first set of tuples is dealt ahead.
        first = first_program(self.manifest, len(inputs[ATTENTION_MASK]))
        met.sets.order(first, evaluator.plan(secure_program(self.manifest, first)))
        return {"experts": chosen}, {"logits": packed}


def refreshed(rank: int, zero_seed: bytes, label: SetLabel, logits: Tensor, width: int) -> Tensor:
    """A party's share of the logits for the client, made fresh by a share of zero, and packed.

    Args:
        rank (`int`): 0 or 1.
        zero_seed (`bytes`): Of `agree_on_seed`.
        label (`SetLabel`): Of the query's last set of tuples, which no other query has.
        logits (`torch.Tensor`): The share, int64 (B, C) mod 2^`width`.
        width (`int`): Bits of its ring.
    """
    zero = Csprng(zero_seed, b"logits/" + label.id.encode()).ring(logits.shape, width)
    return seal(logits, Pad(zero if rank == 0 else -zero, width))[1]


def agree_on_seed(link: Link) -> bytes:
    """A seed that only the two parties know: the hash of 32 fresh bytes of each party. One round."""
    own = secrets.token_bytes(SEED_BYTES)
    theirs = bytes(link.exchange([own])[0])
    ordered = own + theirs if link.rank == 0 else theirs + own
    return hashlib.blake2b(ordered, digest_size=SEED_BYTES, person=b"zero share").digest()
