# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What each expert and the router cost: seconds as measured under encryption and bytes as planned, or what the user
says."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from hf_securerouter.errors import SecureRouterValueError, warn
from hf_securerouter.families import usable_positions
from hf_securerouter.files import write_json
from hf_securerouter.known_arguments import refuses_unknown
from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification
from hf_securerouter.mpc.conversion.ranges import summary
from hf_securerouter.mpc.conversion.validation import ConversionError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.models import architecture_for
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.models.spec import Problem
from hf_securerouter.mpc.protocols.masked.schedule import rows_at_a_time
from hf_securerouter.mpc.secure_model import SecureModel
from hf_securerouter.recipes.arguments import RunArguments
from hf_securerouter.recipes.artifacts import Countdown, announce
from hf_securerouter.recipes.experts import largest_name
from hf_securerouter.recipes.shared_encoder import SHARED, shares_encoder, sharing_problem


UNITS = ("seconds", "bytes")
RUNS = 3  # of which the median counts: they differ by a fifth and more
ENOUGH = 240.0  # seconds after which no further batch is begun: long ones differ by less
COUNTED = "online and prepared"  # how much a party prepares before the input depends on free memory, the sum does not

Costs = dict[str, Any]  # as `costs.json` holds them
MakePool = Callable[[Costs], SecureRouterForSequenceClassification]


@refuses_unknown
def measure_costs(
    args: RunArguments,
    experts: Sequence[PreTrainedModel],
    lengths: Sequence[int | None],
    largest: PreTrainedModel,
    make_pool: MakePool,
) -> Costs:
    """
    Seconds and bytes of a query by each expert alone, and behind the router.

    A routed batch has `quota_batch_size` queries. An expert alone has as many, in pieces: one is timed. The
    router's part is what is left of a routed batch when the experts' parts are subtracted: its encoder, its head, the
    shuffle, the ranking and the way back. Measurements differ from run to run, and a batch may take less than its
    parts: the router is charged with the encoder that it shares at least, or else with nothing.

    Args:
        args ([`RunArguments`]): With given `expert_costs`, nothing is measured, and the router costs what the cheapest
            expert does.
        experts (sequence of `PreTrainedModel`): The trained classifiers.
        lengths (sequence of `int`): Tokens that each expert reads; None for all.
        largest (`PreTrainedModel`): The expert that costs are compared with.
        make_pool (callable): Of costs like those returned: a pool of these experts with a router.

    Returns:
        `dict`: `source`, and for each unit what an expert takes alone (`seconds`, `bytes`), what a query takes that
        the router sends to it, router included (`routed_seconds`, `routed_bytes`), and what `largest` takes
        (`largest_seconds`, `largest_bytes`); and `router_shares_expert`, whose encoder the router reads there.

    Raises:
        `SecureRouterValueError`: `expert_costs` has not one entry for each expert.
    """
    if args.expert_costs:
        return _given_costs(args, len(experts))
    batch, length = args.quota_batch_size, _length(args, experts)
    steps = len(experts) + 2
    found = [
        _alone(args, expert, min(length, own or length), batch, f"expert {index} of {len(experts)}", (index, steps))
        for index, (expert, own) in enumerate(zip(experts, lengths, strict=True), start=1)
    ]
    alone = _alone(args, largest, length, batch, "the largest expert", (steps - 1, steps))
    costs: Costs = {"source": "measured"}
    for unit in UNITS:
        costs[unit] = costs[f"routed_{unit}"] = [cost[unit] / batch for cost in found]
        costs[f"largest_{unit}"] = alone[unit] / batch
    pool = make_pool(costs)
    shared, cheapest = pool.config.router_shares_expert, int(np.argmin(costs["seconds"]))
    if shared not in (None, cheapest):
        announce(
            f"The router reads the encoder of expert {shared + 1} of {len(experts)}, at {costs['seconds'][shared]:g} "
            f"s a query, as it cannot read that of the cheapest, expert {cheapest + 1}, at "
            f"{costs['seconds'][cheapest]:g} s: with `--share_router_encoder false` it gets a copy of that one."
        )
    quotas = _quotas_of_equal_time(costs["seconds"], batch)
    secure = pool.to_mpc(routing_privacy="quota", quotas=list(quotas), max_length=length)
    routed = _measured(args, secure, batch, f"the routed pool, quotas {'/'.join(map(str, quotas))}", (steps, steps))
    for unit in UNITS:
        beyond = _beyond_the_router(costs[unit], shared)
        left = routed[unit] / batch - float(np.dot(quotas, beyond)) / batch
        router = max(left, *(own - cost for own, cost in zip(costs[unit], beyond, strict=True)))
        if router > left:
            announce(
                f"A routed batch took fewer {unit} than its parts: the router is charged with {router:g} a query."
            )
        costs[f"routed_{unit}"] = [router + cost for cost in beyond]
    return costs | {SHARED: shared}


