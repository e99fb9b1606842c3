# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What one text takes of the memory of all roles together, roughly and rather too much, from public sizes alone."""

from __future__ import annotations

from ...models.manifest import Manifest


# Bytes at all roles together for each attention score, word of a hidden state, and row that is divided.
_SCORE, _WORD, _ROW = 1280, 2 << 10, 96 << 10


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
