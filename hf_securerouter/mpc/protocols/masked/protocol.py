# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The masked engine: masked openings in shrinking rings, with a dealer that never sees an opening.

Weights become D = W - B0 - B1, for both parties, and one seed for each half of the mask: a party gets D and its own
seed, the dealer both seeds. An input is covered by a mask that party 1 expands from a seed, and sent to party 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ....errors import SecureRouterError
from ....number_format import number_format
from ...conversion.client import copy_into_padding
from ...gates.weight_share import mask_weight
from ...models import EncoderSpec
from ...models.architecture import Problem
from ...models.manifest import Manifest
from ...net.ledger import Ledger
from ...ring.device import DEVICES, what_is_missing
from ...ring.fixed_point import decode, encode
from ...ring.randomness import SEED_BYTES, Csprng, new_seed
from ...ring.words import packed_size, reduce, seal, unpack
from ..base import Program, Shares, Sharing
from .encoder import MaskedEncoder
from .folding import encode_weights, weight_shapes
from .ring_widths import Precision


T = TypeVar("T")

LIVE = "live"
LOGITS = "logits"
SEED = "seed"


def encoders(manifest: Manifest) -> dict[str, MaskedEncoder]:
    """Every encoder of a model by the prefix of its weights.

    Of a router that shares an expert's encoder only `head` is run, behind that expert's `encode`; their rings agree.
    """
    return {
        name: MaskedEncoder(spec, _precision(manifest, name), f"{name}.") for name, spec in manifest.members.items()
    }


def _precision(manifest: Manifest, member: str) -> Precision:
    """Of a shared encoder all is as the expert's, but for the bounds of the router's head."""
    owner = manifest.encoder_of(member)
    spec = manifest.members[owner]
    chosen = number_format(spec.precision, spec.softmax)
    calibrated = {**manifest.bounds.get(owner, {}), **manifest.bounds.get(member, {})}
    return Precision(
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
    return encoder.precision.embedding_width if travels else encoder.input_width


def logit_width(manifest: Manifest) -> int:
    """Ring of the logits' shares, the same whichever expert made them."""
    return min(encoder.logit_width for name, encoder in encoders(manifest).items() if name != "router")


def as_tensor(seed: bytes) -> Tensor:
    """A seed in the form in which tensors travel."""
    return torch.tensor(list(seed), dtype=torch.uint8)


def as_seed(tensor: Tensor | None) -> bytes:
    """The seed in a received tensor."""
    if tensor is None or tensor.dtype != torch.uint8 or tensor.shape != (SEED_BYTES,):
        raise SecureRouterError("What should be a seed is none.")
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
            used = encode_weights(encoder.spec, member_weights(self.manifest, prefix, weights), encoder.precision)
            for name, words in _own(self.manifest, prefix, used).items():
                masked = {f"{prefix}.{name}": mask_weight(seeds, f"{prefix}.{name}", words, self.manifest.cipher)}
                yield {"party0": masked, "party1": masked}

    def inputs(self, embeddings: dict[str, Tensor], attention_mask: Tensor) -> Shares:
        seed = new_seed()
        shares: Shares = {"party0": {}, "party1": {SEED: as_tensor(seed)}}
        for name, values in embeddings.items():
            encoder = self.encoders[name]
            words = encode(copy_into_padding(values, attention_mask), encoder.precision.bits.hidden)
            width = input_width(self.manifest, name)
            largest = 1 << (encoder.precision.bits.hidden + encoder.precision.bounds.embedding)
            travels = width < encoder.input_width or (self.manifest.selects and name != "router")
            if travels and int(words.abs().max()) >= largest:
                raise SecureRouterError(
                    f"The embeddings of `{name}` reach 2^{encoder.precision.bounds.embedding}, the bound that they "
                    "travel under; pass `routing_privacy='revealed'`."
                )
            pad = input_words(seed, name, self.manifest.cipher).pad(words.shape, width)
            shares["party0"][name] = seal(words, pad)[1]
        live = attention_mask.to(torch.uint8)
        shares["party0"][LIVE] = seal(live, input_words(seed, LIVE, self.manifest.cipher).pad(live.shape, 1))[1]
        return shares

    def logits(self, shares: dict[str, dict[str, Tensor]]) -> Tensor:
        width, classes = logit_width(self.manifest), self.manifest.experts[0].head.num_outputs
        packed = [shares[role]["logits"] for role in ("party0", "party1")]
        rows = packed[0].numel() * 8 // (classes * width)
        first, second = (unpack(part, (rows, classes), width) for part in packed)
        return decode(first + second, width, Precision.logits).float()


def input_words(seed: bytes, name: str, cipher: str) -> Csprng:
    """The mask of the input called `name`."""
    return Csprng(seed, b"input/" + name.encode(), cipher)


def input_share(
    rank: int, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], width: int, cipher: str
) -> Tensor:
    """A party's share of an input, in host memory: XOR for one bit, additive above.

    Args:
        rank (`int`): 0 or 1.
        tensors (`Mapping[str, torch.Tensor]`): What `MaskedSharing.inputs` made for this party.
        name (`str`): Of the input.
        shape (`tuple[int, ...]`): Its shape.
        width (`int`): Its ring.
        cipher (`str`): The session's.
    """
    if rank == 1:
        return reduce(-input_words(as_seed(tensors.get(SEED)), name, cipher).ring(shape, width), width)
    packed, size = tensors.get(name), packed_size(math.prod(shape), width)
    if packed is None or packed.dtype != torch.uint8 or packed.numel() != size:
        raise SecureRouterError(f"The share of `{name}` is missing or not of shape {shape} in {width} bits.")
    return unpack(packed, shape, width)


def input_bytes(manifest: Manifest, batch: int) -> int:
    """Bytes of the larger party's share of a batch, which is P0's."""
    return packed_size(batch * manifest.max_length, 1) + sum(
        packed_size(batch * manifest.length_of(name) * spec.input_size, input_width(manifest, name))
        for name, spec in manifest.inputs.items()
    )


def problems(members: Mapping[str, EncoderSpec], device: str, provider: str) -> list[Problem]:
    """Everything that this protocol cannot do; `members` holds the encoders by module path."""
    found = []
    if device not in DEVICES:
        found.append(
            Problem(
                "device",
                f"protocol 'masked' computes on one of {', '.join(DEVICES)}, got {device!r}",
                "Pass `device='cpu'`",
            )
        )
    elif (missing := what_is_missing(device)) is not None:
        found.append(Problem("device", *missing))
    if provider != "ttp":
        found.append(
            Problem("provider", f"protocol 'masked' has a dealer process, got {provider!r}", "Pass `provider='ttp'`")
        )
    return found


def sharing(manifest: Manifest) -> Sharing:
    """How the owner and the client share."""
    return MaskedSharing(manifest)


def program(role: str, manifest: Manifest, setup: dict[str, Any], ledger: Ledger) -> Program:
    """The program of `role` on the caller's machine; returns once all roles have met."""
    from ...net.loopback import accept_parties, connect_dealer, connect_parties
    from .roles import MaskedDealer, MaskedParty

    folder, timeout = Path(setup["folder"]), setup["timeout"]
    if role == "dealer":
        dealer = MaskedDealer(manifest, ledger, timeout)
        dealer.meet(accept_parties(folder, timeout))
        return dealer
    party = MaskedParty(int(role.removeprefix("party")), manifest, ledger)
    party.meet(
        connect_dealer(folder, party.rank, timeout), connect_parties(folder, party.rank, ledger, timeout), timeout
    )
    return party
