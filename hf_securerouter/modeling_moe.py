# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A BERT classifier whose feed-forward layers are mixtures of experts, from scratch or out of a dense checkpoint.

Everything but the feed-forward layers is transformers' BERT: embeddings, attention, pooler and head.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification, BertModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertIntermediate,
    BertLayer,
    BertPooler,
    BertPreTrainedModel,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_moe import SecureMoeConfig
from .errors import SecureRouterValueError
from .expert_places import served
from .known_arguments import refuse_unknown


@dataclass
class SecureMoeModelOutput(BaseModelOutputWithPooling):
    """Output of [`SecureMoeModel`]: BERT's, and `router_logits`, (B, T, N) of each sparse layer, if asked for."""

    router_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class SecureMoeOutput(SequenceClassifierOutput):
    r"""
    Output of [`SecureMoeForSequenceClassification`].

    Args:
        loss (`torch.Tensor`, *optional*): The classifier's loss and both weighted losses of the routers; with labels.
        logits (`torch.Tensor`): (B, C).
        router_logits (`tuple` of `torch.Tensor`): (B, T, N) of each sparse layer.
        aux_loss (`torch.Tensor`, *optional*): The load-balance loss, before its weight; in training or with labels.
        z_loss (`torch.Tensor`, *optional*): The z-loss, before its weight; in training or with labels.
        router_loss (`torch.Tensor`, *optional*): Both, weighted: what a pool adds to its own loss.
    """

    router_logits: tuple[torch.Tensor, ...] | None = None
    aux_loss: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None
    router_loss: torch.Tensor | None = None


class SecureMoeExpert(nn.Module):
    """One expert: BERT's feed-forward layer, without the residual and the norm, which all experts share."""

    def __init__(self, config: SecureMoeConfig):
        super().__init__()
        self.intermediate = BertIntermediate(config)
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            hidden_states (`torch.Tensor`): (..., H), the tokens of this expert.

        Returns:
            `torch.Tensor`: (..., H).
        """
        return self.dense(self.intermediate(hidden_states))


class SecureMoeMixture(nn.Module):
    """The mixture of a sparse layer: each token's experts, each times the router's probability.

    With `expert_capacity` C an expert serves the first C tokens of a text that choose it, all first choices before any
    second one. Padding chooses no expert.
    """

    def __init__(self, config: SecureMoeConfig):
        super().__init__()
        self.config = config
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList([SecureMoeExpert(config) for _ in range(config.num_experts)])

    def forward(self, hidden_states: torch.Tensor, is_token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            hidden_states (`torch.Tensor`): (B, T, H).
            is_token (`torch.Tensor`): 1 for tokens and 0 for padding, bool (B, T).

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The mixture, (B, T, H), 0 for tokens that no expert serves; and the
            router's logits, (B, T, N).
        """
        router_logits = self.router(hidden_states)
        best, chosen = router_logits.softmax(-1, torch.float32).topk(self.config.num_experts_per_tok, -1)
        places = served(chosen, is_token, len(self.experts), self.config.expert_capacity)
        scale = (best * places).to(hidden_states.dtype)
        mixed = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self.experts):
            own = (scale * (chosen == index)).sum(-1)
            rows = own.nonzero(as_tuple=True)
            mixed[rows] += (expert(hidden_states[rows]) * own[rows][:, None]).to(mixed.dtype)
        return mixed, router_logits


class SecureMoeLayer(BertLayer):
    """A BERT layer whose feed-forward layer is a mixture, and which returns its router's logits too.

    They are returned, not recorded by a hook or on the module: so a checkpointed layer passes their gradient on, a
    compiled graph holds them, and no graph outlives its step.
    """

    def __init__(self, config: SecureMoeConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx=layer_idx)
        self.intermediate: Any = SecureMoeMixture(config)
        output: Any = self.output
        output.dense = nn.Identity()  # each expert has its own; dropout, residual and norm stay

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, is_token: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            hidden_states (`torch.Tensor`): (B, T, H).
            attention_mask (`torch.Tensor`, *optional*): Of the attention; broadcasts to (B, heads, T, T).
            is_token (`torch.Tensor`): True for tokens, False for padding, bool (B, T).

        Returns:
            `tuple`: Hidden states (B, T, H), and the router's logits (B, T, N).
        """
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        mixed, router_logits = self.intermediate(attended, is_token)
        return self.output(mixed, attended), router_logits


class SecureMoeEncoder(BertEncoder):
    """BERT's encoder with sparse layers, which are told which places are tokens."""

    def __init__(self, config: SecureMoeConfig):
        nn.Module.__init__(self)
        self.config = config
        self.layer = nn.ModuleList(
            (SecureMoeLayer if config.is_sparse(index) else BertLayer)(config, layer_idx=index)
            for index in range(config.num_hidden_layers)
        )

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, is_token: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        r"""
        Args:
            hidden_states (`torch.Tensor`): (B, T, H), the embeddings.
            attention_mask (`torch.Tensor`, *optional*): Of the attention; broadcasts to (B, heads, T, T).
            is_token (`torch.Tensor`): True for tokens, False for padding, bool (B, T).

        Returns:
            `tuple`: Hidden states (B, T, H), and the routers' logits, (B, T, N) of each sparse layer.
        """
        routed = []
        for index, layer in enumerate(self.layer):
            if self.config.is_sparse(index):
                hidden_states, router_logits = layer(hidden_states, attention_mask, is_token, **kwargs)
                routed.append(router_logits)
            else:
                hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return hidden_states, tuple(routed)


