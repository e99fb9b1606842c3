# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The encoders of a model, the owner's options, and the public manifest made from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...families import usable_positions
from ...routing import by_cost
from ..models import Architecture, EncoderSpec, HeadSpec, architecture_for
from ..models.manifest import Manifest


LONGEST = 512  # tokens of an input, if neither the model nor its tokenizer has a limit


@dataclass(frozen=True)
class Options:
    """The options of a conversion; the fields are the arguments of `to_mpc`."""

    protocol: str = "masked"
    routing_privacy: str | None = None
    device: str = "cpu"
    max_length: int | None = None
    provider: str = "ttp"
    network: str = "lan"
    routing_lambda: float | None = None
    quotas: Sequence[int] | None = None
    guard: bool = False


@dataclass(frozen=True)
class Member:
    """One encoder of a model.

    Args:
        path (`str`): Its module path in the model, such as `router.encoder` or `experts.0`; for messages.
        name (`str`): Its name in the manifest: `router`, `experts.0`, ...
        module (`PreTrainedModel`): A base model for the router, a classifier for an expert.
        architecture (`Architecture`, *optional*): The architecture of its `model_type`; None if it has no counterpart.
    """

    path: str
    name: str
    module: Any
    architecture: Architecture | None

    @property
    def encoder(self) -> Any:
        """The base model."""
        return self.known.encoder(self.module)

    @property
    def known(self) -> Architecture:
        """The architecture, after validation."""
        assert self.architecture is not None, "validated"
        return self.architecture


def describe(model: Any) -> list[Member]:
    """The members of a model with an encoder of their own, the router first.

    Args:
        model (`SecureRouterForSequenceClassification` or `PreTrainedModel`): A pool, or one plain classifier.
    """
    found = []
    if not is_pool(model):
        found.append(("model", "experts.0", model))
    else:
        if shared_expert(model) is None:
            found.append(("router.encoder", "router", model.router.encoder))
        found += [(f"experts.{index}", f"experts.{index}", expert) for index, expert in enumerate(model.experts)]
    return [Member(path, name, module, architecture_for(module.config.model_type)) for path, name, module in found]


def is_pool(model: Any) -> bool:
    """Whether a model has a router and experts, rather than being one plain classifier."""
    return hasattr(model, "experts")


def count_experts(model: Any) -> int:
    """The number of experts of a pool; 1 for a plain classifier."""
    return len(model.experts) if is_pool(model) else 1


def shared_expert(model: Any) -> int | None:
    """The index of the expert whose encoder the router shares; None if the router has its own."""
    return getattr(model.config, "router_shares_expert", None)


def chosen_quotas(model: Any, options: Options) -> list[int]:
    """How many queries of a batch each expert serves; one each unless the caller or the config says otherwise."""
    chosen = options.quotas if options.quotas is not None else getattr(model.config, "quotas", None)
    return [int(count) for count in chosen] if chosen is not None else [1] * count_experts(model)


def chosen_privacy(model: Any, options: Options) -> str:
    """The routing privacy of the options, or the protocol's or the config's default."""
    own = "revealed" if options.protocol == "crypten" else getattr(model.config, "routing_privacy", "revealed")
    return str(options.routing_privacy or own)


def chosen_length(model: Any, tokenizer: Any, members: Sequence[Member], options: Options) -> int:
    """Tokens to which every input is padded: the option `max_length`, or the least limit of model and tokenizer."""
    if options.max_length is not None:
        return options.max_length
    known: list[int] = [usable_positions(member.module.config) or LONGEST for member in members]
    own = model.config.max_length if is_pool(model) else None  # a plain config may have one, for generation
    for value in (own, getattr(tokenizer, "model_max_length", None)):
        if isinstance(value, int):
            known.append(value)
    return min(known)


def expert_spec(member: Member) -> EncoderSpec:
    """The public shape of an expert."""
    return member.known.spec(member.module.config, **getattr(member.module, "expert_mpc", {}))


def router_spec(model: Any) -> EncoderSpec:
    """The public shape of a pool's router, whose head is its perceptron."""
    encoder = model.router.encoder
    architecture = architecture_for(encoder.config.model_type)
    assert architecture is not None, "validated"
    inner, scores = model.router.dense.out_features, count_experts(model)
    head = HeadSpec("router.dense", "relu", "router.out_proj", scores, inner)
    return replace(architecture.spec(encoder.config), head=head, pooling=model.router.pooling)


def spec_of(model: Any, member: Member) -> EncoderSpec:
    """The public shape of any member."""
    return router_spec(model) if member.name == "router" else expert_spec(member)


def make_manifest(model: Any, tokenizer: Any, members: Sequence[Member], options: Options) -> Manifest:
    """The public manifest of a validated model."""
    max_length = chosen_length(model, tokenizer, members, options)
    manifest = Manifest(
        protocol=options.protocol,
        provider=options.provider,
        routing_privacy=chosen_privacy(model, options),
        device=options.device,
        max_length=max_length,
        router=router_spec(model) if is_pool(model) else None,
        experts=tuple(expert_spec(member) for member in members if member.name != "router"),
        network=options.network,
        router_shares_expert=shared_expert(model),
        guard=options.guard,
        expert_lengths=tuple(min(own, max_length) for own in getattr(model.config, "expert_max_lengths", None) or ()),
    )
    if not manifest.routes or manifest.routing_privacy != "quota" or manifest.router is None:
        return manifest
    # Under `quota` the router's head has one output: the costliest expert's score minus the cheapest expert's.
    return replace(
        manifest,
        router=replace(manifest.router, head=replace(manifest.router.head, num_outputs=1)),
        quotas=tuple(chosen_quotas(model, options)),
        hardest_first=tuple(reversed(by_cost(model.config.expert_costs))),
    )