@refuses_unknown
def check_costs(args: RunArguments, experts: int) -> None:
    """
    Refuses given costs that fit neither the pool nor the budget, before anything is trained.

    Args:
        args ([`RunArguments`]): With `expert_costs`, or else costs are measured, and nothing is refused.
        experts (`int`): Experts of the pool.

    Raises:
        `SecureRouterValueError`: `expert_costs` has not one entry for each expert, or `budget_seconds` is less than
            the cheapest one takes behind the router.
    """
    if not args.expert_costs:
        return
    least = min(_given_costs(args, experts)["routed_seconds"])
    if args.budget_seconds is not None and args.budget_seconds < least:
        raise SecureRouterValueError(
            f"`budget_seconds` should be at least {least:g}, what a query takes the cheapest of `expert_costs` and "
            f"the router, got {args.budget_seconds:g}."
        )


@refuses_unknown
def check_conversion(args: RunArguments) -> None:
    """
    Refuses experts that shares do not compute, and pools whose router shares an encoder and can read none, before
    anything is trained: their costs could not be measured. Warns of a router that can read the largest expert's alone.

    Args:
        args ([`RunArguments`]): With given `expert_costs`, nothing is measured, and nothing refused.

    Raises:
        `ConversionError`: It lists all reasons.
    """
    if args.expert_costs:
        return
    problems, unshared, names = [], list[Problem](), args.experts or [largest_name(args)]
    for name in names:  # a narrow expert is like the largest one
        config = AutoConfig.from_pretrained(name, cache_dir=args.cache_dir)
        architecture = architecture_for(config.model_type)
        if architecture is None:
            reason = f"the architecture {config.model_type!r} has no counterpart on shares"
            problems.append(Problem(name, reason, "Take another checkpoint, or pass `--expert_costs`, for clear text"))
            continue
        problems += (own := architecture.problems(config, name))
        if not own and shares_encoder(args) and (problem := sharing_problem(config, name)):
            unshared.append(problem)
    if len(unshared) == len(names):
        problems += unshared
    if problems:
        raise ConversionError(problems)
    if unshared and [problem.path for problem in unshared] == names[:-1] and not args.narrow_expert:
        warn(
            f"The router can read the encoder of the largest expert alone, {names[-1]!r}, which then runs for every "
            "text, so that routing saves nothing: pass `--share_router_encoder false`, and it gets a copy of the "
            "cheapest expert's."
        )


def _quotas_of_equal_time(seconds: Sequence[float], batch: int) -> list[int]:
    """Quotas with which all experts take about as long, one query each at least; the rest goes to the cheapest."""
    rates, least = [1 / one for one in seconds], int(batch >= len(seconds))
    quotas = [max(least, int(batch * rate / sum(rates))) for rate in rates]
    quotas[int(np.argmin(seconds))] += batch - sum(quotas)
    return quotas


def _given_costs(args: RunArguments, experts: int) -> Costs:
    if len(args.expert_costs) != experts:
        raise SecureRouterValueError(
            f"`expert_costs` should have one entry for each of {experts} experts, got {args.expert_costs}."
        )
    own = list(args.expert_costs)
    shared = int(np.argmin(own)) if shares_encoder(args) else None
    routed = [min(own) + cost for cost in _beyond_the_router(own, shared)]
    found = {"seconds": own, "routed_seconds": routed, "largest_seconds": own[-1]}
    return {"source": "given", SHARED: shared, **found, **{name.replace("seconds", "bytes"): None for name in found}}


def _beyond_the_router(own: Sequence[float], shared: int | None) -> list[float]:
    """What each expert takes once the router has run: nothing, if the router has run that expert's encoder."""
    return [0.0 if index == shared else cost for index, cost in enumerate(own)]


