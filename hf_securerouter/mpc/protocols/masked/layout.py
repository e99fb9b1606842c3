# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What all roles know of a model under the masked protocol: encoders, weight shapes, rings and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from ....number_format import number_format
from ...models.manifest import Manifest
from ...ring.words import packed_size
from .encoder import MaskedEncoder
from .folding import weight_shapes
from .ring_widths import RingWidths


T = TypeVar("T")


ATTENTION_MASK = "live"


LOGITS = "logits"


SEED = "seed"


def encoders(manifest: Manifest) -> dict[str, MaskedEncoder]:
    """Every encoder of a model by the prefix of its weights.

    If the router shares an expert's encoder, only its `head` is run, on what the expert's `run_encoder` gives: their
    rings agree.
    """
    return {
        name: MaskedEncoder(spec, _ring_widths(manifest, name), f"{name}.") for name, spec in manifest.members.items()
    }


def _ring_widths(manifest: Manifest, member: str) -> RingWidths:
    """Of a shared encoder all is as the expert's, but for the bounds of the router's head."""
    owner = manifest.encoder_of(member)
    spec = manifest.members[owner]
    chosen = number_format(spec.precision, spec.softmax)
    calibrated = {**manifest.bounds.get(owner, {}), **manifest.bounds.get(member, {})}
    return RingWidths(
        bounds=chosen.bounds.narrowed(**calibrated),
        length=manifest.length_of(member),
        softmax=spec.softmax,
        network=manifest.network,
        hidden_act=spec.hidden_act,
        bits=chosen.bits,
    )


def all_weight_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shapes of all fixed weights: public, for plans and for the dealer's masks."""
    return {
        f"{name}.{weight}": shape
        for name, spec in manifest.members.items()
        for weight, shape in _own(manifest, name, weight_shapes(spec)).items()
    }


def _own(manifest: Manifest, member: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """What is shared under a member's name: all that it computes with, or the head if the encoder is another's."""
    everything = manifest.encoder_of(member) == member
    return {name: value for name, value in tensors.items() if everything or name.startswith("head.")}


def member_weights(manifest: Manifest, member: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a member computes with by canonical name, its expert's encoder included where it shares one."""
    return {
        name.removeprefix(f"{prefix}."): values
        for prefix in dict.fromkeys((manifest.encoder_of(member), member))
        for name, values in weights.items()
        if name.startswith(f"{prefix}.")
    }


def input_width(manifest: Manifest, member: str) -> int:
    """Ring of the client's shares of a member's embeddings.

    What is shuffled or selected first travels in a ring of its own few bits; what meets weights at once is shared in
    theirs, as what the router reads is.
    """
    encoder = encoders(manifest)[member]
    travels = manifest.routes and (manifest.batch is not None or manifest.selects)
    travels = travels and member != manifest.encoder_of("router")
    return encoder.rings.embedding_width if travels else encoder.input_width


def logit_width(manifest: Manifest) -> int:
    """Ring of the logits' shares, the same whichever expert made them."""
    return min(encoder.logit_width for name, encoder in encoders(manifest).items() if name != "router")


def input_bytes(manifest: Manifest, batch: int) -> int:
    """Bytes of the larger party's share of a batch, which is P0's."""
    return packed_size(batch * manifest.max_length, 1) + sum(
        packed_size(batch * manifest.length_of(name) * spec.input_size, input_width(manifest, name))
        for name, spec in manifest.inputs.items()
    )
