# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Which expert's encoder the router of a run reads.

It is that of the expert that costs least. A router reads the first token's row, of a pooled expert that expert's row,
and on shares the head of the same encoder has to read that row, too. An expert whose head reads another one, as a
ModernBERT's or a EuroBERT's may, is passed over there; in clear text it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.mpc.models import architecture_for
from hf_securerouter.mpc.models.spec import Problem
from hf_securerouter.recipes.arguments import RunArguments


SHARED = "router_shares_expert"  # under which `costs.json` and the routers' files say it
# What a run leaves that depends on the shared encoder, beside its costs.
_OF_THE_ROUTER = (
    *("router-*.safetensors", "steps/router-*", "tuning-*.json"),
    *("routed.json", "sweep.json", "routers.json", "report.json"),
)


@refuses_unknown
def shares_encoder(args: RunArguments) -> bool:
    """Whether the router reads an expert's encoder itself."""
    return args.router_name_or_path is None and args.share_router_encoder


@refuses_unknown
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


@refuses_unknown
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


@refuses_unknown
def refuse_another_encoder(
    folder: Path, shared: int | None, costs: Mapping[str, Any], experts: Callable[[], Sequence[PreTrainedModel]]
) -> None:
    """
    Refuses to go on with costs and routers of another shared encoder, as an older version may have left them.

    Args:
        folder (`Path`): Of the run.
        shared (`int`, *optional*): The expert whose encoder the router shares now; None for an encoder of its own.
        costs (`dict`): As `costs.json` holds them.
        experts (callable): Loads the experts. It is called where costs or a router do not say whose encoder is shared:
            then it was that of the expert with the fewest parameters.

    Raises:
        `SecureRouterValueError`: They are of another encoder; the message names what to remove.
    """
    if shared is None:
        return
    routers = sorted(folder.glob("router-*.safetensors"))
    recorded = [costs.get(SHARED), *map(_recorded, routers)]
    fewest = None
    if None in recorded:
        sizes = [expert.num_parameters() for expert in experts()]
        fewest = sizes.index(min(sizes))
    found = [fewest if own is None else own for own in recorded]
    other = next((own for own in found if own != shared), None)
    if other is None:
        return
    stale = [] if found[0] == shared else [folder / "costs.json"]
    stale += [path for pattern in _OF_THE_ROUTER for path in sorted(folder.glob(pattern))]
    names = ", ".join(str(path.relative_to(folder)) for path in stale)
    chosen = ", as older versions chose it" if None in recorded else ""
    raise SecureRouterValueError(
        f"`output_dir` {str(folder)!r} holds figures of a router that reads the encoder of expert {other + 1}"
        f"{chosen}, and now it reads that of expert {shared + 1}: remove {names} there, and they are made again, or "
        "name another folder."
    )


def _recorded(router: Path) -> int | None:
    """The expert whose encoder a router in a file reads; None if the file does not say it."""
    with safe_open(router, "pt") as file:
        value = (file.metadata() or {}).get(SHARED)
    return None if value is None else int(value)
