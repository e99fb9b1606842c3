# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`attn_implementation`, one for the whole pool or one for each member, by the names of their configs."""

from typing import Any

from .errors import SecureRouterValueError


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