@refuses_unknown
def measure_routed(
    args: RunArguments,
    largest: PreTrainedModel,
    pool: SecureRouterForSequenceClassification,
    quotas: Sequence[int],
) -> dict[str, Any]:
    """
    A batch of the routed pool under `quota` against the same batch by the largest expert alone.

    Args:
        args ([`RunArguments`]): Of the run.
        largest (`PreTrainedModel`): The expert to compare with.
        pool (`SecureRouterForSequenceClassification`): The pool.
        quotas (K integers): Queries of a batch that each expert serves.

    Returns:
        `dict`: `batch`, `length` in tokens, `counted`, which seconds are (older files lack it: those with the input
        alone), `bounds`, the summary of what samples reach in every layer (see `mpc.conversion.ranges.summary`), and
        for each unit `routed`, `largest` and their ratio `relative`.
    """
    batch, length = sum(quotas), _length(args, [largest, *pool.experts])
    secure = pool.to_mpc(routing_privacy="quota", quotas=list(quotas), max_length=length)
    routed = _measured(args, secure, batch, f"the routed pool, quotas {'/'.join(map(str, quotas))}", (1, 2))
    alone = _alone(args, largest, length, batch, "the largest expert", (2, 2))
    return {"batch": batch, "length": length, "counted": COUNTED, "bounds": summary(secure.ranges)} | {
        unit: {"routed": routed[unit], "largest": alone[unit], "relative": routed[unit] / alone[unit]}
        for unit in UNITS
    }


@refuses_unknown
def measure_expert(args: RunArguments, expert: PreTrainedModel, length: int | None, name: str) -> dict[str, Any]:
    """
    What a query takes one expert.

    Args:
        args ([`RunArguments`]): Of the run.
        expert (`PreTrainedModel`): A trained classifier, on the CPU.
        length (`int`, *optional*): Tokens that it reads of an input; None for all.
        name (`str`): Of the expert, for the line of progress.

    Returns:
        `dict`: `seconds` and `bytes` of a query, and `rounds` of a batch.
    """
    batch, longest = args.quota_batch_size, _length(args, [expert])
    found = _alone(args, expert, min(length or longest, longest), batch, name, (1, 1))
    return {unit: found[unit] / batch for unit in UNITS} | {"rounds": found["rounds"]}


def _alone(
    args: RunArguments, expert: PreTrainedModel, length: int, batch: int, name: str, step: tuple[int, int]
) -> dict[str, Any]:
    return _measured(args, to_mpc(expert, max_length=length), batch, name, step)


def _measured(args: RunArguments, secure: SecureModel, batch: int, name: str, step: tuple[int, int]) -> dict[str, Any]:
    """Seconds of the parties, bytes and rounds of one batch. Seconds are kept in a file: measuring takes minutes. The
    public shape and the size of the batch decide on them, so that runs of other tasks can use them too."""
    shape = _shape(secure.manifest) | {"batch": batch, "seconds": COUNTED}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(args.costs_dir or args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cost-{digest}.json"
    if not path.exists():
        place = f", {step[0]} of {step[1]}" if step[1] > 1 else ""
        announce(f"Measuring under encryption{place}: {name}, batch {batch} x {secure.manifest.max_length} ...")
        write_json({"seconds": _seconds(secure, batch), "shape": shape}, path)
    return {"seconds": json.loads(path.read_text())["seconds"]} | _exact(secure, batch)


def _shape(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a dict, without the number of labels and the measured bounds: a column more or less of the very
    last matrix does not show in the seconds, nor does a bit more or less of an opening."""
    shape = manifest.to_dict()
    shape.pop("bounds", None)
    for member in filter(None, [shape["router"], *shape["experts"]]):
        del member["head"]["num_outputs"]
    return shape


def _seconds(secure: SecureModel, batch: int) -> float:
    """What a batch takes the parties, with the input and before it: the median of a few.

    A routed batch is measured whole. An encoder alone computes a batch in pieces, one after another, of as many rows
    as in a pool (many wide rows at once take longer each): a piece is measured.
    """
    rows = secure.manifest.batch or min(batch, rows_at_a_time(secure.manifest))
    inputs = torch.full((rows, secure.manifest.max_length), 5)
    countdown, seconds = Countdown(1 + RUNS, "batches"), list[float]()
    with secure.local_session(batch_size=rows) as session:
        started = time.monotonic()
        while len(seconds) < 2 or (len(seconds) <= RUNS and time.monotonic() - started < ENOUGH):
            countdown(len(seconds))
            cost = session({"input_ids": inputs}).cost
            seconds.append(cost.online_seconds + cost.preprocess_seconds)
    return batch / rows * statistics.median(seconds[1:])  # the first one warms up both parties and the dealer


def _exact(secure: SecureModel, batch: int) -> dict[str, int]:
    """Bytes between the parties, and rounds, of a batch that is not divided."""
    cost = secure.plan(batch)
    return {"bytes": cost.online_bytes, "rounds": cost.rounds}


def _length(args: RunArguments, experts: Sequence[Any]) -> int:
    """Tokens of the inputs that costs are measured on: no more than the run's pool and all of the experts read."""
    positions = [usable_positions(expert.config) or 512 for expert in experts]
    return min(args.profile_seq_length, args.max_seq_length, *positions)
