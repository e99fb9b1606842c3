# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A party's view of a gate, over all randomness in a tiny ring, is the same for every secret."""

from dataclasses import dataclass

import pytest
import torch

from hf_securerouter.mpc.gates import row_function
from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.argmax import Argmax, Reveal
from hf_securerouter.mpc.gates.bit_to_ring import BitToRing
from hf_securerouter.mpc.gates.bits import Thermometer, deal_thermometer, open_bits
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.gates.gate import Gate
from hf_securerouter.mpc.gates.in_range import InRange
from hf_securerouter.mpc.gates.lift import Lift, deal_lift
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.gates.maximum import Knockout
from hf_securerouter.mpc.gates.product import Product
from hf_securerouter.mpc.gates.relative_scores import RelativeScores
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.gates.row_scale import RowScale
from hf_securerouter.mpc.gates.square import SelectedSquare, Square
from hf_securerouter.mpc.gates.windowed import Window, WindowMix, WindowScores
from tests.support.enumeration import Case
from tests.support.harness import joined


def one(gate):
    """A program of one gate of one input, whose first field is its shape (runs,)."""
    return lambda runs: gate((runs,)).run


def each(*values):
    return [(value,) for value in values]


def elementwise(function):
    """Check integers against a function of the secrets."""

    def check(results, secret):
        expected = torch.as_tensor(function(*(torch.as_tensor(value) for value in secret)))
        return bool((joined(results) == expected).all())

    return check


def bits_are(function):
    def check(results, secret):
        expected = torch.tensor(function(*secret), dtype=torch.uint8)
        return bool(((results[0] ^ results[1]) == expected[:, None]).all())

    return check


def compare_case(bits, thresholds):
    return Case(
        one(lambda shape: Compare(shape, bits, thresholds)),
        (bits,),
        each(*range(-(2 ** (bits - 2)), 2 ** (bits - 2))),
        check=bits_are(lambda x: [x < threshold for threshold in thresholds]),
    )


def relu_case(bits, width):
    return Case(
        one(lambda shape: ReLU(shape, bits, width)),
        (bits,),
        each(*range(-(2 ** (bits - 2)), 2 ** (bits - 2))),
        check=elementwise(lambda x: x.clamp(min=0)),
    )


def linear(runs):
    return lambda party, x: Linear(runs, 1, 9, (("w", 2),), ("g",)).run(party, x, (0, 0), 4)


def relative_scores(runs):
    """Of one query and one key, which read entry 1 of two."""
    shape = (runs, 1, 1, 1)
    return RelativeScores(shape, shape, 9, (1,), "keys", "queries").run


def score_of(query, key, keys, queries):
    """x y + x P + y R, in 9 bits."""
    return (query[0] * key[0] + query[0] * keys[1] + key[0] * queries[1] + 256) % 512 - 256


def row_scale(runs):
    def program(party, z, y):
        rows = RowScale((runs, 1), 3, 3, 8, squares=True).start(party)
        yield from rows.open_rows(z)
        squares = rows.sum_of_squares(3)
        yield from rows.open_scalar(y)
        return rows.product(3) + squares.map(lambda words: words[:, None])

    return program


def argmax(choices):
    return lambda runs: lambda party, scores: Argmax(runs, choices, 3).run(party, scores)


def revealed_argmax(choices):
    def build(runs):
        def program(party, scores):
            found = yield from Argmax(runs, choices, 3).run(party, scores)
            return (yield from Reveal((choices, runs)).run(party, found))

        return program

    return build


def activation(function, bound=3):
    return one(lambda shape: Activation(function, shape, bound, 2, 4, bound + 9))


def row(function):
    return one(lambda shape: RowFunction(function, shape, 5, 0, 5, 1))


class InBytes:
    """For products in a ring of a few bits, whose words are bytes: they are multiplied as larger words."""

    def arranged_left(self, words):
        return super().arranged_left(words.to(torch.int64))

    def arranged_right(self, words):
        return super().arranged_right(words.to(torch.int64))


class SmallScores(InBytes, WindowScores):
    pass


class SmallMix(InBytes, WindowMix):
    pass


WINDOW = Window(length=3, reach=1, block=1)  # three tokens, which meet their neighbours and themselves


def window_scores(runs):
    return SmallScores((runs, 3, 1), (runs, 1, 3), 2, WINDOW).run


