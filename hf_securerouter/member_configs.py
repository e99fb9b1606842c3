# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a pool's config says for its members: the attention, for all or by name, and the size of the vocabulary."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedConfig

from .errors import SecureRouterValueError
from .families import encoder_config


Choice = str | None


def attention_of_members(value: Any, experts: int, shared: int | None) -> tuple[Choice, Choice, list[Choice]]:
    """What `attn_implementation` says for the pool, for its router and for each expert; None leaves one as it is.

    Args:
        value (`str` or `dict`, *optional*): One name for the pool and all members, or a dict: `""` for the pool and
            every member that is not named, `"router_config"`, and `"expert_configs"` with one name for all experts or
            a list with one name, or None, for each.
        experts (`int`): How many experts the pool holds.
        shared (`int`, *optional*): Index of the expert whose encoder is the router's.

    Raises:
        `SecureRouterValueError`: The dict names something else, or a router without an encoder of its own; or a value
            is not of this form.
    """
    if not isinstance(value, dict):
        return value, value, [value] * experts
    unknown = sorted(str(key) for key in value if key not in ("", "router_config", "expert_configs"))
    if unknown:
        raise SecureRouterValueError(
            "`attn_implementation` names 'router_config', 'expert_configs' and, for the rest, '', got "
            f"{unknown[0]!r}: correct or remove this key."
        )
    if shared is not None and value.get("router_config") is not None:
        raise SecureRouterValueError(
            f"`attn_implementation` names 'router_config', but the router reads the encoder of expert {shared}: name "
            "it in 'expert_configs'."
        )
    rest = value.get("")
    named = value.get("expert_configs")
    each = list(named) if isinstance(named, (list, tuple)) else [named] * experts
    if len(each) != experts or any(not isinstance(name, Choice) for name in (rest, value.get("router_config"), *each)):
        raise SecureRouterValueError(
            f"`attn_implementation` should hold names, and in 'expert_configs' one name for all or for each of the "
            f"{experts} experts, got {value!r}."
        )
    chosen = [name or rest for name in each]
    own_router = value.get("router_config") or rest
    return rest, own_router if shared is None or shared >= experts else chosen[shared], chosen


class MemberConfigs:
    """The part of a pool's config that reads and sets `router_config` and `expert_configs` together."""

    router_config: PreTrainedConfig | dict | None
    expert_configs: list[PreTrainedConfig | dict] | None
    router_shares_expert: int | None

    @property
    def _members(self) -> list[PreTrainedConfig]:
        """The router's config, if there is one, and the experts' configs."""
        router = [] if self.router_config is None else [self.router_config]
        return cast(list[PreTrainedConfig], [*router, *(self.expert_configs or [])])

    @property
    def vocab_size(self) -> int | None:
        """`int`: how many token ids every member knows; None for an empty pool. To set it sets it for all members."""
        sizes = [getattr(encoder_config(member), "vocab_size", None) for member in self._members]
        return min((size for size in sizes if size is not None), default=None)

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        for member in self._members:
            encoder_config(member).vocab_size = value

    @property
    def _attn_implementation(self) -> str | None:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict[str, Any] | None) -> None:
        experts = len(self.expert_configs or [])
        own, router, each = attention_of_members(value, experts, self.router_shares_expert)
        if own is None and isinstance(value, dict):  # of some members only
            own = getattr(self, "_attn_implementation_internal", None)
        self._attn_implementation_internal = own
        chosen = each if self.router_config is None else [router, *each]
        for member, name in zip(self._members, chosen, strict=True):
            if name is not None:
                member._attn_implementation = name
