# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Where a role computes, `"cpu"` or `"cuda"`, and how bytes get there and back.

Every tensor of a run lives on one device: words come from `Csprng` there, public constants through `kept_on`, and
messages through a `Staging`. Which device of several `"cuda"` means is for CUDA_VISIBLE_DEVICES to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


DEVICES = ("cpu", "cuda")


def what_is_missing(device: str) -> tuple[str, str] | None:
    """Why nothing can be computed on `device` here, and what to do about it; None when it can."""
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here", "Pass `device='cpu'`, or use a CUDA build of torch where a GPU is"
    if find_spec("triton") is None:
        return "the masks of a CUDA device need Triton", "Run `pip install triton`"
    return None


def finish(device: str) -> None:
    """Wait until everything that was started on `device` is done, so that times mean something."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def memory_budget(device: str) -> int:
    """Bytes that a role may take on `device` ahead of their use: an eighth of what is free, which others share."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0] // 8
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 // 8 if found else 0


def kept_on(device: str, values: Tensor) -> Tensor:
    """A public constant on `device`, copied there once; not for anything that is made anew for every run."""
    return values if device == "cpu" else _copy(device, values)


@lru_cache(maxsize=256)
def _copy(device: str, values: Tensor) -> Tensor:
    return values.to(device)  # tensors are hashed by identity, and the cache keeps them alive


class Staging:
    """Between a device and messages in host memory: one pinned buffer, and copies that run one after another.

    What `to_host` returns is overwritten by the next call of either method.

    Args:
        device (`str`): Where tensors are; on a CPU nothing is copied.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def to_host(self, parts: Sequence[Tensor]) -> list[memoryview]:
        """The bytes of flat uint8 tensors, ready to be sent."""
        if self._device != "cpu":
            pieces = self._pieces([part.numel() for part in parts])
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part, non_blocking=True)
            finish(self._device)  # no byte leaves before it is there, and no earlier copy still reads the buffer
            parts = pieces
        return [part.numpy().data for part in parts]

    def to_device(self, messages: Sequence[Any]) -> list[Tensor]:
        """Received bytes as flat uint8 tensors."""
        received = [torch.frombuffer(message, dtype=torch.uint8) for message in messages]
        if self._device == "cpu":
            return received
        sizes = [part.numel() for part in received]
        for piece, part in zip(self._pieces(sizes), received, strict=True):
            piece.copy_(part)
        return list(self._buffer[: sum(sizes)].to(self._device, non_blocking=True).split(sizes))

    def _pieces(self, sizes: list[int]) -> list[Tensor]:
        """Parts of the buffer, which grows when a message is larger than all before."""
        total = sum(sizes)
        if total > self._buffer.numel():
            self._buffer = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        return list(self._buffer[:total].split(sizes))
