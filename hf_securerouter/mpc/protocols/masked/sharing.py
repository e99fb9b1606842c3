# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Shares of weights, inputs and logits in the rings of the masked protocol."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from ....errors import SecureRouterError
from ....lengths import copy_into_padding
from ...gates.weight_share import mask_weight
from ...models.manifest import Manifest
from ...ring.fixed_point import from_fixed_point, to_fixed_point
from ...ring.randomness import SEED_BYTES, Csprng, new_seed
from ...ring.words import packed_size, reduce, seal, unpack
from ..base import Shares, Sharing
from .folding import folded_layers
from .layout import ATTENTION_MASK, GUARD, GUARD_BYTES, SEED, _own, encoders, input_width, logit_width, member_weights
from .ring_widths import RingWidths


def as_tensor(seed: bytes) -> Tensor:
    """A seed as a uint8 tensor of 32 elements, so that a channel can carry it."""
    return torch.tensor(list(seed), dtype=torch.uint8)


def as_seed(tensor: Tensor | None) -> bytes:
    """The seed in a received tensor.

    Raises:
        `SecureRouterError`: The tensor is missing, or is not 32 elements of uint8.
    """
    if tensor is None or tensor.dtype != torch.uint8 or tensor.shape != (SEED_BYTES,):
        raise SecureRouterError(f"A seed is missing or not {SEED_BYTES} bytes of uint8.")
    return bytes(tensor.tolist())


class MaskedSharing(Sharing):
    """Shares in the rings of the masked engine."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.encoders = encoders(manifest)

    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[Shares]:
        seeds = (new_seed(), new_seed())
        yield {
            "party0": {SEED: as_tensor(seeds[0])},
            "party1": {SEED: as_tensor(seeds[1])},
            "dealer": {f"{SEED}{rank}": as_tensor(seed) for rank, seed in enumerate(seeds)},
        }
        for prefix, encoder in self.encoders.items():
            used = member_weights(self.manifest, prefix, weights)
            for layer in folded_layers(encoder.spec, used, encoder.rings):
                for name, words in _own(self.manifest, prefix, layer).items():
                    masked = {f"{prefix}.{name}": mask_weight(seeds, f"{prefix}.{name}", words, self.manifest.cipher)}
                    yield {"party0": masked, "party1": masked}

    def inputs(self, embeddings: dict[str, Tensor], attention_mask: Tensor) -> Shares:
        hidden = int((attention_mask[:, 0] == 0).sum())
        if hidden:
            # Padding is shared as copies of tokens, so the first hidden state would be that of another token.
            raise SecureRouterError(
                f"`attention_mask` starts with padding in {hidden} of {len(attention_mask)} inputs, and an answer is "
                "read off the first token: pad on the right, with `tokenizer.padding_side = 'right'`."
            )
        seed = new_seed()
        shares: Shares = {"party0": {}, "party1": {SEED: as_tensor(seed)}}
        for name, values in embeddings.items():
            encoder = self.encoders[name]
            words = to_fixed_point(copy_into_padding(values, attention_mask), encoder.rings.bits.hidden)
            width = input_width(self.manifest, name)
            largest = 1 << (encoder.rings.bits.hidden + encoder.rings.bounds.embedding)
            travels = width < encoder.input_width or (self.manifest.selects and name != "router")
            if travels and int(words.abs().max()) >= largest:
                raise SecureRouterError(
                    f"The embeddings of `{name}` reach 2^{encoder.rings.bounds.embedding}, the bound of embeddings "
                    "that are shuffled or selected; pass `routing_privacy='revealed'`."
                )
            pad = input_words(seed, name, self.manifest.cipher).pad(words.shape, width)
            shares["party0"][name] = seal(words, pad)[1]
        is_token = attention_mask.to(torch.uint8)
        shares["party0"][ATTENTION_MASK] = seal(
            is_token, input_words(seed, ATTENTION_MASK, self.manifest.cipher).pad(is_token.shape, 1)
        )[1]
        return shares

    def logits(self, shares: dict[str, dict[str, Tensor]]) -> Tensor:
        width, classes = logit_width(self.manifest), self.manifest.experts[0].head.num_outputs
        packed = [shares[role].get("logits") for role in ("party0", "party1")]
        first = packed[0]
        rows = 0 if first is None else first.numel() * 8 // (classes * width)
        size = packed_size(rows * classes, width)
        if any(part is None or part.dtype != torch.uint8 or part.shape != (size,) for part in packed):
            raise SecureRouterError("The servers answered with something else than two shares of the same logits.")
        own, other = (unpack(part, (rows, classes), width) for part in packed if part is not None)
        return from_fixed_point(own + other, width, RingWidths.logits).float()

    def in_bounds(self, shares: dict[str, dict[str, Tensor]]) -> bool | None:
        if not self.manifest.guard:
            return None
        first, second = (shares[role].get(GUARD) for role in ("party0", "party1"))
        if first is None or second is None or not (_is_flag(first) and _is_flag(second)):
            raise SecureRouterError("The servers answered without two shares of the guard's word.")
        return not bool((first ^ second).any())


def _is_flag(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.uint8 and tensor.shape == (GUARD_BYTES,)


def input_words(seed: bytes, name: str, cipher: str) -> Csprng:
    """The generator of an input's mask, from the seed that party 1 gets."""
    return Csprng(seed, b"input/" + name.encode(), cipher)


def check_share(
    rank: int,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[tuple[int, ...], int]],
    known: Collection[str],
) -> None:
    """Check what a client sent as a party's share of a batch, before anything is computed from it.

    Args:
        rank (`int`): 0 or 1.
        tensors (`Mapping[str, torch.Tensor]`): What the client sent.
        expected (`Mapping[str, tuple]`): Shape and ring width, in bits, of each input.
        known (`Collection[str]`): Names that party 0 may get.

    Raises:
        `SecureRouterError`: A share, or party 1's seed, is missing, of another dtype, shape or size, or unknown.
    """
    if rank == 1:
        as_seed(tensors.get(SEED))
        known = (SEED,)
    else:
        for name, (shape, width) in expected.items():
            _packed(tensors, name, shape, width)
    if unknown := set(tensors) - set(known):
        raise SecureRouterError(f"{len(unknown)} tensors are no shares of this model's inputs.")


def _packed(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], width: int) -> Tensor:
    packed, size = tensors.get(name), packed_size(math.prod(shape), width)
    if packed is None or packed.dtype != torch.uint8 or packed.shape != (size,):
        raise SecureRouterError(f"The share of `{name}` is missing or not of shape {shape} in {width} bits.")
    return packed


def input_share(
    rank: int, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], width: int, cipher: str
) -> Tensor:
    """A party's share of an input, in host memory: XOR for one bit, additive above.

    Args:
        rank (`int`): 0 or 1.
        tensors (`Mapping[str, torch.Tensor]`): What `MaskedSharing.inputs` made for this party.
        name (`str`): The input's name.
        shape (`tuple[int, ...]`): The input's shape.
        width (`int`): The input's ring width, in bits.
        cipher (`str`): The session's cipher, which expands party 1's seed.

    Raises:
        `SecureRouterError`: The share, or party 1's seed, is missing or of another size.
    """
    if rank == 1:
        return reduce(-input_words(as_seed(tensors.get(SEED)), name, cipher).ring(shape, width), width)
    return unpack(_packed(tensors, name, shape, width), shape, width)
