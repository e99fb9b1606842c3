# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The ranks of distinct secret keys, revealed to both parties, and nothing else.

Every pair is compared exactly, all pairs in one batch; the bits are a function of the ranks, since an order is
transitive. Ranks of keys that were shuffled secretly are a uniform permutation, whatever the keys are, as long as no
two keys are equal: a tie would show, so keys must be made distinct before the shuffle.

Cost: a comparison for each of the B (B - 1) / 2 pairs in 3 rounds at k up to 65, and one round to reveal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .argmax import Reveal
from .compare import Compare
from .gate import SecretProtocol
from .party import Party
from .secret import Secret


def ranks(party: Party, keys: Secret, bits: int) -> SecretProtocol[Tensor]:
    """Compare all pairs of keys and reveal their order.

    Args:
        party (`Party`): The party.
        keys (`Secret`): (B,), distinct, in a ring of at least k bits.
        bits (`int`): k; two keys differ by less than 2^(k-1) as integers.

    Returns:
        `torch.Tensor`: int64 (B,): how many keys are larger than each. Public.
    """
    count = keys.words.shape[0]
    if count == 1:
        return torch.zeros(1, dtype=torch.int64, device=keys.words.device)
    first, second = torch.triu_indices(count, count, 1, device=keys.words.device).unbind(0)
    words = keys.narrow(bits).words
    pairs = first.shape[0]
    difference = party.secret(words[first] - words[second], bits, keys.scale, keys.bound + 1)
    smaller = yield from Compare((pairs,), bits, (0,)).run(party, difference)
    (revealed,) = yield from Reveal((1, pairs)).run(party, smaller)
    revealed = revealed.to(torch.int64)
    larger = torch.zeros(count, dtype=torch.int64, device=revealed.device)
    return larger.index_add(0, first, revealed).index_add(0, second, 1 - revealed)
