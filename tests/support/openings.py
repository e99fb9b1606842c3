# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whether what both servers see is uniform, and alike for two inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from tests.support.harness import Message


# By server, place in the conversation, "received" or "opened", gate and bits: the words of every run.
Openings = dict[tuple[int, int, str, str, int], list[Tensor]]


def add_openings(openings: Openings, records: tuple[list[Message], list[Message]]) -> None:
    """Add what both servers saw in one run."""
    for rank in (0, 1):
        for position, message in enumerate(records[rank]):
            for name, words in (("received", message.received), ("opened", message.opened)):
                key = (rank, position, name, message.gate, message.bits)
                openings.setdefault(key, []).append(words.reshape(-1))


def p_values(first: Tensor, second: Tensor, bits: int) -> list[float]:
    """P-values of words of `bits` bits, (runs, words), being uniform, and alike for two inputs."""
    found, shown, runs = [], min(bits, 3), len(first)
    for shift in {0, bits - shown}:
        for words in (first, second):
            counts = torch.bincount((words >> shift).flatten() & ((1 << shown) - 1), minlength=1 << shown)
            found.append(stats.chisquare(counts.numpy()).pvalue)
        # Word by word: a bit set as often for one input as for the other.
        first_set, second_set = (((words >> shift) & 1).sum(0).double() for words in (first, second))
        distance = ((first_set - second_set).square() / (runs / 2)).sum().item()
        found.append(stats.chi2.sf(distance, len(first_set)))
    return found


def gates_that_look_alike(run: Callable, inputs: tuple, runs: int) -> set[str]:
    """Run each of two inputs some times; the gates that opened something.

    Raises:
        AssertionError: Lengths of messages differ, or words are not uniform or not alike.
    """
    seen: tuple[Openings, Openings] = ({}, {})
    shapes = []
    for openings, given in zip(seen, inputs, strict=True):
        for _ in range(runs):
            done = run(*given)
            shapes.append([[len(part) for part in parts] for parts in done.sent[0] + done.sent[1]])
            add_openings(openings, done.records)
    assert all(shape == shapes[0] for shape in shapes)
    assert seen[0].keys() == seen[1].keys()
    found = []
    for key in seen[0]:
        found += p_values(*(torch.stack(openings[key]).to(torch.int64) for openings in seen), key[-1])
    assert min(found) * len(found) > 1e-6
    return {key[3] for key in seen[0]}
