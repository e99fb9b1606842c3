# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a batch costs, and takes of each role's memory, before any role starts; and the largest batch that fits.

A batch takes what its programs take one after another, beside the weights and the process itself. Its tuples wait in
files, so that a role's memory depends on the largest gates of a batch and not on its set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache

from ....errors import SecureRouterValueError
from ...models.manifest import Manifest
from ...ring.device import free_memory
from ...tuples.deal import SIDE_BY_SIDE
from ...tuples.memory import dealer_bytes, party_bytes
from .layout import all_weight_shapes
from .programs import secure_program
from .row_bytes import most_row_bytes
from .schedule import programs


PROCESS_BYTES = 352 << 20  # of a role's process without a model, most of them shared with the other roles
_WORD = 8  # bytes of a ring element in memory
_SHARED_AT_ONCE = 4  # arrays of the size of the largest weight, where weights are shared
_ROUGH_WEIGHT = 128  # bytes at all roles together for each weight


@dataclass(frozen=True)
class BatchCost:
    """What a batch of `batch` texts costs, from its public plans.

    Args:
        batch (`int`): Texts of the batch.
        party0 (`int`), party1 (`int`), dealer (`int`): Peak bytes of memory at each role, without what a party draws
            ahead if memory is left. An estimate, up to half above what was measured.
        online_bytes (`int`): Bytes on the parties' link, both directions, without the frames' headers.
        rounds (`int`): Sequential exchanges on that link, without the first one of each program, in which the parties
            compare the labels of what was dealt.
        dealer_bytes (`int`): Bytes of corrections from the dealer, which wait in party 0's temporary files.

    Under `revealed`, which experts serve a batch is not known before: bytes are those of the costliest expert serving
    all texts, rounds those of all experts one after another.
    """

    batch: int
    party0: int
    party1: int
    dealer: int
    online_bytes: int
    rounds: int
    dealer_bytes: int

    @property
    def memory(self) -> int:
        """Peak bytes of memory of all roles together."""
        return self.party0 + self.party1 + self.dealer

    def to_dict(self) -> dict[str, int]:
        """The fields as a JSON-able dict."""
        return asdict(self)


def batch_cost(manifest: Manifest, batch: int) -> BatchCost:
    """The cost of a batch.

    Raises:
        `SecureRouterValueError`: `batch` is less than 1, or under `quota` not the sum of the quotas.
    """
    if batch < 1 or batch != (manifest.batch or batch):
        allowed = "at least 1" if manifest.batch is None else f"{manifest.batch}, the sum of the quotas"
        raise SecureRouterValueError(f"`batch` should be {allowed}, got {batch!r}.")
    return _traced_cost(json.dumps(manifest.to_dict()), batch)


@lru_cache(maxsize=64)
def _traced_cost(description: str, batch: int) -> BatchCost:
    """The cost under the manifest of a description; tracing plans takes up to a second."""
    manifest = Manifest.from_dict(json.loads(description))
    steps = [
        [secure_program(manifest, name).plan(manifest.cipher) for name in names] for names in programs(manifest, batch)
    ]
    plans = [plan for step in steps for plan in step]
    sizes = [math.prod(shape) * _WORD for shape in all_weight_shapes(manifest).values()]
    # A party holds D and its share of every weight, its shares of the inputs, and under `quota` the shuffled ones.
    inputs = sum(manifest.length_of(name) * spec.input_size for name, spec in manifest.inputs.items())
    held = PROCESS_BYTES + 2 * sum(sizes) + (2 if manifest.batch is None else 3) * batch * inputs * _WORD
    return BatchCost(
        batch=batch,
        party0=held + max(party_bytes(plan, 0) for plan in plans),
        party1=held + max(party_bytes(plan, 1) for plan in plans),
        # A weight's mask for each gate that is dealt.
        dealer=PROCESS_BYTES + SIDE_BY_SIDE * max(sizes) + max(dealer_bytes(plan) for plan in plans),
        online_bytes=sum(max(2 * plan.payload_bytes for plan in step) for step in steps),
        rounds=sum(plan.rounds for plan in plans),
        dealer_bytes=sum(max(plan.dealer_bytes for plan in step) for step in steps),
    )


