# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Exact products of matrices of ring words.

A CPU multiplies int64 matrices directly, but slowly if it has no vector instruction for int64; a CUDA device has no
int64 matrix product. Both can cut words into signed digits instead, x = sum of x_i 2^(d i) with -2^(d-1) <= x_i <
2^(d-1), and multiply digits exactly: in float64 while sums stay within 2^53, or as int8 with int32 sums. Only pairs
of digits whose shift d (i + j) is inside the ring are multiplied, so a small ring costs less. The digits of a word
stand side by side along the inner dimension, so one product sums all pairs of one shift,

    [x_0 x_1 ... x_s] [y_s ... y_1 y_0]' = sum over i + j = s of x_i y_j.

On a CPU few rows have one more product, if numba is installed; see `few_rows.py`. Which product is the fastest depends
on the device and the shape: it is timed once per process and kind of shape.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from . import few_rows
from .device import finish


_FLOAT_BITS, _INT_BITS = 53, 31  # sums of products must fit into these
_SHORTEST = 64  # digits are not made so wide that the inner dimension needs pieces shorter than this
_TIMED_RUNS = 3
# On a CPU: products of fewer pairs of words use int64 directly, timing uses matrices of at most this size, and digits
# are made in blocks of so many bytes (but no fewer columns), which are multiplied while in the CPU's cache.
_FEW_PAIRS, _TIMED_SIZE, _BLOCK_BYTES, _NARROWEST = 1 << 20, 256, 8 << 20, 128
_TIMED_FOR_FEW = 512  # of few rows: smaller matrices stay in the cache, where the products are equally fast

Product = Callable[[Tensor, Tensor, int], Tensor]
_chosen: dict[tuple, Product] = {}


def ring_matmul(left: Tensor, right: Tensor, bits: int) -> Tensor:
    """`left` @ `right` mod 2^`bits`.

    Args:
        left (`torch.Tensor`): (..., n, m), integer words of any dtype.
        right (`torch.Tensor`): (..., m, p), of the same dtype and on the same device.
        bits (`int`): Width of the ring; higher bits of the operands are ignored.

    Returns:
        `torch.Tensor`: (..., n, p) of the same dtype, correct mod 2^`bits`; higher bits are noise.
    """
    # Plans are traced on meta tensors, which have no data: these need no choice.
    if left.device.type != "cuda" and (left.is_meta or left.dtype != torch.int64 or _pairs(left, right) < _FEW_PAIRS):
        return word_matmul(left, right, bits)
    return fastest(left, right, bits)(left, right, bits).to(left.dtype)


def fastest(left: Tensor, right: Tensor, bits: int) -> Product:
    """The fastest product for operands of this kind on their device, timed at the first call of each kind."""
    products: tuple[Product, ...] = (float_matmul, int8_matmul)
    if left.device.type == "cpu":
        few = few_rows.is_for(left, right)
        products = (word_matmul, float_matmul, few_rows.few_rows_matmul)[: 2 + few]
        size = _TIMED_FOR_FEW if few else _TIMED_SIZE
        left, right = (part[(0,) * (part.dim() - 2)][:size, :size] for part in (left, right))
        right = right.contiguous() if few else right  # as the whole matrix is
    kind = (len(products), *_kind(left, right, bits))
    if kind not in _chosen:
        _chosen[kind] = min(products, key=lambda product: _seconds(product, left, right, bits))
    return _chosen[kind]


def word_matmul(left: Tensor, right: Tensor, bits: int) -> Tensor:
    """`ring_matmul` without digits, on a CPU."""
    return left @ right


