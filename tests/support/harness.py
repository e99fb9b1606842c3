# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Two parties in one process, on two threads joined by queues, with tuples from the dealer and everything recorded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_securerouter.mpc.gates.guard import Guard
from hf_securerouter.mpc.gates.party import Party
from hf_securerouter.mpc.gates.secret import Secret
from hf_securerouter.mpc.gates.weight_share import WeightShare, mask_weight, weight_mask, weight_share
from hf_securerouter.mpc.ring.fixed_point import from_fixed_point, to_fixed_point
from hf_securerouter.mpc.ring.randomness import Csprng, cipher_for, new_seed
from hf_securerouter.mpc.ring.words import reduce, signed, unpack
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.plan import Plan, trace
from hf_securerouter.mpc.tuples.tuple_set import TupleSet


PATIENCE = 60  # seconds that a party waits for the other


class PeerGone(Exception):
    """The other thread has failed; its own exception says why."""


class QueueLink:
    """One end of the parties' link; keeps every message that it sends."""

    def __init__(self, inbox: queue.Queue, outbox: queue.Queue):
        self.inbox, self.outbox = inbox, outbox
        self.sent: list[list[bytes]] = []

    def exchange(self, parts):
        message = [bytes(part) for part in parts]
        self.sent.append(message)
        self.outbox.put(message)
        answer = self.inbox.get(timeout=PATIENCE)
        if answer is None:
            raise PeerGone
        assert [len(part) for part in answer] == [len(part) for part in message]
        return [bytearray(part) for part in answer]


@dataclass
class Message:
    """One opening as a party saw it.

    Args:
        gate (`str`): Name of the gate.
        bits (`int`): Width of its words on the wire.
        sent (`torch.Tensor`): The words that this party sent.
        received (`torch.Tensor`): The words that the other party sent.
        opened (`torch.Tensor`): The sum of the two.
    """

    gate: str
    bits: int
    sent: Tensor
    received: Tensor
    opened: Tensor


class RecordingParty(Party):
    """A party that keeps a record of every opening."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.record: list[Message] = []

    def _open(self, openings):
        opened = super()._open(openings)
        # The record is read back from the bytes that the link sent, so it shows what really crosses the wire.
        for opening, part, value in zip(openings, self.link.sent[-1], opened, strict=True):
            sent = unpack(torch.frombuffer(bytearray(part), dtype=torch.uint8), value.shape, opening.mask.bits)
            self.keep(opening, sent.to(torch.int64), value.cpu().to(torch.int64), opening.mask.bits)
        return opened

    def keep(self, opening, sent: Tensor, opened: Tensor, bits: int) -> None:
        self.record.append(Message(opening.gate, bits, sent, reduce(opened - sent, bits), opened))


@dataclass
class Run:
    """A finished run.

    Args:
        results (`tuple`): The program's results at P0 and at P1.
        plan (`Plan`): The program's plan.
        records (`tuple[list[Message], list[Message]]`): Every opening, as each party saw it.
        sent (`tuple`): The rounds that each party sent, each a list of packed openings.
        corrections (`list[torch.Tensor]`): The dealer's corrections for P0, gate by gate.
        guard_word (`int`, *optional*): What both shares of a guard's word make.
    """

    results: tuple[Any, Any]
    plan: Plan
    records: tuple[list[Message], list[Message]]
    sent: tuple[list[list[bytes]], list[list[bytes]]]
    corrections: list[Tensor]
    guard_word: int | None = None

    @property
    def integers(self) -> Tensor:
        """The integers that the two shares of the result add up to, signed."""
        return joined(self.results)

    @property
    def values(self) -> Tensor:
        """The result as real numbers."""
        return real(self.results)

    @property
    def bits(self) -> Tensor:
        """The bits of which the result holds two XOR shares."""
        assert all(share.dtype == torch.uint8 and int(share.max()) <= 1 for share in self.results)
        return self.results[0] ^ self.results[1]


def joined(shares) -> Tensor:
    first, second = shares
    assert (first.width, first.scale, first.bound) == (second.width, second.scale, second.bound)
    return signed(first.words + second.words, first.width)


def real(shares) -> Tensor:
    first, second = shares
    return from_fixed_point(first.words + second.words, first.width, first.scale)


class Input:
    """Integers shared in a ring, to be given to a program: `x(party)` is the party's share.

    Args:
        integers (`torch.Tensor`): int64.
        width (`int`): The ring.
        scale (`int`): Fraction bits.
        bound (`int`, *optional*): log2 of the bound; the largest that the ring allows when left out.
    """

    def __init__(self, integers: Tensor, width: int, scale: int = 0, bound: int | None = None):
        mask = Csprng(new_seed(), b"input").ring(integers.shape, width).to(torch.int64)
        # Not reduced on purpose: the bits above the ring depend on the secret, and must not leave a party.
        self.shares = (integers - mask, mask)
        self.width, self.scale, self.bound = width, scale, width - scale - 2 if bound is None else bound

    @classmethod
    def real(cls, values: Tensor, width: int, scale: int, bound: int | None = None) -> Input:
        return cls(to_fixed_point(values, scale), width, scale, bound)

    def __call__(self, party: Party) -> Secret:
        return party.secret(party.constant(self.shares[party.rank]), self.width, self.scale, self.bound)


class Bits:
    """Bits that are XOR-shared: `bits(party)` is the party's share."""

    def __init__(self, bits: Tensor):
        mask = Csprng(new_seed(), b"bits").ring(bits.shape, 1)
        self.shares = (bits.to(torch.uint8) ^ mask, mask)

    def __call__(self, party: Party) -> Tensor:
        return party.constant(self.shares[party.rank])


