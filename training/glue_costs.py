# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What each expert and the router cost: measured under encryption, or as the user says."""

import json
import tempfile
from pathlib import Path

import numpy as np
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging

from hf_securerouter import SecureRouterValueError
from hf_securerouter.configuration_securerouter import usable_positions
from hf_securerouter.reports import write_json


logger = logging.get_logger(__name__)


def measure_costs(args, folders):
    """Seconds and bytes of a query with each expert and with the router, as JSON-able values.

    Experts are profiled as `securerouter profile` does, one input a run. A router that shares an encoder is run as a
    member of its own under encryption, and costs what that expert costs.
    """
    if args.expert_costs:
        if len(args.expert_costs) != len(folders):
            raise SecureRouterValueError(
                f"`expert_costs` should have one entry for each of {len(folders)} experts, got {args.expert_costs}."
            )
        seconds, source = list(args.expert_costs), "given"
        amounts = [None] * len(folders)
    else:
        found = [_profile(folder, args, f"expert-{index}") for index, folder in enumerate(folders)]
        seconds, amounts = [cost["online_seconds"] for cost in found], [cost["online_bytes"] for cost in found]
        source = "measured"
    smallest = int(np.argmin(seconds))
    router_seconds, router_bytes = seconds[smallest], amounts[smallest]
    if args.router_name_or_path is not None and source == "measured":
        with tempfile.TemporaryDirectory() as folder:
            config = AutoConfig.from_pretrained(args.router_name_or_path, cache_dir=args.cache_dir)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
            cost = _profile(Path(folder), args, "router")
        router_seconds, router_bytes = cost["online_seconds"], cost["online_bytes"]
    return {
        "source": source,
        "seconds": seconds,
        "bytes": amounts,
        "router_seconds": router_seconds,
        "router_bytes": router_bytes,
    }


def _profile(folder, args, name):
    """The profile of a classifier, kept in a file, for it takes long."""
    from hf_securerouter.mpc.profile import profile

    path = Path(args.output_dir) / f"profile-{name}.json"
    if not path.exists():
        logger.info("Measuring %s under encryption.", name)
        length = min(args.profile_seq_length, _positions(folder))
        report = profile(str(folder), seq_length=length)
        write_json(report | {"architecture": name}, path)  # the folder is this machine's
    return json.loads(path.read_text())


def _positions(folder):
    return usable_positions(AutoConfig.from_pretrained(folder)) or 512


def relative(costs, quotas, unit):
    """Cost of a batch of the quotas, router included, over that of the largest expert alone; None if not measured.

    The shuffle and the ranking of a batch are not in it.
    """
    amounts, router = costs[unit], costs[f"router_{unit}"]
    if router is None:
        return None
    batch = sum(quotas)
    routed = batch * router + sum(quota * amount for quota, amount in zip(quotas, amounts, strict=True))
    return routed / (batch * amounts[-1])
