# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Bounds that hold for an encoder, measured in clear on sample inputs before anything is shared.

The owner's samples set the bounds of every layer in both directions: wider where values exceed a default, and
narrower, for shorter messages, where they stay below it. The built-in samples only widen. Bounds become part of the
public manifest and so reveal a little about the weights and the samples. A later input beyond a bound gives a wrong
result without an error, unless there is a guard (`gates/guard.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...errors import SecureRouterError, warn
from ...lengths import copy_into_padding
from ...number_format import LOWEST, USUAL, Bounds, number_format
from ..models.manifest import Manifest
from ..models.spec import Problem
from ..protocols.masked.layout import bounds_of, encoders, layer_key, member_weights
from .clear_encoder import ClearEncoder, Seen
from .client import Inputs
from .converted import Converted
from .ranges import Range, bounds_for, reached, report
from .samples import TEXTS, random_tokens
from .validation import ConversionError


_ROWS = 16  # inputs that are measured together


def measure(converted: Converted, samples: Inputs | None) -> dict[str, Seen]:
    """The ranges of every member, as in `ClearEncoder.seen`, on the owner's samples or else on the built-in ones."""
    manifest = converted.manifest
    clear = {
        member: ClearEncoder(spec, member_weights(manifest, member, converted.weights), torch.float32)
        for member, spec in manifest.members.items()
    }
    # With a relative bias padding is no copy of a token behind the first layer, and has values of its own.
    padded = any(spec.padding_differs for spec in manifest.members.values())
    if samples is None:
        batches = built_in(converted, padded)
    else:
        batches = _batches(converted.client.tokenize(samples), padded)
    for encoded in batches:
        is_token = encoded["attention_mask"]
        for owner, own in converted.client.embed(encoded).items():
            live = is_token[:, : own.shape[1]]
            x = copy_into_padding(own, live)
            for member in manifest.members:
                if manifest.encoder_of(member) == owner:
                    clear[member](x, live)
    return {member: encoder.seen for member, encoder in clear.items()}


def built_in(converted: Converted, padded: bool) -> Iterator[dict[str, Tensor]]:
    """The built-in samples, tokenized; without a tokenizer only the random tokens."""
    client = converted.client
    if client.tokenizer is not None:
        yield from _batches(client.tokenize(TEXTS), padded)
    vocabulary = min(config.vocab_size for config in client.configs.values())
    for ids in random_tokens(vocabulary, client.max_length):
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _batches(encoded: Mapping[str, Tensor], padded: bool) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of a few rows of similar length; without columns that only hold padding, unless `padded`."""
    is_token = encoded["attention_mask"].bool()
    ends = (is_token * torch.arange(1, is_token.shape[1] + 1)).amax(1)
    for rows in ends.argsort().split(_ROWS):
        longest = is_token.shape[1] if padded else int(ends[rows].max())
        yield {name: values[rows, :longest] for name, values in encoded.items()}


def bounded(converted: Converted, samples: Inputs | None) -> Converted:
    """A model with measured bounds, and its ranges.

    Args:
        converted (`Converted`): The model with its default bounds.
        samples (`list` or `Mapping`, *optional*): Inputs, as for a session; the built-in ones if None.

    Raises:
        `ConversionError`: A value is not finite, or a ring does not fit at the measured bounds; every such layer and
            head is listed.
    """
    manifest = converted.manifest
    seen = measure(converted, samples)
    if problems := _not_finite(seen):
        raise ConversionError(problems)
    measured = {}
    for member, spec in manifest.members.items():
        lowest = 5 - number_format(spec.precision, spec.softmax).bits.variance
        layers = [] if manifest.encoder_of(member) != member else list(range(spec.num_layers))
        for position in (None, *layers):
            key = member if position is None else layer_key(member, position)
            default = bounds_of(manifest, member, position)
            own = bounds_for(_found(manifest, member, position, seen[member]), spec.padding_differs, manifest.guard)
            if "variance_low" in own:
                own["variance_low"] = max(own["variance_low"], lowest)
            if "norm_low" in own:
                own["norm_low"] = max(own["norm_low"], lowest + min(own["norm"], 0))
            measured[key] = _chosen(member, own, default, narrow=samples is not None)
    if replace(manifest, bounds={}).selects:
        measured |= _loosest(measured, len(manifest.experts), manifest.experts[0].num_layers)
    bounds = {key: found for key, found in measured.items() if found}
    widened = replace(converted, manifest=replace(manifest, bounds=bounds))
    ranges = _ranges(converted, widened, seen)
    if problems := _problems(widened):
        raise ConversionError(problems)
    _warn(ranges, own=samples is not None)
    return replace(widened, ranges=tuple(ranges))


def _found(manifest: Manifest, member: str, position: int | None, seen: Seen) -> dict[str, float]:
    """What samples reach at one position; a member with a shared encoder has a head of its own, and no embeddings."""
    found = reached(seen, position)
    if manifest.encoder_of(member) != member:
        del found["embedding"]
    return found


def _chosen(member: str, own: Mapping[str, int], default: Bounds, narrow: bool) -> dict[str, int]:
    """The measured bounds that replace default ones. What is ranked or revealed, a router's score, is never narrowed:
    far beyond its bound scores are ranked wrongly. Nor are embeddings, whose bound the client checks. The LayerNorms
    of a layer get usual variances of their own where they may differ much, which is where a bound is widened."""
    wider = default.replaced(**own).beyond(default)
    if not narrow:
        kept = {name: own[name] for name in wider}
        return kept | {name: own[name] for name in USUAL if (kept or name == "norm") and name in own}
    fixed = {"embedding"} | ({"logits"} if member == "router" else set())
    fixed |= set() if wider else {"attended_variance"}
    return {name: value for name, value in own.items() if name in wider or name not in fixed}


def _loosest(measured: Mapping[str, Mapping[str, int]], experts: int, layers: int) -> dict[str, dict[str, int]]:
    """The same bounds for all experts: one encoder computes with the weights of whichever expert is selected."""
    merged: dict[str, dict[str, int]] = {}
    for suffix in ("", *(f".layers.{layer}" for layer in range(layers))):
        own = [measured[f"experts.{index}{suffix}"] for index in range(experts)]
        names = {name for one in own for name in one}
        loosest = {
            name: (min if name in LOWEST else max)(one[name] for one in own if name in one) for name in sorted(names)
        }
        merged |= {f"experts.{index}{suffix}": loosest for index in range(experts)}
    return merged


def _ranges(before: Converted, after: Converted, seen: Mapping[str, Seen]) -> list[Range]:
    ranges = []
    for member, spec in after.manifest.members.items():
        shared = after.manifest.encoder_of(member) != member
        for position in (None, *(() if shared else range(spec.num_layers))):
            found = _found(after.manifest, member, position, seen[member])
            default, bounds = (bounds_of(one.manifest, member, position) for one in (before, after))
            ranges += report(member, position, found, bounds, default, spec.padding_differs)
    return ranges


def _problems(converted: Converted) -> list[Problem]:
    """Every layer, and every head, with a ring that does not fit."""
    found = []
    for member, encoder in encoders(converted.manifest).items():
        checks: dict[str, tuple[Bounds, Callable[[], None]]] = {}
        if converted.manifest.encoder_of(member) == member:
            for position, (rings, width) in enumerate(zip(encoder.layer_rings, encoder.output_widths, strict=True)):
                checks[layer_key(member, position)] = rings.bounds, partial(rings.check, width)
        checks[f"{member}.head"] = encoder.rings.bounds, encoder.check_head
        if encoder.mean is not None:
            checks[f"{member}.pooling"] = encoder.rings.bounds, encoder.mean.check
        default = number_format(encoder.spec.precision, encoder.spec.softmax, encoder.spec.padding_differs).bounds
        for path, (bounds, check) in checks.items():
            try:
                check()
            except SecureRouterError as error:
                wide = ", ".join(f"{name} 2^{value}" for name, value in bounds.beyond(default).items())
                found.append(
                    Problem(
                        path,
                        f"its values exceed what 64-bit shares compute rightly ({wide}): {str(error).rstrip('.')}",
                        "Train it with smaller values (weight decay), or leave this encoder out of the pool",
                    )
                )
    return found


def _not_finite(seen: Mapping[str, Seen]) -> list[Problem]:
    """Every member with a value that is infinite or NaN on a sample, at the first such place."""
    found = []
    for member, own in seen.items():
        wrong = [(position, kind) for (position, kind), limits in own.items() if not all(map(math.isfinite, limits))]
        if wrong:
            position, kind = wrong[0]
            path = member if position is None else layer_key(member, position)
            found.append(Problem(path, f"{kind} is not finite on a sample", "Load or train it again"))
    return found


def _warn(ranges: Sequence[Range], own: bool) -> None:
    outside = [one for one in ranges if one.margin < 0]
    if outside:
        places = ", ".join(f"{one.member} layer {one.layer} {one.kind} {one.reached:.3g}" for one in outside[:5])
        warn(
            f"{len(outside)} values are outside what shares compute rightly, among them {places}: encrypted and clear "
            "answers can differ. See `secure.ranges`."
        )
    exceeded = [one for one in ranges if one.exceeds_default] if not own else []
    if exceeded:
        members = ", ".join(dict.fromkeys(one.member for one in exceeded))
        warn(
            f"The built-in samples exceed the default bounds of {members}, which were widened. Pass `calibration=` "
            "with some hundred texts of your own, which measure what your inputs reach."
        )
