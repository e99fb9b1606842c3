# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Measures the cost of one encoder under encryption on this machine, by gate."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ..checkpoint_files import read_config, reading_weights
from ..configuration_moe import SecureMoeConfig
from ..errors import SecureRouterValueError, SecureRouterWarning
from ..known_arguments import refuses_unknown
from ..mpc_friendly import use_functions
from ..value_checks import check_integer, one_of
from .conversion.description import Options, describe, make_manifest
from .convert import to_mpc
from .gates.maximum import groups_of
from .models.manifest import Manifest
from .net.cost import Cost
from .net.delay import check_delay
from .net.network_model import NETWORKS, NetworkModel
from .profiled_models import ARCHITECTURES, config_of
from .protocols.masked.dispatch import DISPATCHES, cheaper_dispatch, dispatch_costs, switch_capacity
from .protocols.masked.memory import batch_cost
from .secure_model import SecureModel


RUNS = 3
# A run that takes longer is not repeated: in so long a run, start-up costs do not matter.
LONG_SECONDS = 30.0
# One-way trips of a round. The masked protocol sends both ways at once; gloo's all-reduce of two parties is a
# reduce-scatter and an all-gather, each after a handshake.
TRIPS = {"masked": 1, "crypten": 4}
_SECONDS = ("preprocess_seconds", "online_seconds", "dealer_seconds")


def build(architecture: str, seq_length: int) -> Any:
    """A two-label classifier: random weights for a name, since cost does not depend on values, or a checkpoint.

    Raises:
        `FileError`: A file of the folder is missing, cut or wrong.
        `SecureRouterValueError`: `architecture` is neither a known name nor a folder.
    """
    if architecture in ARCHITECTURES:
        return AutoModelForSequenceClassification.from_config(config_of(architecture, seq_length)).eval()
    if not isinstance(architecture, (str, Path)) or not Path(architecture).exists():
        raise SecureRouterValueError(
            f"`architecture` should be one of {', '.join(ARCHITECTURES)} or the folder of a sequence classifier, "
            f"got {architecture!r}."
        )
    read_config(architecture)
    with reading_weights(architecture):
        return AutoModelForSequenceClassification.from_pretrained(architecture).eval()


