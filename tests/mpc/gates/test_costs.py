# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The exact costs of gates, as in their docstrings. Other tests check that runs keep to their plans."""

import pytest
import torch

from hf_securerouter.mpc.gates.activation import Activation
from hf_securerouter.mpc.gates.argmax import Argmax, Reveal
from hf_securerouter.mpc.gates.bit_to_ring import BitToRing
from hf_securerouter.mpc.gates.compare import Compare
from hf_securerouter.mpc.gates.exponential import Exponential
from hf_securerouter.mpc.gates.gate import together
from hf_securerouter.mpc.gates.linear import Linear
from hf_securerouter.mpc.gates.matmul import Matmul
from hf_securerouter.mpc.gates.maximum import groups_of, maximum
from hf_securerouter.mpc.gates.product import Product
from hf_securerouter.mpc.gates.relu import ReLU
from hf_securerouter.mpc.gates.row_function import RowFunction
from hf_securerouter.mpc.gates.row_scale import RowScale
from hf_securerouter.mpc.gates.square import SelectedSquare, Square
from hf_securerouter.mpc.gates.weight_share import WeightShare
from hf_securerouter.mpc.net.network_model import NETWORKS
from hf_securerouter.mpc.tuples.plan import trace


N = 64  # elements, so that whole bytes come out


def meta(shape, dtype=torch.int64):
    return torch.empty(shape, dtype=dtype, device="meta")


def bits_of(plan, elements=N):
    """Online bits of one party and dealer bits, an element, and rounds."""
    return plan.payload_bytes * 8 / elements, plan.dealer_bytes * 8 / elements, plan.rounds


def cost(gate, width, shape=(N,), scale=0, elements=N):
    return bits_of(trace(lambda party: gate.run(party, party.secret(meta(shape), width, scale, 4))), elements)


def test_comparison_of_40_bits():
    """At most 7.5 B for one threshold and 2.5 B for each further one, in 3 rounds; dealer 20 B and 4.5 B each."""
    for thresholds in range(1, 5):
        online, dealer, rounds = cost(Compare((N,), 40, tuple(range(thresholds))), 40)
        assert online == 8 * (7.5 + 2.5 * (thresholds - 1))
        assert dealer == 8 * (20 + 4.5 * thresholds) + 1
        assert rounds == 3


@pytest.mark.parametrize(("bits", "rounds"), [(2, 1), (5, 1), (6, 2), (17, 2), (18, 3), (64, 3)])
def test_rounds_of_a_comparison(bits, rounds):
    assert cost(Compare((N,), bits, (0,)), bits)[2] == rounds


@pytest.mark.parametrize("width", [33, 40, 54, 64])
def test_relu_of_32_bits(width):
    """6 B in 4 rounds. Dealer: 16 B of thermometers, 5 B of bits, 5 K - 3 k bits of words, less k for the bit's."""
    online, dealer, rounds = cost(ReLU((N,), 32, width), 32)
    assert online == 8 * 6 <= 8 * 6.2
    assert rounds == 4
    assert dealer == 8 * 16 + 39 + 5 * width - 3 * 32


@pytest.mark.parametrize("weights", [1, 3])
@pytest.mark.parametrize("width", [9, 33, 64])
def test_linear_sends_each_element_once_however_many_weights(weights, width):
    """K bits an element of x, one round; dealer K bits an output."""
    rows, features, columns = 8, 16, 5
    names = [f"w{index}" for index in range(weights)]
    shares = {name: WeightShare(meta((features, columns)), meta((features, columns))) for name in names}
    shares["g"] = WeightShare(meta((features,)), meta((features,)))
    gate = Linear(rows, features, width, tuple((name, columns) for name in names), ("g",))

    def program(party):
        return gate.run(party, party.secret(meta((rows, features)), width, 0, 4), (0,) * (weights + 1), 4)

    plan = trace(program, shares)
    assert plan.payload_bytes * 8 == width * rows * features
    assert plan.rounds == 1
    assert plan.dealer_bytes * 8 == width * rows * (columns * weights + features)


def test_matmul_sends_both_operands_once():
    """K bits an element of both, in one round; dealer K bits an output."""
    left, right = (2, 8, 16), (2, 16, 4)

    def program(party):
        x, y = (party.secret(meta(shape), 41, 0, 4) for shape in (left, right))
        return Matmul(left, right, 41).run(party, x, y)

    plan = trace(program)
    assert plan.payload_bytes * 8 == 41 * 2 * (8 * 16 + 16 * 4)
    assert (plan.rounds, plan.dealer_bytes * 8) == (1, 41 * 2 * 8 * 4)


