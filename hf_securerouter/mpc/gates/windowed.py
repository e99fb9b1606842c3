# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The products of attention in a window: each query meets the keys within a public distance, and no other key.

Queries are cut into blocks of public size; a block meets the keys from `reach` before its first query to `reach` after
its last. Queries, keys and values are opened once each, as in `Matmul`; blocks are formed of opened values, of masks,
and by the dealer. So a row of n tokens costs n (block + 2 reach) scores instead of n^2. Which scores lie within the
window is public.

Who sees what: as for `Matmul`. Cost: K bits an element of both operands, in one round. Dealer: K bits an output.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .matmul import Matmul


@dataclass(frozen=True)
class Window:
    """Which keys the queries of a row meet.

    Args:
        length (`int`): T, the tokens of a row.
        reach (`int`): Largest distance of a query and a key.
        block (`int`): Queries of a block.
    """

    length: int
    reach: int
    block: int

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may be filled up with queries that do not exist."""
        return -(-self.length // self.block)

    @property
    def span(self) -> int:
        """Keys that a block meets."""
        return self.block + 2 * self.reach

    @property
    def saves(self) -> bool:
        """Whether blocks have fewer scores than all pairs."""
        return self.blocks * self.block * self.span < self.length**2

    def places(self) -> Tensor:
        """The key at each place of each block, int64 (blocks, span); beyond the ends of a row, its first or last."""
        return _places(self).clamp(0, self.length - 1)

    def allowed(self) -> Tensor:
        """Whether a query meets the key at a place, bool (blocks, block, span); at least one key for each query."""
        query = torch.arange(self.blocks * self.block).view(self.blocks, self.block, 1)
        key = _places(self)[:, None, :]
        near = ((query - key).abs() <= self.reach) & (key >= 0) & (key < self.length)
        return near | ((query >= self.length) & (key == self.length - 1))

    def in_blocks(self, rows: Tensor) -> Tensor:
        """Rows (..., T, d) as blocks (..., blocks, block, d), filled up with zeros."""
        short = self.blocks * self.block - self.length
        if short:
            rows = torch.cat([rows, rows.new_zeros((*rows.shape[:-2], short, rows.shape[-1]))], -2)
        return rows.reshape(*rows.shape[:-2], self.blocks, self.block, rows.shape[-1])

    def at_places(self, rows: Tensor) -> Tensor:
        """Rows (..., T, d) at the places of each block, (..., blocks, span, d)."""
        found = rows.index_select(-2, self.places().view(-1).to(rows.device))
        return found.view(*rows.shape[:-2], self.blocks, self.span, rows.shape[-1])

    def joined(self, blocks: Tensor) -> Tensor:
        """Blocks (..., blocks, block, d) as rows (..., T, d)."""
        return blocks.reshape(*blocks.shape[:-3], -1, blocks.shape[-1])[..., : self.length, :]


@lru_cache(maxsize=64)
def _places(window: Window) -> Tensor:
    starts = torch.arange(window.blocks)[:, None] * window.block - window.reach
    return starts + torch.arange(window.span)


@dataclass(frozen=True)
class WindowScores(Matmul):
    """Queries times keys, in a window.

    Args:
        left (`tuple[int, ...]`): Shape of the queries, (..., T, d).
        right (`tuple[int, ...]`): Shape of the keys, (..., d, T).
        width (`int`): K, the ring of both openings and of the product.
        window (`Window`): Which keys the queries meet.
    """

    window: Window

    @property
    def result(self) -> tuple[int, ...]:
        return (*self.left[:-2], self.window.blocks, self.window.block, self.window.span)

    def arranged_left(self, words: Tensor) -> Tensor:
        return self.window.in_blocks(words)

    def arranged_right(self, words: Tensor) -> Tensor:
        return self.window.at_places(words.transpose(-1, -2)).transpose(-1, -2)


@dataclass(frozen=True)
class WindowMix(Matmul):
    """Attention weights in blocks times values.

    Args:
        left (`tuple[int, ...]`): Shape of the weights, (..., blocks, block, span).
        right (`tuple[int, ...]`): Shape of the values, (..., T, d).
        width (`int`): K, the ring of both openings and of the product.
        window (`Window`): Which keys the queries meet.
    """

    window: Window

    @property
    def result(self) -> tuple[int, ...]:
        return (*self.left[:-1], self.right[-1])

    def arranged_right(self, words: Tensor) -> Tensor:
        return self.window.at_places(words)
