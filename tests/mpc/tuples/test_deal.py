# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Tuples: dealt from a plan and two seeds, read in the same order, each by one gate, once."""

import time
from dataclasses import dataclass

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.gate import Dealing, Gate, Tuple, drawn_bytes, together
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.party import Party
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from hf_securerouter.mpc.ring.words import reduce
from hf_securerouter.mpc.tuples import deal
from hf_securerouter.mpc.tuples.deal import deal_set
from hf_securerouter.mpc.tuples.plan import trace
from hf_securerouter.mpc.tuples.tuple_set import TupleSet
from tests.support.harness import Input, joined, run


def two_gates(party, share):
    x = share(party)
    y = yield from ReLU((8,), 16, 30).run(party, x)
    return (yield from ReLU((8,), 20, 30).run(party, y.narrow(20)))


def plan_and_input():
    share = Input(torch.arange(-4, 4), 16)
    return trace(lambda party: two_gates(party, share)), share


@pytest.mark.parametrize("bits", [1, 3, 8, 9, 40, 63, 64])
def test_words_given_add_up_to_what_the_dealer_chose(bits):
    values = Csprng(new_seed(), b"values").ring((5, 13), 64)
    seeds = new_seed(), new_seed()
    dealing = Dealing(tuple(Csprng(seed, b"test") for seed in seeds))
    mask = dealing.mask((7,), bits)
    dealing.give(values, bits)
    dealing.give_bits(values.to(torch.uint8))
    corrections = torch.cat(dealing.corrections)
    tuples = [
        Tuple(Compare((7,), 8, (0,)), rank, Csprng(seed, b"test"), corrections if rank == 0 else None)
        for rank, seed in enumerate(seeds)
    ]
    pads = [part.mask((7,), bits) for part in tuples]
    assert torch.equal(reduce(pads[0].words + pads[1].words, bits), mask)
    words = [part.word((5, 13), bits) for part in tuples]
    assert torch.equal(reduce(words[0] + words[1], bits).to(torch.int64), reduce(values, bits))
    strings = [part.bits((5, 13)) for part in tuples]
    assert torch.equal(strings[0] ^ strings[1], values.to(torch.uint8))


