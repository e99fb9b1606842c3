# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A model's public layout under the masked protocol: encoders, weight shapes, ring widths (bits) and sizes (bytes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from ....number_format import Bounds, FractionBits, number_format
from ...gates.guard import WORD_BITS
from ...models.manifest import Manifest
from ...models.spec import EncoderSpec
from ...ring.words import packed_size
from .encoder import MaskedEncoder
from .folding import weight_shapes
from .ring_widths import RingWidths


T = TypeVar("T")


ATTENTION_MASK = "live"  # a name on the wire and a label of the mask generator, so it stays


LOGITS = "logits"


SEED = "seed"


GUARD = "guard"
GUARD_BYTES = WORD_BITS // 8


def encoders(manifest: Manifest) -> dict[str, MaskedEncoder]:
    """The encoder of each member: `router`, `experts.0`, `experts.1`, ...

    If the router shares an expert's encoder, only its `head` runs, on the hidden state from the expert's
    `run_encoder`; both use the same ring widths.
    """
    return {name: _encoder(manifest, name) for name in manifest.members}


def _encoder(manifest: Manifest, member: str) -> MaskedEncoder:
    """A member's encoder; with a shared one, the ring widths of the layers are the expert's."""
    owner = manifest.encoder_of(member)
    layers = range(manifest.members[owner].num_layers)
    heads = [name for name in manifest.members if manifest.encoder_of(name) == owner]
    return MaskedEncoder(
        manifest.members[member],
        _ring_widths(manifest, member),
        f"{member}.",
        tuple(_ring_widths(manifest, owner, layer) for layer in layers),
        max(_ring_widths(manifest, head).head_width(manifest.members[head].head) for head in heads),
    )


def _ring_widths(manifest: Manifest, member: str, layer: int | None = None) -> RingWidths:
    """Ring widths of a member's head or of one of its layers."""
    spec = manifest.members[manifest.encoder_of(member)]
    bounds = bounds_of(manifest, member, layer)
    if spec.hidden_act == "silu":
        bounds = replace(bounds, inner=max(bounds.inner, 4))  # the least that its gate reads
    if manifest.members[member].head.activation == "silu":
        bounds = replace(bounds, head=max(bounds.head, 4))
    return RingWidths(
        bounds=bounds,
        length=manifest.length_of(member),
        softmax=spec.softmax,
        network=manifest.network,
        hidden_act=spec.hidden_act,
        bits=fraction_bits(spec, _has_outliers(manifest, manifest.encoder_of(member))),
        norm_first=spec.norm_first,
        gated=spec.gated,
        rotary=bool(spec.rotary),
        shifts_padding=spec.padding_differs,
        guarded=manifest.guard,
        pools=spec.pooling == "mean",
        experts=spec.num_experts if layer in spec.sparse_layers else 0,
        stream=_stream_bound(manifest, manifest.encoder_of(member), layer),
    )


def fraction_bits(spec: EncoderSpec, outliers: bool = False) -> FractionBits:
    """Fraction bits of an encoder.

    Rotary positions take a product more between a norm and the scores, so that keys and their weights have fewer bits.
    With the norm first, hidden states are read by matrices only, whose sums average their rounding: fewer bits do.
    Outliers widen the rings behind a norm and make the rounding of its factors the largest of all: where there are
    `outliers`, other values give up bits for them.
    """
    bits = number_format(spec.precision, spec.softmax).bits
    if outliers and spec.precision == "full":
        bits = replace(bits, value_weights=12, output_weights=13, mean_weights=23, unnormalized=13)
    if spec.rotary:
        bits = replace(bits, query=11, key=10, key_weights=12)
    if spec.norm_first:
        bits = replace(bits, hidden=13, normal=12, unnormalized=12, value=11, gated=11)
    return bits


def _has_outliers(manifest: Manifest, member: str) -> bool:
    """Whether the measured bounds of some layer allow larger inputs of a LayerNorm than the default ones."""
    spec = manifest.members[member]
    default = number_format(spec.precision, spec.softmax, spec.padding_differs).bounds.residual
    return any(bounds.get("residual", default) > default for bounds in manifest.bounds_of(member).values())


