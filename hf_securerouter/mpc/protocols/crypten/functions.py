# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The functions of an encoder over CrypTen's tensors, accurate to 0.01 over the ranges that encoders reach.

CrypTen 0.4.1 computes some of them wrongly: its `pow` breaks erf and so GeLU, `reciprocal` fails past 256, `inv_sqrt`
outside 0.1 to 200, and LayerNorm is missing. CrypTen's correct functions are used unchanged (comparison, maximum,
Beaver products, Newton iterations inside their range), so that the cost stays CrypTen's. CrypTen is not patched.

Two rules keep CrypTen's local truncation harmless. Truncation fails with probability |v| 2**-32 for a product v of two
fixed-point numbers, so products are kept small: inputs are first clipped, or normalised by a compared power of two.
And a product with a compared bit, an integer, is not truncated at all.

Every tensor below is a `crypten.mpc.MPCTensor`: an additive share of round(2**16 x) mod 2**64. A party sees only the
openings of CrypTen's own multiplications and comparisons, masked by the dealer's tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .compat import import_crypten
from .fixed_point import FRACTION_BITS


crypten = import_crypten()

from crypten.config import cfg  # noqa: E402
from crypten.mpc import MPCTensor  # noqa: E402
from crypten.mpc.primitives import beaver  # noqa: E402


# GeLU(x) = x/2 + g(x/3) on [-3, 3] with g(t) = e + d t**2 + c (t**4 + a t**2 + b)**2, an even quartic in t**2 whose
# three squarings cost three openings. Fitted for the least maximum error, the tails included: 0.0024.
GELU_BOUND = 3
_GELU_COEFFICIENTS = (2.31994889e-03, 3.46248776, -4.23003040, 3.31370717, -1.05080405)

# tanh is 1 within 1.3e-5 from here on.
TANH_BOUND = 6

# SiLU is 0 or x within 8e-5 outside.
SILU_BOUND = 12

# LayerNorm scales each row by a power of 4, so that its variance is in [1/4, 4) for any variance from 6e-5 to 16384.
_VARIANCE_BOUNDS = tuple(0.25 * 16.0**k for k in range(-2, 4))


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """`x @ weight + bias`; `weight` has the shape (in, out). One round, 8 bytes an element of `x` and of `weight`."""
    return x.matmul(weight) + bias


def relu(x: Any) -> Any:
    """max(x, 0). 9 rounds, 232 bytes an element."""
    return x * (1 - x._ltz())


def gelu(x: Any) -> Any:
    """x times the normal distribution function, for |x| < 2**31.

    Maximum error 0.003. 12 rounds, 480 bytes an element: two comparisons in one batch, a clip and three squarings.
    """
    outside = crypten.stack([x + GELU_BOUND, GELU_BOUND - x])._ltz()
    below, above = outside[0], outside[1]
    masked = crypten.stack([1 - below - above, above]) * x
    inside, high = masked[0], masked[1]
    clipped = inside + (above - below) * GELU_BOUND

    c0, c1, c2, c3, c4 = _GELU_COEFFICIENTS
    alpha = c3 / (2 * c4)
    beta = (c2 / c4 - alpha**2) / 2
    u = (clipped * (1 / GELU_BOUND)).square()
    quadratic = u.square() + u * alpha + beta
    even = quadratic.square() * c4 + u * (c1 - 2 * alpha * beta * c4) + (c0 - beta**2 * c4)
    return clipped.div(2) + even + (high - above * GELU_BOUND)


def tanh(x: Any) -> Any:
    """tanh for |x| < 2**31, from (1 - e) / (1 + e) with e = exp(-2 min(|x|, 6)).

    Maximum error 0.003. 25 rounds.
    """
    sign, magnitude = _size(x, TANH_BOUND)
    return (_logistic(magnitude * 2) * 2 - 1) * sign