@pytest.mark.parametrize(("bits", "width"), [(3, 4), (3, 8), (3, 9), (8, 9), (30, 64), (63, 64)])
def test_a_lifted_mask_is_the_same_in_both_rings(bits, width):
    seeds = new_seed(), new_seed()
    dealing = Dealing(tuple(Csprng(seed, b"test") for seed in seeds))
    mask = dealing.lift_mask((100,), bits, width).to(torch.int64)
    corrections = torch.cat(dealing.corrections)
    assert corrections.numel() == -(-100 * (width - bits) // 8)
    found = [
        Tuple(Compare((7,), 8, (0,)), rank, Csprng(seed, b"test"), corrections if rank == 0 else None).lift_mask(
            (100,), bits, width
        )
        for rank, seed in enumerate(seeds)
    ]
    assert torch.equal(reduce(found[0][0].words + found[1][0].words, bits).to(torch.int64), mask)
    assert torch.equal(reduce(found[0][1] + found[1][1], width), mask)
    assert {pad.bits for pad, _ in found} == {bits}


def test_a_set_is_made_of_the_plan_and_the_seeds():
    plan, _ = plan_and_input()
    seeds = new_seed(), new_seed()
    first, again = ([part.tolist() for part in deal_set(plan, seeds)] for _ in range(2))
    assert first == again
    assert [len(part) for part in first] == list(plan.correction_bytes)
    others = [list(deal_set(plan, pair)) for pair in ((seeds[1], seeds[0]), (seeds[0], new_seed()))]
    assert all(part.tolist() != first[index] for other in others for index, part in enumerate(other))


def test_gates_made_side_by_side_are_those_made_one_after_another(monkeypatch):
    """Corrections come in the order of the plan, whichever is ready first; those not requested are not made."""

    @dataclass(frozen=True)
    class Slow(Gate):
        index: int

        def deal(self, dealing):
            started.append(self.index)
            if self.index % 2 == 0:
                time.sleep(0.01)
            dealing.give(dealing.mask((4,), 20) + self.index, 20)

        def run(self, party):
            yield from ()
            randomness = party.take(self)
            randomness.mask((4,), 20), randomness.word((4,), 20)

    def program(party):
        for index in range(9):
            yield from Slow(index).run(party)

    started: list[int] = []
    plan, seeds = trace(program), (new_seed(), new_seed())
    together = [part.tolist() for part in deal_set(plan, seeds)]
    monkeypatch.setattr(deal, "SIDE_BY_SIDE", 1)
    assert [part.tolist() for part in deal_set(plan, seeds)] == together
    started.clear()
    dealt = deal_set(plan, seeds)
    next(dealt)
    dealt.close()
    assert started[0] == 0 and len(started) <= 2


def test_masks_differ_between_runs_and_between_gates():
    _, share = plan_and_input()
    runs = [run(lambda party: two_gates(party, share)) for _ in range(2)]
    assert all(torch.equal(done.integers, torch.arange(-4, 4).clamp(min=0)) for done in runs)
    for rank in (0, 1):
        sent = [b"".join(parts) for done in runs for parts in done.sent[rank] if len(b"".join(parts)) > 4]
        assert len(set(sent)) == len(sent) > 4


def test_equal_gates_of_one_plan_have_masks_of_their_own():
    """Under one keystream, two gates would open the difference of their inputs."""
    shares = Input(torch.full((64,), 3), 30), Input(torch.full((64,), 10), 30)
    gate = Compare((64,), 30, (0,))

    def program(party):
        for share in shares:
            yield from gate.run(party, share(party))

    done = run(program)
    for rank in (0, 1):
        first, second = (message for message in done.records[rank] if message.bits == 30)
        assert not ((second.opened - first.opened) % 2**30 == 7).any()
    assert not torch.equal(*done.corrections)


def test_one_set_for_two_inputs_would_open_their_difference():
    """The reason why a set serves one run."""
    seeds = new_seed(), new_seed()
    opened = []
    for value in (3, 10):
        share = Input(torch.full((8,), value), 16)
        done = run(lambda party, share=share: two_gates(party, share), seeds=seeds)
        opened.append(done.records[0][0].opened)
    assert bool(((opened[1] - opened[0]) % 2**16 == 7).all())


def test_corrections_that_end_early_are_refused():
    plan, share = plan_and_input()
    seeds = new_seed(), new_seed()
    corrections = list(deal_set(plan, seeds))
    tuples = TupleSet(plan, 0, seeds[0], lambda index: corrections[index][:4])
    with pytest.raises(SecureRouterError, match="corrections for `ReLU` end too early"):
        Party(0, None, tuples).run(two_gates(Party(0, None, tuples), share))


def test_a_tuple_is_handed_out_once_and_in_order():
    plan, _ = plan_and_input()
    seeds = new_seed(), new_seed()
    corrections = list(deal_set(plan, seeds))
    first, second = plan.gates
    with pytest.raises(SecureRouterError, match="Gate 0 of the plan is not `ReLU`"):
        TupleSet(plan, 0, seeds[0], corrections.__getitem__)(second)
    tuples = TupleSet(plan, 0, seeds[0], corrections.__getitem__)
    tuples(first)
    with pytest.raises(SecureRouterError, match="Gate 1 of the plan is not `ReLU`"):
        tuples(first)
    tuples = TupleSet(plan, 1, seeds[1])
    tuples(first)
    tuples(second)
    with pytest.raises(SecureRouterError, match="Gate 2 of the plan is not `ReLU`"):
        tuples(second)


def test_a_dealer_that_disagrees_with_the_plan_is_stopped():
    @dataclass(frozen=True)
    class Generous(Gate):
        def deal(self, dealing):
            dealing.give(torch.zeros(3), 8)

        def run(self, party):
            yield from ()
            party.take(self).word((2,), 8)

    plan = trace(lambda party: Generous().run(party))
    with pytest.raises(SecureRouterError, match="`Generous` deals 3 bytes where its protocol reads 2"):
        list(deal_set(plan, (new_seed(), new_seed())))


def test_what_needs_no_input_is_made_ahead_or_when_it_is_needed():
    """The same products either way: the parties need not prepare."""
    share = Input(torch.arange(6).view(2, 3), 30)
    weights = {"w": torch.arange(12).view(3, 4)}
    gate = Linear(2, 3, 30, (("w", 4),))
    results = []
    for prepare in (TupleSet.prepare, lambda self, weights, ahead: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TupleSet, "prepare", prepare)
            done = run(lambda party: gate.run(party, share(party), (0,), 10), weights)
        results.append(joined([result[0] for result in done.results]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], torch.arange(6).view(2, 3) @ weights["w"])


@pytest.mark.parametrize("gate", [Activation("gelu", (9,), 5, 12, 14, 38), Compare((9,), 20, (3, -5))])
@pytest.mark.parametrize("rank", [0, 1])
def test_words_drawn_ahead_are_those_drawn_when_needed(gate, rank):
    plan = trace(
        lambda party: gate.run(party, party.secret(torch.empty(9, dtype=torch.int64, device="meta"), 38, 14, 5))
    )
    seeds = new_seed(), new_seed()
    (corrections,) = deal_set(plan, seeds)

    def words(ahead):
        source = Csprng(seeds[rank], b"tuple/0")
        randomness = Tuple(gate, rank, source, corrections if rank == 0 else None)
        randomness.read_ahead(plan.draws[0][:ahead])
        kinds = {"mask": randomness.mask, "word": randomness.word, "bits": lambda shape, _: randomness.bits(shape)}
        found = []
        for kind, shape, bits in plan.draws[0]:
            drawn = randomness._draw("free", shape, bits) if kind == "free" else kinds[kind](shape, bits)
            found.append(drawn.words if kind == "mask" else drawn)
        return found

    expected = words(0)
    assert drawn_bytes(plan.draws[0]) == sum(part.numel() * part.element_size() for part in expected)
    for ahead in (1, len(expected) // 2, len(expected)):
        assert all(torch.equal(one, other) for one, other in zip(expected, words(ahead), strict=True))


def test_only_what_the_plan_has_is_drawn_ahead():
    gate = Compare((9,), 20, (3,))
    randomness = Tuple(gate, 1, Csprng(new_seed(), b"tuple/0"))
    randomness.read_ahead([("mask", (9,), 20), ("word", (9,), 1)])
    randomness.mask((9,), 20)
    with pytest.raises(SecureRouterError, match="`Compare` asks for other words than its plan has"):
        randomness.word((9,), 2)


def test_corrections_that_are_read_are_dropped():
    gate = Compare((9,), 20, (3,))
    randomness = Tuple(gate, 0, Csprng(new_seed(), b"tuple/0"), torch.zeros(6, dtype=torch.uint8))
    randomness.word((2,), 12)
    assert randomness._corrections is not None
    randomness.word((2,), 12)
    assert randomness._corrections is None
    with pytest.raises(SecureRouterError, match="end too early"):
        randomness.word((1,), 1)


def test_what_needs_no_input_is_made_as_far_as_memory_allows():
    """A gate without room is prepared when it is its turn; prepared gates come before words drawn ahead."""
    first, second = (Linear(rows, 3, 30, (("w", 4),)) for rows in (2, 5))

    def program(party):
        yield from Compare((9,), 20, (3,)).run(party, party.secret(torch.zeros(9, dtype=torch.int64), 20, 0, 10))
        for gate in (second, first):
            words = torch.zeros(gate.rows, 3, dtype=torch.int64)
            yield from gate.run(party, party.secret(words, 30, 0, 10), (0,), 10)

    words = torch.zeros(3, 4, dtype=torch.int64)
    weights = {"w": WeightShare(words, words)}
    meta = {"w": WeightShare(words.to("meta"), words.to("meta"))}
    plan = trace(program, meta)
    compare, large, small = (drawn_bytes(draws) for draws in plan.draws)
    for ahead, ready in (
        (0, []),
        (small, [2]),
        (large, [1]),
        (large + small, [1, 2]),
        (compare + large + small, [0, 1, 2]),
    ):
        tuples = TupleSet(plan, 1, new_seed())
        tuples.prepare(weights, ahead)
        assert sorted(tuples._ready) == ready


def test_a_plan_knows_which_tuples_live_together():
    def one(party, gate):
        yield from gate.run(party, party.secret(torch.empty(gate.shape, dtype=torch.int64, device="meta"), 20, 0, 10))

    def program(party):
        held = party.take(Compare((1,), 20, (0,)))
        yield from together(one(party, Compare((2,), 20, (0,))), one(party, Compare((3,), 20, (0,))))
        del held
        yield from one(party, Compare((4,), 20, (0,)))

    assert trace(program).ends == (3, 3, 3, 4)


@pytest.mark.parametrize("gates", [0, 1, 2])
def test_memory_limits_what_is_drawn_ahead(monkeypatch, gates):
    plan, share = plan_and_input()
    sizes = [drawn_bytes(draws) for draws in plan.draws]
    prepare = TupleSet.prepare
    monkeypatch.setattr(TupleSet, "prepare", lambda self, weights, ahead: prepare(self, weights, sum(sizes[:gates])))
    drawn = []
    read_ahead = Tuple.read_ahead
    monkeypatch.setattr(Tuple, "read_ahead", lambda self, draws: drawn.append(draws) or read_ahead(self, draws))
    done = run(lambda party: two_gates(party, share))
    assert drawn.count(plan.draws[0]) == 2 * (gates > 0) and drawn.count(plan.draws[1]) == 2 * (gates > 1)
    assert joined(done.results).tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
