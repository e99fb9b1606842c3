# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What both protocols need to know of a Hugging Face encoder, and the registry that finds it.

Every supported encoder is a stack of post-LayerNorm transformer layers whose first token feeds a head of the shape
`classifier(activation(dense(row)))`. An architecture says where in its Hugging Face module tree each weight stands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


# Names of activations in a Hugging Face config, and the gate that computes each (they differ by at most 5e-4).
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class HeadSpec:
    """How the first token's row becomes logits: `classifier(activation(dense(row)))`.

    Args:
        dense (`str`): Prefix of the weights of the first linear layer.
        activation (`str`): `"tanh"`, `"relu"` or `"gelu"`.
        classifier (`str`): Prefix of the weights of the second linear layer.
        num_outputs (`int`): Number of logits.
        inner_size (`int`, *optional*): Width between the two linear layers; None stands for the encoder's width.
    """

    dense: str
    activation: str
    classifier: str
    num_outputs: int
    inner_size: int | None = None


@dataclass(frozen=True)
class EncoderSpec:
    """The public shape of one encoder and its head: all that the parties and the dealer may know of a model.

    Args:
        num_layers (`int`): Number of transformer layers that are run.
        hidden_size (`int`): Width of a row.
        num_heads (`int`): Attention heads; `hidden_size` is a multiple of it.
        intermediate_size (`int`): Width of the feed-forward layer.
        hidden_act (`str`): `"gelu"`, `"relu"` or `"quadratic"`.
        softmax (`str`): `"exact"`, `"2quad"` or `"2relu"`.
        layer_norm_eps (`float`): Added to every LayerNorm's variance.
        layer_map (`tuple[int, ...]`): Index of the weights that layer `l` uses; the identity unless layers are shared.
        head (`HeadSpec`): The head on the first token's row.
        embedding_size (`int`, *optional*): Width of the embedding output, where a linear layer takes it to
            `hidden_size`; None where there is no such layer.
        precision (`str`): What it was trained for, a name in `EXPERT_MPC_CHOICES["precision"]`.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    hidden_act: str
    softmax: str
    layer_norm_eps: float
    layer_map: tuple[int, ...]
    head: HeadSpec
    embedding_size: int | None = None
    precision: str = "full"

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def input_size(self) -> int:
        """Width of the embedding output, which is what the client shares."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, from which `from_dict` makes an equal spec."""
        return asdict(self) | {"layer_map": list(self.layer_map)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """The spec that `to_dict` described."""
        # Manifests of before there was another precision do not name one.
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**known | {"layer_map": tuple(values["layer_map"]), "head": HeadSpec(**values["head"])})


@dataclass(frozen=True)
class Problem:
    """One reason why a model cannot be converted.

    Args:
        path (`str`): The module, config field or argument at fault.
        reason (`str`): What is wrong with it.
        remedy (`str`): What to do about it.
    """

    path: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"`{self.path}`: {self.reason}. {self.remedy}."


class Architecture(ABC):
    """Where the parts of one Hugging Face architecture stand.

    `encoder` below is the base model (`AutoModel`), with or without a pooler; `model` is the
    `AutoModelForSequenceClassification` around it.
    """

    model_type: ClassVar[str]

    @abstractmethod
    def problems(self, config: Any, path: str) -> list[Problem]:
        """Everything in `config` that cannot be computed on shares; `path` is where the model stands in its pool."""

    @abstractmethod
    def spec(
        self, config: Any, *, softmax: str = "exact", hidden_act: str = "exact", precision: str = "full"
    ) -> EncoderSpec:
        """The public shape of the classifier that `config` describes; `softmax`, `hidden_act` and `precision` as in
        `SecureRouterConfig.expert_mpc`."""

    def encoder(self, model: Any) -> nn.Module:
        """The base model inside a classifier; a base model is returned as it is."""
        return model.base_model

    def embeddings(self, encoder: Any) -> nn.Module:
        """The module that the client keeps in clear: the tables and their LayerNorm, without a projection."""
        return encoder.embeddings

    @abstractmethod
    def embed(self, embeddings: nn.Module, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """What the client computes in clear.

        Args:
            embeddings (`nn.Module`): As returned by `embeddings`.
            input_ids (`torch.Tensor`): Shape (B, T), int64.
            token_type_ids (`torch.Tensor`, *optional*): Shape (B, T), int64; zeros when not given.

        Returns:
            `torch.Tensor`: Shape (B, T, E), float32, after the embeddings' LayerNorm; E is the spec's `input_size`.
        """

    @abstractmethod
    def encoder_weights(self, encoder: nn.Module) -> dict[str, Tensor]:
        """Float32 copies of all that follows the embeddings, under the names
        `layers.{l}.{query,key,value,attention_output,intermediate,output}.{weight,bias}` (weights as (out, in)),
        `layers.{l}.{attention_norm,output_norm}.{weight,bias}` and, where the spec has an `embedding_size`,
        `embedding_projection.{weight,bias}`."""

    @abstractmethod
    def head_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Float32 copies of the head, under the names `head.{dense,classifier}.{weight,bias}`."""

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Everything of a classifier that is shared between the parties."""
        return self.encoder_weights(self.encoder(model)) | self.head_weights(model)


_REGISTRY: dict[str, Architecture] = {}


def register(architecture: type[Architecture]) -> type[Architecture]:
    """Class decorator: offer an architecture under its `model_type`."""
    _REGISTRY[architecture.model_type] = architecture()
    return architecture


def supported_model_types() -> tuple[str, ...]:
    """The `model_type` of every architecture that can be computed on shares."""
    return tuple(sorted(_REGISTRY))


def architecture_for(model_type: str) -> Architecture | None:
    """The architecture registered for `model_type`, or None."""
    return _REGISTRY.get(model_type)


def activation_problems(activation: str, field: str) -> list[Problem]:
    """What is wrong with the feed-forward activation that the config field `field` names."""
    if activation in ACTIVATIONS:
        return []
    return [
        Problem(
            field,
            f"the activation {activation!r} has no gate",
            f"Use a model with one of {', '.join(sorted(ACTIVATIONS))}",
        )
    ]


def copy_linear(weights: dict[str, Tensor], name: str, module: nn.Module) -> None:
    """Copy the weight and the bias of a linear or LayerNorm module to `weights`, as contiguous float32: of a module of
    a narrow precision, those that it computes with."""
    shared = getattr(module, "shared", lambda: (module.weight, module.bias))
    for part, tensor in zip(("weight", "bias"), shared(), strict=True):
        weights[f"{name}.{part}"] = tensor.detach().to("cpu", torch.float32).clone().contiguous()
