# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Words, and `seal`, the only way by which words leave a role.

A word is a ring element: a residue mod 2^K, held in an int64 (or in a uint8 if K <= 8). Arithmetic runs mod 2^64, so
the bits above K depend on the secrets that were added. Therefore everything that leaves a role or is written to a file
(openings, dealer corrections, client shares, masked weights) passes `seal`, or `seal_in_pieces`, which packs the same:
masked by a pad of exactly K uniform bits, reduced mod 2^K, packed to K bits a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import SecureRouterError, SecureRouterValueError
from .packing_cuda import as_int64, pack_words, unpack_words
from .randomness import Pad, WordSource


MAX_BITS = 64
_BLOCK = 64  # words of any width that together fill whole 64-bit units
_CONTIGUOUS = (1, 8, 64)  # widths that are packed word after word
_SMALL = 8192  # fewer words than this are packed bit by bit, which has less overhead


class RingWidthError(SecureRouterValueError):
    """Bounds and scales need a ring that does not exist: widths are from 1 to 64 bits."""


def checked_width(bits: int, what: str) -> int:
    """Return `bits` if a ring of that width exists.

    Args:
        bits (`int`): The width that bounds and scales need.
        what (`str`): Name of the value in the error message.

    Raises:
        `RingWidthError`: `bits` is not from 1 to 64.
    """
    if not 1 <= bits <= MAX_BITS:
        raise RingWidthError(
            f"{what} needs a ring of {bits} bits, and the widest has {MAX_BITS}; lower bounds (calibrate) or scales."
        )
    return bits


def reduce(words: Tensor, bits: int) -> Tensor:
    """The words mod 2^`bits`, in [0, 2^bits); at 64 bits unchanged, in two's complement."""
    return words if bits == MAX_BITS else words & ((1 << bits) - 1)


