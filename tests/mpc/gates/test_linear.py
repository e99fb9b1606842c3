# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Gates that multiply, compared with exact integers, and gates side by side."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_securerouter.errors import SecureRouterError
from hf_securerouter.mpc.gates.bit_to_ring import BitToRing
from hf_securerouter.mpc.gates.gate import together
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_scale import RowScale
from hf_securerouter.mpc.gates.square import SelectedSquare, Square
from hf_securerouter.mpc.ring.randomness import Csprng, new_seed
from hf_securerouter.mpc.ring.words import RingWidthError, signed
from tests.support.harness import Bits, Input, joined, real, run


def anything(shape, width):
    """Integers from all over Z_2^width, its ends among them."""
    words = signed(Csprng(new_seed(), b"test").ring(shape, width), width)
    flat = words.reshape(-1)
    ends = torch.tensor([0, 1, -1, 2 ** (width - 1) - 1, -(2 ** (width - 1))])[: flat.numel()]
    flat[: len(ends)] = ends
    return words


def bounded(shape, bits):
    """Integers from -2^bits to 2^bits - 1; both ends are included from five elements on."""
    words = torch.randint(-(2**bits), 2**bits, shape)
    ends = torch.tensor([0, 1, -1, 2**bits - 1, -(2**bits)])
    words.view(-1)[: len(ends)] = ends[: words.numel()]
    return words


@pytest.mark.parametrize("width", [9, 17, 40, 64])
@pytest.mark.parametrize("extra", [0, 7])
def test_linear_is_exact_for_every_weight_of_one_opening(width, extra):
    weights = {"a": anything((6, 4), 64), "b": anything((6, 1), 64), "gamma": anything((6,), 64)}
    own = min(64, width + extra)
    x = anything((5, 6), own)
    share = Input(x, own, scale=3)
    gate = Linear(5, 6, width, (("a", 4), ("b", 1)), ("gamma",))
    done = run(lambda party: gate.run(party, share(party), (10, 0, 4), 7), weights)
    expected = [x @ weights["a"], x @ weights["b"], x * weights["gamma"]]
    for index, (words, scale) in enumerate(zip(expected, (13, 3, 7), strict=True)):
        shares = [result[index] for result in done.results]
        assert torch.equal(joined(shares), signed(words, width))
        assert {(share.width, share.scale, share.bound) for share in shares} == {(width, scale, 7)}


def test_linear_as_real_numbers():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    share = Input.real(x, 40, 14, 3)
    gate = Linear(8, 16, 40, (("w", 5),))
    done = run(lambda party: gate.run(party, share(party), (14,), 6), {"w": torch.round(weight * 2**14).long()})
    found = real([result[0] for result in done.results])
    assert float((found - x @ weight).abs().max()) < 16 * 4 * 2.0**-14
    cut = real([result[0].truncate(14) for result in done.results])
    assert float((cut - found).abs().max()) < 2.0**-14


def test_linear_refuses_a_share_of_too_small_a_ring():
    share = Input(torch.zeros(1, 2, dtype=torch.int64), 20)
    gate = Linear(1, 2, 21, (("w", 2),))
    with pytest.raises(SecureRouterError, match="`Linear` opens 21 bits of a share that has 20"):
        run(lambda party: gate.run(party, share(party), (0,), 1), {"w": torch.eye(2, dtype=torch.int64)})


@pytest.mark.parametrize("width", [9, 33, 64])
@pytest.mark.parametrize(
    ("left", "right"), [((1, 1), (1, 1)), ((4, 3), (3, 5)), ((2, 3, 4, 5), (2, 3, 5, 6)), ((7, 2, 2), (7, 2, 1))]
)
def test_matmul_is_exact(width, left, right):
    x, y = anything(left, width), anything(right, width)
    shares = Input(x, width, 2), Input(y, width, 5)
    done = run(lambda party: Matmul(left, right, width).run(party, *(share(party) for share in shares)))
    assert torch.equal(done.integers, signed(x @ y, width))
    assert {share.scale for share in done.results} == {7}


def test_operands_of_a_product_may_be_opened_in_different_rounds():
    x, y = anything((3, 4), 30), anything((4, 2), 30)
    shares = Input(x, 30), Input(y, 30)

    def program(party):
        operands = Matmul((3, 4), (4, 2), 30).start(party)
        yield from operands.open_right(shares[1](party))
        yield from operands.open_left(shares[0](party))
        return operands.product(9)

    done = run(program)
    assert done.plan.rounds == 2
    assert torch.equal(done.integers, signed(x @ y, 30))


@given(st.integers(4, 30), st.integers(2, 34))
@settings(max_examples=15, deadline=None)
def test_squares_are_exact(bits, extra):
    width = min(64, bits + extra)
    x = bounded((40,), bits - 2)
    share = Input(x, bits, 3, 4)
    done = run(lambda party: Square((40,), bits, width).run(party, share(party)))
    assert torch.equal(done.integers, signed(x * x, width))
    assert {(share.scale, share.bound) for share in done.results} == {(6, 8)}


