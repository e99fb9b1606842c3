# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The guard: what it notices of lifted values, of opened ones and of rows, and the one word that is left of it."""

import pytest
import torch

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.guard import Guard, PlannedGuard
from hf_securerouter.mpc.gates.in_range import InRange, between
from hf_securerouter.mpc.gates.square import SelectedSquare, Square
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from tests.support.harness import Bits, Input, run


BITS = 12  # of the ring of a lift, whose bound is 2^(BITS - 2)
BOUND = 1 << (BITS - 2)


def noticed(program, runs=6):
    """In how many of some runs the word is not 0."""
    return sum(run(program, guarded=True).guard_word != 0 for _ in range(runs))


def squared(values):
    x = Input(torch.tensor(values), 30, bound=10)
    return lambda party: Square((len(values),), BITS, 30).run(party, x(party))


def selected_squared(values):
    x, bits = Input(torch.tensor([[values]]), 30, bound=10), Bits(torch.ones(1, len(values)))
    return lambda party: SelectedSquare((1, 1, len(values)), BITS, 30).run(party, x(party), bits(party))


def in_range(values):
    x = Input(torch.tensor(values), 30, scale=6, bound=4)
    return lambda party: InRange((len(values),)).run(party, x(party))


@pytest.mark.parametrize("program", [squared, selected_squared, in_range])
def test_a_value_from_its_bound_to_three_times_it_is_always_noticed(program):
    inside = [0, 1, -1, BOUND * 7 // 8 - 1, 1 - BOUND * 7 // 8, BOUND // 2, -BOUND // 3]
    assert noticed(program(inside * 20)) == 0
    for factor in (1, 1.1, 1.5, 2, 2.5, 2.99):
        for value in (round(factor * BOUND), -round(factor * BOUND)):
            assert noticed(program([*inside, value]), runs=3) == 3, value


def test_scores_are_noticed_from_fifteen_sixteenths_of_their_bound_on():
    """So that two of a row that are not noticed are less far apart than twice the bound."""
    for value in (BOUND * 15 // 16, -BOUND * 15 // 16):
        assert noticed(in_range([value])) == 6


def test_a_wider_opening_notices_up_to_seven_times_the_bound():
    def program(value):
        x = Input(torch.tensor([3, value]), 30, scale=6, bound=4)
        return lambda party: InRange((2,), bits=7).run(party, x(party))

    assert noticed(program(BOUND * 7 // 8)) == 0
    for factor in (1, 3, 3.5, 4, 5, 6.9):
        for sign in (1, -1):
            assert noticed(program(sign * round(factor * BOUND)), runs=3) == 3, factor


def test_a_ring_without_room_for_what_is_beyond_is_refused():
    x = Input(torch.tensor([100]), 11, scale=6, bound=4)
    with pytest.raises(SecureRouterError, match="11 bits cannot be read in one of 12"):
        run(lambda party: between(party, x(party), low=0), guarded=True)


def test_rows_are_bounded_on_both_sides_exactly():
    def rows(values):
        x = Input(torch.tensor(values), 30, scale=6, bound=4)
        return lambda party: between(party, x(party), low=-2)

    low, high = 1 << 4, 119 << 3
    assert noticed(rows([low, low + 1, 100, high - 1])) == 0
    for value in (low - 1, 0, high, high + 1, 2 << 10, 5 << 9, 11 << 8):
        assert noticed(rows([100, value]), runs=3) == 3, value


def test_what_is_left_for_later_runs_after_the_program_in_one_round():
    x = Input(torch.tensor([0, 3 * BOUND // 2]), 30, scale=6, bound=4)

    def program(party):
        for _ in range(3):
            party.guard.later(InRange((2,)).run(party, x(party)))
        return (yield from InRange((2,)).run(party, x(party)))

    done = run(program, guarded=True)
    assert done.plan.rounds == 2 and done.guard_word != 0


def test_without_a_guard_nothing_is_dealt_for_it():
    plain, guarded = (run(squared([1, 2]), guarded=on) for on in (False, True))
    assert plain.guard_word is None
    assert plain.plan.payload_bytes == guarded.plan.payload_bytes
    assert guarded.plan.dealer_bytes == plain.plan.dealer_bytes + 2 * 4
    assert plain.plan.digest != guarded.plan.digest


def test_the_word_is_the_sum_of_the_words_of_the_set_bits():
    seed = new_seed()
    for count in (0, 1, 2, 3, 7, 64, 65):
        beyond = torch.arange(count).to(torch.uint8) % 3 == 1
        masks = torch.randint(0, 2, (count,), dtype=torch.uint8)
        shares = []
        for rank, bits in enumerate((masks ^ beyond.to(torch.uint8), masks)):
            guard = Guard(rank, Csprng(seed, b"guard"))
            guard.note(bits)
            guard.note(torch.zeros(3, dtype=torch.uint8))
            shares.append(guard.share)
        expected = 0
        for word in Csprng(seed, b"guard").ring((count,), 64)[beyond].tolist():
            expected ^= word
        assert shares[0] ^ shares[1] == expected
    planned = PlannedGuard()
    planned.note(torch.empty(3, dtype=torch.uint8, device="meta"))
    assert planned.share == 0
