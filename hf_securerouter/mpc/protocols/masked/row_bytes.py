# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What one text takes of the memory of all roles together, roughly and rather too much, from public sizes alone."""

from __future__ import annotations

from ...models.manifest import Manifest


# Bytes at all roles together for each attention score, word of a hidden state, and row that is divided.
_SCORE, _WORD, _ROW = 1280, 2 << 10, 96 << 10
# And, while such a gate runs, for each input of an activation, and for each bit that says whether a choice of a token
# takes a place of an expert.
_ACTIVE, _SILU, _PLACE = 4 << 10, 5 << 10, 512


def row_bytes(manifest: Manifest, member: str) -> int:
    """Bytes that a text takes while a member's encoder reads it, beside the weights.

    Args:
        manifest (`Manifest`): The model's manifest.
        member (`str`): Such as `experts.0`; a router that shares an expert's encoder takes as much.
    """
    spec, tokens = manifest.members[manifest.encoder_of(member)], manifest.length_of(member)
    total = tokens * tokens * spec.num_heads * _SCORE
    total += tokens * (spec.intermediate_size + spec.hidden_size) * _WORD
    total += tokens * (spec.num_heads + 1) * _ROW
    if spec.sparse_layers:
        # Experts have places, or a token's experts are chosen among all.
        rows = tokens * spec.experts_per_token if spec.expert_capacity is None else spec.expert_capacity
        total += rows * spec.num_experts * (2 * spec.hidden_size + spec.intermediate_size) * _WORD
    return total


def most_row_bytes(manifest: Manifest, member: str) -> int:
    """More than a text takes: `row_bytes`, on which public programs depend, or a single gate that takes more."""
    spec, tokens = manifest.members[manifest.encoder_of(member)], manifest.length_of(member)
    chosen, places = tokens * spec.experts_per_token, spec.num_experts * (spec.expert_capacity or 0)
    inner = max(tokens, places or chosen * spec.num_experts) * spec.intermediate_size
    late = tokens * (spec.head.inner_size or spec.hidden_size) if spec.pooling == "late" else 0
    return max(
        row_bytes(manifest, member),
        inner * (_SILU if spec.hidden_act == "silu" else _ACTIVE),
        late * (_SILU if spec.head.activation == "silu" else _ACTIVE),
        chosen * places * _PLACE,
    )