def rough_bytes(manifest: Manifest, batch: int) -> int:
    """More than a batch takes at all roles together, from sizes alone: where that fits, no plan has to be traced."""
    total = 3 * PROCESS_BYTES + batch * sum(most_row_bytes(manifest, name) for name in manifest.members)
    copies = batch if manifest.selects else 1  # a selected expert's weights are chosen anew for every text
    words = sum(math.prod(shape) for shape in all_weight_shapes(manifest).values())
    return total + copies * words * _ROUGH_WEIGHT


@dataclass(frozen=True)
class MemoryPlan:
    """The largest batch that fits into some memory.

    Args:
        batch (`int`): Its texts.
        ahead (`int`, *optional*): Bytes that are left for each of `roles` that is a party, for what is computed before
            an input arrives. None: it is for the party to see what is free.
    """

    batch: int
    ahead: int | None


def sharing_bytes(manifest: Manifest) -> int:
    """Bytes that the owner's process takes while it shares the weights, beside the weights in float32.

    They hold a layer in fixed point, what masks it, and what is on its way to the parties.
    """
    return _SHARED_AT_ONCE * max(math.prod(shape) for shape in all_weight_shapes(manifest).values()) * _WORD


def fit_batch(manifest: Manifest, most: int, memory: int | None, roles: Iterable[str], beside: int = 0) -> MemoryPlan:
    """Plan the batches of roles that share some memory.

    Args:
        manifest (`Manifest`): The model's manifest.
        most (`int`): Most texts of a batch; under `quota` a batch has a fixed size.
        memory (`int`, *optional*): Bytes that the roles may take together. By default half of what is free on a CPU; a
            batch of the smallest size may take all of it. By default there is no limit on a CUDA device, and none
            where the system does not say what is free.
        roles (`Iterable[str]`): The roles that share the memory.
        beside (`int`): Bytes that the caller's own process will take of what is free.

    Raises:
        `SecureRouterValueError`: Not even the smallest batch fits.
    """
    roles = tuple(roles)
    free = memory
    if memory is None and manifest.device == "cpu":  # a CUDA device would have to be opened here to be asked
        free = free_memory("cpu")
        free = None if free is None else max(free - beside, 0)
    size = manifest.batch or most
    if free is None:
        return MemoryPlan(size, None)
    limit = free // 2 if memory is None else memory
    parties = sum(role != "dealer" for role in roles)

    def planned(batch: int, needed: int) -> MemoryPlan:
        room = limit if needed <= limit else free
        return MemoryPlan(batch, min(max(room - needed, 0) // max(parties, 1), limit // 4))

    if (enough := rough_bytes(manifest, size)) <= limit:
        return planned(size, enough)
    costs: dict[int, int] = {}

    def needs(batch: int) -> int:
        if batch not in costs:
            cost = batch_cost(manifest, batch)
            costs[batch] = sum(getattr(cost, role) for role in roles)
        return costs[batch]

    least = manifest.batch or 1
    if needs(size) > limit:
        # Bytes grow with the batch: halve the interval between a size that fits and one that does not.
        fits = least - 1
        while size - fits > 1:
            middle = (fits + size) // 2
            fits, size = (middle, size) if needs(middle) <= limit else (fits, middle)
        size = max(fits, least)
    if needs(size) > max(limit, free):
        have = f"`memory` is {free}" if memory is not None else f"{free} are free"
        have += " beside what this process needs" if memory is None and beside else ""
        raise SecureRouterValueError(_refusal(manifest, size, have, roles))
    return planned(size, needs(size))


def _refusal(manifest: Manifest, batch: int, have: str, roles: tuple[str, ...]) -> str:
    cost = batch_cost(manifest, batch)
    needed = ", ".join(f"{getattr(cost, role)} at {role}" for role in roles)
    total = sum(getattr(cost, role) for role in roles)
    smaller = "a smaller `max_length`" + ("" if manifest.batch is None else " or smaller `quotas`")
    return (
        f"A batch of {batch} texts of {manifest.max_length} tokens needs {total} bytes of memory ({needed}), and "
        f"{have}: convert with {smaller}, or give the roles more memory."
    )
