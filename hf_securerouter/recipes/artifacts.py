# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Files that a run leaves, each made once; and its lines of progress: what is done, how far, how long still."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_securerouter.files import new_folder, write_atomically, write_json
from hf_securerouter.known_arguments import refuses_unknown, refuses_unknown_init


@refuses_unknown
def announce(message: str) -> None:
    """Print a line of progress, in the main process."""
    if PartialState().is_main_process:
        print(message, flush=True)


@refuses_unknown_init
class Countdown:
    """
    Says how far a long step is and how long it still takes, at most twice a minute; a short step says nothing.

    Args:
        total (`int`): Parts of the step.
        unit (`str`): What is counted, such as "rows".
        already (`int`): Parts that were done before, by a run that was stopped.
    """

    EVERY = 30.0  # seconds

    def __init__(self, total: int, unit: str, already: int = 0) -> None:
        self._total, self._unit, self._already = total, unit, already
        self._began = self._said = time.monotonic()

    def __call__(self, done: int) -> None:
        """
        Args:
            done (`int`): Parts that are done by now.
        """
        now = time.monotonic()
        if self._already < done < self._total and now - self._said >= self.EVERY:
            self._said = now
            left = (now - self._began) / (done - self._already) * (self._total - done)
            announce(f"  {done:,} of {self._total:,} {self._unit}, about {duration(left)} more")


def duration(seconds: float) -> str:
    """Seconds for people, such as "40 s", "3 min" or "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@refuses_unknown
def once(path: Path, make: Callable[[], Any]) -> Any:
    """
    The JSON value in a file; the main process makes and writes it if the file is not there.

    Args:
        path (`Path`): The file.
        make (callable): Gives a JSON-able value. It runs in the main process alone, so it may wait for no other one.
    """
    state = PartialState()
    if state.is_main_process and not path.exists():
        write_json(make(), path)
    state.wait_for_everyone()
    return json.loads(path.read_text())


@refuses_unknown
def once_tensors(
    path: Path, make: Callable[[], Mapping[str, torch.Tensor]], metadata: Mapping[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """
    The tensors in a file; all processes make them together, and the main one writes them, if the file is not there.

    Args:
        path (`Path`): The file, of safetensors.
        make (callable): Gives tensors by their names, on the CPU and the same in every process.
        metadata (`Mapping`, *optional*): What a file that is written says beside its tensors.
    """
    state = PartialState()
    missing = not path.exists()
    state.wait_for_everyone()
    if missing:
        tensors = {name: value.contiguous() for name, value in make().items()}
        if state.is_main_process:
            with write_atomically(path) as temporary:
                save_file(tensors, temporary, None if metadata is None else dict(metadata))
        state.wait_for_everyone()
    return load_file(path)


@refuses_unknown
def save_once(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Callable[[], None]
) -> None:
    """
    Trains a model and saves it, unless its folder is there already.

    Args:
        folder (`Path`): Where model and tokenizer are saved; it is whole or not there.
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        train (callable): Trains the model in the place, in all processes together.
    """
    state = PartialState()
    missing = not folder.exists()
    state.wait_for_everyone()
    if missing:
        train()
        if state.is_main_process:
            with new_folder(folder) as staging:
                tokenizer.save_pretrained(staging)
                model.save_pretrained(staging)
        state.wait_for_everyone()
