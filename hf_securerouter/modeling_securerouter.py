# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A router over a pool of sequence classifiers of different size."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .checkpoint import SecureRouterPreTrainedModel
from .configuration_securerouter import ProblemType, SecureRouterConfig
from .errors import SecureRouterValueError, SecureRouterWarning
from .lengths import padded_right, truncate, truncate_with_warning
from .losses import (
    balance_loss,
    check_labels,
    cost_loss,
    expected_cost,
    infer_problem_type,
    mix_experts,
    target_utilities,
    task_loss,
    utility_loss,
)
from .mpc_friendly import use_functions
from .pool import accepted_inputs, build_pool, check_buildable
from .routing import choose_expert


try:  # transformers demands every import of a file from the Hub to be installed, unless it is in a `try`
    if TYPE_CHECKING:
        from hf_securerouter.mpc.secure_model import SecureModel
except ImportError:
    pass


@dataclass
class SecureRouterOutput(ModelOutput):
    """Output of [`SecureRouterForSequenceClassification`]. Shapes: B examples, K experts, C labels.

    Args:
        loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            `task_loss + alpha * balance_loss + beta * cost_loss`.
        logits (`torch.FloatTensor` of shape (B, C)):
            Before the softmax: the mixture of equation 1 in training, the chosen expert's in evaluation.
        router_logits (`torch.FloatTensor` of shape (B, K)):
            The router's outputs; predicted utilities if `router_objective="utility"`.
        router_probs (`torch.FloatTensor` of shape (B, K), float32):
            The weights of equation 1: the Gumbel-softmax sample in training, the softmax in evaluation.
        expert_indices (`torch.LongTensor` of shape (B,)):
            The decision, `argmax(router_logits - routing_lambda * expert_costs)`; of equal values the first.
        expert_logits (`torch.FloatTensor` of shape (B, K, C), returned in training):
            Every expert's output, computed or cached.
        expected_cost (`torch.FloatTensor` of shape (B,), float32):
            Equation 5, in the units of `expert_costs`.
        task_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 2. In training with `router_objective="utility"`, the mean of the experts' own task losses plus
            the squared error of the predicted utilities.
        balance_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 4, from `router_probs`, not weighted.
        cost_loss (`torch.FloatTensor` of shape (), *optional*, returned with `labels`):
            Equation 6, from `router_probs`, not weighted.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    router_logits: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None
    expert_indices: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    expected_cost: torch.Tensor | None = None
    task_loss: torch.Tensor | None = None
    balance_loss: torch.Tensor | None = None
    cost_loss: torch.Tensor | None = None


class SecureRouterGate(nn.Module):
    """The router: a summary encoder, whose first token is the summary, and a two-layer perceptron with ReLU and
    dropout.

    Args:
        config (`SecureRouterConfig`): Gives the encoder's config, the hidden width and the dropout.
        encoder (`PreTrainedModel`, *optional*): A loaded encoder, instead of a new one. With
            `config.router_shares_expert` it is the expert's, and stays a module of the expert.

    Inputs: token ids, mask and token types of shape (B, T), or their summaries, (B, H), as `summary`. Output: (B, K),
    one number for each expert.
    """

    def __init__(self, config: SecureRouterConfig, encoder: PreTrainedModel | None = None):
        super().__init__()
        encoder_config = cast(PreTrainedConfig, config.router_config)
        if encoder is None:
            encoder = AutoModel.from_config(encoder_config, dtype=torch.get_default_dtype())
        if config.router_shares_expert is not None:
            # Past `nn.Module.__setattr__`, which would register the expert's encoder twice: its weights are saved,
            # moved and trained once, by the expert.
            self.__dict__["encoder"] = encoder
        else:
            if getattr(encoder, "pooler", None) is not None:
                encoder.pooler = None  # the perceptron reads the first token, not the pooler's output
            self.encoder = encoder
        self.max_length = (
            None if config.router_shares_expert is None else config.length_of(config.router_shares_expert)
        )
        self.dense = nn.Linear(encoder_config.hidden_size, config.router_hidden_size)
        self.dropout = nn.Dropout(config.router_dropout)
        self.out_proj = nn.Linear(config.router_hidden_size, config.num_experts)

    def summarize(self, **inputs: torch.Tensor | None) -> torch.Tensor:
        """The hidden state of the first token, (B, H); a shared encoder reads as many tokens as its expert."""
        inputs, _ = truncate(padded_right(inputs), self.max_length)
        return self.encoder(**accepted_inputs(self.encoder, inputs)).last_hidden_state[:, 0]

    def forward(self, summary: torch.Tensor | None = None, **inputs: torch.Tensor | None) -> torch.Tensor:
        if summary is None:
            summary = self.summarize(**inputs)
        return self.out_proj(self.dropout(F.relu(self.dense(summary))))


class SecureRouterForSequenceClassification(SecureRouterPreTrainedModel):
    r"""A pool of sequence classifiers and a router that chooses one of them for each input.

    In training every expert runs, and the outputs are mixed with Gumbel-softmax weights (equation 1), so that router
    and experts learn together. The balance and the cost loss reach the router only. In evaluation only the chosen
    experts run, each once on all of its inputs, and the outputs equal those of running all.

    Args:
        config (`SecureRouterConfig`): A config with a router and at least one expert.
        router_encoder (`PreTrainedModel`, *optional*): A loaded summary encoder, instead of a new one.
        experts (`list[PreTrainedModel]`, *optional*): Loaded experts, instead of new ones.

    Raises:
        `SecureRouterValueError`: The config has no expert or no router, or an expert whose family has no classifier.

    Example:
        ```python
        >>> from hf_securerouter import SecureRouterForSequenceClassification

        >>> model = SecureRouterForSequenceClassification.from_expert_pretrained(
        ...     router="prajjwal1/bert-tiny",
        ...     experts=["prajjwal1/bert-tiny", "google-bert/bert-base-uncased"],
        ...     num_labels=2,
        ... )
        ```

    Reference:
        SecureRouter: Encrypted Routing for Efficient Secure Inference, section 3.4.
    """

    def __init__(
        self,
        config: SecureRouterConfig,
        router_encoder: PreTrainedModel | None = None,
        experts: Sequence[PreTrainedModel] | None = None,
    ):
        requested_attention = config._attn_implementation  # before the base class sets its own default
        super().__init__(config)
        check_buildable(config)
        config.share_with_experts()
        expert_configs = cast(list[PreTrainedConfig], config.expert_configs)
        if requested_attention is not None:
            for member in (cast(PreTrainedConfig, config.router_config), *expert_configs):
                if member._attn_implementation is None:
                    member._attn_implementation = requested_attention

        experts = experts or [
            AutoModelForSequenceClassification.from_config(expert, dtype=torch.get_default_dtype())
            for expert in expert_configs
        ]
        if config.router_shares_expert is not None:
            router_encoder = cast(PreTrainedModel, experts[config.router_shares_expert].base_model)
        self.router = SecureRouterGate(config, router_encoder)
        self.experts = nn.ModuleList(experts)
        self._use_functions()
        # The pool's config holds the members' own config objects, so that changes to a member are saved.
        config.router_config = self.router.encoder.config
        config.expert_configs = [expert.config for expert in self._expert_models]
        config.share_with_experts()

        members = [self.router.encoder, *self._expert_models]
        self._no_split_modules = sorted({name for member in members for name in member._no_split_modules or []})
        # The current temperature of the Gumbel-softmax; `config.temperature` stays the temperature of the first step.
        self.annealed_temperature: float | None = None
        if config.expert_costs is None:
            self._estimate_costs()
        config.validate()
        self.post_init()

    @property
    def _expert_models(self) -> list[PreTrainedModel]:
        return [cast(PreTrainedModel, expert) for expert in self.experts]

    def _use_functions(self) -> None:
        for expert, chosen in zip(self._expert_models, self.config.expert_mpc or [], strict=True):
            use_functions(expert, **chosen)

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, except for experts whose `expert_mpc` sets the softmax."""
        super().set_attn_implementation(*args, **kwargs)
        self._use_functions()

    def _estimate_costs(self) -> None:
        counts = [sum(parameter.numel() for parameter in expert.parameters()) for expert in self.experts]
        self.config.expert_costs = [round(count / min(counts), 4) for count in counts]
        self.config.expert_costs_source = "estimate"
        warnings.warn(
            "`expert_costs` was not given: parameter counts relative to the smallest expert stand in for it, "
            f"{self.config.expert_costs}. Encrypted seconds differ: measure them with `securerouter profile`.",
            SecureRouterWarning,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        expert_logits: torch.Tensor | None = None,
        router_summary: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SecureRouterOutput:
        r"""Routes a batch and classifies it.

        Args:
            input_ids (`torch.LongTensor` of shape (B, T)): Token ids.
            attention_mask (`torch.Tensor` of shape (B, T), *optional*): 1 for tokens, 0 for padding on either side,
                which is moved to the right.
            token_type_ids (`torch.LongTensor` of shape (B, T), *optional*): 0 for the first text, 1 for its pair.
            labels (`torch.Tensor`, *optional*): Classes, shape (B,) int64; values, shape (B,) or (B, C) float; or
                (B, C) of zeros and ones if `problem_type="multi_label_classification"`.
            expert_logits (`torch.FloatTensor` of shape (B, K, C), *optional*): Cached outputs of the experts; then no
                expert runs, and only the router learns.
            router_summary (`torch.FloatTensor` of shape (B, H), *optional*): Cached summaries of the router's encoder;
                then the encoder does not run, and only the perceptron learns.

        Returns:
            [`SecureRouterOutput`]

        Raises:
            `SecureRouterValueError`: The inputs are empty, or a row is all padding; the mask, `expert_logits` or
                `router_summary` has another shape; or the labels do not fit `num_labels`.
        """
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            shape = None if input_ids is None else tuple(input_ids.shape)
            raise SecureRouterValueError(
                f"`input_ids` should be of shape (examples, tokens), with at least one of each, got {shape}: an empty "
                "text still has the tokenizer's special tokens."
            )
        expected = (input_ids.shape[0], self.config.num_experts, self.config.num_labels)
        if expert_logits is not None and tuple(expert_logits.shape) != expected:
            raise SecureRouterValueError(
                f"`expert_logits` should be of shape {expected} (examples, experts, labels), got "
                f"{tuple(expert_logits.shape)}: pass one answer of every expert for each example, or leave it out."
            )
        self._find_shared_encoder()
        width = self.router.dense.in_features
        if router_summary is not None and tuple(router_summary.shape) != (input_ids.shape[0], width):
            raise SecureRouterValueError(
                f"`router_summary` should be of shape {(input_ids.shape[0], width)} (examples, router's width), got "
                f"{tuple(router_summary.shape)}: pass the output of `model.router.summarize`, or leave it out."
            )
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = truncate_with_warning(padded_right(inputs), self.config.max_length)
        router_logits = self.router(router_summary, **inputs)
        costs = torch.tensor(self.config.expert_costs, dtype=torch.float32, device=router_logits.device)
        expert_indices = choose_expert(router_logits, costs, self.config.routing_lambda)

        if self.training:
            temperature = self.annealed_temperature or self.config.temperature
            router_probs = F.gumbel_softmax(router_logits.float(), tau=temperature)
            if expert_logits is None:
                expert_logits = torch.stack(
                    [self._run_expert(index, inputs) for index in range(len(self.experts))], dim=1
                )
            logits = mix_experts(expert_logits, router_probs)
        else:
            router_probs = router_logits.float().softmax(dim=-1)
            if expert_logits is None:
                logits = self.run_experts(inputs, expert_indices)
            else:
                logits = expert_logits[torch.arange(len(expert_indices), device=expert_indices.device), expert_indices]
                expert_logits = None
        losses = {}
        if labels is not None:
            losses = self._losses(labels, logits, router_logits, router_probs, expert_logits, costs)
        return SecureRouterOutput(
            loss=losses.get("loss"),
            logits=logits,
            router_logits=router_logits,
            router_probs=router_probs,
            expert_indices=expert_indices,
            expert_logits=expert_logits,
            expected_cost=expected_cost(router_probs, costs),
            task_loss=losses.get("task_loss"),
            balance_loss=losses.get("balance_loss"),
            cost_loss=losses.get("cost_loss"),
        )

    def _losses(
        self,
        labels: torch.Tensor,
        logits: torch.Tensor,
        router_logits: torch.Tensor,
        router_probs: torch.Tensor,
        expert_logits: torch.Tensor | None,
        costs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        problem_type = self._problem_type(labels)
        check_labels(labels, logits.shape[0], logits.shape[1], problem_type)
        if expert_logits is None or self.config.router_objective == "gumbel":
            task = task_loss(logits, labels, problem_type)
        else:
            # Each expert learns the task by itself, and the router learns to predict each expert's utility. Balance
            # and cost stay in the loss's value, without gradient, which would distort the predicted utilities.
            own_losses = [task_loss(own, labels, problem_type) for own in expert_logits.unbind(dim=1)]
            utilities = target_utilities(expert_logits, labels, problem_type)
            task = torch.stack(own_losses).mean() + utility_loss(router_logits, utilities)
            router_probs = router_probs.detach()
        balance, cost = balance_loss(router_probs), cost_loss(router_probs, costs)
        loss = task + self.config.alpha * balance + self.config.beta * cost
        return {"loss": loss, "task_loss": task, "balance_loss": balance, "cost_loss": cost}

    def _problem_type(self, labels: torch.Tensor) -> ProblemType:
        if self.config.problem_type is None:
            self.config.problem_type = infer_problem_type(labels, cast(int, self.config.num_labels))
            self.config.share_with_experts()
        return self.config.problem_type

    def run_experts(self, inputs: dict[str, torch.Tensor | None], expert_indices: torch.Tensor) -> torch.Tensor:
        """The logits of each input's chosen expert; an expert that no input chose does not run.

        Args:
            inputs (`dict[str, torch.Tensor]`): `input_ids`, `attention_mask` and `token_type_ids`, (B, T) each.
            expert_indices (`torch.Tensor` of shape (B,)): Index of the expert of each input.

        Returns:
            `torch.Tensor` of shape (B, C).
        """
        inputs = padded_right(inputs)
        parts, rows = [], []
        for index in expert_indices.unique().tolist():
            chosen = (expert_indices == index).nonzero().squeeze(1)
            part = {name: None if value is None else value[chosen] for name, value in inputs.items()}
            parts.append(self._run_expert(index, part))
            rows.append(chosen)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _run_expert(self, index: int, inputs: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """The logits of one expert, which reads at most `expert_max_lengths` tokens of an input."""
        expert = self.experts[index]
        shorter, _ = truncate(inputs, self.config.length_of(index))
        return expert(**accepted_inputs(expert, shorter)).logits

    @classmethod
    def from_expert_pretrained(
        cls,
        router: str | os.PathLike | None,
        experts: Sequence[str | os.PathLike],
        expert_layers: Sequence[int] | None = None,
        num_labels: int | None = None,
        **config_fields: Any,
    ) -> "SecureRouterForSequenceClassification":
        r"""Builds a pool from pretrained checkpoints.

        Args:
            router (`str` or `os.PathLike`, *optional*):
                Id or folder of the router's summary encoder, which should be small. With None the router shares the
                encoder of the expert with the fewest parameters (`config.router_shares_expert`).
            experts (`list` of `str` or `os.PathLike`):
                Id or folder of each expert. Base checkpoints get a new head, fine-tuned ones keep theirs.
            expert_layers (`list[int]`, *optional*):
                Depths of a single expert: `[2, 4, 6]` makes three experts of its first 2, 4 and 6 layers, each with
                the checkpoint's embeddings, pooler and head.
            num_labels (`int`, *optional*):
                Number of labels; defaults to the fine-tuned experts' number, or to 2 if no expert is fine-tuned.
            config_fields:
                Fields of [`SecureRouterConfig`]. `id2label` decides if experts name their labels differently; `dtype`
                is the dtype of the weights, float32 by default.

        Returns:
            [`SecureRouterForSequenceClassification`], in evaluation mode.

        Raises:
            `SecureRouterValueError`: The checkpoints cannot form a pool: different tokenizers, other label names or
                counts, an adapter, a quantised checkpoint, weights that are not finite.
        """
        dtype = config_fields.pop("dtype", None) or torch.get_default_dtype()
        pool = build_pool(
            router=router,
            experts=experts,
            expert_layers=expert_layers,
            num_labels=num_labels,
            id2label=config_fields.pop("id2label", None),
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        )
        config_fields.setdefault("max_length", pool.max_length)
        if pool.router_encoder is None:
            config_fields["router_shares_expert"] = min(
                range(len(pool.experts)), key=lambda index: pool.experts[index].num_parameters()
            )
        config = SecureRouterConfig(
            router_config=None if pool.router_encoder is None else pool.router_encoder.config,
            expert_configs=[expert.config for expert in pool.experts],
            id2label=pool.id2label,
            dtype=pool.experts[0].dtype,
            **config_fields,
        )
        model = cls(config, router_encoder=pool.router_encoder, experts=pool.experts)
        model.router.to(pool.experts[0].dtype)  # its perceptron is new
        return model.eval()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the embeddings of the router and of every expert, which share a tokenizer; returns the last."""
        members: list[Any] = [*self.experts]
        if self.config.router_shares_expert is None:
            members.append(self.router.encoder)
        resized = [member.resize_token_embeddings(*args, **kwargs) for member in members]
        self.vocab_size = self.config.vocab_size  # as transformers does for a model without members
        return resized[-1]

    def get_input_embeddings(self) -> nn.Module:
        """The router's embeddings; each expert has its own."""
        return self.router.encoder.get_input_embeddings()

    def to_mpc(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        protocol: str = "masked",
        routing_privacy: str | None = None,
        device: str = "cpu",
        max_length: int | None = None,
        provider: str = "ttp",
        calibration: Sequence[str | tuple[str, str]] | Mapping[str, torch.Tensor] | None = None,
        network: str = "lan",
        routing_lambda: float | None = None,
        quotas: Sequence[int] | None = None,
    ) -> "SecureModel":
        """Converts the model, so that two servers can run it on secret shares. Arguments and result are those of
        [`hf_securerouter.mpc.convert.to_mpc`], which explains them.

        Raises:
            `ConversionError`: Something cannot be converted; the message lists everything at once.
            `ImportError`: The hf_securerouter package is not installed, as when this file came from the Hub alone.
        """
        try:
            from hf_securerouter.mpc.convert import to_mpc
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("hf_securerouter"):
                raise
            raise ImportError(
                "`to_mpc` needs the hf_securerouter package: install it with `pip install hf_securerouter`."
            ) from error
        chosen = (
            protocol,
            routing_privacy,
            device,
            max_length,
            provider,
            calibration,
            network,
            routing_lambda,
            quotas,
        )
        return to_mpc(self, tokenizer, *chosen)


__all__ = ["SecureRouterForSequenceClassification", "SecureRouterOutput", "SecureRouterPreTrainedModel"]
