# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which expert's encoder the router of a run reads.

It is that of the expert that costs least. A router reads the first token's row, of a pooled expert that expert's row,
and on shares the head of the same encoder has to read that row, too. An expert whose head reads another one, as a
ModernBERT's or a EuroBERT's may, is passed over there; in clear text it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hf_securerouter.mpc.models import architecture_for
from hf_securerouter.mpc.models.spec import Problem
from hf_securerouter.recipes.arguments import RunArguments


def shares_encoder(args: RunArguments) -> bool:
    """Whether the router reads an expert's encoder itself."""
    return args.router_name_or_path is None and args.share_router_encoder


def sharing_problem(config: PreTrainedConfig, path: str) -> Problem | None:
    """
    Why a router on shares cannot read an expert's encoder; None if it can.

    Args:
        config (`PreTrainedConfig`): Of the expert, which shares compute.
        path (`str`): The expert's name or folder, for the message.
    """
    architecture = architecture_for(config.model_type)
    assert architecture is not None, "callers have checked the family"
    own, read = architecture.spec(config).pooling, getattr(config, "pooling", "first")
    if own == read:
        return None
    reason = f"the router, which shares an expert's encoder, reads the {read} token, and its head the {own!r} row"
    return Problem(path, reason, "Pass `--share_router_encoder false`, or an expert whose head reads the first token")


def shared_expert(args: RunArguments, costs: Mapping[str, Any], folders: Sequence[Path]) -> int | None:
    """
    The index of the expert whose encoder the router shares; None if it has its own.

    Args:
        args ([`RunArguments`]): Of the run.
        costs (`dict`): With `seconds`, what each expert takes alone, and `source`; unless that is `"measured"`, the
            pool is one for clear text.
        folders (sequence of `Path`): The experts.
    """
    if not shares_encoder(args):
        return None
    cheapest_first = sorted(range(len(folders)), key=lambda index: costs["seconds"][index])
    if costs["source"] != "measured":
        return cheapest_first[0]
    configs = [AutoConfig.from_pretrained(folder) for folder in folders]
    readable = (index for index in cheapest_first if sharing_problem(configs[index], str(folders[index])) is None)
    return next(readable, cheapest_first[0])