def drive(program: Callable, parties: tuple[Party, Party], within: Callable = nullcontext) -> list[Any]:
    """Run a program at both parties, `within` a context on each thread; an exception is a party's result."""
    results: list[Any] = [None, None]

    def work(party: Party) -> None:
        try:
            with within():
                results[party.rank] = on_host(party.run(program(party)))
        except BaseException as error:
            results[party.rank] = error
            party.link.outbox.put(None)

    threads = [threading.Thread(target=work, args=(party,), daemon=True) for party in parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    return results


def on_host(result: Any) -> Any:
    """A result, or several, with all tensors in host memory."""
    if isinstance(result, (list, tuple)):
        return type(result)(on_host(part) for part in result)
    return (
        result.map(Tensor.cpu)
        if isinstance(result, Secret)
        else result.cpu()
        if isinstance(result, Tensor)
        else result
    )


def links() -> tuple[QueueLink, QueueLink]:
    one, other = queue.Queue(), queue.Queue()
    return QueueLink(one, other), QueueLink(other, one)


def attempt(
    program: Callable,
    weights: Mapping[str, Tensor] | None = None,
    seeds: tuple[bytes, bytes] | None = None,
    debug: bool = False,
    party_class: type[Party] = RecordingParty,
    device: str = "cpu",
    within: Callable = nullcontext,
    guarded: bool = False,
) -> tuple[list[Any], Run]:
    """Run a program, and hand out results and exceptions alike.

    Args:
        program (callable): From a party to its protocol.
        weights (`Mapping[str, torch.Tensor]`, *optional*): Fixed weights in clear, int64.
        seeds (`tuple[bytes, bytes]`, *optional*): Of the set of tuples; fresh when left out.
        debug (`bool`): The parties check bounds.
        party_class (`type`): `RecordingParty`, or one that leaks.
        device (`str`): Where the parties and the dealer compute.
        within (callable): Makes a context for every thread that computes.
        guarded (`bool`): Whether the parties have guards.
    """
    cipher = cipher_for(device)
    weight_seeds = (new_seed(), new_seed())
    masked = {name: mask_weight(weight_seeds, name, words, cipher) for name, words in (weights or {}).items()}
    shapes = {name: WeightShare(words.to("meta"), words.to("meta")) for name, words in masked.items()}
    plan = trace(program, shapes, cipher, guarded)
    guard_seed = new_seed()
    seeds = seeds or (new_seed(), new_seed())

    def both_masks(name: str) -> Tensor:
        return sum(weight_mask(seed, name, tuple(masked[name].shape), cipher, device) for seed in weight_seeds)

    with within():
        corrections = list(deal_set(plan, seeds, both_masks, device))
    kept = [part.clone() for part in corrections]
    parties = []
    for rank, link in enumerate(links()):
        tuples = TupleSet(plan, rank, seeds[rank], corrections.__getitem__ if rank == 0 else None, device)
        with within():
            shares = {
                name: weight_share(rank, weight_seeds[rank], name, words, cipher, device)
                for name, words in masked.items()
            }
            guard = Guard(rank, Csprng(guard_seed, b"guard", cipher, device)) if guarded else None
            party = party_class(rank, link, tuples, shares, debug=debug, device=device, guard=guard)
            tuples.prepare(party.weights, ahead=1 << 30)
        parties.append(party)
    results = drive(program, tuple(parties), within)
    # Corrections may be a read-only map of a file: no gate may write to them.
    assert all(torch.equal(now, before) for now, before in zip(corrections, kept, strict=True))
    records, sent = zip(*((party.record, party.link.sent) for party in parties), strict=True)
    word = parties[0].guard.share ^ parties[1].guard.share if guarded else None
    return results, Run(tuple(results), plan, records, sent, corrections, word)


def run(program: Callable, weights: Mapping[str, Tensor] | None = None, **options: Any) -> Run:
    """Run a program that must succeed, and check that it sent what its plan says, byte by byte and round by round."""
    results, done = attempt(program, weights, **options)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda error: isinstance(error, PeerGone)):
        raise failure
    for rounds in done.sent:
        assert len(rounds) == done.plan.rounds
        assert sum(len(part) for parts in rounds for part in parts) == done.plan.payload_bytes
    assert sum(part.numel() for part in done.corrections) == done.plan.dealer_bytes
    return done