def window_scores_of(results, secret):
    """Query times key, mod 4, at the places of each block."""
    query, key = map(torch.tensor, secret)
    expected = (query @ key).gather(-1, WINDOW.places())[:, None]
    return bool((joined(results) == (expected + 2) % 4 - 2).all())


SHORT = Window(length=2, reach=1, block=1)


def window_mix(runs):
    return SmallMix((runs, 2, 1, 3), (runs, 2, 1), 2, SHORT).run


def window_mix_of(results, secret):
    """Weights times the values at their places, mod 4."""
    weights, values = map(torch.tensor, secret)
    return bool((joined(results) == (weights @ SHORT.at_places(values) + 2) % 4 - 2).all())


def in_range(runs):
    """Of a value in sixteenths, with a bound of 16; each party gives its share of the guard's word."""

    def program(party, x):
        yield from InRange((runs,)).run(party, x.with_bound(4))
        return party.guard.share

    return program


def word_tells(results, secret):
    return ((results[0] ^ results[1]) != 0) == (abs(secret[0]) >= 16 << 4)


CASES = {
    "square": Case(
        one(lambda shape: Square(shape, 4, 9)), (4,), each(*range(-4, 4)), check=elementwise(lambda x: x * x)
    ),
    "selected square": Case(
        lambda runs: lambda party, x, bit: SelectedSquare((runs, 1), 4, 9).run(party, x, bit),
        (4, 0),
        [([x], [bit]) for x in range(-4, 4) for bit in (0, 1)],
        check=elementwise(lambda x, bit: bit * x * x),
    ),
    "square with a guard": Case(
        one(lambda shape: Square(shape, 4, 9)),
        (4,),
        each(*range(-8, 8)),  # also beyond the bound of 4, where the product is wrong
        guarded=True,
    ),
    "in range": Case(
        in_range, (12,), each(0, -3, 13 << 4, 16 << 4, -(16 << 4), 47 << 4), scale=4, guarded=True, check=word_tells
    ),
    "bit to ring": Case(one(lambda shape: BitToRing(shape, 5)), (0,), each(0, 1), check=elementwise(lambda bit: bit)),
    "comparison, one block": compare_case(3, (0, 1)),
    "comparison, one full block": compare_case(5, (0, -1, 3)),
    "comparison, two blocks": compare_case(6, (0,)),
    "relu in 3 bits": relu_case(3, 4),
    "relu in 4 bits": relu_case(4, 6),
    "relu in 5 bits": relu_case(5, 6),
    "relu, two blocks": relu_case(6, 7),
    "linear": Case(
        linear,
        (9,),
        [([x], [[w, 3]], [5 - w]) for x in (-256, -1, 0, 7) for w in (-(2**62), 0, 17)],
        weights=("w", "g"),
        check=lambda results, secret: all(
            bool((joined(pair) == torch.tensor(found)).all())
            for pair, found in zip(
                zip(*results, strict=True),
                ([(secret[0][0] * w + 256) % 512 - 256 for w in weight] for weight in (secret[1][0], secret[2])),
                strict=True,
            )
        ),
    ),
    "matmul": Case(
        lambda runs: lambda party, x, y: Matmul((runs, 1, 1), (runs, 1, 1), 9).run(party, x, y),
        (9, 9),
        [([[0]], [[0]]), ([[5]], [[-3]]), ([[-16]], [[15]])],
        check=elementwise(lambda x, y: x * y),
    ),
    "scores in a window": Case(
        window_scores,
        (2, 2),
        [([[a], [b], [0]], [[c, 1, d]]) for a, b, c, d in ((0, 0, 0, 0), (1, -1, -2, 1), (-2, 1, 1, -1))],
        check=window_scores_of,
    ),
    "mix in a window": Case(
        window_mix,
        (2, 2),
        [([[[a, 1, b]], [[0, c, 1]]], [[d], [1]]) for a, b, c, d in ((0, 0, 0, 0), (1, -1, -2, 1), (-2, 1, 1, -1))],
        check=window_mix_of,
    ),
    "elementwise product": Case(
        one(lambda shape: Product(shape, 3, 3, 8)),
        (3, 3),
        [(x, y) for x in range(-2, 2) for y in range(-2, 2)],
        check=elementwise(lambda x, y: x * y),
    ),
    "scores with positions": Case(
        relative_scores,
        (9, 9),
        [([[[x]]], [[[y]]], [[[8, p]]], [[[-5, r]]]) for x, y, p, r in ((0, 0, 0, 0), (5, -3, 2**62, 9))],
        weights=("keys", "queries"),
        check=lambda results, secret: bool((joined(results) == score_of(*(part[0][0] for part in secret))).all()),
    ),
    "rows times scalars": Case(
        row_scale,
        (3, 3),
        [([z], [y]) for z in range(-2, 2) for y in range(-2, 2)],
        check=elementwise(lambda z, y: z * y + z * z),
    ),
    "argmax of 2": Case(
        argmax(2),
        (3,),
        each([0, 0], [1, 0], [0, 1], [-2, 1]),
        check=bits_are(lambda s: [s[0] >= s[1], s[0] < s[1]]),
    ),
    "argmax of 3": Case(
        argmax(3),
        (3,),
        each([0, 0, 0], [0, 1, 1], [-1, 1, 0]),
        check=bits_are(lambda s: [s.index(max(s)) == index for index in range(3)]),
    ),
    "knockout": Case(
        lambda runs: lambda party, x: Knockout((runs, 2)).run(party, x),
        (8,),
        each([0, 0], [5, 9], [63, -64]),
        check=elementwise(lambda x: x.max()),
    ),
    "gelu": Case(activation("gelu"), (12,), each(-127, -1, 0, 59, 60, 127), scale=4),
    "silu": Case(activation("silu", 4), (13,), each(-255, -176, -1, 0, 150, 175, 255), scale=4),
    "tanh": Case(activation("tanh"), (12,), each(-127, -73, 0, 1, 72, 127), scale=4),
    "exponential": Case(one(lambda shape: Exponential(shape, 4, 1, 40)), (5,), each(*range(28))),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_secret_looks_the_same_to_each_party(name, rank):
    assert CASES[name].same(rank)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("function", ["reciprocal", "inverse_sqrt"])
def test_row_functions_look_the_same_whatever_the_row(function, rank, monkeypatch):
    """With tables of 16 bins instead of 128 and windows 4 times as high as the one below."""
    for name, value in (("_BIN_BITS", 4), ("_BINS", 16), ("_RATIO_BITS", 2)):
        monkeypatch.setattr(row_function, name, value)
    row_function._coefficients.cache_clear()
    try:
        assert Case(row(function), (10,), each(32, 500, 900)).same(rank)
    finally:
        row_function._coefficients.cache_clear()


@dataclass(frozen=True)
class Raised(Gate):
    """A lift alone."""

    shape: tuple[int, ...]

    def deal(self, dealing):
        deal_lift(dealing, self.shape, 3, 4)

    def run(self, party, x):
        lift = Lift(party.take(self), self.shape, 3, 4)
        (opened,) = yield [lift.opening(x)]
        lift.opened(opened)
        return party.secret(lift.value(), 4, 0, 2)


@dataclass(frozen=True)
class Coarse(Gate):
    """A coarse index and its bit, opened masked: the building block of the curved gates."""

    shape: tuple[int, ...]

    def deal(self, dealing):
        deal_thermometer(dealing, dealing.mask(self.shape, 3).to(torch.int64), 8)
        dealing.mask(self.shape, 1)

    def run(self, party, x):
        randomness = party.take(self)
        mask = randomness.mask(self.shape, 3)
        index = Thermometer(randomness, self.shape, 8)
        (opened,) = yield [randomness.open(x.words, mask)]
        bit = index.between(opened, 2, 4)
        yield from open_bits(party, randomness, [bit])
        return bit


EVERYTHING = {
    "lift": Case(one(Raised), (3,), each(*range(-2, 2)), check=elementwise(lambda x: x)),
    "coarse index": Case(one(Coarse), (3,), each(*range(8)), check=bits_are(lambda x: [x in (2, 3)])),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", EVERYTHING)
def test_views_over_all_words_of_both_parties(name, rank):
    """Nothing is fixed: every word of both sources takes every value, pads of corrections too."""
    assert EVERYTHING[name].same(rank, everything=True)
    assert EVERYTHING[name].same(rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_revealed_choice_shows_the_choice_and_no_more(rank):
    """Scores with the same winner look the same, tied or not; another winner is noticed, as a control."""
    same = Case(revealed_argmax(3), (3,), each([0, 0, 0], [1, 0, 1], [1, -1, -2]))
    assert same.same(rank)
    other = Case(revealed_argmax(3), (3,), each([0, 0, 0], [0, 1, 0]))
    assert not other.same(rank)
