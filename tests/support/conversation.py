# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A whole query, program after program, by two parties in one process; everything that a role sees is kept."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hf_securerouter.mpc.gates.weight_share import weight_mask
from hf_securerouter.mpc.net.ledger import Ledger
from hf_securerouter.mpc.protocols.masked import evaluator as evaluators
from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.protocols.masked.layout import SEED, all_weight_shapes
from hf_securerouter.mpc.protocols.masked.sharing import as_seed
from hf_securerouter.mpc.ring.randomness import new_seed
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.party_set import PartySet, SetLabel
from hf_securerouter.mpc.tuples.plan import Plan
from tests.support.harness import Message, QueueLink, RecordingParty, drive, links
from tests.support.openings import add_openings, p_values


_PLANS: dict[str, dict[str, Plan]] = {}  # by manifest, on which alone plans depend


@dataclass
class Query:
    """The result of a query, and everything that was sent.

    Args:
        logits (`torch.Tensor`): (B, C).
        in_bounds (`bool`, *optional*): What the guard tells the client.
        experts (`list[int]`, *optional*): The experts in the parties' answers.
        programs (`list[str]`): The programs that were run, and so ordered from the dealer.
        records (`tuple[list[Message], list[Message]]`): Every opening, as each party saw it.
        lengths (`list[list[int]]`): Lengths of every message of both parties.
        plans (`list[Plan]`): Plans of the programs.
        results (`tuple`): What the last program left at each party.
        answers (`tuple[dict, dict]`): What each party sent to the client.
    """

    logits: Tensor
    in_bounds: bool | None
    experts: list[int] | None
    programs: list[str]
    records: tuple[list[Message], list[Message]]
    lengths: list[list[int]]
    plans: list[Plan]
    results: tuple[Any, ...]
    answers: tuple[dict[str, Tensor], ...]


class Dealt:
    """The sets of tuples of both parties, dealt in this process when one of them asks first."""

    def __init__(self, mask):
        self._mask, self._lock, self._sets, self._taken = mask, threading.Lock(), [], [0, 0]

    def take(self, rank: int, plan: Plan) -> PartySet:
        with self._lock:
            if self._taken[rank] == len(self._sets):
                seeds = (new_seed(), new_seed())
                corrections = list(deal_set(plan, seeds, self._mask))
                self._sets.append((SetLabel.new(plan), seeds, corrections))
            label, seeds, corrections = self._sets[self._taken[rank]]
            self._taken[rank] += 1
        return PartySet(label, rank, seeds[rank], corrections.__getitem__ if rank == 0 else None)


@dataclass
class Sets:
    """A party's end of the dealer; nothing is ordered ahead."""

    rank: int
    dealt: Dealt

    def take(self, name, plan):
        return self.dealt.take(self.rank, plan)

    def order(self, name, plan):
        pass

    def finished(self, labels):
        pass


class Evaluator(evaluators.Evaluator):
    """An evaluator that keeps what was run, with what result, and runs other programs in place of some."""

    def __init__(self, *args, replaced: Mapping[str, Any], lock: threading.Lock, **options):
        super().__init__(*args, **options)
        self._replaced, self._lock = replaced, lock
        self.record: list[Message] = []
        self.programs: list[str] = []
        self.result: Any = None

    def plan(self, program):
        with self._lock:  # both parties share their plans
            return super().plan(self._own(program))

    def run(self, program, inputs):
        self.programs.append(program.name)
        self.result = super().run(self._own(program), inputs)
        return self.result

    def _own(self, program):
        run = self._replaced.get(program.name.partition("/")[0], program.run)
        return replace(program, run=run)


class AgreedLink(QueueLink):
    """A link of parties that agree; what a real one compares is tested in `test_dealer_client.py`."""

    def agree(self, facts):
        pass


@dataclass
class Server:
    """A party, and what it shares with the harness: it runs one batch, as `drive` runs a protocol."""

    party: masked_roles.MaskedParty
    link: QueueLink
    evaluator: Evaluator
    asked: tuple = field(default=())

    @property
    def rank(self) -> int:
        return self.party.rank

    def run(self, _):
        tensors, batch, rows = self.asked
        inputs = self.party.inputs(batch, tensors)
        if rows is not None:
            inputs = {name: words[rows] for name, words in inputs.items()}
        return self.party.answer(inputs, [batch if rows is None else len(rows)])[0]


