# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Conversion of a Hugging Face model, so that two servers can run it on secret shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..families import encoder_config
from ..known_arguments import refuses_unknown
from .conversion.calibration import bounded
from .conversion.client import Client, Inputs, Labels
from .conversion.converted import Converted
from .conversion.description import Member, Options, describe, make_manifest
from .conversion.validation import ConversionError, validate
from .conversion.weights import shared_weights
from .models.manifest import Manifest
from .protocols import load_protocol
from .secure_model import SecureModel


@refuses_unknown
def to_mpc(
    model: Any,
    tokenizer: Any = None,
    protocol: str = "masked",
    routing_privacy: str | None = None,
    device: str = "cpu",
    max_length: int | None = None,
    provider: str = "ttp",
    calibration: Inputs | None = None,
    network: str = "lan",
    routing_lambda: float | None = None,
    quotas: Sequence[int] | None = None,
    guard: bool = False,
) -> SecureModel:
    """Convert a model, so that its weights can be shared and its inputs classified on shares.

    Args:
        model (`SecureRouterForSequenceClassification` or `PreTrainedModel`): A pool with its router, or one plain
            sequence classifier.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for texts, not for token ids.
        protocol (`str`): `"masked"`, the engine, or `"crypten"`, the reference.
        routing_privacy (`str`, *optional*): What the servers may learn about the routing; defaults to
            `config.routing_privacy`, and under `"crypten"` to `"revealed"`, its only mode.
            `"revealed"`: which expert each query used. `"quota"`: nothing but the fixed quotas; of the queries of a
            batch, each expert serves its quota. `"oblivious"`: nothing; every expert computes every query, or, if all
            experts have one shape and neither tables of positions (DeBERTa) nor mixtures, one expert that is selected
            under encryption.
        device (`str`): Where the parties and the dealer compute: `"cpu"` or `"cuda"`.
        max_length (`int`, *optional*): The public length to which every input is padded; defaults to the least
            limit of model and tokenizer. The cost of a query depends on it, and on nothing in the query.
        provider (`str`): `"ttp"`, a dealer process that sees no input, or `"tfp"`: party 0 deals and can unmask
            everything, for debugging only.
        calibration (iterable or `Mapping`, *optional*): Sample inputs, as for a session. What the encoders reach on
            them sets the bounds of every layer, wider or narrower than the defaults; the bounds are public. Without
            them, built-in samples widen the bounds where needed. Only under `"masked"`.
        network (`str`): The network to optimise for, `"lan"` or `"wan"`: a plan trades rounds against bytes. Only
            under `"masked"`.
        routing_lambda (`float`, *optional*): Weight of a unit of cost in the decision; defaults to
            `config.routing_lambda`. It is folded into the router's head. Not used under `"quota"`.
        quotas (`list[int]`, *optional*): How many queries of a batch each expert serves under `"quota"`; defaults to
            `config.quotas`, or to one query each. Public, like all other arguments but the calibration samples.
        guard (`bool`): Whether each batch comes with a flag, which only the client can read: some value was beyond its
            bound, so that the answers may be wrong. Costs a few percent of the bytes and three rounds. Only under
            `"masked"`.

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
    options = Options(protocol, routing_privacy, device, max_length, provider, network, routing_lambda, quotas, guard)
    problems = validate(model, tokenizer, options)
    if problems:
        raise ConversionError(problems)
    load_protocol(protocol).prepare(provider)
    members = describe(model)
    manifest = make_manifest(model, tokenizer, members, options)
    client = make_client(model, tokenizer, members, manifest)
    converted = Converted(manifest, client, shared_weights(model, members, manifest, routing_lambda))
    return SecureModel(bounded(converted, calibration) if protocol == "masked" else converted)


def make_client(model: Any, tokenizer: Any, members: Sequence[Member], manifest: Manifest) -> Client:
    """The client of a model, with copies of its members' embeddings, and with its labels."""
    return Client(
        {member.name: (member.known.of_encoder(member.encoder), member.encoder) for member in members},
        tokenizer,
        manifest.max_length,
        Labels.of(model.config),
        pad_token_id=encoder_config(members[0].module.config).pad_token_id or 0,
        lengths={member.name: manifest.length_of(member.name) for member in members},
    )