def silu(x: Any) -> Any:
    """x / (1 + exp(-x)) for |x| < 2**31, as x/2 + m (s(m) - 1/2) + (|x| - m)/2 with m = min(|x|, 12).

    Maximum error 0.005. 26 rounds.
    """
    sign, magnitude = _size(x, SILU_BOUND)
    return (x + x * sign - magnitude).div(2) + magnitude * (_logistic(magnitude) - 0.5)


def _size(x: Any, bound: int) -> tuple[Any, Any]:
    """The sign of x as an integer, and the smaller of |x| and `bound`."""
    compared = crypten.stack([x, x + bound, bound - x])._ltz()
    negative, below, above = compared[0], compared[1], compared[2]
    # The factor of x in min(|x|, bound) is -1, 1 or, outside, 0.
    sign = 1 - negative * 2
    return sign, x * (sign + below - above) + (below + above) * bound


def _logistic(x: Any) -> Any:
    """1 / (1 + exp(-x)) for x in [0, 490]."""
    with cfg.temp_override(
        {
            "functions.reciprocal_all_pos": True,
            "functions.reciprocal_initial": 0.75,
            "functions.reciprocal_nr_iters": 4,
        }
    ):
        return (exponential(-x) + 1).reciprocal()


def exponential(x: Any) -> Any:
    """exp(x) for x in [-490, 0], as (1 + t + t**2/2)**256 with t = x/256.

    The second-order term makes the relative error 0.002; that of CrypTen's `exp` is x**2/512. 9 rounds, 72 bytes an
    element.
    """
    t = x.div(256)
    result = t.square().div(2) + t + 1
    for _ in range(8):
        result = result.square()
    return result


def reciprocal(x: Any, upper: float) -> Any:
    """1/x for x in [1, upper], `upper` up to 512; relative error 0.02.

    CrypTen's iteration is accurate between 1/32 and 64 only, so a public factor brings x into this range. 28 rounds.
    """
    shrink = max(1.0, upper / 32)
    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        return (x * (1 / shrink)).reciprocal() * (1 / shrink)


def masked_mean(rows: Any, mask: Any) -> Any:
    """The mean over the second dimension of the rows that a secret mask keeps, of up to 512 rows.

    The sum is divided by a public power of 2 and multiplied by the reciprocal of the number of rows over that power,
    which keeps the fraction bits of both. 30 rounds.

    Args:
        rows (`MPCTensor`): Shape (B, T, H).
        mask (`MPCTensor`): Shape (B, T), 1 for rows that count, of which each input has one or more, and 0 for others.

    Returns:
        `MPCTensor`: Shape (B, H).
    """
    shrink = max(1, 2 ** ((rows.size(1) - 1).bit_length() - 5))
    total = mask.unsqueeze(1).matmul(rows).squeeze(1)
    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        inverse = mask.sum(-1, keepdim=True).div(shrink).reciprocal()
    return total.div(shrink) * inverse


def windowed(bias: Any, reach: int, score: float) -> Any:
    """What is added to scores, with `score` alone wherever a key is out of a query's reach. Local and exact.

    Args:
        bias (`MPCTensor`): Shape (..., 1 or T, T).
        reach (`int`): How many places a query and a key lie apart at most.
        score (`float`): Public.

    Returns:
        `MPCTensor`: Shape (..., T, T).
    """
    place = torch.arange(bias.size(-1), device=bias.device)
    far = (place[:, None] - place).abs() > reach
    return MPCTensor.from_shares(bias.share * ~far) + far.float() * score


def softmax(scores: Any) -> Any:
    """Softmax over the last dimension, for rows of up to 512 scores that span less than 490.

    Maximum error 0.005. 117 rounds and 752 bytes an element for 128 keys, most of it CrypTen's maximum.
    """
    keys = scores.size(-1)
    if keys == 1:
        return scores * 0 + 1
    numerator = exponential(scores - scores.max(-1, keepdim=True)[0])
    return numerator * reciprocal(numerator.sum(-1, keepdim=True), keys)


