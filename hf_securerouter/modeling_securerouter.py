# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A router over a pool of sequence classifiers of different size."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .admission import check_buildable, probe_pool, reads_last_token
from .checkpoint import SecureRouterPreTrainedModel
from .configuration_securerouter import ProblemType, SecureRouterConfig
from .errors import SecureRouterValueError, warn
from .families import encoder_config
from .forward_arguments import check_forward, refuse_tracing
from .known_arguments import refuse_unknown, refuses_unknown
from .labels import LabelOrder, refuse_other_orders
from .lengths import padded_right, truncate, truncate_with_warning, with_padding_id
from .loading import LOADER_ARGUMENTS
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
from .outputs import SecureRouterOutput
from .pool import accepted_inputs, build_pool, pool_arguments
from .router import SecureRouterGate
from .routing import choose_expert, take_chosen
from .token_ids import check_ids, vocabulary_of


try:  # transformers demands every import of a file from the Hub to be installed, unless it is in a `try`
    if TYPE_CHECKING:
        from hf_securerouter.mpc.secure_model import SecureModel
except ImportError:
    pass


_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels", "expert_logits", "router_summary")


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
        **unknown: Any,
    ):
        known = {*LOADER_ARGUMENTS, *SecureRouterConfig.known_fields(), "router_encoder", "experts"}
        refuse_unknown(f"`{type(self).__name__}`", unknown, known - unknown.keys())
        requested_attention = config._attn_implementation  # before the base class sets its own default
        super().__init__(config)
        check_buildable(config)
        if experts:
            refuse_other_orders(experts, cast(dict[int, str], config.id2label))
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
        self.class_weights: list[float] | None = None  # how much each class counts in the task loss
        if config.expert_costs is None:
            self._estimate_costs()
        config.validate()
        self.post_init()
        probe_pool(self)

    @property
    def _is_causal(self) -> bool:
        """Whether a member is causal; then the tokenizer that all share sets no separator."""
        members = (self.router.encoder, *self._expert_models)
        return any(reads_last_token(encoder_config(member.config)) for member in members)

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
        warn(
            "`expert_costs` was not given: parameter counts relative to the smallest expert stand in for it, "
            f"{self.config.expert_costs}. Encrypted seconds differ: measure them with `securerouter profile`."
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
            `SecureRouterValueError`: The inputs are empty, a row is all padding or has an id beyond a vocabulary; the
                mask, `expert_logits` or `router_summary` has another shape; or the labels do not fit `num_labels`.
        """
        check_forward(self.config, _INPUTS, kwargs)
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            shape = None if input_ids is None else tuple(input_ids.shape)
            raise SecureRouterValueError(
                f"`input_ids` should be of shape (examples, tokens), with at least one of each, got {shape}: an empty "
                "text still has the tokenizer's special tokens."
            )
        if not torch.compiler.is_compiling():  # a compiled graph cannot look at values
            members = (self.config.router_config, *(self.config.expert_configs or []))
            check_ids("input_ids", input_ids, vocabulary_of(*members))
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
        inputs = truncate_with_warning(padded_right(inputs), self.config.max_length, separators=not self._is_causal)
        router_logits = self.router(router_summary, **inputs).to(input_ids.device)
        costs = torch.tensor(self.config.expert_costs, dtype=torch.float32, device=router_logits.device)
        expert_indices = choose_expert(router_logits, costs, self.config.routing_lambda)

        mixture_loss = None
        if self.training:
            temperature = self.annealed_temperature or self.config.temperature
            router_probs = F.gumbel_softmax(router_logits.float(), tau=temperature)
            if expert_logits is None:
                expert_logits, mixture_loss = self._run_all(inputs)
            logits = mix_experts(expert_logits, router_probs)
        else:
            router_probs = router_logits.float().softmax(dim=-1)
            if expert_logits is None:
                logits = self.run_experts(inputs, expert_indices)
            else:
                logits, expert_logits = take_chosen(expert_logits, expert_indices), None
        losses = {}
        if labels is not None:
            losses = self._losses(labels, logits, router_logits, router_probs, expert_logits, costs)
            if mixture_loss is not None:
                losses["loss"] = losses["loss"] + mixture_loss
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
        labels = check_labels(labels, logits.shape[0], logits.shape[1], problem_type)
        if expert_logits is None or self.config.router_objective == "gumbel":
            task = task_loss(logits, labels, problem_type, self.class_weights)
        else:
            # Each expert learns the task by itself, and the router learns to predict each expert's utility. Balance
            # and cost stay in the loss's value, without gradient, which would distort the predicted utilities.
            own_losses = [
                task_loss(own, labels, problem_type, self.class_weights) for own in expert_logits.unbind(dim=1)
            ]
            utilities = target_utilities(expert_logits, labels, problem_type)
            task = torch.stack(own_losses).mean() + utility_loss(router_logits, utilities)
            router_probs = router_probs.detach()
        balance, cost = balance_loss(router_probs), cost_loss(router_probs, costs)
        loss = task + self.config.alpha * balance + self.config.beta * cost
        return {"loss": loss, "task_loss": task, "balance_loss": balance, "cost_loss": cost}

    def _problem_type(self, labels: torch.Tensor) -> ProblemType:
        if self.config.problem_type is not None:
            return self.config.problem_type
        found = infer_problem_type(labels, cast(int, self.config.num_labels))
        # Members of transformers store it in a compiled graph, too, which breaks there, in the first step only.
        for config in (self.config, *(expert.config for expert in self._expert_models)):
            config.problem_type = found
        return found

    def run_experts(self, inputs: dict[str, torch.Tensor | None], expert_indices: torch.Tensor) -> torch.Tensor:
        """The logits of each input's chosen expert; an expert that no input chose does not run, except in a compiled
        graph, which cannot choose.

        Args:
            inputs (`dict[str, torch.Tensor]`): `input_ids`, `attention_mask` and `token_type_ids`, (B, T) each.
            expert_indices (`torch.Tensor` of shape (B,)): Index of the expert of each input.

        Returns:
            `torch.Tensor` of shape (B, C).
        """
        refuse_tracing()
        inputs = padded_right(inputs)
        expert_indices = expert_indices.to(cast(torch.Tensor, inputs["input_ids"]).device)
        if torch.compiler.is_compiling():  # one graph for any choice: all experts run
            return take_chosen(self._run_all(inputs)[0], expert_indices)
        parts, rows = [], []
        for index in expert_indices.unique().tolist():
            chosen = (expert_indices == index).nonzero().squeeze(1)
            part = {name: None if value is None else value[chosen] for name, value in inputs.items()}
            parts.append(self._run_expert(index, part)[0])
            rows.append(chosen)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _run_all(self, inputs: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of every expert for every input, (B, K, C); and in training the loss of the routers inside
        experts that are mixtures, a mean over all experts, as each learns the task by 1 / K of its loss.
        """
        logits, losses = zip(*(self._run_expert(index, inputs) for index in range(len(self.experts))), strict=True)
        return torch.stack(logits, dim=1), torch.stack(losses).mean()

    def _run_expert(self, index: int, inputs: dict[str, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of one expert, which reads at most `expert_max_lengths` tokens of an input, and the loss of the
        routers inside it, zero but for a mixture in training. Both are on the device of the inputs, wherever a
        `device_map` has placed the expert.
        """
        expert = self._expert_models[index]
        separators = not reads_last_token(encoder_config(expert.config))
        shorter, _ = truncate(inputs, self.config.length_of(index), separators)
        if reads_last_token(expert.config):
            shorter = with_padding_id(shorter, cast(int, expert.config.get_text_config().pad_token_id))
        output = expert(**accepted_inputs(expert, shorter))
        home = cast(torch.Tensor, inputs["input_ids"]).device
        own_loss = output.get("router_loss")
        return output.logits.to(home), torch.zeros((), device=home) if own_loss is None else own_loss.to(home)

    @classmethod
    def from_expert_pretrained(
        cls,
        router: str | os.PathLike | None,
        experts: Sequence[str | os.PathLike],
        expert_layers: Sequence[int] | None = None,
        num_labels: int | None = None,
        label_order: LabelOrder | None = None,
        router_kwargs: dict[str, Any] | None = None,
        expert_kwargs: Sequence[dict[str, Any] | None] | None = None,
        **kwargs: Any,
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
            label_order (`list`, *optional*):
                For each expert its own labels, by name or by index, in the order of the pool's labels; None for an
                expert whose labels have the pool's names. Without it heads are brought to one order by name, and
                labels without names (`LABEL_0`, ...) are taken by place, with a warning.
            router_kwargs (`dict`, *optional*):
                Loader arguments of the router alone, such as `{"revision": "v2", "subfolder": "tiny"}`.
            expert_kwargs (`list` of `dict`, *optional*):
                Loader arguments of each expert, or None for one without its own.
            kwargs:
                Fields of [`SecureRouterConfig`]; `id2label` names and orders the labels, `dtype` is that of all
                weights, float32 by default. And loader arguments of all members, which are not saved: `token`,
                `revision`, `subfolder`, `cache_dir`, `force_download`, `local_files_only`, `proxies`,
                `trust_remote_code`, `code_revision`, `attn_implementation`, `use_safetensors`, `variant`.

        Returns:
            [`SecureRouterForSequenceClassification`], in evaluation mode.

        Raises:
            `SecureRouterValueError`: The checkpoints cannot form a pool: different tokenizers, label names that cannot
                be matched, a family that a pool cannot use, an adapter, a quantised checkpoint, weights that are not
                finite.
            `UnknownArgumentError`: An argument is none of these; the message names the nearest.
        """
        loading, dtype, config_fields = pool_arguments(
            kwargs, inspect.signature(cls.from_expert_pretrained).parameters
        )
        pool = build_pool(
            router=router,
            experts=experts,
            expert_layers=expert_layers,
            num_labels=num_labels,
            id2label=config_fields.pop("id2label", None),
            label_order=label_order,
            dtype=dtype,
            loading=loading,
            router_kwargs=router_kwargs,
            expert_kwargs=expert_kwargs,
        )
        if "attn_implementation" in loading:
            config_fields["attn_implementation"] = loading["attn_implementation"]
        config_fields.setdefault("max_length", pool.max_length)
        if pool.router_encoder is None and config_fields.get("router_shares_expert") is None:
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

    @refuses_unknown
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
        guard: bool = False,
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
        chosen = (protocol, routing_privacy, device, max_length, provider, calibration, network, routing_lambda)
        return to_mpc(self, tokenizer, *chosen, quotas, guard)


__all__ = ["SecureRouterForSequenceClassification", "SecureRouterOutput", "SecureRouterPreTrainedModel"]
