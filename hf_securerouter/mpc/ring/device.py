# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The device on which a role computes, `"cpu"` or `"cuda"`, and copies between the device and host memory.

Every tensor of a run lives on one device: `Csprng` draws words there, `kept_on` copies public constants there, and
`Staging` carries messages. CUDA_VISIBLE_DEVICES chooses among several GPUs.
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
    """Reason why `device` cannot be used on this machine, and the remedy; None if it can be used."""
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here", "Pass `device='cpu'`, or use a CUDA build of torch where a GPU is"
    if find_spec("triton") is None:
        return "the masks of a CUDA device need Triton", "Run `pip install triton`"
    return None


def finish(device: str) -> None:
    """Wait until all work queued on `device` is done, so that a clock read afterwards includes it."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def free_memory(device: str) -> int | None:
    """Bytes of `device` that are free now; None if unknown."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else None


def kept_on(device: str, values: Tensor) -> Tensor:
    """A public constant on `device`, copied once and cached; not for tensors made anew in every run."""
    return values if device == "cpu" else _copy(device, values)


@lru_cache(maxsize=256)
def _copy(device: str, values: Tensor) -> Tensor:
    return values.to(device)  # the cache keys tensors by identity and keeps them alive


class Staging:
    """Copies bytes between a device and messages in host memory, through one pinned buffer.

    The next call of either method overwrites the views that `to_host` returned.

    Args:
        device (`str`): Device of the tensors; on a CPU nothing is copied.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def to_host(self, parts: Sequence[Tensor]) -> list[memoryview]:
        """The bytes of flat uint8 tensors in host memory, ready to be sent."""
        if self._device != "cpu":
            pieces = self._pieces([part.numel() for part in parts])
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part, non_blocking=True)
            finish(self._device)  # until these copies, and earlier ones that read the buffer, are complete
            parts = pieces
        return [part.numpy().data for part in parts]

    def to_device(self, messages: Sequence[Any]) -> list[Tensor]:
        """Received bytes as flat uint8 tensors on the device."""
        received = [torch.frombuffer(message, dtype=torch.uint8) for message in messages]
        if self._device == "cpu":
            return received
        sizes = [part.numel() for part in received]
        for piece, part in zip(self._pieces(sizes), received, strict=True):
            piece.copy_(part)
        return list(self._buffer[: sum(sizes)].to(self._device, non_blocking=True).split(sizes))

    def _pieces(self, sizes: list[int]) -> list[Tensor]:
        """Slices of the buffer, which grows to the size of the largest message."""
        total = sum(sizes)
        if total > self._buffer.numel():
            self._buffer = torch.empty(total, dtype=torch.uint8, pin_memory=True)
        return list(self._buffer[:total].split(sizes))
