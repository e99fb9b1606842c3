# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The packing of `ring.py`, byte for byte, in tensor operations: few and large ones, as a CUDA device wants them.

Words stand one after another in a stream of 64-bit units: word i starts at bit i * K, and lies in one unit or in two.
Messages of many words are a table of such streams, one a column, of 64 words in K units each; what does not fill a
table is one more stream, cut off at the last byte.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


_UNIT = 64  # bits of a unit, and words of a stream that fills whole units


def pack_words(words: Tensor, bits: int, tabled: int) -> Tensor:
    """Pack flat words.

    Args:
        words (`torch.Tensor`): int64 or uint8, in [0, 2^bits).
        bits (`int`): Their width, 1 to 63.
        tabled (`int`): How many of them, a multiple of 64, go into the table.

    Returns:
        `torch.Tensor`: uint8, ceil(words * bits / 8).
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
        count (`int`): How many words they are.
        bits (`int`): Their width, 1 to 63.
        tabled (`int`): How many of them are in the table.

    Returns:
        `torch.Tensor`: uint8 for `bits` up to 8, int64 above.
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
    """The bytes as int64; a slice of a received message may start at any byte, 64-bit views may not."""
    return (packed.clone() if packed.data_ptr() % 8 or packed.storage_offset() % 8 else packed).view(torch.int64)


@lru_cache(maxsize=256)
def _places(count: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For `count` words of a stream the unit in which each starts, and at which bit of it, the latter (count, 1)."""
    start = torch.arange(count, device=device) * bits
    return start >> 6, (start & (_UNIT - 1)).unsqueeze(-1)


def _write(words: Tensor, bits: int) -> Tensor:
    """Streams of words, (words, columns), to their units, flat and row by row."""
    unit, offset = _places(words.shape[0], bits, words.device)
    units = -(-words.shape[0] * bits // _UNIT)
    found = torch.zeros(units + 1, words.shape[1], dtype=torch.int64, device=words.device)
    # No two words share a bit, so that adding is joining.
    found.index_add_(0, unit, words << offset)
    found.index_add_(0, unit + 1, (words >> 1) >> (_UNIT - 1 - offset))
    return found[:units].view(-1)


def _read(units: Tensor, count: int, bits: int) -> Tensor:
    """The `count` words of each stream of units, (units, columns), flat and row by row."""
    unit, offset = _places(count, bits, units.device)
    low = units.index_select(0, unit) >> offset
    high = units.index_select(0, (unit + 1).clamp_(max=units.shape[0] - 1))
    # A shift to the right copies the sign; where a word has a second unit, its bits go there. The last word may have
    # none, and then needs none.
    low &= ~(torch.full_like(offset, -2) << (_UNIT - 1 - offset))
    return low.bitwise_or_((high << 1) << (_UNIT - 1 - offset)).bitwise_and_((1 << bits) - 1).view(-1)
