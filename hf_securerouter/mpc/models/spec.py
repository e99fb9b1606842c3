# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The public shape of an encoder and its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...number_format import current_precision


# Fields that a manifest holds only if they differ from their default.
_LATER = frozenset(
    {"relative_buckets", "pooling", "norm_first", "bare_first", "norm", "gated", "rotary", "windows"}
    | {"normalize", "centred", "position_terms", "position_span", "position_limit"}
    | {"sparse_layers", "num_experts", "experts_per_token", "expert_capacity"}
)


@dataclass(frozen=True)
class HeadSpec:
    """A head: logits are `classifier(activation(dense(row)))`, of the row that the encoder's pooling gives.

    Args:
        dense (`str`, *optional*): Prefix of the weights of the first linear layer; with None logits are
            `classifier(row)`.
        activation (`str`): `"tanh"`, `"relu"`, `"gelu"`, `"silu"` or `"identity"`.
        classifier (`str`): Prefix of the weights of the second linear layer.
        num_outputs (`int`): Number of logits.
        inner_size (`int`, *optional*): Width between the two linear layers; None means the encoder's width.
        normalize (`bool`): Whether the classifier reads its input divided by its Euclidean length; needs `dense`.
        centred (`bool`): Whether the mean of the classifier's input is removed before this division, so that both
            together are a LayerNorm; needs `normalize`.
    """

    dense: str | None
    activation: str
    classifier: str
    num_outputs: int
    inner_size: int | None = None
    normalize: bool = False
    centred: bool = False


@dataclass(frozen=True)
class EncoderSpec:
    """The public shape of one encoder and its head: all that the parties and the dealer may know of a model.

    Args:
        num_layers (`int`): Number of transformer layers that are run.
        hidden_size (`int`): Width of a hidden state.
        num_heads (`int`): Attention heads; `hidden_size` is a multiple of it.
        intermediate_size (`int`): Width of the feed-forward layer.
        hidden_act (`str`): `"gelu"`, `"silu"`, `"relu"` or `"quadratic"`.
        softmax (`str`): `"exact"`, `"2quad"` or `"2relu"`.
        layer_norm_eps (`float`): Added to every LayerNorm's variance.
        layer_map (`tuple[int, ...]`): Index of the weights that layer `l` uses; the identity unless layers are shared.
        head (`HeadSpec`): The head on the row that `pooling` gives.
        embedding_size (`int`, *optional*): Width of the embedding output, if a linear layer projects it to
            `hidden_size`; None without such a layer.
        precision (`str`): Number format that the encoder was trained for, a name in `EXPERT_MPC_CHOICES["precision"]`.
        relative_buckets (`int`, *optional*): Entries for each head of the relative attention bias that all layers add
            to their scores; None without one.
        pooling (`str`): Which row heads read of the last hidden states: `"first"`, the first token's, or `"mean"`, the
            mean of all tokens' rows, without padding. With `"late"`, the first linear layer and the activation of the
            head read every row, and its classifier the mean of what they give for the tokens.
        norm_first (`bool`): Whether a norm stands before attention and before the feed-forward layer, and a last one
            behind all layers; otherwise a norm stands behind each of them.
        bare_first (`bool`): Whether the first of these layers reads the embedding output without a norm.
        norm (`str`): `"layer"` or, without the mean, `"rms"`.
        gated (`bool`): Whether the feed-forward layer multiplies the activation by a second product, its gate.
        rotary (`tuple[float, ...]`): The base of each layer's rotary positions; empty without them.
        windows (`tuple[int | None, ...]`): The largest distance of a query and a key in each layer; None and empty for
            all pairs.
        position_terms (`tuple[str, ...]`): Terms of the scores between contents and relative positions, by tables of
            each layer: `"c2p"`, queries times the keys of positions, and `"p2c"`, keys times the queries of positions.
        position_span (`int`): Entries of these tables in each direction; 0 without them.
        position_limit (`int`, *optional*): The number of distances that these entries divide into buckets; None where
            each distance has an entry of its own.
        sparse_layers (`tuple[int, ...]`): The layers whose feed-forward layer is a mixture of experts.
        num_experts (`int`): Experts of a mixture; 0 without one.
        experts_per_token (`int`): How many experts serve a token, each with its router's probability.
        expert_capacity (`int`, *optional*): How many tokens of an input an expert serves at most; None for all.
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
    relative_buckets: int | None = None
    pooling: str = "first"
    norm_first: bool = False
    bare_first: bool = False
    norm: str = "layer"
    gated: bool = False
    rotary: tuple[float, ...] = ()
    windows: tuple[int | None, ...] = ()
    position_terms: tuple[str, ...] = ()
    position_span: int = 0
    position_limit: int | None = None
    sparse_layers: tuple[int, ...] = ()
    num_experts: int = 0
    experts_per_token: int = 1
    expert_capacity: int | None = None

    @property
    def padding_differs(self) -> bool:
        """Whether padding that is a copy of a token has scores of its own: scores depend on the place, or experts with
        a capacity serve the token and not its copy."""
        places = self.relative_buckets is not None or bool(self.rotary) or bool(self.position_terms)
        return places or self.expert_capacity is not None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def score_scale(self) -> float:
        """What scores are multiplied by: the inverse root of the products' width, of all terms together."""
        return 1 / math.sqrt(self.head_size * (1 + len(self.position_terms)))

    @property
    def input_size(self) -> int:
        """Width of the embedding output, which the client shares."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, from which `from_dict` makes an equal spec."""
        values = asdict(self)
        # Manifests that need none of these fields stay as they were before the fields were there.
        for place, own in ((values, self), (values["head"], self.head)):
            for field in fields(own):
                if field.name in _LATER and getattr(own, field.name) == field.default:
                    del place[field.name]
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | lists

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderSpec:
        """The spec that `to_dict` described."""
        # Older manifests have no `precision` and none of the later fields.
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        known["precision"] = current_precision(known.get("precision", "full"))
        tuples = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known | tuples | {"head": HeadSpec(**values["head"])})


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