class SecureMoePreTrainedModel(BertPreTrainedModel):
    """Base class of models with sparse layers: BERT's."""

    config: SecureMoeConfig
    config_class = SecureMoeConfig


class SecureMoeModel(SecureMoePreTrainedModel, BertModel):
    """BERT with sparse layers, without a head; arguments and outputs are those of `BertModel` as an encoder, and
    `router_logits` if `output_router_logits=True`."""

    _no_split_modules = ["BertEmbeddings", "BertLayer", "SecureMoeLayer"]

    def __init__(self, config: SecureMoeConfig, add_pooling_layer: bool = True):
        SecureMoePreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = SecureMoeEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> SecureMoeModelOutput:
        r"""Encodes a batch.

        Args:
            output_router_logits (`bool`, *optional*): Whether to return the routers' logits.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: As for
                [`SecureMoeForSequenceClassification`].

        Returns:
            [`SecureMoeModelOutput`]

        Raises:
            `SecureRouterValueError`: Not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise SecureRouterValueError(
                f"`input_ids` or `inputs_embeds` should be given, got {'neither' if input_ids is None else 'both'}: "
                "pass one of them."
            )
        places = {"position_ids": position_ids, "token_type_ids": token_type_ids}
        embedded = self.embeddings(input_ids=input_ids, inputs_embeds=inputs_embeds, **places)
        if attention_mask is None:
            is_token = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        else:
            is_token = attention_mask.bool()
        attended = create_bidirectional_mask(self.config, embedded, attention_mask)
        hidden_states, router_logits = self.encoder(embedded, attended, is_token, position_ids=position_ids, **kwargs)
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)
        return SecureMoeModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
            router_logits=router_logits if output_router_logits else None,
        )


class SecureMoeForSequenceClassification(SecureMoePreTrainedModel):
    r"""A BERT classifier with sparse layers, each a mixture of experts of which every token uses one or two.

    It is trained, saved, loaded, routed and encrypted as any other classifier. Make one from a config, or with
    [`~SecureMoeForSequenceClassification.from_dense`] out of a BERT classifier.

    Args:
        config (`SecureMoeConfig`): The config.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch

    def __init__(self, config: SecureMoeConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = SecureMoeModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.post_init()

    @classmethod
    def from_dense(
        cls, dense: str | os.PathLike | BertForSequenceClassification, **fields: Any
    ) -> SecureMoeForSequenceClassification:
        r"""Makes a classifier with sparse layers out of a dense one ("upcycling").

        Every expert starts as the dense feed-forward layer, with its second matrix times `num_experts` /
        `num_experts_per_tok`: a new router gives all experts about the same probability, so that the mixture starts as
        what the dense layer computes.

        Args:
            dense (`str`, `os.PathLike` or `BertForSequenceClassification`): A BERT classifier, or its id or folder.
            fields: Fields of [`SecureMoeConfig`], such as `num_experts=4`; all others are those of the dense model.

        Returns:
            [`SecureMoeForSequenceClassification`] in evaluation mode.

        Raises:
            `SecureRouterValueError`: The checkpoint is no BERT classifier, or a field is wrong or unknown.

        Example:
            ```python
            model = SecureMoeForSequenceClassification.from_dense("my-bert", num_experts=4)
            ```

        Reference:
            Komatsuzaki et al., Sparse Upcycling, arXiv 2212.05055; He et al., Upcycling Large Language Models into
            Mixture of Experts, arXiv 2410.07524 (the factor of the weights).
        """
        refuse_unknown("`from_dense`", fields, {*SecureMoeConfig().to_dict(), "num_labels"})
        if isinstance(dense, (str, os.PathLike)):
            dense = AutoModelForSequenceClassification.from_pretrained(dense)
        if type(dense) is not BertForSequenceClassification:
            raise SecureRouterValueError(
                f"`dense` should be a `BertForSequenceClassification`, got a {type(dense).__name__}: fine-tune a BERT "
                "as a classifier first."
            )
        own = {name: value for name, value in dense.config.to_dict().items() if name not in _NOT_COPIED}
        model: Any = cls(SecureMoeConfig(**own | fields))
        model.to(dense.dtype)
        config = model.config
        for name in _SHAPES:
            asked, there = getattr(config, name), getattr(dense.config, name)
            if asked != there:
                raise SecureRouterValueError(
                    f"`{name}` should be {there!r}, as of `dense`, whose weights are copied, got {asked!r}: leave it "
                    "out."
                )
        found = model.load_state_dict(dense.state_dict(), strict=False)
        sparse = [place for place in range(config.num_hidden_layers) if config.is_sparse(place)]
        moved = tuple(f"bert.encoder.layer.{place}." for place in sparse)
        if other := [name for name in found.unexpected_keys if not name.startswith(moved)]:
            raise SecureRouterValueError(
                f"`dense` has weights that a mixture has no place for, {other[0]!r}: pass a plain BERT classifier."
            )
        with torch.no_grad():
            for place in sparse:
                source: Any = dense.bert.encoder.layer[place]
                mixture = model.bert.encoder.layer[place].intermediate
                for expert in mixture.experts:
                    expert.intermediate.load_state_dict(source.intermediate.state_dict())
                    expert.dense.load_state_dict(source.output.dense.state_dict())
                    for parameter in expert.dense.parameters():
                        parameter.mul_(config.num_experts / config.num_experts_per_tok)
        return cast(SecureMoeForSequenceClassification, model.eval())

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> SecureMoeOutput:
        r"""Classifies a batch.

        Args:
            input_ids (`torch.LongTensor` of shape (B, T), *optional*): Token ids.
            attention_mask (`torch.Tensor` of shape (B, T), *optional*): 1 for tokens, 0 for padding.
            token_type_ids (`torch.LongTensor` of shape (B, T), *optional*): 0 for the first text, 1 for its pair.
            position_ids (`torch.LongTensor` of shape (B, T), *optional*): Places.
            inputs_embeds (`torch.Tensor` of shape (B, T, H), *optional*): Embeddings, instead of token ids.
            labels (`torch.Tensor`, *optional*): Classes, shape (B,), for the loss.
            output_router_logits (`bool`, *optional*): Whether to return the routers' logits; in training and with
                labels always.

        Returns:
            [`SecureMoeOutput`]
        """
        needs_losses = self.training or labels is not None
        outputs = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_router_logits=bool(output_router_logits) or needs_losses,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        routed = outputs.get("router_logits")
        loss = aux_loss = z_loss = router_loss = None
        if needs_losses:
            aux_loss, z_loss = self._router_losses(routed, attention_mask)
            router_loss = self.config.router_aux_loss_coef * aux_loss + self.config.router_z_loss_coef * z_loss
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config) + router_loss
        return SecureMoeOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=routed,
            aux_loss=aux_loss,
            z_loss=z_loss,
            router_loss=router_loss,
        )

    def _router_losses(
        self, routed: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The load-balance loss and the z-loss over the tokens of all sparse layers, without padding, which weighs 0.

        It is not taken out by an index: a compiled graph does not know how many tokens a batch has.
        """
        home = routed[0].device
        rows = torch.stack([logits.to(home).float().flatten(0, 1) for logits in routed])  # (layers, B * T, N)
        is_token = torch.ones(rows.shape[1], device=home)
        if attention_mask is not None:
            is_token = attention_mask.to(home).flatten().bool().float()
        experts, choices = self.config.num_experts, self.config.num_experts_per_tok
        balance: Any = load_balancing_loss_func(rows.unbind(), experts, choices, is_token)  # type: ignore[arg-type]
        z_loss = (rows.logsumexp(-1).square() * is_token).sum() / (is_token.sum() * len(rows))
        return balance, z_loss


# What a dense config says of itself, and not of the mixture.
_NOT_COPIED = ("model_type", "architectures", "transformers_version", "_name_or_path")

# The fields of a dense config that give its weights their shapes and its layers their number.
_SHAPES = (
    *("vocab_size", "max_position_embeddings", "type_vocab_size", "num_labels"),
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
)

# Here and not in `registration`: a pool's checkpoint on the Hub brings this file, and perhaps not the package.
AutoModel.register(SecureMoeConfig, SecureMoeModel, exist_ok=True)
AutoModelForSequenceClassification.register(SecureMoeConfig, SecureMoeForSequenceClassification, exist_ok=True)


__all__ = ["SecureMoeForSequenceClassification", "SecureMoeModel", "SecureMoeModelOutput", "SecureMoeOutput"]
