# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ChaCha20 keystream on a CUDA device, as a Triton kernel.

Only `randomness.py` imports this module, and only to draw words on a CUDA device: Triton comes with CUDA builds of
torch and is needed nowhere else. The keystream equals that of `cryptography`'s ChaCha20 with a nonce of zeros.

Reference:
    RFC 8439, sections 2.3 and 2.4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


BLOCK_BYTES = 64
_LANES = 128  # blocks of 64 bytes per program of the kernel


@triton.jit
def _rotate(x, bits: tl.constexpr):
    return (x << bits) | (x >> (32 - bits))


@triton.jit
def _quarter_round(a, b, c, d):
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@triton.jit(do_not_specialize=["first", "count"])
def _keystream(out, state, first, count, LANES: tl.constexpr):
    # One block per lane. `state` holds the 8 words of the key and the 3 words of the nonce.
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    zero = (lane * 0).to(tl.uint32)
    counter = (lane + first).to(tl.uint32)
    k0 = zero + tl.load(state).to(tl.uint32, bitcast=True)
    k1 = zero + tl.load(state + 1).to(tl.uint32, bitcast=True)
    k2 = zero + tl.load(state + 2).to(tl.uint32, bitcast=True)
    k3 = zero + tl.load(state + 3).to(tl.uint32, bitcast=True)
    k4 = zero + tl.load(state + 4).to(tl.uint32, bitcast=True)
    k5 = zero + tl.load(state + 5).to(tl.uint32, bitcast=True)
    k6 = zero + tl.load(state + 6).to(tl.uint32, bitcast=True)
    k7 = zero + tl.load(state + 7).to(tl.uint32, bitcast=True)
    n0 = zero + tl.load(state + 8).to(tl.uint32, bitcast=True)
    n1 = zero + tl.load(state + 9).to(tl.uint32, bitcast=True)
    n2 = zero + tl.load(state + 10).to(tl.uint32, bitcast=True)
    # "expand 32-byte k"
    c0 = zero + 0x61707865
    c1 = zero + 0x3320646E
    c2 = zero + 0x79622D32
    c3 = zero + 0x6B206574
    x0, x1, x2, x3 = c0, c1, c2, c3
    x4, x5, x6, x7 = k0, k1, k2, k3
    x8, x9, x10, x11 = k4, k5, k6, k7
    x12, x13, x14, x15 = counter, n0, n1, n2
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    word = out + lane * 16
    wanted = lane < count
    tl.store(word, (x0 + c0).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 1, (x1 + c1).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 2, (x2 + c2).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 3, (x3 + c3).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 4, (x4 + k0).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 5, (x5 + k1).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 6, (x6 + k2).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 7, (x7 + k3).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 8, (x8 + k4).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 9, (x9 + k5).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 10, (x10 + k6).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 11, (x11 + k7).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 12, (x12 + counter).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 13, (x13 + n0).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 14, (x14 + n1).to(tl.int32, bitcast=True), mask=wanted)
    tl.store(word + 15, (x15 + n2).to(tl.int32, bitcast=True), mask=wanted)


def state(key: bytes, device: torch.device | str, nonce: bytes = bytes(12)) -> Tensor:
    """A key (32 bytes) and a nonce (12 bytes) packed for `blocks`: int32 (11,) on `device`."""
    return torch.frombuffer(bytearray(key + nonce), dtype=torch.int32).to(device)


def blocks(key_and_nonce: Tensor, first: int, count: int) -> Tensor:
    """Blocks `first` to `first + count - 1` of the keystream.

    Args:
        key_and_nonce (`torch.Tensor`): The result of `state`.
        first (`int`): Counter of the first block; `first + count` must not exceed 2^32, where the keystream repeats.
        count (`int`): Number of blocks, at least one.

    Returns:
        `torch.Tensor`: uint8 of 64 * `count` bytes, on the device of the key.
    """
    out = torch.empty(count * 16, dtype=torch.int32, device=key_and_nonce.device)
    _keystream[(triton.cdiv(count, _LANES),)](out, key_and_nonce, first, count, LANES=_LANES)
    return out.view(torch.uint8)
