# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""From a Hugging Face model to one that two servers run on secret shares."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..configuration_securerouter import ROUTING_PRIVACY_MODES, usable_positions
from ..errors import SecureRouterValueError, SecureRouterWarning
from ..number_format import Bounds
from ..routing import by_cost
from .conversion.calibration import ClearEncoder
from .conversion.client import Client, Labels, Text, copy_into_padding
from .models import Architecture, EncoderSpec, HeadSpec, architecture_for, supported_model_types
from .models.architecture import Problem, copy_linear
from .models.manifest import Manifest
from .net.network_model import NETWORKS
from .protocols import PROTOCOLS, load_protocol
from .protocols.masked.protocol import member_weights


if TYPE_CHECKING:
    from .sessions.local import LocalSession


HIGHEST_PRICE = 2.0 ** (Bounds.logits - 1)
MAX_BATCH = 256  # queries that are shuffled together: the dealer's permutation has a word for every pair


class ConversionError(SecureRouterValueError):
    """A model cannot be converted; the message lists every reason, and `problems` holds them.

    Args:
        problems (`list[Problem]`): All of them.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        listed = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(f"The model cannot be converted, for {len(problems)} reason(s):{listed}")


class SecureModel:
    """A converted model, in the hands of its owner, who is also the client of a local session.

    Args:
        manifest (`Manifest`): What is public.
        client (`Client`): The embeddings and the tokenizer.
        weights (`dict[str, torch.Tensor]`): Everything else of the model, in clear; shared when a session starts.
    """

    def __init__(self, manifest: Manifest, client: Client, weights: dict[str, Tensor]) -> None:
        self.manifest = manifest
        self.client = client
        self.weights = weights
        self.sharing = load_protocol(manifest.protocol).sharing(manifest)

    def local_session(self, timeout: float = 600.0) -> LocalSession:
        """Both parties and the dealer as processes of this machine.

        Args:
            timeout (`float`): Seconds that set-up, and each input of a query, may take before the session gives up.

        Returns:
            `LocalSession`: A context manager; call it with texts.

        Example:
            ```python
            with secure.local_session() as session:
                result = session(["first text", ("a text", "and its pair")])
            ```
        """
        from .sessions.local import LocalSession

        return LocalSession(self, timeout=timeout)

    def save_shares(self, folder: str | os.PathLike) -> None:
        """Write fresh shares, one folder a role: `party0`, `party1`, `dealer` and `client`.

        Args:
            folder (`str` or `os.PathLike`): A new folder; see `hf_securerouter.mpc.deployment.save_shares`.
        """
        from .deployment.save_shares import save_shares

        save_shares(self, folder)

    def __repr__(self) -> str:
        return f"SecureModel({self.manifest.protocol}, {len(self.manifest.experts)} experts)"


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
    problems = validate(
        model,
        tokenizer,
        protocol=protocol,
        routing_privacy=routing_privacy,
        device=device,
        max_length=max_length,
        provider=provider,
        network=network,
        routing_lambda=routing_lambda,
        quotas=quotas,
    )
    if problems:
        raise ConversionError(problems)
    if protocol == "crypten":
        from .protocols.crypten.compat import import_crypten
        from .protocols.crypten.protocol import TFP_WARNING, WARNING

        import_crypten()
        warnings.warn(WARNING, SecureRouterWarning)
        if provider == "tfp":
            warnings.warn(TFP_WARNING, SecureRouterWarning)

    members = _members(model)
    length = _max_length(model, tokenizer, max_length)
    manifest = replace(_manifest(model, protocol, routing_privacy, device, length, provider, quotas), network=network)
    encoders = {name: (architecture, architecture.encoder(module)) for name, (architecture, module) in members.items()}
    labels = Labels(
        names=dict(model.config.id2label),
        regression=model.config.problem_type == "regression" or model.config.num_labels == 1,
    )
    pad_token_id = next(iter(members.values()))[1].config.pad_token_id or 0
    lengths = {name: manifest.length_of(name) for name in encoders}
    client = Client(encoders, tokenizer, length, labels, pad_token_id, lengths)
    weights = _weights(model, members, manifest, routing_lambda)
    if calibration is not None:
        manifest = replace(manifest, bounds=_calibrate(manifest, client, weights, calibration))
    return SecureModel(manifest, client, weights)


def _calibrate(
    manifest: Manifest, client: Client, weights: dict[str, Tensor], samples: Sequence[Text] | Mapping[str, Tensor]
) -> dict[str, dict[str, int]]:
    """Bounds of every member on sample inputs."""
    encoded = client.encode(samples)
    live = encoded["attention_mask"]
    bounds = {}
    embedded = client.embed(encoded)
    for member, spec in manifest.members.items():
        shared = manifest.encoder_of(member)
        encoder = ClearEncoder(spec, member_weights(manifest, member, weights))
        own = embedded[shared]
        encoder(copy_into_padding(own, live), live[:, : own.shape[1]])
        bounds[member] = encoder.bounds()
        if shared != member:
            bounds[member] = {name: bounds[member][name] for name in ("head", "logits")}
    if manifest.selects:
        # One expert is made of all, so its bounds have to hold for each.
        experts = [bounds[f"experts.{index}"] for index in range(len(manifest.experts))]
        loosest = {name: (min if name == "variance_low" else max)(own[name] for own in experts) for name in experts[0]}
        bounds |= {f"experts.{index}": loosest for index in range(len(experts))}
    return bounds


def validate(
    model: Any,
    tokenizer: Any = None,
    *,
    protocol: str = "masked",
    routing_privacy: str | None = None,
    device: str = "cpu",
    max_length: int | None = None,
    provider: str = "ttp",
    network: str = "lan",
    routing_lambda: float | None = None,
    quotas: Sequence[int] | None = None,
) -> list[Problem]:
    """Everything that keeps a model from being converted, at once; the arguments are those of `to_mpc`.

    Returns:
        `list[Problem]`: Empty if `to_mpc` can do it.
    """
    found = []
    if protocol not in PROTOCOLS:
        found.append(Problem("protocol", f"there is no {protocol!r}", f"Pass one of {', '.join(PROTOCOLS)}"))
    if network not in NETWORKS:
        found.append(Problem("network", f"there is no {network!r}", f"Pass one of {', '.join(NETWORKS)}"))
    found += _routing_problems(model, protocol, routing_privacy, routing_lambda, quotas)
    if model.config.problem_type == "multi_label_classification":
        found.append(
            Problem(
                "config.problem_type",
                "a result has one label for each text, and a multi-label model several",
                "Convert a model with `problem_type='single_label_classification'` or `'regression'`",
            )
        )
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        found.append(
            Problem("model", "it carries a PEFT adapter", "Merge the adapter first, with `merge_and_unload()`")
        )

    specs = {}
    for path, module in _modules(model).items():
        reasons = _module_problems(path, module)
        found += reasons
        if not reasons:
            specs[path] = _spec(model, path, module)
    found += _length_problems(model, tokenizer, max_length)
    if protocol in PROTOCOLS:
        found += load_protocol(protocol).problems(specs, device, provider)
    return found


def _routing_problems(
    model: Any,
    protocol: str,
    routing_privacy: str | None,
    routing_lambda: float | None,
    quotas: Sequence[int] | None,
) -> list[Problem]:
    found = []
    privacy = _routing_privacy(model, protocol, routing_privacy)
    if privacy not in ROUTING_PRIVACY_MODES:
        remedy = f"Pass one of {', '.join(ROUTING_PRIVACY_MODES)}"
        found.append(Problem("routing_privacy", f"there is no {privacy!r}", remedy))
    elif protocol == "crypten" and privacy != "revealed" and _experts(model) > 1:
        found.append(
            Problem(
                "routing_privacy",
                f"protocol 'crypten' reveals the chosen expert, and {privacy!r} was asked for",
                "Pass `routing_privacy='revealed'` if the servers may know it, or `protocol='masked'`",
            )
        )
    if routing_lambda is not None and not (math.isfinite(routing_lambda) and routing_lambda >= 0):
        found.append(Problem("routing_lambda", f"it should be at least 0, got {routing_lambda!r}", "Pass 0.1, say"))
    if quotas is not None and privacy != "quota":
        found.append(Problem("quotas", f"{privacy!r} has none", "Pass `routing_privacy='quota'`, or no quotas"))
    counts = _quotas(model, quotas)
    if len(counts) != _experts(model) or any(count < 0 for count in counts) or not 1 <= sum(counts) <= MAX_BATCH:
        found.append(
            Problem(
                "quotas",
                f"it should hold {_experts(model)} counts of a batch of up to {MAX_BATCH} queries, got {counts}",
                "Pass one count for each expert",
            )
        )
    return found


def _experts(model: Any) -> int:
    return len(getattr(model, "experts", [model]))


def _quotas(model: Any, quotas: Sequence[int] | None) -> list[int]:
    """How many queries of a batch each expert serves; one each unless the caller or the config says otherwise."""
    chosen = quotas if quotas is not None else getattr(model.config, "quotas", None)
    return list(chosen) if chosen is not None else [1] * _experts(model)


def _router_shares_expert(model: Any) -> int | None:
    """The expert whose encoder the router reads."""
    return getattr(model.config, "router_shares_expert", None)


def _modules(model: Any) -> dict[str, Any]:
    """Where each encoder of the model stands, by module path."""
    if not hasattr(model, "experts"):
        return {"model": model}
    experts = {f"experts.{index}": expert for index, expert in enumerate(model.experts)}
    own = {"router.encoder": model.router.encoder} if _router_shares_expert(model) is None else {}
    return own | experts


def _members(model: Any) -> dict[str, tuple[Architecture, Any]]:
    """The architecture and the module of every member with an encoder of its own, by the manifest's names."""
    names = {"router.encoder": "router", "model": "experts.0"}
    found = {}
    for path, module in _modules(model).items():
        architecture = architecture_for(module.config.model_type)
        assert architecture is not None, "validated"
        found[names.get(path, path)] = (architecture, module)
    return found


