# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a CPU has for products in bfloat16, on which it depends whether training in it is faster than in float32."""

from __future__ import annotations

import torch

from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.recipes.artifacts import announce


_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # from the fastest on


def bfloat16_instructions() -> str | None:
    """The fastest instructions that this CPU has for products in bfloat16: `"AMX"`, `"AVX512-BF16"` or None."""
    has = torch.cpu.get_capabilities()
    return next((name for flag, name in _INSTRUCTIONS.items() if has.get(flag)), None)


@refuses_unknown
def announce_bfloat16(bf16: bool, device: torch.device) -> None:
    """
    Print in one line what training in bfloat16 runs on, if it runs on a CPU.

    Args:
        bf16 (`bool`): Whether it is in bfloat16.
        device (`torch.device`): Where it runs.
    """
    found = bfloat16_instructions()
    if not bf16 or device.type != "cpu":
        return
    if found is None:
        announce("This CPU has no instructions for bfloat16: training in it is slower than in float32.")
    else:
        announce(f"Training in bfloat16 on a CPU with {found}.")
