# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The public description of a converted model: every role reads it, and it depends on no weight and no input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ring.randomness import cipher_for
from . import EncoderSpec


BATCH_SIZE = 8  # queries that run together if the manifest fixes no batch


@dataclass(frozen=True)
class Manifest:
    """The public description of a converted model.

    Args:
        protocol (`str`): Name of the two-party protocol.
        provider (`str`): Where correlated randomness comes from: `"ttp"`, a dealer process, or `"tfp"`, party 0.
        routing_privacy (`str`): What the servers learn of the routing.
        device (`str`): Where the parties and the dealer compute: `"cpu"` or `"cuda"`.
        max_length (`int`): Tokens to which every input is padded.
        router (`EncoderSpec`, *optional*): The router; its outputs are one score for each expert. None for a single
            classifier without a router.
        experts (`tuple[EncoderSpec, ...]`): The pool.
        bounds (`Mapping[str, Mapping[str, int]]`): Measured bounds, which replace the defaults, by member, such as
            `experts.0`, and by layer, such as `experts.0.layers.3`; see `Bounds`. An encoder that the router shares
            with an expert has its bounds under the expert.
        network (`str`): Network that the plan is optimised for, a name in `NETWORKS`.
        quotas (`tuple[int, ...]`): Under `quota`: how many queries of a batch each expert serves.
        hardest_first (`tuple[int, ...]`): Under `quota`: the experts in the order in which they take their quotas,
            starting with the queries of the highest scores.
        router_shares_expert (`int`, *optional*): The expert whose encoder the router shares: its weights, its
            embeddings and its output for a query exist once. None for a router with its own encoder.
        expert_lengths (`tuple[int, ...]`): Tokens of an input that each expert reads; empty if all read all tokens.
        sharing (`str`): Id of the sharing in a role's folder, 32 hex digits; empty before the model is shared.
        digest (`str`): Salted SHA-256 of the sharing's masked weights, the same at both servers; empty likewise.
        guard (`bool`): Whether the servers note values beyond their bounds, which only the client learns.
    """

    protocol: str
    provider: str
    routing_privacy: str
    device: str
    max_length: int
    router: EncoderSpec | None
    experts: tuple[EncoderSpec, ...]
    bounds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    network: str = "lan"
    quotas: tuple[int, ...] = ()
    hardest_first: tuple[int, ...] = ()
    router_shares_expert: int | None = None
    expert_lengths: tuple[int, ...] = ()
    sharing: str = ""
    digest: str = ""
    guard: bool = False

    @property
    def routes(self) -> bool:
        """Whether a router chooses among several experts."""
        return self.router is not None and len(self.experts) > 1

    @property
    def batch(self) -> int | None:
        """Queries of every batch if their number is fixed, as under `quota`; else None."""
        return sum(self.quotas) if self.routes and self.routing_privacy == "quota" else None

    @property
    def largest_batch(self) -> int:
        """Largest number of queries that a server runs at once."""
        return self.batch or BATCH_SIZE

    @property
    def selects(self) -> bool:
        """Whether secret bits select the weights of one expert: under `oblivious`, if all experts have one shape,
        and neither tables of positions nor sparse layers, which no gate selects."""
        names = [f"experts.{index}" for index in range(len(self.experts))]
        shapes = [(self.members[name], self.bounds_of(name), self.length_of(name)) for name in names]
        same = all(shape == shapes[0] for shape in shapes)
        same = same and not any(spec.position_terms or spec.sparse_layers for spec in self.experts)
        return self.routes and self.routing_privacy == "oblivious" and same

    def bounds_of(self, member: str) -> dict[str, Mapping[str, int]]:
        """The measured bounds of a member: its own under `""`, and those of layer 3 under `".layers.3"`."""
        keys = [key for key in self.bounds if f"{key}.".startswith(f"{member}.")]
        return {key.removeprefix(member): self.bounds[key] for key in keys if self.bounds[key]}

    @property
    def members(self) -> dict[str, EncoderSpec]:
        """Every encoder with its head by the prefix of its weights: `router`, `experts.0`, `experts.1`, ..."""
        found = {} if self.router is None else {"router": self.router}
        return found | {f"experts.{index}": spec for index, spec in enumerate(self.experts)}

    def encoder_of(self, member: str) -> str:
        """The member whose encoder `member` uses: an expert for a router that shares its encoder, else `member`."""
        shares = member == "router" and self.router_shares_expert is not None
        return f"experts.{self.router_shares_expert}" if shares else member

    def length_of(self, member: str) -> int:
        """Number of tokens of an input that a member reads."""
        owner = self.encoder_of(member)
        if owner == "router" or not self.expert_lengths:
            return self.max_length
        return self.expert_lengths[int(owner.removeprefix("experts."))]

    @property
    def inputs(self) -> dict[str, EncoderSpec]:
        """The members whose embeddings the client shares: those with an encoder of their own."""
        return {name: spec for name, spec in self.members.items() if self.encoder_of(name) == name}

    @property
    def cipher(self) -> str:
        """The cipher with which all roles expand seeds."""
        return cipher_for(self.device)

    @property
    def roles(self) -> tuple[str, ...]:
        """The processes that a query needs besides the client."""
        return ("party0", "party1", "dealer") if self.provider == "ttp" else ("party0", "party1")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, from which `from_dict` makes an equal manifest."""
        return {
            "protocol": self.protocol,
            "provider": self.provider,
            "routing_privacy": self.routing_privacy,
            "device": self.device,
            "max_length": self.max_length,
            "router": None if self.router is None else self.router.to_dict(),
            "experts": [spec.to_dict() for spec in self.experts],
            "bounds": {name: dict(bounds) for name, bounds in self.bounds.items()},
            "network": self.network,
            "quotas": list(self.quotas),
            "hardest_first": list(self.hardest_first),
            "router_shares_expert": self.router_shares_expert,
            "expert_lengths": list(self.expert_lengths),
            "sharing": self.sharing,
            "digest": self.digest,
            **({"guard": True} if self.guard else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_dict` described."""
        return cls(
            **{name: values[name] for name in ("protocol", "provider", "routing_privacy", "device", "max_length")},
            router=None if values["router"] is None else EncoderSpec.from_dict(values["router"]),
            experts=tuple(EncoderSpec.from_dict(spec) for spec in values["experts"]),
            bounds=values["bounds"],
            network=values["network"],
            quotas=tuple(values["quotas"]),
            hardest_first=tuple(values["hardest_first"]),
            router_shares_expert=values["router_shares_expert"],
            expert_lengths=tuple(values["expert_lengths"]),
            sharing=values.get("sharing", ""),  # folders of earlier versions have neither
            digest=values.get("digest", ""),
            guard=values.get("guard", False),
        )


PARTIES = ("party0", "party1")