def signed(words: Tensor, bits: int) -> Tensor:
    """The words mod 2^`bits` as signed integers in [-2^(bits-1), 2^(bits-1)), int64."""
    spare = MAX_BITS - bits
    return (words.to(torch.int64) << spare) >> spare


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed words of `bits` bits: exactly ceil(count * bits / 8)."""
    return (count * bits + 7) // 8


def seal(words: Tensor, pad: Pad) -> tuple[Tensor, Tensor]:
    """Mask `words` with a pad of K bits (added, or XORed if `pad.xor`), reduce mod 2^K and pack to K bits a word.

    Args:
        words (`torch.Tensor`): Any shape, int64 (or uint8 when K <= 8); only the residues mod 2^K matter.
        pad (`Pad`): Same shape, K = `pad.bits` uniform bits a word. The pad is spent.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: (words + pad) mod 2^K; the same packed, uint8 of `packed_size` bytes.

    Raises:
        `PadReusedError`: The pad has masked a message before.
        `SecureRouterError`: The shapes of `words` and `pad` differ, so some word would leave unmasked.
    """
    if words.shape != pad.words.shape:
        raise SecureRouterError(f"A message of shape {tuple(words.shape)} under a pad of {tuple(pad.words.shape)}.")
    covered = reduce(words ^ pad.spend() if pad.xor else words + pad.spend(), pad.bits)
    return covered, _pack(covered, pad.bits)


def seal_in_pieces(words: Tensor, source: WordSource, bits: int) -> Tensor:
    """The packed words of `seal` under the next pad of `source`, which is drawn piece by piece.

    Args:
        words (`torch.Tensor`): As for `seal`.
        source (`WordSource`): Draws the pad, `bits` bits a word, in the order of the words.
        bits (`int`): K.

    Returns:
        `torch.Tensor`: What `seal(words, source.pad(words.shape, bits))` packs, with a 64th of its working memory.
    """
    flat = words.reshape(-1)
    blocks = _tabled(len(flat)) // _BLOCK
    if not blocks or flat.device.type != "cpu":
        return seal(words, source.pad(words.shape, bits))[1]
    if bits in _CONTIGUOUS:
        pieces = flat.split(-(-blocks // 8) * 8)  # pieces of whole bytes
        return torch.cat([seal(piece, source.pad(piece.shape, bits))[1] for piece in pieces])
    table = _Table(blocks, bits)
    for row in flat[: blocks * _BLOCK].split(blocks):
        covered = reduce(row + source.pad(row.shape, bits).spend(), bits)
        table.put(covered.to(torch.int64).numpy().view(np.uint64))
    tail = flat[blocks * _BLOCK :]
    return torch.cat([table.packed, seal(tail, source.pad(tail.shape, bits))[1]])


def unpack(packed: Tensor, shape: Sequence[int], bits: int) -> Tensor:
    """Undo the packing of `seal`.

    Args:
        packed (`torch.Tensor`): uint8 of exactly `packed_size` bytes.
        shape (`Sequence[int]`): Shape of the words.
        bits (`int`): Width of a word.

    Returns:
        `torch.Tensor`: Words in [0, 2^bits), uint8 for `bits` up to 8, int64 above.

    Raises:
        `SecureRouterError`: `packed` has another number of bytes.
    """
    count = math.prod(shape)
    if packed.numel() != packed_size(count, bits):
        raise SecureRouterError(f"Got {packed.numel()} bytes for {count} words of {bits} bits.")
    return _unpack(packed, count, bits).view(tuple(shape))


def _pack(words: Tensor, bits: int) -> Tensor:
    flat = words.reshape(-1)
    if bits == MAX_BITS:
        return flat.contiguous().view(torch.uint8)
    if bits == 8:
        return flat.to(torch.uint8)
    if flat.device.type != "cpu":
        return pack_words(flat, bits, _tabled(len(flat)))
    if bits == 1:
        return torch.from_numpy(np.packbits(flat.to(torch.uint8).numpy(), bitorder="little"))
    rows = flat.to(torch.int64).contiguous().numpy().view(np.uint64)
    blocks = _tabled(len(rows)) // _BLOCK
    tail = _pack_bits(rows[blocks * _BLOCK :].view(np.uint8).reshape(-1, 8), bits)
    if not blocks:
        return tail
    table = _Table(blocks, bits)
    for row in rows[: blocks * _BLOCK].reshape(_BLOCK, blocks):
        table.put(row)
    return torch.cat([table.packed, tail])


class _Table:
    """64 rows of words, packed one after another.

    Row i starts at bit i * bits of its column, so it touches one or two 64-bit rows of the result.
    """

    def __init__(self, columns: int, bits: int) -> None:
        self._words, self._bits, self._row = np.zeros((bits, columns), dtype=np.uint64), bits, 0

    def put(self, row: np.ndarray) -> None:
        """Pack the next row, uint64 below 2^bits."""
        at, offset = divmod(self._row * self._bits, MAX_BITS)
        self._words[at] |= row << np.uint64(offset)
        if offset + self._bits > MAX_BITS:
            self._words[at + 1] |= row >> np.uint64(MAX_BITS - offset)
        self._row += 1

    @property
    def packed(self) -> Tensor:
        return torch.from_numpy(self._words.reshape(-1).view(np.uint8))


def _tabled(count: int) -> int:
    """Number of words, out of `count`, packed in columns of `_BLOCK`; the others follow bit by bit."""
    return count // _BLOCK * _BLOCK if count >= _SMALL else 0


def _unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    if bits == MAX_BITS:
        return as_int64(packed)
    if bits == 8:
        return packed
    if packed.device.type != "cpu":
        return unpack_words(packed, count, bits, _tabled(count))
    if bits == 1:
        return torch.from_numpy(_unpack_bits(packed.numpy(), count, 1)).view(-1)
    words = np.empty(count, dtype=np.uint64)
    blocks = _tabled(count) // _BLOCK
    if blocks:
        head = as_int64(packed[: blocks * bits * 8]).numpy().view(np.uint64).reshape(bits, blocks)
        body = words[: blocks * _BLOCK].reshape(_BLOCK, blocks)
        mask = np.uint64((1 << bits) - 1)
        for row in range(_BLOCK):
            at, offset = divmod(row * bits, MAX_BITS)
            np.right_shift(head[at], np.uint64(offset), out=body[row])
            if offset + bits > MAX_BITS:
                body[row] |= head[at + 1] << np.uint64(MAX_BITS - offset)
            body[row] &= mask
    tail = _unpack_bits(packed[blocks * bits * 8 :].numpy(), count - blocks * _BLOCK, bits)
    words[blocks * _BLOCK :] = tail.view(np.uint64).reshape(-1)
    result = torch.from_numpy(words.view(np.int64))
    return result.to(torch.uint8) if bits < 8 else result


def _pack_bits(byte_rows: np.ndarray, bits: int) -> Tensor:
    """Pack the low `bits` bits of each row of bytes (little-endian) one after another."""
    spread = np.unpackbits(byte_rows, axis=1, bitorder="little", count=bits)
    return torch.from_numpy(np.packbits(spread.reshape(-1), bitorder="little"))


def _unpack_bits(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Unpack `count` words of `bits` bits into rows of 8 bytes (1 byte if `bits` is 1)."""
    spread = np.unpackbits(packed, bitorder="little", count=count * bits).reshape(count, bits)
    if bits == 1:
        return spread
    rows = np.zeros((count, 8), dtype=np.uint8)
    packed_rows = np.packbits(spread, axis=1, bitorder="little")
    rows[:, : packed_rows.shape[1]] = packed_rows
    return rows