def _spec(model: Any, path: str, module: Any) -> EncoderSpec:
    """The public shape of the member at `path`; the router's head is its perceptron."""
    architecture = architecture_for(module.config.model_type)
    assert architecture is not None, "validated"
    if path == "router.encoder":
        spec = architecture.spec(module.config)
        inner, scores = model.router.dense.out_features, len(model.experts)
        return replace(spec, head=HeadSpec("router.dense", "relu", "router.out_proj", scores, inner))
    return architecture.spec(module.config, **getattr(module, "expert_mpc", {}))


def _module_problems(path: str, module: Any) -> list[Problem]:
    config = module.config
    found = []
    architecture = architecture_for(config.model_type)
    if architecture is None:
        found.append(
            Problem(
                path,
                f"the architecture {config.model_type!r} has no counterpart on shares",
                f"Use a model of one of the types {', '.join(supported_model_types())}",
            )
        )
    else:
        found += architecture.problems(config, path)
    if getattr(config, "quantization_config", None) is not None or getattr(module, "is_quantized", False):
        found.append(Problem(path, "its weights are quantised", "Load the checkpoint in float32"))
    if getattr(module, "peft_config", None) or getattr(module, "_hf_peft_config_loaded", False):
        found.append(Problem(path, "it carries a PEFT adapter", "Merge the adapter first, with `merge_and_unload()`"))
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            found.append(Problem(f"{path}.{name}", "it holds values that are not finite", "Load or train it again"))
    return found


