# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a pool of experts and of the router that chooses among them."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict, validated_field
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .configuration_moe import SecureMoeConfig  # noqa: F401  (an expert may have it: it registers itself)
from .configuration_pooled import PooledEncoderConfig
from .errors import SecureRouterValueError
from .families import encoder_config, usable_positions
from .hub_ids import without_local_paths
from .known_arguments import nearest, refuse_misspelt, refuse_unknown
from .member_configs import MemberConfigs
from .number_format import PRECISIONS, SOFTMAXES, current_precision
from .value_checks import integer, number, one_for_each_expert, one_of, optional


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


ROUTER_OBJECTIVES = ("gumbel", "utility")


ROUTING_PRIVACY_MODES = ("revealed", "quota", "oblivious")


TEMPERATURE_SCHEDULES = ("constant", "linear", "exponential")


COST_SOURCES = ("estimate", "given", "measured")


# The functions and the precision of an expert, cheaper or more exact under encryption; the first value is the default.
EXPERT_MPC_CHOICES = {
    "hidden_act": ("exact", "quadratic", "relu"),
    "softmax": SOFTMAXES,
    "precision": PRECISIONS,
}


# What transformers and the Hub write into any config.json, and what they set on any config, beside its own fields.
_FROM_TRANSFORMERS = frozenset(
    "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path "
    "_experts_implementation _experts_implementation_internal _output_attentions _post_init_done "
    "add_cross_attention attn_implementation auto_map bos_token_id cross_attention_hidden_size custom_pipelines "
    "decoder_start_token_id distributed_config eos_token_id experts_implementation finetuning_task "
    "gradient_checkpointing is_decoder loss_type model_type name_or_path num_labels output_attentions pad_token_id "
    "per_layer_config prefix pruned_heads quantization_config sep_token_id task_specific_params tie_encoder_decoder "
    "tie_last_hidden_states tie_word_embeddings tokenizer_class torch_dtype torchscript transformers.js_config "
    "use_bfloat16 use_cache".split()
)

# Fields that are stated once, at the top of the config, and copied to every expert.
_SHARED_WITH_EXPERTS = ("id2label", "label2id", "problem_type", "dtype")


def _check_expert_mpc(value: Any) -> None:
    if not isinstance(value, dict):
        raise SecureRouterValueError(
            f"`expert_mpc` should hold one dict for each expert, with keys among {', '.join(EXPERT_MPC_CHOICES)}, "
            f"got {value!r}."
        )
    for key, choice in value.items():
        if key not in EXPERT_MPC_CHOICES:
            raise SecureRouterValueError(
                f"`expert_mpc` knows {', '.join(EXPERT_MPC_CHOICES)}, got {key!r}: correct or remove this key."
            )
        one_of(f"expert_mpc[...]['{key}']", EXPERT_MPC_CHOICES[key])(
            current_precision(choice) if key == "precision" else choice
        )


def _as_config(name: str, value: Any) -> PreTrainedConfig:
    """A copy of a sub-config, from a config or from the dict of its `to_dict`."""
    if isinstance(value, PreTrainedConfig):
        config = copy.deepcopy(value)
    elif isinstance(value, dict) and isinstance(value.get("model_type"), str):
        if value["model_type"] not in CONFIG_MAPPING:
            raise SecureRouterValueError(
                f"`{name}` has `model_type` {value['model_type']!r}, which transformers does not know: correct it, or "
                "register its config class with `AutoConfig.register` first."
            )
        config = AutoConfig.for_model(**value)
    else:
        raise SecureRouterValueError(
            f"`{name}` should be a transformers config, or its dict with a `model_type`, got {value!r}."
        )
    if name == "router_config" and isinstance(config, PooledEncoderConfig):
        raise SecureRouterValueError(
            "`router_config` is a pooled encoder, and the router reads an encoder: pass its `text_config`, or "
            "share the expert's encoder with `router_shares_expert`."
        )
    if config.model_type == SecureRouterConfig.model_type:
        raise SecureRouterValueError(f"`{name}` is itself a router over a pool: list that pool's experts instead.")
    return config


