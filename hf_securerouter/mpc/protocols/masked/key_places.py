# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which keys the queries of a layer meet: public, by their distance, and secret, by the attention mask.

In a window a query of padding may meet no token. So there a query always meets its own key, whether it is a token or
not: rows of padding then stay within the bounds of tokens, and rows of tokens do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...gates.party import Party
from ...gates.secret import Secret
from ...gates.windowed import Window


@dataclass(frozen=True)
class KeyPlaces:
    """The places of keys of one layer.

    Args:
        length (`int`): T, the keys of a row.
        queries (`int`): Queries of a row: T, or 1 for the first token only.
        reach (`int`, *optional*): Largest distance of a query and a key; None for all pairs.
    """

    length: int
    queries: int
    reach: int | None

    @property
    def limited(self) -> bool:
        """Whether some pair is out of reach."""
        return self.reach is not None and self.reach < self.length - 1

    @property
    def window(self) -> Window | None:
        """The blocks in which scores are computed, where that saves any."""
        if not self.limited or self.queries < self.length or self.reach is None:
            return None
        window = Window(self.length, self.reach, max(1, self.reach))
        return window if window.saves else None

    def spread(self, words: Tensor) -> Tensor:
        """Words of each key, (B, T), beside the scores: (B, 1, 1, T), or in blocks (B, 1, blocks, 1, span)."""
        if self.window is None:
            return words[:, None, None, :]
        blocks = self.window.at_places(words[..., None])[..., 0]
        return blocks[:, None, :, None, :]

    def hidden(self, party: Party, is_token: Tensor) -> Tensor:
        """XOR share of whether a query does not meet a key, uint8, which broadcasts to the scores.

        Args:
            party (`Party`): The party.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T).
        """
        bits = self.spread(is_token ^ 1 if party.rank == 0 else is_token)
        if not self.limited:
            return bits
        allowed, is_own, _ = map(party.constant, _tables(self))
        return torch.where(allowed, torch.where(is_own, 0, bits), int(party.rank == 0)).to(torch.uint8)

    def of_padding(self, party: Party, padding: Tensor) -> Tensor:
        """A share of a word of each key of padding, (B, T), as it is added to the scores: not to a query's own key."""
        words = self.spread(padding)
        return torch.where(party.constant(_tables(self)[1]), 0, words) if self.limited else words

    def within(self, party: Party, scores: Secret) -> Secret:
        """The scores with those out of reach replaced by that of the query's own key, which changes no maximum."""
        if not self.limited:
            return scores
        allowed, _, own = map(party.constant, _tables(self))

        def replaced(words: Tensor) -> Tensor:
            return torch.where(allowed, words, words.gather(-1, own.expand(*words.shape[:-1], 1)))

        return scores.map(replaced)


@lru_cache(maxsize=64)
def _tables(places: KeyPlaces) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a query may meet a key, whether the key is its own, and the place of its own key (..., 1)."""
    window = places.window
    if window is None:
        query, key = torch.arange(places.queries)[:, None], torch.arange(places.length)
        return (query - key).abs() <= (places.reach or 0), query == key, query
    own = (torch.arange(window.block) + window.reach).expand(window.blocks, -1)[..., None]
    # Queries that only fill up the last block meet the row's last key.
    number = torch.arange(window.blocks * window.block).view(window.blocks, window.block, 1)
    own = own - (number - (places.length - 1)).clamp(min=0)
    return window.allowed(), torch.arange(window.span) == own, own