def _stream_bound(manifest: Manifest, member: str, layer: int | None) -> int:
    """log2 bound of the sum of all steps from a layer on, with the norm first; 0 otherwise."""
    spec = manifest.members[member]
    if not spec.norm_first or layer is None:
        return 0
    return max(bounds_of(manifest, member, later).residual for later in range(layer, spec.num_layers))


def bounds_of(manifest: Manifest, member: str, layer: int | None = None) -> Bounds:
    """Bounds of a member's head or of one of its layers: the measured ones of the manifest, or the defaults.

    Logits of all experts have one ring, so they have the widest bound of any expert.
    """
    owner = manifest.encoder_of(member)
    spec = manifest.members[owner]
    measured = dict(manifest.bounds.get(member, {}))
    if owner != member:  # a head of its own on another member's encoder
        measured = {**manifest.bounds.get(owner, {}), "head": Bounds.head, "logits": Bounds.logits, **measured}
    if layer is not None:
        measured |= manifest.bounds.get(layer_key(member, layer), {})
    default = number_format(spec.precision, spec.softmax, spec.padding_differs).bounds
    if member != "router":
        experts = [name for name in manifest.members if name != "router"]
        measured["logits"] = max(manifest.bounds.get(name, {}).get("logits", default.logits) for name in experts)
    return default.replaced(**measured)


def layer_key(member: str, layer: int) -> str:
    """The key of a layer in `Manifest.bounds`."""
    return f"{member}.layers.{layer}"


def all_weight_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shapes of all shared weights by full name, such as `experts.0.in.0.query`; for plans and the dealer's masks."""
    return {
        f"{name}.{weight}": shape
        for name, spec in manifest.members.items()
        for weight, shape in _own(manifest, name, weight_shapes(spec)).items()
    }


def _own(manifest: Manifest, member: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors shared for a member: all of its weights, or only its head if it uses another member's encoder."""
    everything = manifest.encoder_of(member) == member
    return {name: value for name, value in tensors.items() if everything or name.startswith("head.")}


def member_weights(manifest: Manifest, member: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of a member, including a shared encoder's, by canonical name such as `layers.0.query.weight`."""
    return {
        name.removeprefix(f"{prefix}."): values
        for prefix in dict.fromkeys((manifest.encoder_of(member), member))
        for name, values in weights.items()
        if name.startswith(f"{prefix}.")
    }


def input_width(manifest: Manifest, member: str) -> int:
    """Ring width, in bits, of the client's shares of a member's embeddings.

    Embeddings that are shuffled or selected first have `embedding_width` bits. Embeddings that meet weights at once,
    as the router's do, have the encoder's `input_width` bits.
    """
    encoder = encoders(manifest)[member]
    travels = manifest.routes and (manifest.batch is not None or manifest.selects)
    travels = travels and member != manifest.encoder_of("router")
    return encoder.rings.embedding_width if travels else encoder.input_width


def logit_width(manifest: Manifest) -> int:
    """Ring width, in bits, of the shares of the logits, the same for all experts."""
    return max(encoder.logit_width for name, encoder in encoders(manifest).items() if name != "router")


def input_bytes(manifest: Manifest, batch: int) -> int:
    """Bytes of party 0's share of a batch, bit-packed; party 1's share is a seed."""
    return packed_size(batch * manifest.max_length, 1) + sum(
        packed_size(batch * manifest.length_of(name) * spec.input_size, input_width(manifest, name))
        for name, spec in manifest.inputs.items()
    )


def logits_bytes(manifest: Manifest, batch: int) -> int:
    """Bytes of a party's answer to a batch: its share of the logits, bit-packed, and of a guard's word."""
    flag = GUARD_BYTES if manifest.guard else 0
    return packed_size(batch * manifest.experts[0].head.num_outputs, logit_width(manifest)) + flag
