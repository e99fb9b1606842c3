# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which figures of an earlier card still hold: those of the weights that lie beside it.

A card has a digest of the weights that it was written for. Once a folder holds other weights, results, shares and
reports of the earlier ones are left out of the card, and what describes the project (license, language, data sets,
tags) stays.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import ModelCardData
from safetensors import safe_open


D = TypeVar("D", bound=ModelCardData)

_WEIGHTS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors")


def weights_digest(folder: str | os.PathLike) -> str | None:
    """Hex digest of the weights in a checkpoint's folder, None without any. The same numbers have the same digest in
    one file and in several, in float32 and in half precision.

    Args:
        folder: Of a pool, or of an adapter on one.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        if _WEIGHTS.fullmatch(path.name):
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    tensor = file.get_tensor(name)
                    if tensor.dtype in (torch.float16, torch.bfloat16):
                        tensor = tensor.float()  # half precision holds the same numbers
                    of_one = hashlib.sha256(f"{name} {tuple(tensor.shape)} ".encode())
                    of_one.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
                    found[name] = of_one.digest()
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:16] if found else None


def without_figures(data: D) -> D:
    """The metadata of a card without what was measured.

    Args:
        data: Of the earlier card.
    """
    kept = {name: value for name, value in data.to_dict().items() if name not in ("model-index", "metrics")}
    return type(data)(**kept | {"model_name": data.model_name, "securerouter": {}})
