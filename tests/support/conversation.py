# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A whole query, program after program, by two parties in one process; everything that a role sees is kept."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_securerouter.mpc.gates.weight_share import weight_mask, weight_share
from hf_securerouter.mpc.protocols.masked import roles as masked_roles
from hf_securerouter.mpc.protocols.masked.layout import (
    ATTENTION_MASK,
    SEED,
    all_weight_shapes,
    input_width,
    logit_width,
)
from hf_securerouter.mpc.protocols.masked.programs import secure_program
from hf_securerouter.mpc.protocols.masked.schedule import run_schedule
from hf_securerouter.mpc.protocols.masked.sharing import as_seed, input_share
from hf_securerouter.mpc.ring.randomness import new_seed
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.party_set import SetLabel
from hf_securerouter.mpc.tuples.plan import Plan
from hf_securerouter.mpc.tuples.tuple_set import TupleSet
from tests.support.harness import Message, RecordingParty, drive, links
from tests.support.openings import add_openings, p_values


_PLANS: dict[tuple[str, str], Plan] = {}


@dataclass
class Query:
    """The result of a query, and everything that was sent.

    Args:
        logits (`torch.Tensor`): (B, C).
        experts (`list[int]`, *optional*): The experts in the parties' answers.
        programs (`list[str]`): The programs that were run, and so ordered from the dealer.
        records (`tuple[list[Message], list[Message]]`): Every opening, as each party saw it.
        lengths (`list[list[int]]`): Lengths of every message of both parties.
        plans (`list[Plan]`): Plans of the programs.
    """

    logits: Tensor
    experts: list[int] | None
    programs: list[str]
    records: tuple[list[Message], list[Message]]
    lengths: list[list[int]]
    plans: list


class Conversation:
    """A converted model with its weights shared once.

    Args:
        secure (`SecureModel`): The model.
        replaced (`dict`, *optional*): Programs by kind that stand in for the real ones, to show a leak.
        rows (`list[int]`, *optional*): The rows of the shares that make a batch, as servers copy them to fill it.
    """

    def __init__(self, secure: SecureModel, replaced: dict | None = None, rows: list[int] | None = None):
        self.secure, self.manifest, self.replaced = secure, secure.manifest, replaced or {}
        self.rows = rows
        roles = {"party0": {}, "party1": {}, "dealer": {}}
        for shares in secure.sharing.weights(secure.weights):
            for role, tensors in shares.items():
                roles[role] |= tensors
        self.weights = []
        for rank in (0, 1):
            tensors = dict(roles[f"party{rank}"])
            seed = as_seed(tensors.pop(SEED))
            self.weights.append({name: weight_share(rank, seed, name, words) for name, words in tensors.items()})
        seeds = [as_seed(roles["dealer"][f"{SEED}{rank}"]) for rank in (0, 1)]
        shapes = all_weight_shapes(self.manifest)
        self._mask = lambda name: sum(weight_mask(seed, name, shapes[name]) for seed in seeds)
        self._zero_seed, self._own_plans = new_seed(), {}
        self._described = json.dumps(self.manifest.to_dict(), sort_keys=True)

    def _plan(self, name, program):
        """The plan of a program: one for all conversations of equal manifests, as it depends on nothing else."""
        plans = self._own_plans if name.partition("/")[0] in self.replaced else _PLANS
        key = (self._described, name)
        if key not in plans:
            plans[key] = program.plan()
        return plans[key]

    def _program(self, name):
        program = secure_program(self.manifest, name)
        kind = name.partition("/")[0]
        return replace(program, run=self.replaced[kind]) if kind in self.replaced else program

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Query:
        """Classify a batch."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        encoded = self.secure.client.tokenize({name: value for name, value in given.items() if value is not None})
        shares = self.secure.sharing.inputs(self.secure.client.embed(encoded), encoded["attention_mask"])
        batch = len(input_ids)
        lock, sets, pair = threading.Lock(), {}, links()
        programs, records, plans = ([], []), ([], []), []

        def tuples(number, name, program):
            with lock:
                if number not in sets:
                    plan = self._plan(name, program)
                    seeds = (new_seed(), new_seed())
                    corrections = list(deal_set(plan, seeds, self._mask))
                    sets[number] = (plan, seeds, corrections, SetLabel.new(plan))
                    plans.append(plan)
                return sets[number]

        def work(rank):
            tensors = shares[f"party{rank}"]
            inputs = {
                ATTENTION_MASK: input_share(
                    rank, tensors, ATTENTION_MASK, (batch, self.manifest.max_length), 1, self.manifest.cipher
                )
            }
            for member, spec in self.manifest.inputs.items():
                shape = (batch, self.manifest.length_of(member), spec.input_size)
                inputs[member] = input_share(
                    rank, tensors, member, shape, input_width(self.manifest, member), self.manifest.cipher
                )

            if self.rows is not None:
                inputs = {name: words[self.rows] for name, words in inputs.items()}

            def run(name, given):
                program = self._program(name)
                plan, seeds, corrections, _ = tuples(len(programs[rank]), name, program)
                programs[rank].append(name)
                own = TupleSet(plan, rank, seeds[rank], corrections.__getitem__ if rank == 0 else None)
                party = RecordingParty(rank, pair[rank], own, self.weights[rank])
                own.prepare(party.weights, ahead=1 << 30)
                try:
                    return party.run(program.run(party, {key: given[key] for key in program.inputs}))
                finally:
                    records[rank].extend(party.record)

            chosen, logits = run_schedule(self.manifest, run, inputs)
            _, _, _, label = sets[len(sets) - 1]
            width, counts = logit_width(self.manifest), [len(logits)]
            return chosen, masked_roles.refreshed(rank, self._zero_seed, label, logits, width, counts)[0]

        class Worker:
            def __init__(self, rank):
                self.rank, self.link = rank, pair[rank]

            def run(self, program):
                return work(self.rank)

        results = drive(lambda party: None, (Worker(0), Worker(1)))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        assert programs[0] == programs[1] and results[0][0] == results[1][0]
        lengths = [[len(part) for part in parts] for link in pair for parts in link.sent]
        assert sum(plan.rounds for plan in plans) == len(pair[0].sent)
        assert sum(plan.payload_bytes for plan in plans) == sum(sum(parts) for parts in lengths) // 2
        packed = {f"party{rank}": {"logits": words} for rank, (_, words) in enumerate(results)}
        logits = self.secure.sharing.logits(packed)
        return Query(logits, results[0][0], programs[0], records, lengths, plans)


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

    Ranks are the one thing revealed; that they are a uniform permutation is tested with many runs by itself.
    """
    (shapes, first), (others, second) = (views(talk, batch, runs) for batch in batches)
    if shapes != others or len(shapes) != 1 or first.keys() != second.keys():
        return False
    found, shuffled = [], []
    for key, parts in first.items():
        *who, name, gate, bits = key
        if gate == "Reveal" and name == "opened" and talk.manifest.routing_privacy == "quota":
            continue
        both = [torch.stack(seen).to(torch.int64) for seen in (parts, second[key])]
        found += p_values(*both, bits)
        if gate == "Shuffle":
            sent = batches[0][0] if isinstance(batches[0], tuple) else batches[0]
            rows = len(sent if talk.rows is None else talk.rows)
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