@refuses_unknown
def profile(
    architecture: str,
    seq_length: int = 128,
    batch_size: int = 1,
    protocol: str = "masked",
    provider: str | None = None,
    device: str = "cpu",
    network: str = "lan",
    delay_ms: float | None = None,
    hidden_act: str = "exact",
    softmax: str = "exact",
    precision: str = "full",
    progress: Callable[[str], None] | None = None,
    moe_dispatch: str | None = None,
) -> dict[str, Any]:
    """Run one encoder, its pooler and its head on shared embeddings, without a router.

    Args:
        architecture (`str`): A name in `ARCHITECTURES`, such as `"bert-base"` or `"ettin-17m"`, or the folder of a
            sequence classifier.
        seq_length (`int`): Tokens of every input.
        batch_size (`int`): Inputs of the batch that is measured.
        protocol (`str`): `"masked"` or `"crypten"`.
        provider (`str`, *optional*): `"tfp"` by default under `"crypten"`, where party 0 deals; else `"ttp"`.
        device (`str`): Where the parties and the dealer compute: `"cpu"` or `"cuda"`.
        network (`str`): The network to optimise for, `"lan"` or `"wan"`; only under `"masked"`.
        delay_ms (`float`, *optional*): One-way delay between the parties, in milliseconds, for a second measurement.
        hidden_act (`str`), softmax (`str`), precision (`str`): Functions and precision, as in `expert_mpc`.
        progress (callable, *optional*): Called with a line before each step.
        moe_dispatch (`str`, *optional*): How a mixture's tokens reach their experts: `"exact"`, or `"capacity"`, with
            as many places of all experts together as tokens. By default the cheaper one by the plans of both.

    Returns:
        `dict`: The arguments; the fields of `Cost` (times are the median of three runs after a warm-up, or of one run
        if it takes more than 30 seconds; counts are the same in every run); `runs`; `max_abs_logit_error` against the
        clear model; `by_gate`; and the planner's `choices`. `compute_seconds` are the online seconds on a link without
        delay. `estimated_seconds` adds the rounds and bytes of the networks `lan`, `wan` and, with `delay_ms`,
        `delay` (a round is one trip under `"masked"`, four under `"crypten"`). With `delay_ms`, the times of `Cost`
        are measured under the delay.

    Raises:
        `SecureRouterValueError`: An argument is wrong, or the encoder cannot be converted.
    """
    delay_ms = None if delay_ms is None else check_delay(delay_ms)
    seq_length, batch_size = _checked(seq_length, batch_size, network)
    log = progress or (lambda message: None)
    log(f"Building {architecture} ...")
    torch.manual_seed(0)  # for the random weights and tokens; shares never use this generator
    model = build(architecture, seq_length)
    choices = _choose_dispatch(model, protocol, seq_length, batch_size, network, moe_dispatch)
    use_functions(model, hidden_act, softmax, precision)
    if provider is None:
        provider = "tfp" if protocol == "crypten" else "ttp"
    inputs = {
        "input_ids": torch.randint(5, model.config.vocab_size, (batch_size, seq_length)),
        "attention_mask": torch.ones(batch_size, seq_length, dtype=torch.long),
    }
    with torch.no_grad():
        expected = model(**inputs).logits.float()
    with warnings.catch_warnings():
        # The reference protocol warns against use other than measuring, which is done here.
        warnings.simplefilter("ignore", SecureRouterWarning)
        secure = to_mpc(
            model, protocol=protocol, device=device, max_length=seq_length, provider=provider, network=network
        )
    del model
    cost, runs, error = _measure(secure, inputs, expected, None, log)
    compute = cost.online_seconds
    networks = dict(NETWORKS)
    if delay_ms is not None:
        cost, runs, delayed_error = _measure(secure, inputs, expected, delay_ms, log)
        error = max(error, delayed_error)
        networks["delay"] = NetworkModel(round_seconds=delay_ms / 1000, bytes_per_second=math.inf)
    return {
        "architecture": architecture,
        "seq_length": seq_length,
        "batch_size": batch_size,
        "protocol": protocol,
        "provider": provider,
        "device": device,
        "network": network,
        "hidden_act": hidden_act,
        "softmax": softmax,
        "precision": precision,
        "delay_ms": delay_ms,
        "choices": choices
        | _choices(protocol, seq_length, batch_size * secure.manifest.experts[0].num_heads, network),
        "runs": runs,
        **cost.to_dict(by_gate=True),
        "compute_seconds": compute,
        "estimated_seconds": {
            name: estimate(compute, cost.rounds * TRIPS[protocol], cost.online_bytes, link)
            for name, link in networks.items()
        },
        "max_abs_logit_error": error,
    }


@refuses_unknown
def planned(
    architecture: str,
    seq_length: int = 128,
    batch_size: int = 1,
    network: str = "lan",
    hidden_act: str = "exact",
    softmax: str = "exact",
    precision: str = "full",
    moe_dispatch: str | None = None,
) -> dict[str, Any]:
    """What `profile` would count, and take of memory, under `"masked"`, from plans alone: nothing is run, and a model
    of a known name is not even built. A run has one round more, in which the parties compare what was dealt.

    Args:
        architecture (`str`), seq_length (`int`), batch_size (`int`), network (`str`), hidden_act (`str`),
        softmax (`str`), precision (`str`), moe_dispatch (`str`, *optional*): As for `profile`.

    Returns:
        `dict`: The arguments, the fields of `BatchCost`, the number of parameters, and the planner's `choices`.

    Raises:
        `FileError`: A file of the folder is missing, cut or wrong.
        `SecureRouterValueError`: `architecture` is neither a known name nor a folder, its family has no such function
            or precision, `seq_length` or `batch_size` is too small, there is no such `network`, or `moe_dispatch` is
            not there for it.
    """
    seq_length, batch_size = _checked(seq_length, batch_size, network)
    with torch.device("meta") if architecture in ARCHITECTURES else nullcontext():
        model = build(architecture, seq_length)
    use_functions(model, hidden_act, softmax, precision)
    choices = _choose_dispatch(model, "masked", seq_length, batch_size, network, moe_dispatch)
    manifest = _manifest(model, seq_length, network)
    return {
        "architecture": architecture,
        "seq_length": seq_length,
        "batch_size": batch_size,
        "network": network,
        "choices": choices | _choices("masked", seq_length, batch_size * manifest.experts[0].num_heads, network),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **batch_cost(manifest, batch_size).to_dict(),
    }


