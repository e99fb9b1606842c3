# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The parties and the dealer of the masked protocol."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ....errors import SecureRouterError
from ....routing import fill_batch
from ...gates.guard import WORD_BITS
from ...gates.weight_share import WeightShare, weight_share, whole_mask
from ...models.manifest import Manifest
from ...net.channel import Channel
from ...net.ledger import Ledger
from ...net.link import Link, LinkError
from ...ring.randomness import SEED_BYTES, Csprng, Pad
from ...ring.words import seal
from ...tuples.dealer_client import SILENCE, DealerClient
from ...tuples.dealer_service import DealerService
from ...tuples.party_set import SetLabel
from ...tuples.plan import Plan
from ..base import Program
from .evaluator import Evaluator
from .layout import ATTENTION_MASK, GUARD, SEED, all_weight_shapes, input_width, logit_width
from .programs import Inputs, secure_program
from .schedule import first_program, run_schedule
from .sharing import as_seed, check_share, input_share


DIAGNOSIS = 0.5  # seconds to wait for the dealer's last word, before a role is said to be gone


Answer = tuple[dict[str, Any], dict[str, Tensor]]


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
        return whole_mask(self._seeds, name, self._shapes[name], cipher, device)


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
            self.rank, link, sets, self._weights, self.ledger, device, plans, self.debug, self._ahead, seed
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

    def gone(self, error: SecureRouterError) -> str | None:
        """The role whose loss caused an error of this meeting; None if no role was lost.

        A lost party is known from the link, or from the dealer's last word, which may arrive a moment later.
        """
        lost = self._meeting.sets.lost(wait=DIAGNOSIS) if self._meeting is not None else None
        return lost or (f"party{1 - self.rank}" if isinstance(error, LinkError) else None)

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
        batch = header["batch"]
        return self.answer(self.inputs(batch, tensors), [batch])[0]

    def check(self, batch: int, tensors: Mapping[str, Tensor]) -> None:
        """Check the tensors that `inputs` takes, without expanding a seed.

        Raises:
            `SecureRouterError`: The tensors are not shares of `batch` inputs of this model.
        """
        check_share(self.rank, tensors, self._shapes(batch), {ATTENTION_MASK, *self.manifest.inputs})

    def inputs(self, batch: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This party's shares of a batch, from the client's tensors; nothing is exchanged.

        Raises:
            `SecureRouterError`: The tensors are not shares of `batch` inputs of this model.
        """
        cipher = self.manifest.cipher
        return {
            name: input_share(self.rank, tensors, name, shape, width, cipher)
            for name, (shape, width) in self._shapes(batch).items()
        }

    def _shapes(self, batch: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and ring width, in bits, of each input of a batch."""
        found: dict[str, tuple[tuple[int, ...], int]] = {ATTENTION_MASK: ((batch, self.manifest.max_length), 1)}
        for member, spec in self.manifest.inputs.items():
            if member != "router" or self.manifest.routes:
                shape = (batch, self.manifest.length_of(member), spec.input_size)
                found[member] = shape, input_width(self.manifest, member)
        return found

    def answer(self, inputs: Mapping[str, Tensor], counts: Sequence[int]) -> list[Answer]:
        """Answer a batch together with the other party.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): This party's shares. Under `quota` a smaller batch is filled up with
                copies of its rows.
            counts (`Sequence[int]`): Rows of each query in the batch, in their order.

        Returns:
            The result of `query` for each query, with its own rows alone.
        """
        met, evaluator = self._met, self._met.evaluator
        evaluator.used.clear()
        evaluator.guard_share = 0
        rows = fill_batch(sum(counts), self.manifest.batch or sum(counts))
        on_device = {name: words[rows].to(self.manifest.device) for name, words in inputs.items()}

        def run(name: str, shares: Inputs) -> Any:
            return evaluator.run(secure_program(self.manifest, name), shares)

        chosen, logits = run_schedule(self.manifest, run, on_device)
        width = logit_width(self.manifest)
        packed = refreshed(self.rank, met.zero_seed, evaluator.used[-1], logits.cpu(), width, counts)
        flag: dict[str, Tensor] = {}
        if self.manifest.guard:
            flag[GUARD] = refreshed_flag(met.zero_seed, evaluator.used[-1], evaluator.guard_share)
        met.sets.finished(evaluator.used)
        # The next query usually has the same shape, so its first set of tuples is dealt ahead.
        first = first_program(self.manifest, len(rows))
        met.sets.order(first, evaluator.plan(secure_program(self.manifest, first)))
        ends = list(itertools.accumulate(counts))
        experts = [None if chosen is None else chosen[end - n : end] for end, n in zip(ends, counts, strict=True)]
        return [({"experts": own}, {"logits": part, **flag}) for own, part in zip(experts, packed, strict=True)]


def refreshed_flag(zero_seed: bytes, label: SetLabel, share: int) -> Tensor:
    """A party's XOR share of the guard's word for the client, made fresh by a share of zero; uint8 (8,).

    Args:
        zero_seed (`bytes`): Of `agree_on_seed`.
        label (`SetLabel`): Of the batch's last set of tuples, which no other batch has.
        share (`int`): The share, a signed integer of 64 bits.
    """
    zero = Csprng(zero_seed, b"flag/" + label.id.encode()).ring((1,), WORD_BITS)
    return seal(torch.tensor([share]), Pad(zero, WORD_BITS, xor=True))[1]


def refreshed(
    rank: int, zero_seed: bytes, label: SetLabel, logits: Tensor, width: int, counts: Sequence[int]
) -> list[Tensor]:
    """A party's shares of the logits for the clients, made fresh by a share of zero, and packed for each query.

    Args:
        rank (`int`): 0 or 1.
        zero_seed (`bytes`): Of `agree_on_seed`.
        label (`SetLabel`): Of the batch's last set of tuples, which no other batch has.
        logits (`torch.Tensor`): The share, int64 (B, C) mod 2^`width`.
        width (`int`): Bits of its ring.
        counts (`Sequence[int]`): Rows of each query; rows beyond them are copies, and nobody's.
    """
    zero = Csprng(zero_seed, b"logits/" + label.id.encode()).ring(logits.shape, width)
    fresh = zero if rank == 0 else -zero
    words, pads = (tensor[: sum(counts)].split(list(counts)) for tensor in (logits, fresh))
    return [seal(part, Pad(pad, width))[1] for part, pad in zip(words, pads, strict=True)]


def agree_on_seed(link: Link) -> bytes:
    """A seed that only the two parties know: the hash of 32 fresh bytes of each party. One round."""
    own = secrets.token_bytes(SEED_BYTES)
    theirs = bytes(link.exchange([own])[0])
    ordered = own + theirs if link.rank == 0 else theirs + own
    return hashlib.blake2b(ordered, digest_size=SEED_BYTES, person=b"zero share").digest()
