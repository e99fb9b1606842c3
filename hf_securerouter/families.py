# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The facts about each family of encoders: where its layers and its head are in the module tree, which fields of its
config give widths and activation, how it numbers positions, and whether it can be cut or folded.

A family that is not listed here works in clear text only, without reduced precision and without head pruning. To add a
family, list it in `FAMILIES`; to run it on shares, add a file to `mpc/models/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn


if TYPE_CHECKING:  # role processes read this file, and importing transformers would dominate their start-up time
    from transformers import PreTrainedConfig


# These families number positions from `pad_token_id + 1`, so the rows of the table before it are unused.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
    | {"xlm-roberta-xl", "xmod"}
)

# Attributes in which transformers' layers keep the feed-forward activation.
_ACTIVATION_ATTRIBUTES = ("intermediate_act_fn", "activation")


class LayerParts(NamedTuple):
    """The modules with weights of one post-LayerNorm layer, in the order in which the layer runs them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm


class HeadParts(NamedTuple):
    """The two linear layers of a head: `classifier(activation(dense(first token)))`."""

    dense: nn.Linear
    classifier: nn.Linear


@dataclass(frozen=True)
class Family:
    """Where the parts of one family are found.

    Args:
        layers (callable): From a base model, the modules of its layers, each once, in the order of their weights.
        parts (callable, *optional*): From a layer, its [`LayerParts`]; None where layers are of another kind.
        head (callable, *optional*): From a classifier, its [`HeadParts`]; None where heads are of another kind.
        inner_field (`str`): The config field of the feed-forward width.
        activation_field (`str`): The config field of the feed-forward activation.
        folds_into_layers (`bool`): Whether all weights are folded into layers of the same shape before they are
            shared; reduced precision and head pruning need this.
    """

    layers: Callable[[Any], Any]
    parts: Callable[[Any], LayerParts] | None = None
    head: Callable[[Any], HeadParts] | None = None
    inner_field: str = "intermediate_size"
    activation_field: str = "hidden_act"
    folds_into_layers: bool = False

    def layer_parts(self, base: Any) -> list[LayerParts]:
        """The parts of every layer of a base model."""
        return [] if self.parts is None else [self.parts(layer) for layer in self.layers(base)]


def _bert_parts(layer: Any) -> LayerParts:
    attention, own = layer.attention, layer.attention.self
    return LayerParts(
        own.query,
        own.key,
        own.value,
        attention.output.dense,
        attention.output.LayerNorm,
        layer.intermediate.dense,
        layer.output.dense,
        layer.output.LayerNorm,
    )


def _distilbert_parts(layer: Any) -> LayerParts:
    own = layer.attention
    return LayerParts(
        own.q_lin,
        own.k_lin,
        own.v_lin,
        own.out_lin,
        layer.sa_layer_norm,
        layer.ffn.lin1,
        layer.ffn.lin2,
        layer.output_layer_norm,
    )


def _albert_parts(layer: Any) -> LayerParts:
    own = layer.attention
    return LayerParts(
        own.query,
        own.key,
        own.value,
        own.dense,
        own.LayerNorm,
        layer.ffn,
        layer.ffn_output,
        layer.full_layer_layer_norm,
    )


def _deberta_parts(layer: Any) -> LayerParts:
    attention, own = layer.attention, layer.attention.self
    return LayerParts(
        own.query_proj,
        own.key_proj,
        own.value_proj,
        attention.output.dense,
        attention.output.LayerNorm,
        layer.intermediate.dense,
        layer.output.dense,
        layer.output.LayerNorm,
    )


def _mpnet_parts(layer: Any) -> LayerParts:
    own = layer.attention.attn
    return LayerParts(
        own.q,
        own.k,
        own.v,
        own.o,
        layer.attention.LayerNorm,
        layer.intermediate.dense,
        layer.output.dense,
        layer.output.LayerNorm,
    )


def _bert_layers(base: Any) -> Any:
    return base.encoder.layer


def _classification_head(model: Any) -> HeadParts:
    """The head of a RoBERTa, ELECTRA or MPNet classifier, which is one module."""
    return HeadParts(model.classifier.dense, model.classifier.out_proj)


FAMILIES = {
    "albert": Family(
        layers=lambda base: [layer for group in base.encoder.albert_layer_groups for layer in group.albert_layers],
        parts=_albert_parts,
        head=lambda model: HeadParts(model.albert.pooler, model.classifier),
    ),
    "bert": Family(
        layers=_bert_layers,
        parts=_bert_parts,
        head=lambda model: HeadParts(model.bert.pooler.dense, model.classifier),
        folds_into_layers=True,
    ),
    "deberta-v2": Family(
        layers=_bert_layers,
        parts=_deberta_parts,
        head=lambda model: HeadParts(model.pooler.dense, model.classifier),
    ),
    "distilbert": Family(
        layers=lambda base: base.transformer.layer,
        parts=_distilbert_parts,
        head=lambda model: HeadParts(model.pre_classifier, model.classifier),
        inner_field="hidden_dim",
        activation_field="activation",
        folds_into_layers=True,
    ),
    "electra": Family(layers=_bert_layers, parts=_bert_parts, head=_classification_head),
    "eurobert": Family(layers=lambda base: base.layers),
    "nomic_bert": Family(
        layers=lambda base: base.layers, head=lambda model: HeadParts(model.nomic_bert.pooler.dense, model.classifier)
    ),
    "secure_moe": Family(layers=_bert_layers, head=lambda model: HeadParts(model.bert.pooler.dense, model.classifier)),
    "modernbert": Family(layers=lambda base: base.layers, activation_field="hidden_activation"),
    "mpnet": Family(layers=_bert_layers, parts=_mpnet_parts, head=_classification_head, folds_into_layers=True),
    "roberta": Family(layers=_bert_layers, parts=_bert_parts, head=_classification_head, folds_into_layers=True),
    "xlm-roberta": Family(layers=_bert_layers, parts=_bert_parts, head=_classification_head, folds_into_layers=True),
}

# Families whose experts can have reduced precision, and heads pruned.
FOLDED_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.folds_into_layers)


def encoder_config(config: Any) -> Any:
    """The config of a classifier's encoder: its own config, or the one nested in that of a pooled encoder."""
    return getattr(config, "text_config", None) or config


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a config.

    Raises:
        `KeyError`: The family is not in `FAMILIES`; callers check this first.
    """
    return FAMILIES[config.model_type]


def layers_of(expert: Any) -> list[LayerParts]:
    """The parts of every layer of a classifier."""
    return family_of(expert.config).layer_parts(expert.base_model)


def head_of(expert: Any) -> HeadParts:
    """The head of a classifier."""
    head = family_of(expert.config).head
    assert head is not None, "callers have checked the family"
    return head(expert)


def activation_slots(base: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module of a base model with a feed-forward activation, and the name of the activation's attribute."""
    for path, module in base.named_modules():
        for name in _ACTIVATION_ATTRIBUTES:
            if hasattr(module, name) and not path.startswith("pooler"):
                yield module, name


def usable_positions(config: PreTrainedConfig) -> int | None:
    """The longest input, in tokens with special tokens, for which an encoder has positions; None if there is none."""
    config = encoder_config(config)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if counts_positions_from_padding(config):
        # MPNet's embeddings take token 1 as padding, whatever the config says.
        padding = 1 if config.model_type == "mpnet" else getattr(config, "pad_token_id", None) or 0
        positions -= padding + 1
    return positions


def counts_positions_from_padding(config: PreTrainedConfig) -> bool:
    """Whether the first token's position follows the id of the padding token, as in RoBERTa and its cousins."""
    return encoder_config(config).model_type in _OFFSET_POSITIONS


def why_not_cut(config: PreTrainedConfig) -> tuple[str, str] | None:
    """Why an encoder cannot be cut to its first layers, and the remedy; None if it can be cut."""
    groups = getattr(encoder_config(config), "num_hidden_groups", 1)
    if groups == 1:
        return None
    return f"{groups} groups of shared layers, whose groups depend on the depth", "use one with `num_hidden_groups=1`"


def resized(config: PreTrainedConfig, layers: int, width: int, heads: int) -> PreTrainedConfig:
    """A copy of a config whose encoder has other sizes; its feed-forward layers are four times as wide as `width`."""
    copied = copy.deepcopy(config)
    other = encoder_config(copied)
    other.num_hidden_layers, other.hidden_size, other.num_attention_heads = layers, width, heads
    for name, size in (
        ("intermediate_size", 4 * width),
        ("hidden_dim", 4 * width),
        ("embedding_size", width),
        ("pooler_hidden_size", width),
    ):
        if hasattr(other, name):
            setattr(other, name, size)
    return copied