@pytest.mark.parametrize("choices", [2, 3, 4, 5])
@pytest.mark.parametrize("bits", [20, 40, 64])
def test_argmax_takes_one_comparison_depth_and_one_round_of_ands(choices, bits):
    """All pairs in one batch: the rounds of one comparison, and one more above two choices."""
    pairs = choices * (choices - 1) // 2
    single = cost(Compare((N,), bits, (0,)), bits)
    online, _, rounds = cost(Argmax(N, choices, bits), bits, (N, choices))
    assert online == pairs * single[0] + (2 * pairs if choices > 2 else 0)
    assert rounds == single[2] + (choices > 2)
    assert rounds <= 4


def test_argmax_of_3_at_40_bits():
    online, dealer, rounds = cost(Argmax(N, 3, 40), 40, (N, 3))
    assert (online, dealer, rounds) == (8 * 23.25, 8 * 74.25, 4)


def test_revealing_and_converting_bits():
    """One bit an element and one round each; the dealer gives a zero of one bit, a word of K bits."""
    plan = trace(lambda party: Reveal((N,)).run(party, meta((N,), torch.uint8)))
    assert bits_of(plan) == (1, 1, 1)
    plan = trace(lambda party: BitToRing((N,), 45).run(party, meta((N,), torch.uint8)))
    assert bits_of(plan) == (1, 45, 1)


@pytest.mark.parametrize(("bits", "width"), [(20, 50), (27, 64)])
def test_squares(bits, width):
    """k bits in one round. Dealer: 4 K - 3 k - 1 bits; with selection 8 K - 4 k - 2, and 2 K for each bit."""
    assert cost(Square((N,), bits, width), bits) == (bits, 4 * width - 3 * bits - 1, 1)

    def program(party):
        x = party.secret(meta((N, 8, 1)), bits, 0, 4)
        return SelectedSquare((N, 8, 1), bits, width).run(party, x, meta((N, 1), torch.uint8))

    online, dealer, rounds = bits_of(trace(program))
    assert (online, rounds) == (8 * bits + 1, 1)
    assert dealer == 8 * (8 * width - 4 * bits - 2) + 2 * width


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize(("bits", "scalar_bits", "width"), [(20, 18, 50), (23, 21, 64)])
def test_rows_times_scalars(bits, scalar_bits, width, squares):
    """k bits an element and k' a row. Dealer: 6 K - 4 k - 2 k' an element, 2 K - 2 k' a row, and more for squares."""
    features = 16

    def program(party):
        rows = RowScale((N, features), bits, scalar_bits, width, squares).start(party)
        yield from rows.open_rows(party.secret(meta((N, features)), bits, 0, 4))
        yield from rows.open_scalar(party.secret(meta((N, 1)), scalar_bits, 0, 4))
        return rows.product(4)

    online, dealer, rounds = bits_of(trace(program))
    assert (online, rounds) == (features * bits + scalar_bits, 2)
    element, row = 6 * width - 4 * bits - 2 * scalar_bits, 2 * width - 2 * scalar_bits
    if squares:
        element, row = element + width - bits - 1, row + width
    assert dealer == features * element + row


@pytest.mark.parametrize(("bits", "other_bits", "width"), [(25, 18, 50), (18, 25, 50), (16, 10, 27), (20, 20, 30)])
def test_elementwise_products(bits, other_bits, width):
    """k + k' bits an element, one round. Dealer: 8 K - 4 k - 4 k', and k + k' - K more where that is above 0."""

    def program(party):
        x, y = (party.secret(meta((N,)), own, 0, 4) for own in (bits, other_bits))
        return Product((N,), bits, other_bits, width).run(party, x, y)

    dealer = 8 * width - 4 * (bits + other_bits) + max(0, bits + other_bits - width)
    assert bits_of(trace(program)) == (bits + other_bits, dealer, 1)


@pytest.mark.parametrize(("function", "words"), [("gelu", 24), ("silu", 48), ("tanh", 40)])
def test_activations(function, words):
    """R + q + 2 bits and 2 bits an element, 2 rounds: 2.625 B at q = 12, R = 5."""
    width, scale, result_scale, bound = 38, 12, 14, 5
    gate = Activation(function, (N,), bound, scale, result_scale, width)
    online, dealer, rounds = cost(gate, 40, scale=result_scale)
    assert (online, rounds) == (bound + scale + 4, 2) == (8 * 2.625, 2)
    wide, lifted = width + 15, width - 2
    expected = 2 * (lifted - gate.bits) + gate.positions + (words + 1) * wide + width
    if function != "tanh":
        expected += 2 * lifted - gate.bits
    assert dealer == expected
    assert round(dealer / 8) == {"gelu": 245, "silu": 404, "tanh": 345}[function]


@pytest.mark.parametrize(("range_bits", "scale", "width"), [(9, 12, 57), (7, 10, 40)])
def test_exponentials(range_bits, scale, width):
    """J + 1 + f bits and one bit an element, 2 rounds; dealer 8 K bits and one for each step of 2: 89 B at J = 8."""
    online, dealer, rounds = cost(Exponential((N,), range_bits, scale, width), 64)
    assert (online, rounds) == (range_bits + scale + 1, 2)
    assert dealer == 8 * width + 2 ** (range_bits - 1)
    assert (range_bits, dealer) == (7, 384) or dealer == 8 * 89


