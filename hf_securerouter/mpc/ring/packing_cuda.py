# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The packing of `words.py`, byte for byte, in few and large tensor operations, which suit a CUDA device.

Words of K bits stand one after another in a stream of 64-bit units: word i starts at bit i * K, and lies in one unit
or two. A long message is a table of such streams, one per column, of 64 words in K units each; the remaining words are
one more stream, cut off at its last byte.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


_UNIT = 64  # bits of a unit, and words in a column of the table


def pack_words(words: Tensor, bits: int, tabled: int) -> Tensor:
    """Pack flat words.

    Args:
        words (`torch.Tensor`): int64 or uint8, in [0, 2^bits).
        bits (`int`): Width of a word, 1 to 63.
        tabled (`int`): Number of words that go into the table, a multiple of 64.

    Returns:
        `torch.Tensor`: uint8, ceil(words * bits / 8) bytes.
    """
    if bits == 1:
        padded = torch.nn.functional.pad(words.to(torch.uint8), (0, -words.numel() % 8)).view(-1, 8)
        return (padded << _bit_places(words.device)).sum(-1, dtype=torch.uint8)
    words = words.to(torch.int64)
    rest = words[tabled:]
    tail = _write(rest.view(-1, 1), bits).view(torch.uint8)[: (rest.numel() * bits + 7) // 8]
    if not tabled:
        return tail
    head = _write(words[:tabled].view(_UNIT, -1), bits)
    return torch.cat([head.view(torch.uint8), tail])


def unpack_words(packed: Tensor, count: int, bits: int, tabled: int) -> Tensor:
    """Undo `pack_words`.

    Args:
        packed (`torch.Tensor`): uint8, flat.
        count (`int`): Number of words.
        bits (`int`): Width of a word, 1 to 63.
        tabled (`int`): Number of words in the table.

    Returns:
        `torch.Tensor`: (count,), uint8 for `bits` up to 8, int64 above.
    """
    if bits == 1:
        return ((packed.unsqueeze(-1) >> _bit_places(packed.device)) & 1).view(-1)[:count]
    head, tail = packed[: tabled * bits // 8], packed[tabled * bits // 8 :]
    parts = []
    if tabled:
        parts.append(_read(as_int64(head).view(bits, -1), _UNIT, bits))
    if count > tabled:
        whole = torch.nn.functional.pad(tail, (0, -tail.numel() % 8))
        parts.append(_read(whole.view(torch.int64).view(-1, 1), count - tabled, bits))
    words = torch.cat(parts) if parts else packed.new_empty(0, dtype=torch.int64)
    return words.to(torch.uint8) if bits <= 8 else words


def _bit_places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def as_int64(packed: Tensor) -> Tensor:
    """The bytes viewed as int64; a slice of a message that is not aligned to 8 bytes is copied first."""
    return (packed.clone() if packed.data_ptr() % 8 or packed.storage_offset() % 8 else packed).view(torch.int64)


@lru_cache(maxsize=256)
def _places(count: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each of `count` words of a stream, its first unit (count,) and its first bit in that unit (count, 1)."""
    start = torch.arange(count, device=device) * bits
    return start >> 6, (start & (_UNIT - 1)).unsqueeze(-1)


def _write(words: Tensor, bits: int) -> Tensor:
    """The units of streams of words (words, columns), flattened row by row."""
    unit, offset = _places(words.shape[0], bits, words.device)
    units = -(-words.shape[0] * bits // _UNIT)
    found = torch.zeros(units + 1, words.shape[1], dtype=torch.int64, device=words.device)
    # No two words share a bit, so addition joins them.
    found.index_add_(0, unit, words << offset)
    found.index_add_(0, unit + 1, (words >> 1) >> (_UNIT - 1 - offset))
    return found[:units].view(-1)


def _read(units: Tensor, count: int, bits: int) -> Tensor:
    """The `count` words of each stream of units (units, columns), flattened row by row."""
    unit, offset = _places(count, bits, units.device)
    low = units.index_select(0, unit) >> offset
    high = units.index_select(0, (unit + 1).clamp_(max=units.shape[0] - 1))
    # The right shift copied the sign into the places of the second unit's bits: clear them. The last word may have no
    # second unit, and then needs no bits from it.
    low &= ~(torch.full_like(offset, -2) << (_UNIT - 1 - offset))
    return low.bitwise_or_((high << 1) << (_UNIT - 1 - offset)).bitwise_and_((1 << bits) - 1).view(-1)
