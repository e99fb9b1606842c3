# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a Hugging Face model to one that two servers run on secret shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .conversion.calibration import calibrated_bounds
from .conversion.client import Client, Labels, Text
from .conversion.converted import Converted
from .conversion.description import Member, Options, describe, make_manifest
from .conversion.validation import ConversionError, validate
from .conversion.weights import shared_weights
from .models.manifest import Manifest
from .protocols import load_protocol
from .secure_model import SecureModel


def to_mpc(
    model: Any,
    tokenizer: Any = None,
    protocol: str = "masked",
    routing_privacy: str | None = None,
    device: str = "cpu",
    max_length: int | None = None,
    provider: str = "ttp",
    calibration: Sequence[Text] | Mapping[str, Tensor] | None = None,
    network: str = "lan",
    routing_lambda: float | None = None,
    quotas: Sequence[int] | None = None,
) -> SecureModel:
    """Convert a model, so that its weights can be shared and its inputs classified on shares.

    Args:
        model (`SecureRouterForSequenceClassification` or `PreTrainedModel`): A pool with its router, or one plain
            sequence classifier.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): What texts are read with; token ids can do without.
        protocol (`str`): `"masked"`, the engine, or `"crypten"`, the reference.
        routing_privacy (`str`, *optional*): What the servers may learn of the routing; defaults to
            `config.routing_privacy`, and under `"crypten"` to all that it has, `"revealed"`.
            `"revealed"`: which expert each query used. `"quota"`: nothing; a batch has a fixed number of queries, of
            which each expert serves its quota. `"oblivious"`: nothing; every expert computes, or one that is made of
            all under encryption where they have one shape.
        device (`str`): Where the parties and the dealer compute: `"cpu"`, or `"cuda"` of `"masked"`.
        max_length (`int`, *optional*): The public length that every input is padded to; defaults to
            `config.max_length`. What a query costs depends on it, and on nothing in the query.
        provider (`str`): `"ttp"`, a dealer process that sees no input, or `"tfp"`: party 0 deals and can unmask
            everything, for debugging only.
        calibration (`list` or `Mapping`, *optional*): Of `"masked"`: sample inputs, as a session takes them, which
            tighten the default bounds and so shorten messages. The tightened bounds are public.
        network (`str`): Of `"masked"`: `"lan"` or `"wan"`, what rounds and bytes are traded for.
        routing_lambda (`float`, *optional*): What a unit of cost weighs in the decision; defaults to
            `config.routing_lambda`. It is folded into the router's head. Not used under `"quota"`.
        quotas (`list[int]`, *optional*): Of `"quota"`: how many queries of a batch each expert serves; defaults to
            `config.quotas`, and to one each without. Public, like everything that is fixed here.

    Returns:
        `SecureModel`

    Raises:
        `ConversionError`: Something cannot be converted; the message lists everything at once.
        `ImportError`: The protocol needs a package that is not installed; the message holds the install line.

    Example:
        ```python
        secure = model.to_mpc(tokenizer=tokenizer, max_length=64)
        with secure.local_session() as session:
            print(session(["The film was a delight."]).labels)
        ```
    """
    options = Options(protocol, routing_privacy, device, max_length, provider, network, routing_lambda, quotas)
    problems = validate(model, tokenizer, options)
    if problems:
        raise ConversionError(problems)
    load_protocol(protocol).prepare(provider)
    members = describe(model)
    manifest = make_manifest(model, tokenizer, members, options)
    client = make_client(model, tokenizer, members, manifest)
    converted = Converted(manifest, client, shared_weights(model, members, manifest, routing_lambda))
    if calibration is not None:
        converted = replace(converted, manifest=replace(manifest, bounds=calibrated_bounds(converted, calibration)))
    return SecureModel(converted)


def make_client(model: Any, tokenizer: Any, members: Sequence[Member], manifest: Manifest) -> Client:
    """The client of a model: copies of the embeddings of its members, and how its logits become labels."""
    labels = Labels(
        names=dict(model.config.id2label),
        regression=model.config.problem_type == "regression" or model.config.num_labels == 1,
    )
    return Client(
        {member.name: (member.known, member.encoder) for member in members},
        tokenizer,
        manifest.max_length,
        labels,
        pad_token_id=members[0].module.config.pad_token_id or 0,
        lengths={member.name: manifest.length_of(member.name) for member in members},
    )