def tournament(values, levels):
    """Bits that the tournament of a row opens, and bits that the dealer gives for it."""
    online = dealer = 0
    for size in levels:
        values = -(-values // size)
        pairs = size * (size - 1) // 2
        online += values * (8 * size + pairs)
        dealer += values * (256 * pairs + 8 * 2 * size * (2 ** (size - 1) - 1))
    return online, dealer


@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize("values", [2, 7, 8, 32, 128, 512])
def test_maxima(values, network):
    """Two rounds a level; 8 bits a value and one for each pair of its group."""
    network = NETWORKS[network]
    levels = groups_of(values, N, network)

    def program(party):
        return maximum(party, party.secret(meta((N, values)), 8, 0, 4), network)

    assert bits_of(trace(program)) == (*tournament(values, levels), 2 * len(levels))


def test_maxima_of_128_in_groups_of_4_4_and_8():
    """1.6 B and 100 B of the dealer's a value, 6 rounds."""
    online, dealer = tournament(128, (4, 4, 8))
    assert (round(online / 8 / 128, 2), round(dealer / 8 / 128)) == (1.57, 100)
    assert groups_of(128) == (4, 4, 8)


@pytest.mark.parametrize("network", ["lan", "wan"])
@pytest.mark.parametrize("values", [2, 5, 9, 33])
def test_groups_are_the_cheapest_for_their_network(values, network):
    network = NETWORKS[network]

    def all_levels(left):
        if left == 1:
            yield ()
        else:
            for size in range(2, 9):
                yield from ((size, *rest) for rest in all_levels(-(-left // size)))

    def seconds(levels):
        online, dealer = tournament(values, levels)
        return network.seconds(2 * len(levels), 1000 * online / 8, 1000 * dealer / 8)

    assert groups_of(values, 1000, network) == min(all_levels(values), key=lambda levels: (seconds(levels), levels))


@pytest.mark.parametrize(
    ("function", "scale", "low", "high", "result_scale", "windows"),
    [("inverse_sqrt", 15, -10, 6, 16, 5), ("reciprocal", 14, -6, 9, 16, 5), ("reciprocal", 14, 0, 4, 16, 1)],
)
def test_row_functions(function, scale, low, high, result_scale, windows):
    """k bits; for each window but one the result's width and 2 or 4 bits. Dealer: 384 words a window, and look-ups."""
    gate = RowFunction(function, (N,), scale, low, high, result_scale)
    online, dealer, rounds = cost(gate, 64)
    assert rounds == 1 + (windows > 1)
    blocks = [gate._blocks(end) for end in gate._ends[:-1]]
    assert len(blocks) == windows - 1
    assert online == gate.bits + sum(gate.width + 2 * len(parts) for parts in blocks)
    # Two look-ups a block; two bits (three with their product) and as many times the difference's mask.
    look_ups = sum(2 * max(8, 2**size) for parts in blocks for _, size in parts)
    words = sum(2 * 2 * (2 ** len(parts) - 1) for parts in blocks)
    assert dealer == 384 * windows * (gate.width + 24) + look_ups + words * gate.width


def test_gates_side_by_side_add_their_bytes_and_not_their_rounds():
    def program(party):
        x = party.secret(meta((N,)), 32, 0, 4)
        return together(ReLU((N,), 32, 40).run(party, x), Compare((N,), 32, (0, 1)).run(party, x))

    plan = trace(program)
    relu, compare = cost(ReLU((N,), 32, 40), 32), cost(Compare((N,), 32, (0, 1)), 32)
    assert bits_of(plan) == (relu[0] + compare[0], relu[1] + compare[1], max(relu[2], compare[2]))
    assert {name: count.sent * 8 / N for name, count in plan.by_gate.items()} == {
        "ReLU": relu[0],
        "Compare": compare[0],
    }
    assert {name: count.dealer * 8 / N for name, count in plan.by_gate.items()} == {
        "ReLU": relu[1],
        "Compare": compare[1],
    }
    assert sum(count.rounds for count in plan.by_gate.values()) == plan.rounds


def test_a_digest_tells_plans_apart():
    def digest(*gates):
        def program(party):
            for gate in gates:
                yield from gate.run(party, party.secret(meta((N,)), 40, 0, 4))

        return trace(program).digest

    one, other = Compare((N,), 40, (0,)), Compare((N,), 40, (1,))
    digests = [digest(one), digest(other), digest(one, other), digest(other, one), digest(ReLU((N,), 40, 41))]
    assert len(set(digests)) == 5
    assert digest(one) == digest(Compare((N,), 40, (0,)))
