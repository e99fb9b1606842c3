# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Statistics on what a party receives over many runs, in rings of the sizes that models use.

Every word that a party receives or opens must be uniform, alike for two secrets, and so must the sums and differences
of any two of them (and of any three, where there are few): two openings under one mask are each uniform.
"""

import itertools

import pytest
import torch
from scipy import stats

from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.argmax import Argmax
from hf_securerouter.mpc.gates.bit_to_ring import BitToRing
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.gates.maximum import Knockout
from hf_securerouter.mpc.gates.relative_scores import RelativeScores
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.gates.row_scale import RowScale
from hf_securerouter.mpc.gates.square import SelectedSquare
from tests.support.enumeration import Case
from tests.support.harness import Bits, Input, RecordingParty, attempt
from tests.support.leaks import LEAKS, Twice, gate_of


RUNS = 4099  # a prime, so that no other dimension has as many
SHOWN = 4  # number of low bits, and of top bits, that are tested
FALSE_ALARM = 1e-9


def words_seen(case, secret, rank):
    """Width and words, (runs,), of all that party `rank` receives or opens, in order; and lengths of what it sends."""
    inputs = []
    for value, width in zip(secret, case.widths, strict=False):
        value = torch.as_tensor(value).expand(RUNS, *torch.as_tensor(value).shape).contiguous()
        inputs.append(Input(value, width, case.scale, width) if width else Bits(value))
    weights = dict(zip(case.weights, map(torch.as_tensor, secret[len(case.widths) :]), strict=True))

    def program(party):
        return case.build(RUNS)(party, *(given(party) for given in inputs))

    results, done = attempt(program, weights, party_class=case.party_class)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    found = []
    for message in done.records[rank]:
        for words in (message.received, message.opened):
            (axis,) = [axis for axis, size in enumerate(words.shape) if size == RUNS]
            columns = words.to(torch.int64).movedim(axis, 0).reshape(RUNS, -1).unbind(1)
            found += [(message.bits, column.contiguous()) for column in columns]
    return found, [[len(part) for part in parts] for parts in done.sent[rank]]


def combinations(found):
    """The words, and sums and differences of two, and of three where there are few, in the smaller of their rings."""
    yield from found
    for size in (2, 3) if len(found) <= 8 else (2,):
        for parts in itertools.combinations(found, size):
            bits = min(width for width, _ in parts)
            for signs in itertools.product((1, -1), repeat=size - 1):
                total = parts[0][1].clone()
                for sign, (_, words) in zip(signs, parts[1:], strict=True):
                    total += sign * words
                yield bits, total


def histograms(bits, words):
    """Counts of the low and of the top bits."""
    shown = min(bits, SHOWN)
    for part in (words, words >> (bits - shown)):
        yield torch.bincount(part & ((1 << shown) - 1), minlength=1 << shown)


def smallest_p(case, rank):
    """The smallest p-value of all tests of one case, times their number."""
    (first, lengths), (second, other_lengths) = (words_seen(case, secret, rank) for secret in case.secrets)
    assert lengths == other_lengths
    assert [bits for bits, _ in first] == [bits for bits, _ in second]
    counts = [
        torch.stack(list(pair))
        for (bits, words), (_, others) in zip(combinations(first), combinations(second), strict=True)
        for pair in zip(histograms(bits, words), histograms(bits, others), strict=True)
    ]
    p_values = []
    for size in {count.shape[1] for count in counts}:
        table = torch.stack([count for count in counts if count.shape[1] == size]).double()
        expected = RUNS / size
        uniform = ((table - expected) ** 2 / expected).sum(-1)
        p_values += [stats.chi2.sf(uniform.numpy(), size - 1).min() * uniform.numel()]
        pooled = table.mean(1, keepdim=True).clamp(min=1e-9)
        alike = ((table - pooled) ** 2 / pooled).sum((-1, -2))
        p_values += [stats.chi2.sf(alike.numpy(), size - 1).min() * alike.numel()]
    return min(p_values)


def one(gate):
    return lambda runs: gate((runs,)).run


def row_scale(runs):
    def program(party, z, y):
        rows = RowScale((runs, 2), 20, 18, 50, squares=True).start(party)
        yield from rows.open_rows(z)
        yield from rows.open_scalar(y)
        return rows.product(3)

    return program


def twice(runs):
    """Two gates with equal fields, one after the other, on two inputs."""

    def program(party, x, y):
        for secret in (x, y):
            yield from BitToRing((runs,), 40).run(party, secret)

    return program


CASES = {
    "two equal gates": Case(twice, (0, 0), [(0, 0), (0, 1)]),
    "comparison": Case(one(lambda shape: Compare(shape, 20, (0,))), (20,), [(0,), (-200_000,)]),
    "relu": Case(one(lambda shape: ReLU(shape, 17, 24)), (17,), [(-1,), (32_000,)]),
    "linear": Case(
        lambda runs: lambda party, x: Linear(runs, 2, 33, (("w", 1),)).run(party, x, (0,), 4),
        (33,),
        [([0, 0], [[1], [1]]), ([-(2**30), 2**30], [[2**40], [-5]])],
        weights=("w",),
    ),
    "matmul": Case(
        lambda runs: lambda party, x, y: Matmul((runs, 1, 2), (runs, 2, 1), 33).run(party, x, y),
        (33, 33),
        [([[0, 0]], [[0], [0]]), ([[2**30, -1]], [[-(2**30)], [1]])],
    ),
    "scores with positions": Case(
        lambda runs: RelativeScores((runs, 1, 1, 2), (runs, 1, 2, 1), 33, (1,), "keys", "queries").run,
        (33, 33),
        [
            ([[[0, 0]]], [[[0], [0]]], [[[0, 1], [0, 1]]], [[[0, 1], [0, 1]]]),
            ([[[2**30, -1]]], [[[-(2**30)], [1]]], [[[0, 2**40], [0, -5]]], [[[3, -(2**30)], [1, 2**32]]]),
        ],
        weights=("keys", "queries"),
    ),
    "selected square": Case(
        lambda runs: lambda party, x, bit: SelectedSquare((runs, 1), 20, 50).run(party, x, bit),
        (20, 0),
        [([0], [0]), ([200_000], [1])],
    ),
    "rows times scalars": Case(row_scale, (20, 18), [([0, 0], [0]), ([-200_000, 200_000], [60_000])]),
    "bit to ring": Case(one(lambda shape: BitToRing(shape, 40)), (0,), [(0,), (1,)]),
    "argmax": Case(
        lambda runs: lambda party, scores: Argmax(runs, 3, 9).run(party, scores),
        (9,),
        [([0, 0, 0],), ([-100, 0, 100],)],
    ),
    "knockout": Case(
        lambda runs: lambda party, x: Knockout((runs, 3)).run(party, x), (8,), [([0, 0, 0],), ([63, -64, -63],)]
    ),
    "gelu": Case(one(lambda shape: Activation("gelu", shape, 5, 12, 14, 30)), (30,), [(0,), (-500_000,)], scale=14),
    "exponential": Case(one(lambda shape: Exponential(shape, 8, 12, 50)), (20,), [(0,), (1_000_000,)]),
    "row function": Case(one(lambda shape: RowFunction("reciprocal", shape, 5, 0, 5, 6)), (10,), [(32,), (900,)]),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_what_a_party_sees_is_uniform_for_either_secret(name, rank):
    assert smallest_p(CASES[name], rank) > FALSE_ALARM


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_shows_in_the_statistics(name):
    assert smallest_p(LEAKS[name], 0) < FALSE_ALARM


def test_each_word_alone_would_hide_a_reused_mask(monkeypatch):
    """The reason for looking at pairs and triples."""
    monkeypatch.setitem(globals(), "combinations", iter)
    for name in ("mask reused", "mask reused in another ring", "difference of masks opened", "shared beta"):
        assert smallest_p(LEAKS[name], 0) > FALSE_ALARM


def test_the_same_gate_without_the_leak_passes():
    case = Case(gate_of(lambda shape: Twice(shape, 4)), (4,), [(0,), (3,)], party_class=RecordingParty)
    assert smallest_p(case, 0) > FALSE_ALARM
