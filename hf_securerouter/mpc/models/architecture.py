# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What both protocols need to know of a Hugging Face encoder, and the registry of architectures by `model_type`.

Every supported encoder is a stack of transformer layers with a norm behind each step, or before each; `spec.py` says
which norms, positions, poolings and heads there are. An architecture says where in its Hugging Face module tree each
weight is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import SecureRouterValueError
from ...families import FAMILIES, Family
from .spec import EncoderSpec, Problem


# Activations in a Hugging Face config, and the gate for each. Variants of GeLU differ by at most 5e-4.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Architecture(ABC):
    """Where one Hugging Face architecture keeps its weights, and how its embeddings are computed.

    `encoder` below is the base model (`AutoModel`), with or without a pooler; `model` is the
    `AutoModelForSequenceClassification` around it.
    """

    model_type: ClassVar[str]

    @abstractmethod
    def problems(self, config: Any, path: str) -> list[Problem]:
        """Everything in `config` that cannot be computed on shares; `path` is the model's place in its pool."""

    @abstractmethod
    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        """The public shape of the classifier that `config` describes; `softmax`, `hidden_act` and `precision` as in
        `SecureRouterConfig.expert_mpc`."""

    def encoder(self, model: Any) -> nn.Module:
        """The base model inside a classifier; a base model is returned as it is."""
        return model.base_model

    def of_encoder(self, encoder: Any) -> Architecture:
        """The architecture of the encoder alone, which the client's embeddings have."""
        return self

    def embeddings(self, encoder: Any) -> nn.Module:
        """The module that the client keeps in clear: the tables and their LayerNorm, without a projection."""
        return encoder.embeddings

    def embed(self, embeddings: nn.Module, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Compute the embedding output, in clear at the client.

        Args:
            embeddings (`nn.Module`): The module that `embeddings` returns.
            input_ids (`torch.Tensor`): Shape (B, T), int64.
            token_type_ids (`torch.Tensor`, *optional*): Shape (B, T), int64; zeros when not given.

        Returns:
            `torch.Tensor`: Shape (B, T, E), float32, after the embeddings' LayerNorm; E is the spec's `input_size`.
        """
        with torch.no_grad():
            return embeddings(input_ids=input_ids, token_type_ids=token_type_ids).float()

    @property
    def family(self) -> Family:
        """Where the modules of a layer and of the head are in the module tree."""
        return FAMILIES[self.model_type]

    def encoder_weights(self, encoder: nn.Module) -> dict[str, Tensor]:
        """Float32 copies of the encoder's weights behind the embeddings, under the names
        `layers.{l}.{query,key,value,attention_output,intermediate,output}.{weight,bias}` (weights as (out, in)),
        `layers.{l}.{attention_norm,output_norm}.{weight,bias}` and, where the spec has an `embedding_size`,
        `embedding_projection.{weight,bias}`, or where it has `relative_buckets`, `relative_attention_bias.weight` as
        (buckets, heads). With `position_terms` each layer has `layers.{l}.position_{keys,queries}.weight`, as
        (2 `position_span`, H), for `"c2p"` and `"p2c"`."""
        weights: dict[str, Tensor] = {}
        for index, parts in enumerate(self.family.layer_parts(encoder)):
            for name, module in parts._asdict().items():
                copy_linear(weights, f"layers.{index}.{name}", module)
        return weights

    def head_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Float32 copies of the head, under the names `head.{dense,classifier}.{weight,bias}`."""
        weights: dict[str, Tensor] = {}
        assert self.family.head is not None, "architectures without these parts override this method"
        for name, module in self.family.head(model)._asdict().items():
            copy_linear(weights, f"head.{name}", module)
        return weights

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights of a classifier that are shared between the parties: encoder and head."""
        return self.encoder_weights(self.encoder(model)) | self.head_weights(model)


_REGISTRY: dict[str, Architecture] = {}


def register(architecture: type[Architecture]) -> type[Architecture]:
    """Class decorator: register an architecture under its `model_type`."""
    _REGISTRY[architecture.model_type] = architecture()
    return architecture


def supported_model_types() -> tuple[str, ...]:
    """The `model_type` of every architecture that can be computed on shares."""
    return tuple(sorted(_REGISTRY))


def architecture_for(model_type: str) -> Architecture | None:
    """The architecture registered for `model_type`, or None."""
    return _REGISTRY.get(model_type)


def activation_problems(activation: str, field: str) -> list[Problem]:
    """A problem if no gate computes the feed-forward activation that the config field `field` names."""
    if activation in ACTIVATIONS:
        return []
    return [
        Problem(
            field,
            f"the activation {activation!r} has no gate",
            f"Use a model with one of {', '.join(sorted(ACTIVATIONS))}",
        )
    ]


def rotary_problems(parameters: Mapping[str, Any], path: str) -> list[Problem]:
    """A problem if angles do not depend on the place alone; `parameters` is a config's entry at `path`."""
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return []
    reason = f"rotary positions of the type {kind!r} depend on the length of a text"
    return [Problem(f"{path}.rope_type", reason, "Use a model with `rope_type='default'`")]


def exact_only(model_type: str, **chosen: str) -> None:
    """Raise an error if other functions or numbers are chosen for a family whose experts compute exactly only.

    Raises:
        `SecureRouterValueError`: One of `softmax`, `hidden_act` and `precision` is not the exact one.
    """
    for name, value in chosen.items():
        if value not in ("exact", "full"):
            raise SecureRouterValueError(f"`{name}` of a {model_type} should be the exact one, got {value!r}.")


def copy_linear(weights: dict[str, Tensor], name: str, module: nn.Module) -> None:
    """Copy the weight and the bias of a linear or LayerNorm module to `weights`, as contiguous float32. A
    reduced-precision module has a method `shared`, which returns the rounded ones that it computes with."""
    shared = getattr(module, "shared", lambda: (module.weight, module.bias))
    for part, tensor in zip(("weight", "bias"), shared(), strict=True):
        weights[f"{name}.{part}"] = tensor.detach().to("cpu", torch.float32).clone().contiguous()


def copy_parts(weights: dict[str, Tensor], names: Sequence[str], module: Any) -> None:
    """Copy a module's weight and bias, in equal parts by its outputs, to `weights`, as contiguous float32; a missing
    bias is 0."""
    bias = getattr(module, "bias", None)
    bias = torch.zeros(len(module.weight)) if bias is None else bias
    for part, tensor in (("weight", module.weight), ("bias", bias)):
        for name, own in zip(names, tensor.detach().to("cpu", torch.float32).chunk(len(names)), strict=True):
            weights[f"{name}.{part}"] = own.clone().contiguous()


def copy_gated_layers(weights: dict[str, Tensor], layers: Any, norms: tuple[str, str]) -> None:
    """Copy layers whose modules have the names of Llama's; `norms` are those of the norms of attention and of the
    feed-forward layer."""
    for index, layer in enumerate(layers):
        attention, own = layer.self_attn, layer.mlp
        for name, module in {
            "query": attention.q_proj,
            "key": attention.k_proj,
            "value": attention.v_proj,
            "attention_output": attention.o_proj,
            "attention_norm": getattr(layer, norms[0]),
            "intermediate": own.gate_proj,
            "gate": own.up_proj,
            "output": own.down_proj,
            "output_norm": getattr(layer, norms[1]),
        }.items():
            copy_parts(weights, [f"layers.{index}.{name}"], module)
