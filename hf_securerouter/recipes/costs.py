# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What each expert and the router cost: measured under encryption, or as the user says."""

import hashlib
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from hf_securerouter import SecureRouterValueError
from hf_securerouter.families import usable_positions
from hf_securerouter.files import write_json


logger = logging.get_logger(__name__)

UNITS = ("seconds", "bytes")
RUNS = 3  # of which the median counts; they differ by a fifth and more


def measure_costs(args, experts, lengths, largest, make_pool):
    """Seconds and bytes of a query by each expert alone, and behind the router.

    Everything is measured on batches of `quota_batch_size`, since a larger batch waits for the dealer more often. The
    router's part is what is left of a routed batch when the experts' parts are taken off: its encoder, unless an
    expert's own is at work, its head, the shuffle, the ranks and the way back.

    Args:
        args (`RunArguments`): With given `expert_costs`, nothing is measured, and the router costs what the cheapest
            expert does.
        experts (list): The trained classifiers.
        lengths (list): Tokens that each of them reads; None for all.
        largest (`PreTrainedModel`): The one that costs are compared with.
        make_pool (callable): Of costs like those returned: a pool of these experts with a router.

    Returns:
        `dict`: `source`, and for each unit what an expert takes alone (`seconds`, `bytes`), what a query takes that
        the router sends to it, router included (`routed_seconds`, `routed_bytes`), and what `largest` takes
        (`largest_seconds`, `largest_bytes`).
    """
    if args.expert_costs:
        if len(args.expert_costs) != len(experts):
            raise SecureRouterValueError(
                f"`expert_costs` should have one entry for each of {len(experts)} experts, got {args.expert_costs}."
            )
        own = list(args.expert_costs)
        shared = int(np.argmin(own)) if shares_encoder(args) else None
        routed = [min(own) + _beyond_the_router(own, shared)[k] for k in range(len(own))]
        found = {"seconds": own, "routed_seconds": routed, "largest_seconds": own[-1]}
        return {"source": "given"} | found | {name.replace("seconds", "bytes"): None for name in found}
    batch, length = args.quota_batch_size, _length(args, experts)
    found = [
        _alone(args, expert, min(length, own or length), batch) for expert, own in zip(experts, lengths, strict=True)
    ]
    alone = _alone(args, largest, length, batch)
    costs = {"source": "measured"}
    for unit in UNITS:
        costs[unit] = costs[f"routed_{unit}"] = [cost[unit] / batch for cost in found]
        costs[f"largest_{unit}"] = alone[unit] / batch
    pool = make_pool(costs)
    share, rest = divmod(batch, len(experts))
    quotas = [share + (index < rest) for index in range(len(experts))]
    secure = pool.to_mpc(routing_privacy="quota", quotas=quotas, max_length=length)
    routed = _measured(args, secure, batch)
    for unit in UNITS:
        beyond = _beyond_the_router(costs[unit], pool.config.router_shares_expert)
        router = routed[unit] / batch - float(np.dot(quotas, beyond)) / batch
        costs[f"routed_{unit}"] = [router + cost for cost in beyond]
    return costs


def shares_encoder(args):
    """Whether the router reads the smallest expert's encoder."""
    return args.router_name_or_path is None and args.share_router_encoder


def _beyond_the_router(own, shared):
    """What each expert takes when the router has run: nothing, if the router has run its encoder."""
    return [0.0 if index == shared else cost for index, cost in enumerate(own)]


def measure_routed(args, largest, pool, quotas):
    """A batch under `quota` against `largest`, an expert, for all of it.

    Returns:
        `dict`: `batch`, and for each unit `routed`, `largest` and their ratio `relative`.
    """
    batch, length = sum(quotas), _length(args, [largest, *pool.experts])
    routed = _measured(args, pool.to_mpc(routing_privacy="quota", quotas=list(quotas), max_length=length), batch)
    alone = _alone(args, largest, length, batch)
    return {"batch": batch, "length": length} | {
        unit: {"routed": routed[unit], "largest": alone[unit], "relative": routed[unit] / alone[unit]}
        for unit in UNITS
    }


def measure_expert(args, expert, length):
    """What a query takes one expert that reads `length` tokens of it, None for all: `seconds`, `bytes`, and the
    `rounds` of its batch."""
    batch, longest = args.quota_batch_size, _length(args, [expert])
    found = _alone(args, expert, min(length or longest, longest), batch)
    return {unit: found[unit] / batch for unit in UNITS} | {"rounds": found["rounds"]}


def _alone(args, expert, length, batch):
    """A batch for one expert."""
    from hf_securerouter.mpc.convert import to_mpc

    return _measured(args, to_mpc(expert, max_length=length), batch)


def _measured(args, secure, batch):
    """Online seconds, bytes and rounds of one batch. They are kept in a file, for measuring takes long: nothing but
    the public manifest and the batch decides on them, so that runs of other tasks can use them too."""
    shape = _shape(secure.manifest) | {"batch": batch}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(args.costs_dir or args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cost-{digest}.json"
    if not path.exists():
        logger.info("Measuring a batch of %d under encryption.", batch)
        write_json(_run(secure, batch) | {"shape": shape}, path)
    return json.loads(path.read_text())


def _shape(manifest):
    """The manifest as a dict, but for the number of labels: a column more or less of the last matrix of all is nothing
    beside the rest."""
    shape = manifest.to_dict()
    for member in filter(None, [shape["router"], *shape["experts"]]):
        del member["head"]["num_outputs"]
    return shape


def _run(secure, batch):
    inputs = {"input_ids": torch.full((batch, secure.manifest.max_length), 5)}
    with secure.local_session() as session:
        session(inputs)  # everything is warm then
        costs = [session(inputs).cost for _ in range(RUNS)]
    return {
        "seconds": statistics.median(cost.online_seconds for cost in costs),
        "bytes": costs[0].online_bytes,
        "rounds": costs[0].rounds,
    }


def _length(args, experts):
    """Tokens that costs are measured on."""
    positions = [usable_positions(expert.config) or 512 for expert in experts]
    return min(args.profile_seq_length, *positions)