def _checked(seq_length: int, batch_size: int, network: str) -> tuple[int, int]:
    """The shape of the batch, checked with the network before anything is built."""
    one_of("network", tuple(NETWORKS))(network)
    return check_integer("seq_length", seq_length, 2), check_integer("batch_size", batch_size, 1)


def _manifest(model: Any, seq_length: int, network: str) -> Manifest:
    return make_manifest(model, None, describe(model), Options(max_length=seq_length, network=network))


def _choose_dispatch(
    model: Any, protocol: str, seq_length: int, batch_size: int, network: str, wanted: str | None
) -> dict[str, Any]:
    """Set the way of a model's mixtures, and say which it is and what each of the two costs; nothing without mixtures.

    Raises:
        `SecureRouterValueError`: A way is wanted that is not there, or of a model without mixtures.
    """
    if wanted not in (None, *DISPATCHES):
        raise SecureRouterValueError(f"`moe_dispatch` should be one of {', '.join(DISPATCHES)}, got {wanted!r}.")
    config = model.config
    if not isinstance(config, SecureMoeConfig):
        if wanted is not None:
            raise SecureRouterValueError(
                f"`moe_dispatch` {wanted!r} is of a mixture of experts, and a {type(config).__name__} has none: leave "
                "it out."
            )
        return {}
    if protocol != "masked":
        return {}
    costs = dispatch_costs(_manifest(model, seq_length, network), batch_size)
    chosen = wanted or cheaper_dispatch(costs, network)
    places = switch_capacity(seq_length, config.num_experts, config.num_experts_per_tok)
    config.expert_capacity = None if chosen == "exact" else places
    return {
        "moe_dispatch": chosen,
        "expert_capacity": config.expert_capacity,
        "planned": {name: cost.to_dict() for name, cost in costs.items()},
    }


def estimate(compute: float, trips: int, online_bytes: int, network: NetworkModel) -> float:
    """Online seconds on another network: the computation, the trips one after another, and the bytes.

    Args:
        compute (`float`): Seconds on a link without delay.
        trips (`int`): Sequential messages, each one way.
        online_bytes (`int`): Bytes of both directions, which flow at the same time, half in each direction.
        network (`NetworkModel`): Seconds of a trip and of a byte.
    """
    return compute + network.seconds(trips, online_bytes / 2, 0)


def _measure(
    secure: SecureModel,
    inputs: Mapping[str, Tensor],
    expected: Tensor,
    delay_ms: float | None,
    log: Callable[[str], None],
) -> tuple[Cost, int, float]:
    """The median cost of a query in a new session, the number of runs, and the largest error of a logit."""
    where = "" if delay_ms is None else f" with {delay_ms:g} ms between the parties"
    log(f"Starting the roles{where} and sharing the weights ...")
    costs: list[Cost] = []
    error = 0.0
    with secure.local_session(batch_size=len(expected), delay_ms=delay_ms) as session:
        for run in range(RUNS + 1):
            log(f"Run {run} of {RUNS} ..." if run else "Warming up ...")
            result = session(inputs)
            error = max(error, float((result.logits - expected).abs().max()))
            costs.append(result.cost)
            if costs[0].online_seconds > LONG_SECONDS:
                break
    counted = costs[1:] or costs
    typical = replace(costs[-1])
    for name in _SECONDS:
        setattr(typical, name, statistics.median(getattr(cost, name) for cost in counted))
    return typical, len(counted), error


def _choices(protocol: str, seq_length: int, heads: int, network: str) -> dict[str, Any]:
    """The planner's choices for a layer's attention: the group sizes of the tournament for the row maxima."""
    if protocol != "masked":
        return {}
    return {"maximum_groups": list(groups_of(seq_length, heads * seq_length, NETWORKS[network]))}