@given(st.integers(4, 30), st.integers(2, 34))
@settings(max_examples=15, deadline=None)
def test_selected_squares_are_exact(bits, extra):
    width = min(64, bits + extra)
    x, live = bounded((3, 2, 5), bits - 2), torch.randint(0, 2, (3, 5))
    share, flags = Input(x, bits), Bits(live)
    gate = SelectedSquare((3, 2, 5), bits, width)
    done = run(lambda party: gate.run(party, share(party), flags(party)))
    assert torch.equal(done.integers, signed(x * x * live[:, None, :], width))


@pytest.mark.parametrize("width", [1, 2, 8, 9, 40, 64])
def test_a_bit_enters_any_ring(width):
    bits = torch.randint(0, 2, (200,))
    flags = Bits(bits)
    done = run(lambda party: BitToRing((200,), width).run(party, flags(party)))
    assert torch.equal((done.results[0].words + done.results[1].words) % 2 ** min(width, 62), bits)


@pytest.mark.parametrize(
    ("bits", "scalar_bits", "width"), [(4, 4, 9), (12, 9, 40), (23, 21, 64), (30, 26, 60), (30, 40, 64), (40, 40, 64)]
)
def test_rows_times_scalars_and_sums_of_squares_are_exact(bits, scalar_bits, width):
    z, y = bounded((6, 7), bits - 2), bounded((6, 1), scalar_bits - 2)
    shares = Input(z, bits, 3), Input(y, scalar_bits, 5)
    gate = RowScale((6, 7), bits, scalar_bits, width, squares=True)

    def program(party):
        rows = gate.start(party)
        yield from rows.open_rows(shares[0](party))
        squares = rows.sum_of_squares(4)
        yield from rows.open_scalar(shares[1](party))
        return squares, rows.product(6)

    done = run(program)
    squares, product = (list(pair) for pair in zip(*done.results, strict=True))
    assert torch.equal(joined(squares), signed((z * z).sum(-1), width))
    assert torch.equal(joined(product), signed(z * y, width))
    assert {(share.scale, share.bound) for share in product} == {(8, 6)}
    assert {(share.scale, share.bound) for share in squares} == {(6, 4)}


def test_a_lift_refuses_a_share_of_a_smaller_ring():
    """Read in a wider ring than its own, a value would be wrong."""
    share = Input(torch.zeros(3, dtype=torch.int64), 20)
    for gate in (Square((3,), 21, 40), ReLU((3,), 21, 40)):
        with pytest.raises(SecureRouterError, match="ring of 20 bits cannot be read in one of 21"):
            run(lambda party, gate=gate: gate.run(party, share(party)))
    with pytest.raises(SecureRouterError, match="ring of 20 bits cannot be read in one of 21"):
        gate = SelectedSquare((1, 3), 21, 40)
        run(lambda party: gate.run(party, share(party).map(lambda w: w[None]), torch.zeros(1, 3, dtype=torch.uint8)))


@pytest.mark.parametrize(("bits", "width"), [(20, 65), (20, 100), (32, 32), (40, 30)])
def test_a_plan_refuses_rings_that_do_not_exist(bits, width):
    share = Input(torch.zeros(3, dtype=torch.int64), 40)
    with pytest.raises(RingWidthError):
        run(lambda party: Square((3,), bits, width).run(party, share(party)))


def test_gates_side_by_side_share_their_rounds():
    x, y = bounded((9,), 10), bounded((9,), 20)
    shares = Input(x, 12), Input(y, 22)
    weights = {"w": anything((9, 2), 64)}

    def program(party):
        first, second = (share(party) for share in shares)
        matrix = Linear(1, 9, 22, (("w", 2),))
        return together(
            ReLU((9,), 12, 30).run(party, first),
            matrix.run(party, second.map(lambda words: words[None]), (0,), 5),
            together(ReLU((9,), 22, 30).run(party, second), Square((9,), 12, 30).run(party, first)),
        )

    done = run(program, weights)
    first, second = done.results
    assert torch.equal(joined([first[0], second[0]]), x.clamp(min=0))
    assert torch.equal(joined([first[1][0], second[1][0]]), signed(y[None] @ weights["w"], 22))
    assert torch.equal(joined([first[2][0], second[2][0]]), y.clamp(min=0))
    assert torch.equal(joined([first[2][1], second[2][1]]), x * x)
    alone = run(lambda party: ReLU((9,), 22, 30).run(party, shares[1](party)))
    assert done.plan.rounds == alone.plan.rounds == 4


def test_gates_with_several_openings_a_round_stand_side_by_side():
    x, live = bounded((2, 5), 5), torch.randint(0, 2, (2, 5))
    share, flags = Input(x, 8), Bits(live)

    def program(party):
        selected = SelectedSquare((2, 5), 8, 20)
        return together(
            selected.run(party, share(party), flags(party)),
            selected.run(party, -share(party), flags(party)),
            Square((2, 5), 8, 20).run(party, share(party)),
        )

    done = run(program)
    for pair, expected in zip(zip(*done.results, strict=True), (x * x * live, x * x * live, x * x), strict=True):
        assert torch.equal(joined(pair), expected)


def test_nothing_side_by_side_takes_no_round():
    done = run(lambda party: together())
    assert done.results == ([], [])
    assert done.plan.rounds == 0