def float_matmul(left: Tensor, right: Tensor, bits: int) -> Tensor:
    """`ring_matmul` by digits in float64, on any device. Returns int64."""
    inner = left.shape[-1]
    for count in range(1, bits + 1):
        digit = -(-bits // count)
        # At most `count` pairs of digits per shift, each product at most 2^(2 digit - 2).
        piece = (1 << _FLOAT_BITS >> (2 * digit - 2)) // count
        if piece >= min(inner, _SHORTEST):
            break
    if left.device.type == "cpu":
        return _by_blocks(left, right, digit, count, piece)
    return _by_digits(left, right, digit, count, piece, torch.float64, torch.matmul)


def int8_matmul(left: Tensor, right: Tensor, bits: int) -> Tensor:
    """`ring_matmul` by digits in int8, on any device. Returns int64."""
    count = -(-bits // 8)
    # A product is at most 2^14, and sums must stay below 2^31.
    piece = ((1 << (_INT_BITS - 14)) - 1) // count // 16 * 16
    return _by_digits(left, right, 8, count, piece, torch.int8, _int8_product)


def _by_digits(
    left: Tensor,
    right: Tensor,
    digit: int,
    count: int,
    piece: int,
    dtype: torch.dtype,
    product: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Sum products of digits over all shifts, `piece` columns of `left` at a time."""
    inner = left.shape[-1]
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    total = torch.zeros(*batch, left.shape[-2], right.shape[-1], dtype=torch.int64, device=left.device)
    for start in range(0, inner, piece):
        # The right factor is stored transposed, the fastest layout for int8 products.
        rows = _digits(left[..., start : start + piece], digit, range(count), dtype)
        columns = _digits(right[..., start : start + piece, :].mT, digit, range(count - 1, -1, -1), dtype)
        size = rows.shape[-1] // count
        for shift in range(count):
            part = product(rows[..., : (shift + 1) * size], columns[..., (count - 1 - shift) * size :].mT)
            total += part.to(torch.int64) << (digit * shift)
    return total


def _by_blocks(left: Tensor, right: Tensor, digit: int, count: int, piece: int) -> Tensor:
    """`_by_digits` in float64 on a CPU, a block of columns of `right` at a time (see `_BLOCK_BYTES`)."""
    inner, columns = right.shape[-2:]
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    total = torch.zeros(*batch, left.shape[-2], columns, dtype=torch.int64)
    for start in range(0, inner, piece):
        rows = _digits(left[..., start : start + piece], digit, range(count), torch.float64)
        size = rows.shape[-1] // count
        width = max(_BLOCK_BYTES // (rows.element_size() * count * size * math.prod(right.shape[:-2])), _NARROWEST)
        for at in range(0, columns, width):
            block = right[..., start : start + piece, at : at + width]
            stacked = _stacked_digits(block, digit, range(count - 1, -1, -1))
            found = total[..., at : at + width]
            for shift in range(count):
                part = rows[..., : (shift + 1) * size] @ stacked[..., (count - 1 - shift) * size :, :]
                found += part.to(torch.int64).bitwise_left_shift_(digit * shift)
    return total


def _stacked_digits(words: Tensor, digit: int, order: range) -> Tensor:
    """The signed digits of words (..., m, p), stacked along the rows: float64 (..., digits * m, p)."""
    half, mask = 1 << (digit - 1), (1 << digit) - 1
    shifted = words + _halves(half, digit, len(order))
    stacked = words.new_empty(*words.shape[:-2], len(order), *words.shape[-2:], dtype=torch.float64)
    for at, index in enumerate(order):
        stacked[..., at, :, :] = (shifted >> (digit * index)).bitwise_and_(mask).sub_(half)
    return stacked.flatten(-3, -2)


def _digits(words: Tensor, digit: int, order: range, dtype: torch.dtype) -> Tensor:
    """The signed digits of words (..., n, m), side by side: (..., n, digits * m); int8 pads m to a multiple of 16."""
    half, mask = 1 << (digit - 1), (1 << digit) - 1
    shifted = (words.to(torch.int64) + _halves(half, digit, len(order))).unsqueeze(-2)
    shifts = torch.arange(order.start, order.stop, order.step, device=words.device).mul_(digit).unsqueeze(-1)
    found = (shifted >> shifts).bitwise_and_(mask).sub_(half).to(dtype)
    if dtype == torch.int8:
        found = torch.nn.functional.pad(found, (0, -words.shape[-1] % 16))
    return found.flatten(-2)


def _halves(half: int, digit: int, count: int) -> int:
    """An offset of half a range for every digit: once it is added, plain digits minus half are the signed digits."""
    total = sum(half << (digit * index) for index in range(count))
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)  # as a signed 64-bit integer


def _int8_product(left: Tensor, right: Tensor) -> Tensor:
    """The int32 product of int8 matrices, padded to shapes that `torch._int_mm` accepts on every device."""
    if left.dim() > 2 or right.dim() > 2:
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        lefts, rights = (part.expand(*batch, *part.shape[-2:]).flatten(0, -3) for part in (left, right))
        products = [_int8_product(one, other) for one, other in zip(lefts, rights, strict=True)]
        return torch.stack(products).view(*batch, left.shape[-2], right.shape[-1])
    rows, columns = left.shape[0], right.shape[1]
    # It needs more than 16 rows, and multiples of 8 everywhere; `_digits` has padded the inner dimension.
    left = torch.nn.functional.pad(left, (0, 0, 0, max(-rows % 8, 24 - rows)))
    right = torch.nn.functional.pad(right.mT, (0, 0, 0, -columns % 8)).mT
    return torch._int_mm(left, right)[:rows, :columns]


def _pairs(left: Tensor, right: Tensor) -> int:
    """Number of products of two words in `left` @ `right`."""
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return math.prod(batch) * left.shape[-2] * left.shape[-1] * right.shape[-1]


def _kind(left: Tensor, right: Tensor, bits: int) -> tuple:
    """The key of a choice: device, number of int8 digits, and sizes rounded up to powers of two."""
    batch = math.prod(torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
    sizes = (batch, left.shape[-2], left.shape[-1], right.shape[-1])
    return (left.device, -(-bits // 8), *((size - 1).bit_length() for size in sizes))


def _seconds(product: Product, left: Tensor, right: Tensor, bits: int) -> float:
    """The shortest time of a few runs; one run before them loads the kernels."""
    best = math.inf
    for run in range(_TIMED_RUNS + 1):
        finish(left.device.type)
        start = time.perf_counter()
        product(left, right, bits)
        finish(left.device.type)
        if run:
            best = min(best, time.perf_counter() - start)
    return best