@strict
class SecureRouterConfig(MemberConfigs, PreTrainedConfig):
    r"""Configuration of [`SecureRouterForSequenceClassification`]: a router and the experts it chooses among.

    `num_labels`, `id2label`, `problem_type` and `dtype` are stated once, here, and copied to every expert. If they are
    not given, they are taken from the experts, which then have to agree. `SecureRouterConfig()` describes an empty
    pool, from which no model can be made.

    Args:
        router_config (`PreTrainedConfig` or `dict`, *optional*):
            Config of the router's summary encoder, such as BERT-tiny.
        expert_configs (`list` of `PreTrainedConfig` or `dict`, *optional*):
            Config of each expert: any family that `AutoModelForSequenceClassification` knows. Order is kept.
        router_shares_expert (`int`, *optional*):
            Index of an expert whose encoder is the router's summary encoder too: the two share weights and
            `router_config`, and under encryption the encoder is computed once for both; in clear the expert runs it
            again for the inputs that it gets. By default the router has an encoder of its own.
        router_hidden_size (`int`, *optional*, defaults to 128):
            Width of the hidden layer of the router's two-layer perceptron.
        router_dropout (`float`, *optional*, defaults to 0.1):
            Dropout before the perceptron's second layer, in training.
        expert_costs (`list[float]`, *optional*):
            Cost of one query with each expert, in relative seconds: positive, in any unit. If it is not given, the
            model sets parameter counts relative to the smallest expert, and warns.
        expert_costs_source (`str`, *optional*):
            Source of `expert_costs`: `"estimate"`, `"given"` or `"measured"`.
        alpha (`float`, *optional*, defaults to 0.01):
            Weight of the load balancing loss.
        beta (`float`, *optional*, defaults to 0.01):
            Weight of the cost loss, which is in the units of `expert_costs`.
        temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the Gumbel-softmax at the start of training.
        min_temperature (`float`, *optional*, defaults to 0.5):
            Lowest temperature of the annealing.
        temperature_annealing (`str`, *optional*, defaults to `"linear"`):
            `"constant"`, `"linear"` (reaches `min_temperature` at the last step) or `"exponential"`
            (`temperature * exp(-temperature_annealing_rate * step)`).
        temperature_annealing_rate (`float`, *optional*, defaults to 1e-4):
            Rate of the exponential annealing, per optimisation step.
        router_objective (`str`, *optional*, defaults to `"gumbel"`):
            `"gumbel"` trains the router through the Gumbel-softmax mixture of the experts. `"utility"` trains its
            outputs to predict each expert's utility: the probability that the expert's answer is right, or, in
            regression, minus its expected squared error. Targets are half from the labels, half from the mean of the
            experts' outputs.
        routing_lambda (`float`, *optional*, defaults to 0.0):
            Weight of one unit of cost in the decision `argmax(router_logits - routing_lambda * expert_costs)`.
        routing_privacy (`str`, *optional*, defaults to `"quota"`):
            What the servers may learn about the decision under encryption: `"revealed"` (the expert of each query),
            `"quota"` (the fixed quotas only) or `"oblivious"` (nothing).
        quotas (`list[int]`, *optional*):
            How many queries of a batch each expert serves under `routing_privacy="quota"`; the quotas sum to the
            batch. Defaults to one query each.
        expert_mpc (`list[dict]`, *optional*):
            For each expert, the functions and the precision that it was trained with: `hidden_act` (`"exact"`,
            `"quadratic"`, `"relu"`), `softmax` (`"exact"`, `"2quad"`, `"2relu"`) and `precision` (`"full"`,
            `"reduced"`). They apply in clear too, see `mpc_friendly.py` and `fixed_point_layers.py`.
        expert_max_lengths (`list[int]`, *optional*):
            For each expert, how many tokens of an input it reads; the rest is cut off. Under encryption every input
            is padded to one length, and an expert that reads half of it costs less than half. By default every expert
            reads the whole input.
        max_length (`int`, *optional*):
            Longest input in tokens. Defaults to the shortest position table of router and experts.

    Raises:
        `StrictDataclassError`: A field has a wrong type or value, or not one entry for each expert; of
            huggingface_hub.
        `SecureRouterValueError`: A sub-config is no config that a member may have, or the experts differ in labels or
            problem type and none is given.
        `UnknownArgumentError`: There is no such field.

    Example:
        ```python
        >>> from transformers import BertConfig
        >>> from hf_securerouter import SecureRouterConfig, SecureRouterForSequenceClassification

        >>> tiny = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
        >>> config = SecureRouterConfig(
        ...     router_config=tiny, expert_configs=[tiny, BertConfig()], expert_costs=[1.0, 17.0], num_labels=3
        ... )
        >>> model = SecureRouterForSequenceClassification(config)
        ```

    Reference:
        SecureRouter: Encrypted Routing for Efficient Secure Inference, section 3.4.
    """

    model_type = "secure_router"
    keys_to_ignore_at_inference = [
        "router_logits",
        "router_probs",
        "expert_indices",
        "expert_logits",
        "expected_cost",
        "task_loss",
        "balance_loss",
        "cost_loss",
    ]

    router_config: PreTrainedConfig | dict | None = None
    expert_configs: list[PreTrainedConfig | dict] | None = None
    router_shares_expert: int | None = validated_field(optional(integer("router_shares_expert", 0)), default=None)
    router_hidden_size: int = validated_field(integer("router_hidden_size", 1), default=128)
    router_dropout: float = validated_field(number("router_dropout", at_least=0, below=1), default=0.1)
    expert_costs: list[float] | None = validated_field(
        optional(one_for_each_expert("expert_costs", number("expert_costs", above=0))), default=None
    )
    expert_costs_source: str | None = validated_field(
        optional(one_of("expert_costs_source", COST_SOURCES)), default=None
    )
    alpha: float = validated_field(number("alpha", at_least=0), default=0.01)
    beta: float = validated_field(number("beta", at_least=0), default=0.01)
    temperature: float = validated_field(number("temperature", above=0), default=1.0)
    min_temperature: float = validated_field(number("min_temperature", above=0), default=0.5)
    temperature_annealing: str = validated_field(
        one_of("temperature_annealing", TEMPERATURE_SCHEDULES), default="linear"
    )
    temperature_annealing_rate: float = validated_field(number("temperature_annealing_rate", above=0), default=1e-4)
    router_objective: str = validated_field(one_of("router_objective", ROUTER_OBJECTIVES), default="gumbel")
    routing_lambda: float = validated_field(number("routing_lambda", at_least=0), default=0.0)
    routing_privacy: str = validated_field(one_of("routing_privacy", ROUTING_PRIVACY_MODES), default="quota")
    quotas: list[int] | None = validated_field(
        optional(one_for_each_expert("quotas", integer("quotas", 0))), default=None
    )
    expert_mpc: list[dict[str, str]] | None = validated_field(
        optional(one_for_each_expert("expert_mpc", _check_expert_mpc)), default=None
    )
    expert_max_lengths: list[int] | None = validated_field(
        optional(one_for_each_expert("expert_max_lengths", integer("expert_max_lengths", 2))), default=None
    )
    max_length: int | None = validated_field(optional(integer("max_length", 2)), default=None)

    def __post_init__(self, **kwargs):
        if kwargs.get("model_type") not in (None, self.model_type):
            raise SecureRouterValueError(
                f"This is the config of a {kwargs['model_type']!r} checkpoint, not of a pool: make a pool of it with "
                "`SecureRouterForSequenceClassification.from_expert_pretrained(router=..., experts=[...])`."
            )
        refuse_unknown(f"`{type(self).__name__}`", kwargs, self.known_fields())
        if self.router_config is not None:
            self.router_config = _as_config("router_config", self.router_config)
        if self.expert_configs is not None and not isinstance(self.expert_configs, (list, tuple)):
            raise SecureRouterValueError(f"`expert_configs` should be a list of configs, got {self.expert_configs!r}.")
        self.expert_configs = [
            _as_config(f"expert_configs[{i}]", value) for i, value in enumerate(self.expert_configs or [])
        ]
        if self.router_shares_expert is not None and self.router_shares_expert < len(self.expert_configs):
            shared = encoder_config(self.expert_configs[self.router_shares_expert])
            self.router_config = _as_config("router_config", shared)
        if self.id2label is None:
            self.id2label = self._common_labels(kwargs.get("num_labels"))
        if self.problem_type is None:
            self.problem_type = self._common_problem_type()
        super().__post_init__(**kwargs)
        if self.id2label is not None:
            self.label2id = {label: index for index, label in cast(dict[int, str], self.id2label).items()}
        if self.expert_costs is not None and self.expert_costs_source is None:
            self.expert_costs_source = "given"
        if self.expert_mpc is None:
            self.expert_mpc = [{} for _ in self.expert_configs]
        self.expert_mpc = [
            {key: chosen.get(key, options[0]) for key, options in EXPERT_MPC_CHOICES.items()}
            for chosen in self.expert_mpc
        ]
        for chosen in self.expert_mpc:
            chosen["precision"] = current_precision(chosen["precision"])
        if self.max_length is None:
            self.max_length = self._shortest_position_table()
        self.share_with_experts()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.known_fields() and not name.startswith("_") and not hasattr(type(self), name):
            refuse_misspelt(f"`{type(self).__name__}`", [name], self._own_fields())
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a saved config, as [`~PreTrainedConfig.from_pretrained`] does.

        Raises:
            `UnknownArgumentError`: An argument is neither a loader argument nor a field of the config.
        """
        wanted = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_pretrained(
            pretrained_model_name_or_path, *args, return_unused_kwargs=True, **kwargs
        )
        if wanted:
            return config, unused
        refuse_unknown(f"`{cls.__name__}.from_pretrained`", unused, cls.known_fields())
        return config

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers. `AutoConfig` and `AutoTokenizer` pass arguments of every kind through here, so that only
        those that are nearly a field's name are refused.
        """
        own = cls._own_fields()
        misspelt = [name for name in kwargs if name not in cls.known_fields() and nearest(name, own, 0.85)]
        refuse_unknown(f"`{cls.__name__}`", misspelt, own)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _own_fields(cls) -> frozenset[str]:
        return frozenset(field.name for field in dataclasses.fields(cls))

    @classmethod
    def known_fields(cls) -> frozenset[str]:
        """Names of the fields, and of what transformers and the Hub put into any config."""
        return cls._own_fields() | _FROM_TRANSFORMERS

    @property
    def _experts(self) -> list[PreTrainedConfig]:
        return cast(list[PreTrainedConfig], self.expert_configs or [])

    @property
    def num_experts(self) -> int:
        """`int`: how many experts the pool holds."""
        return len(self.expert_configs or [])

    def length_of(self, index: int) -> int | None:
        """Most tokens that an expert reads; None if neither `expert_max_lengths` nor `max_length` is set."""
        own = [] if self.expert_max_lengths is None else [self.expert_max_lengths[index]]
        return min([*own, *([] if self.max_length is None else [self.max_length])], default=None)

    def share_with_experts(self) -> None:
        """Copies the labels, the problem type and the dtype of this config to every expert's config."""
        for expert in self._experts:
            for name in _SHARED_WITH_EXPERTS:
                setattr(expert, name, copy.copy(getattr(self, name)))

    def temperature_at(self, step: int, max_steps: int) -> float:
        """The annealed temperature of the Gumbel-softmax: a function of the step alone, so that a resumed run
        continues where it stopped.

        Args:
            step (`int`): Optimisation steps done.
            max_steps (`int`): Optimisation steps of the whole training.

        Returns:
            `float`: The temperature, from `temperature` down to `min_temperature` and never up.
        """
        lowest = min(self.min_temperature, self.temperature)
        annealed = self.temperature
        if self.temperature_annealing == "linear":
            annealed += step / max(1, max_steps) * (lowest - self.temperature)
        elif self.temperature_annealing == "exponential":
            annealed *= math.exp(-self.temperature_annealing_rate * step)
        return max(annealed, lowest)

    def validate_pool(self) -> None:
        """Part of the strict validation: every list has one entry for each expert, and lengths fit the pool."""
        for name in ("expert_costs", "quotas", "expert_mpc", "expert_max_lengths"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_experts:
                raise SecureRouterValueError(
                    f"`{name}` should have one entry for each of the {self.num_experts} experts, got {value!r}: "
                    "pass as many entries as `expert_configs` has."
                )
        if self.router_shares_expert is not None and self.router_shares_expert >= self.num_experts:
            raise SecureRouterValueError(
                f"`router_shares_expert` should be the index of one of the {self.num_experts} experts, got "
                f"{self.router_shares_expert}: pass a smaller index, or None for an encoder of the router's own."
            )
        if self.quotas is not None and sum(self.quotas) < 1:
            raise SecureRouterValueError(
                f"`quotas` should serve at least one query, got {self.quotas!r}: raise one of its entries."
            )
        longest = self._shortest_position_table()
        if self.max_length is not None and longest is not None and self.max_length > longest:
            raise SecureRouterValueError(
                f"`max_length` should be at most {longest}, for which every member of the pool has positions, got "
                f"{self.max_length}: pass a smaller value, or leave it out."
            )

    def validate_names(self) -> None:
        """Part of the strict validation: a saved config holds no field that loading it would refuse."""
        given = [name for name in vars(self) if not name.startswith("_")]
        refuse_unknown(f"`{type(self).__name__}`", given, self.known_fields())

    def to_dict(self) -> dict[str, Any]:
        """The config as a dict that JSON can hold and from which `SecureRouterConfig(**config.to_dict())` rebuilds it.
        Fields that all experts share are at the top only, and no path of this machine is in it.
        """
        output = super().to_dict()
        if isinstance(self.router_config, PreTrainedConfig):
            output["router_config"] = self._sub_config_dict(self.router_config)
        output["expert_configs"] = [self._sub_config_dict(expert) for expert in self._experts]
        return output

    @staticmethod
    def _sub_config_dict(config: PreTrainedConfig) -> dict[str, Any]:
        output = without_local_paths(config.to_dict())
        for name in ("transformers_version", *_SHARED_WITH_EXPERTS):
            output.pop(name, None)
        return output

    def _common_labels(self, count: int | None) -> dict[int, str] | None:
        """The labels of those experts that have `count` of them; of all, if None."""
        named = [cast(dict[int, str], expert.id2label) for expert in self._experts if expert.id2label is not None]
        named = [labels for labels in named if count in (None, len(labels))]
        counts = sorted({len(labels) for labels in named})
        if len(counts) > 1:
            raise SecureRouterValueError(
                f"`expert_configs` have different numbers of labels, {counts}: pass `num_labels` or `id2label` to say "
                "which holds for the pool, or leave the other experts out."
            )
        # Default names (`LABEL_0`, ...) carry no meaning, so an expert that has them takes the names of the others.
        chosen = [labels for labels in named if any(name != f"LABEL_{i}" for i, name in labels.items())]
        if any(labels != chosen[0] for labels in chosen):
            raise SecureRouterValueError(
                f"`expert_configs` name their labels differently, {chosen}: pass `id2label` to say which names hold."
            )
        return dict((chosen or named)[0]) if named else None

    def _common_problem_type(self) -> ProblemType | None:
        types = {expert.problem_type for expert in self._experts if expert.problem_type is not None}
        if len(types) > 1:
            raise SecureRouterValueError(
                f"`expert_configs` have different problem types, {sorted(types)}: pass `problem_type` to say which "
                "holds for the pool."
            )
        return types.pop() if types else None

    def _shortest_position_table(self) -> int | None:
        lengths = [length for length in map(usable_positions, self._members) if length is not None]
        return min(lengths, default=None)


__all__ = ["SecureRouterConfig"]