class Conversation:
    """A converted model with its weights shared once, and two parties who have met: `MaskedParty`, over queues.

    Args:
        secure (`SecureModel`): The model.
        replaced (`dict`, *optional*): Programs by kind that stand in for the real ones, to show a leak.
        rows (`list[int]`, *optional*): The rows of the shares that make a batch, as servers copy them to fill it.
    """

    def __init__(self, secure: SecureModel, replaced: dict | None = None, rows: list[int] | None = None):
        self.secure, self.manifest, self.rows = secure, secure.manifest, rows
        roles = {"party0": {}, "party1": {}, "dealer": {}}
        for shares in secure.sharing.weights(secure.weights):
            for role, tensors in shares.items():
                roles[role] |= tensors
        seeds = [as_seed(roles["dealer"][f"{SEED}{rank}"]) for rank in (0, 1)]
        shapes = all_weight_shapes(self.manifest)
        dealt = Dealt(lambda name: sum(weight_mask(seed, name, shapes[name]) for seed in seeds))
        described = json.dumps(self.manifest.to_dict(), sort_keys=True)
        common = {
            "plans": {} if replaced else _PLANS.setdefault(described, {}),
            "replaced": replaced or {},
            "lock": threading.Lock(),
            "ahead": 1 << 30,
            "guard_seed": new_seed(),
        }
        self.servers = tuple(
            self._server(rank, roles[f"party{rank}"], AgreedLink(link.inbox, link.outbox), dealt, common)
            for rank, link in enumerate(links())
        )

    def _server(self, rank, weights, link, dealt, common):
        """A party with its shares of the weights, as `MaskedParty.meet` leaves it."""
        ledger = Ledger()
        party, sets = masked_roles.MaskedParty(rank, self.manifest, ledger), Sets(rank, dealt)
        party.receive_weights(weights)
        evaluator = Evaluator(rank, link, sets, party._weights, ledger, **common)
        party._meeting = masked_roles._Meeting(link, sets, evaluator, common["guard_seed"])
        return Server(party, link, evaluator)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Query:
        """Classify a batch."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        encoded = self.secure.client.tokenize({name: value for name, value in given.items() if value is not None})
        shares = self.secure.sharing.inputs(self.secure.client.embed(encoded), encoded["attention_mask"])
        for server in self.servers:
            server.asked = shares[f"party{server.rank}"], len(input_ids), self.rows
            server.evaluator.record, server.evaluator.programs = [], []
            server.link.sent.clear()

        def recording(rank, *args):
            party = RecordingParty(rank, *args)
            party.record = self.servers[rank].evaluator.record
            return party

        with mock.patch.object(evaluators, "Party", recording):
            results = drive(lambda _: None, self.servers)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        (header, *_), (other, *_) = results
        first, second = (server.evaluator for server in self.servers)
        assert first.programs == second.programs and header == other
        plans = [first._plans[name] for name in first.programs]
        lengths = [[len(part) for part in parts] for server in self.servers for parts in server.link.sent]
        assert sum(plan.rounds for plan in plans) == len(self.servers[0].link.sent)
        assert sum(plan.payload_bytes for plan in plans) == sum(sum(parts) for parts in lengths) // 2
        answers = {f"party{rank}": tensors for rank, (_, tensors) in enumerate(results)}
        return Query(
            logits=self.secure.sharing.logits(answers),
            in_bounds=self.secure.sharing.in_bounds(answers),
            experts=header["experts"],
            programs=first.programs,
            records=(first.record, second.record),
            lengths=lengths,
            plans=plans,
            results=(first.result, second.result),
            answers=tuple(answers.values()),
        )


def views(talk, batch, runs):
    """The views of both servers and the dealer over some runs: programs ordered, all lengths, all openings.

    A batch is token ids, or a tuple of ids and mask.
    """
    ids, mask = batch if isinstance(batch, tuple) else (batch, torch.ones_like(batch))
    shapes, openings = set(), {}
    for _ in range(runs):
        done = talk(ids, mask)
        shapes.add((tuple(done.programs), tuple(map(tuple, done.lengths))))
        add_openings(openings, done.records)
    return shapes, openings


def looks_alike(talk, batches, runs=6):
    """Whether two batches look the same to every role: shapes equal, all words uniform, and so all differences of two
    tensors of one shuffle, row by row: they would show two tensors under one mask.

    The ranks of `quota` are bits of one order, which depend on each other. They have to be an order in every run, and
    uniform where pairs have no query in common; that orders are uniform is tested with many runs by itself.
    """
    (shapes, first), (others, second) = (views(talk, batch, runs) for batch in batches)
    if shapes != others or len(shapes) != 1 or first.keys() != second.keys():
        return False
    sent = batches[0][0] if isinstance(batches[0], tuple) else batches[0]
    rows = len(sent if talk.rows is None else talk.rows)
    pairs = list(itertools.combinations(range(rows), 2))
    found, shuffled = [], []
    for key, parts in first.items():
        *who, name, gate, bits = key
        both = [torch.stack(seen).to(torch.int64) for seen in (parts, second[key])]
        if gate == "Reveal" and name == "opened" and len(parts[0]) == len(pairs):
            if not all(is_order(rows, bits) for words in both for bits in words.tolist()):
                return False
            apart = [pairs.index((row, row + 1)) for row in range(0, rows - 1, 2)]
            both = [words[:, apart] for words in both]
        found += p_values(*both, bits)
        if gate == "Shuffle":
            shuffled.append(((who[0], name), bits, [words.view(runs, rows, -1) for words in both]))
    for (who, bits, one), (other, other_bits, another) in itertools.combinations(shuffled, 2):
        if who == other:
            columns, ring = min(one[0].shape[2], another[0].shape[2]), min(bits, other_bits)
            differences = [
                (a[..., :columns] - b[..., :columns]).flatten(1) & ((1 << ring) - 1)
                for a, b in zip(one, another, strict=True)
            ]
            found += p_values(*differences, ring)
    return min(found) * len(found) > 1e-6


def is_order(count, smaller):
    """Whether bits tell, for every pair of `count` keys, which one is smaller, as some order of the keys does."""
    pairs = itertools.combinations(range(count), 2)
    wins = [second if bit else first for (first, second), bit in zip(pairs, smaller, strict=True)]
    return sorted(map(wins.count, range(count))) == list(range(count))