def _length_problems(model: Any, tokenizer: Any, max_length: int | None) -> list[Problem]:
    found = []
    configs = {path: module.config for path, module in _modules(model).items()}
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2):
        return [Problem("max_length", f"it should be an integer of at least 2, got {max_length!r}", "Pass 128, say")]
    length = _max_length(model, tokenizer, max_length)
    for path, config in configs.items():
        positions = usable_positions(config) or length
        if positions < length:
            found.append(
                Problem(
                    f"{path}.config.max_position_embeddings",
                    f"it has {positions} positions, and `max_length` is {length}",
                    f"Pass `max_length={positions}` or less",
                )
            )
        if tokenizer is not None and len(tokenizer) > config.vocab_size:
            found.append(
                Problem(
                    f"{path}.config.vocab_size",
                    f"it has {config.vocab_size} tokens, and the tokenizer {len(tokenizer)}",
                    "Pass the tokenizer that the model was trained with",
                )
            )
    if tokenizer is not None and tokenizer.pad_token is None:
        found.append(Problem("tokenizer.pad_token", "every input is padded", "Set `tokenizer.pad_token`"))
    return found


def _max_length(model: Any, tokenizer: Any, max_length: int | None) -> int:
    if max_length is not None:
        return max_length
    known: list[int] = [usable_positions(module.config) or 512 for module in _modules(model).values()]
    for value in (getattr(model.config, "max_length", None), getattr(tokenizer, "model_max_length", None)):
        if isinstance(value, int):
            known.append(value)
    return min(known)