def inverse_sqrt(x: Any) -> Any:
    """1/sqrt(x) for x in [0.1, 16]; relative error 2e-4.

    CrypTen's square root and reciprocal, as other encoders on CrypTen use them, give an error of 2e-3 and keep the
    cost of the reference comparable; one more Newton step removes the error. 49 rounds, on one number a row.
    """
    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        guess = x.sqrt().reciprocal()
    return guess * (3 - x * guess.square()).div(2)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float, centre: bool = True) -> Any:
    """LayerNorm over the last dimension, for rows with a variance from 6e-5 to 16384; RMSNorm without `centre`.

    The row's sum of squares, not truncated, is compared with six bounds; then the row is scaled by the power of 4 that
    brings its variance into [1/4, 4), and normalised. 62 rounds, 40 bytes an element.

    Args:
        x (`MPCTensor`): Shape (..., H).
        weight, bias (`MPCTensor`): Shape (H,).
        eps (`float`): Added to the variance; public.
        centre (`bool`): Whether the mean of each row is removed first.
    """
    width = x.size(-1)
    centred = x - x.mean(-1, keepdim=True) if centre else x
    total = _sum_of_squares(centred)
    bounds = [round(bound * width * 4**FRACTION_BITS) for bound in _VARIANCE_BOUNDS]
    below = crypten.stack([total - bound for bound in bounds])._ltz()

    # Row factors are 4**6 / 64, 4**5 / 64, ... 4**0 / 64: the last factor plus a step for every bound not reached.
    factor = 1 + _weighted(below, [4 ** (6 - k) - 4 ** (5 - k) for k in range(6)])
    centred = (centred * factor).div(64)
    variance = _sum_of_squares(centred)
    variance.share = variance.share.div(width * 2**FRACTION_BITS, rounding_mode="trunc")
    variance = MPCTensor.from_shares(variance.share)
    scaled_eps = [round(eps * 16.0 ** (6 - k) / 4096 * 2**FRACTION_BITS) for k in range(7)]
    if any(scaled_eps):
        added = _weighted(below, [scaled_eps[k] - scaled_eps[k + 1] for k in range(6)]) + scaled_eps[6]
        variance.share = variance.share + added.share
    return centred * inverse_sqrt(variance) * weight + bias


def argmax_one_hot(scores: Any) -> Any:
    """The one-hot of each row's largest score; of equal scores the lowest index wins.

    All K (K - 1) / 2 pairs are compared in one batch. 8 rounds, and one for each doubling of K - 1.

    Args:
        scores (`MPCTensor`): Shape (B, K).

    Returns:
        `MPCTensor`: Shape (B, K) of bits, as integers (scale 1).
    """
    count = scores.size(-1)
    if count == 1:
        return MPCTensor.from_shares(scores.share * 0, precision=0) + 1
    pairs = [(low, high) for low in range(count) for high in range(low + 1, count)]
    differences = crypten.stack([scores[:, low] - scores[:, high] for low, high in pairs])
    high_wins = differences._ltz()
    columns = []
    for index in range(count):
        won = [
            1 - high_wins[number] if index == low else high_wins[number]
            for number, (low, high) in enumerate(pairs)
            if index in (low, high)
        ]
        columns.append(crypten.stack(won))
    wins = crypten.stack(columns, dim=1)  # (K - 1, K, B)
    while wins.size(0) > 1:
        half = wins.size(0) // 2
        product = wins[:half] * wins[half : 2 * half]
        wins = crypten.cat([product, wins[2 * half :]]) if wins.size(0) % 2 else product
    return wins[0].transpose(0, 1)


def _sum_of_squares(x: Any) -> Any:
    """Sum over the last dimension of squares, kept at scale 2**32 and marked as an integer (scale 1)."""
    squares = beaver.square(x._tensor)
    return MPCTensor.from_shares(squares.share.sum(-1, keepdim=True), precision=0)


def _weighted(bits: Any, weights: Sequence[int]) -> Any:
    """The sum over the first dimension of integer multiples of bits."""
    factors = torch.tensor(weights, dtype=torch.int64, device=bits.device).reshape(-1, *[1] * (bits.dim() - 1))
    return MPCTensor.from_shares((bits.share * factors).sum(0), precision=0)
