# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The largest of many scores and its one-hot, ties to the lowest index: groups of 8, then the winners of the groups.

`Argmax` compares all pairs, 8,128 of 128 scores; in groups of 8 and then among 16 winners it is 568. The one-hot of a
group and that of its winner are multiplied by an AND.

Who sees what: openings of `Argmax`, `Select` and `And` only, each under a mask of its own.
Cost for N scores: 5 rounds for the comparisons and their ANDs and one for the score, twice and one more above 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .argmax import Argmax
from .conjunction import And
from .gate import SecretProtocol
from .party import Party
from .secret import Secret
from .select import Select


_GROUP, _DIRECT = 8, 16  # scores of a group; scores of which all pairs are compared


def largest(party: Party, scores: Secret, bits: int) -> SecretProtocol[tuple[Tensor, Secret]]:
    """The one-hot of each row's largest score, and the score.

    Args:
        party (`Party`): The party.
        scores (`Secret`): (rows, N), N at least 2, in a ring of at least `bits` bits.
        bits (`int`): k; two scores of a row differ by less than 2^(k-1) as integers.

    Returns:
        `tuple[torch.Tensor, Secret]`: XOR shares of the one-hot, uint8 (N, rows); the score, (rows,) in Z_2^k.
    """
    rows, count = scores.shape
    if count <= _DIRECT:
        return (yield from _of_group(party, scores.narrow(bits), bits))
    groups = -(-count // _GROUP)
    missing = groups * _GROUP - count
    # Copies of the first scores fill the last group; of equal winners the first counts, so no copy does.
    words = torch.cat([scores.words, scores.words[:, :missing]], 1).view(rows * groups, _GROUP)
    own, winners = yield from _of_group(party, party.secret(words, bits, scores.scale, scores.bound), bits)
    which, top = yield from largest(party, winners.map(lambda words: words.view(rows, groups)), bits)
    own = own.view(_GROUP, rows, groups).permute(2, 0, 1).reshape(groups * _GROUP, rows)[:count]
    products = tuple((index, count + index // _GROUP) for index in range(count))
    one_hot = yield from And(count + groups, rows, products).run(party, torch.cat([own, which]))
    return one_hot, top


def _of_group(party: Party, scores: Secret, bits: int) -> SecretProtocol[tuple[Tensor, Secret]]:
    rows, count = scores.shape
    one_hot = yield from Argmax(rows, count, bits).run(party, scores)
    candidates = scores.map(lambda words: words.t().contiguous()[..., None])
    top = yield from Select(count, rows, 1, bits).run(party, one_hot, candidates)
    return one_hot, top.map(lambda words: words[:, 0])
