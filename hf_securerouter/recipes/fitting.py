# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a run and the loop that fits its models promise each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase


Row = dict[str, Any]  # `input_ids`, `attention_mask` and whatever else a model reads, with its `labels`
Collate = Callable[[list[Row]], dict[str, Any]]  # rows as one padded batch of tensors


class Workspace(Protocol):
    """What a loop needs of the run that it trains for.

    Attributes:
        folder (`Path`): Where checkpoints of unfinished steps may lie, under `steps/NAME`.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of all experts.
        collate (callable): Rows as one padded batch.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    collate: Collate


# Trains those parameters of a model that require a gradient: of the run, the name of the step, the model, its rows,
# epochs and a learning rate.
Fit = Callable[[Any, str, nn.Module, Sequence[Row], float, float], None]

# The same for one run, which is bound already.
Train = Callable[[str, nn.Module, Sequence[Row], float, float], None]