def _routing_privacy(model: Any, protocol: str, routing_privacy: str | None) -> str:
    own = "revealed" if protocol == "crypten" else getattr(model.config, "routing_privacy", "revealed")
    return str(routing_privacy or own)


def _manifest(
    model: Any,
    protocol: str,
    routing_privacy: str | None,
    device: str,
    max_length: int,
    provider: str,
    quotas: Sequence[int] | None,
) -> Manifest:
    paths = _modules(model)
    pool = hasattr(model, "experts")
    manifest = Manifest(
        protocol=protocol,
        provider=provider,
        routing_privacy=_routing_privacy(model, protocol, routing_privacy),
        device=device,
        max_length=max_length,
        router=_spec(model, "router.encoder", model.router.encoder) if pool else None,
        experts=tuple(_spec(model, path, module) for path, module in paths.items() if path != "router.encoder"),
        router_shares_expert=_router_shares_expert(model),
        expert_lengths=tuple(min(own, max_length) for own in getattr(model.config, "expert_max_lengths", None) or ()),
    )
    if not manifest.routes or manifest.routing_privacy != "quota" or manifest.router is None:
        return manifest
    # The router's head gives one number: by how much a query is better served by the costliest expert.
    head = replace(manifest.router.head, num_outputs=1)
    return replace(
        manifest,
        router=replace(manifest.router, head=head),
        quotas=tuple(_quotas(model, quotas)),
        hardest_first=tuple(reversed(by_cost(model.config.expert_costs))),
    )


def _weights(
    model: Any,
    members: dict[str, tuple[Architecture, Any]],
    manifest: Manifest,
    routing_lambda: float | None,
) -> dict[str, Tensor]:
    """Every tensor that is shared, by member and canonical name."""
    weights = {} if manifest.router is None else _router_head(model, manifest, routing_lambda)
    for member, (architecture, module) in members.items():
        named = architecture.encoder_weights(module) if member == "router" else architecture.weights(module)
        weights |= {f"{member}.{name}": values for name, values in named.items()}
    return weights


def _router_head(model: Any, manifest: Manifest, routing_lambda: float | None) -> dict[str, Tensor]:
    """The router's perceptron, with the policy in its last layer."""
    named: dict[str, Tensor] = {}
    for part in ("dense", "out_proj"):
        copy_linear(named, f"router.router.{part}", getattr(model.router, part))
    last = "router.router.out_proj"
    if manifest.batch is not None:
        for part in ("weight", "bias"):
            scores = named[f"{last}.{part}"]
            costliest, cheapest = manifest.hardest_first[0], manifest.hardest_first[-1]
            named[f"{last}.{part}"] = (scores[costliest] - scores[cheapest])[None]
    else:
        # The decision is argmax(score - lambda * cost): the price goes into the bias, once.
        price = model.config.routing_lambda if routing_lambda is None else routing_lambda
        costs = torch.tensor(model.config.expert_costs, dtype=torch.float32)
        # Scores have a bound: what is priced out at half of it stays so at any higher price.
        named[f"{last}.bias"] -= ((costs - costs.min()) * price).clamp(max=HIGHEST_PRICE)
    return named
