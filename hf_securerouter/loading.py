# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Loader arguments, such as a Hub token or a revision: they go to the loaders of a pool's members, and nowhere else.

Nothing here becomes part of a config, and no message shows a value that may be secret.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import logging

from .errors import SecureRouterValueError
from .known_arguments import refuse_unknown
from .member_configs import attention_of_members


# Where files are found and how they are fetched: for the config, the tokenizer and the weights.
_FILES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_CODE = ("code_revision", "trust_remote_code")
_WEIGHTS = ("attn_implementation", "use_safetensors", "variant")
LOADER_ARGUMENTS = (*_FILES, *_CODE, *_WEIGHTS)

# What transformers' loaders take and a pool cannot, and the remedy.
_REFUSED = {
    "adapter_kwargs": "merge adapters before, with `merge_and_unload()`",
    "config": "change the checkpoint's own config.json",
    "device_map": "build the pool, then move it with `.to(device)`, or save it and load it with `device_map`",
    "gguf_file": "pass a checkpoint of float weights",
    "ignore_mismatched_sizes": "pass the base checkpoint, which gets a new head",
    "load_in_4bit": "pass a checkpoint of float weights",
    "load_in_8bit": "pass a checkpoint of float weights",
    "low_cpu_mem_usage": "leave it out",
    "max_memory": "build the pool, save it, and load it with `device_map`",
    "offload_folder": "build the pool, save it, and load it with `device_map`",
    "output_loading_info": "leave it out: a checkpoint that is not whole is refused",
    "quantization_config": "pass a checkpoint of float weights",
    "state_dict": "save the weights with the checkpoint",
    "use_auth_token": "pass `token`",
    "weights_only": "leave it out: pickled objects are never loaded",
}


@dataclass(frozen=True)
class Loading:
    """The loader arguments of one member of a pool; a value that is None was not given.

    Args:
        given (`dict`): By name, among `LOADER_ARGUMENTS`.
    """

    given: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold a token

    def _those(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.given[name] for name in names if self.given.get(name) is not None}

    @property
    def files(self) -> dict[str, Any]:
        """Arguments of whatever finds a file: `cached_file`, and all below."""
        return self._those(_FILES)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of `AutoConfig` and `AutoTokenizer`."""
        return self._those((*_FILES, *_CODE))

    @property
    def weights(self) -> dict[str, Any]:
        """Arguments of `AutoModel` and `AutoModelForSequenceClassification`."""
        return self._those(LOADER_ARGUMENTS)

    def without_secrets(self, error: BaseException) -> str:
        """The message of a loader's error, without the token and the proxies' addresses."""
        message, proxies = str(error), self.given.get("proxies") or {}
        for secret in (self.given.get("token"), *proxies.values()):
            if isinstance(secret, str) and secret:
                message = message.replace(secret, "...")
        return message


@dataclass(frozen=True)
class Source:
    """Where a member of a pool comes from.

    Args:
        name (`str`): Id on the Hub or folder.
        loading (`Loading`): How it is loaded.
    """

    name: str
    loading: Loading = Loading()


def member_loading(
    common: Mapping[str, Any],
    router_kwargs: Mapping[str, Any] | None,
    expert_kwargs: Sequence[Mapping[str, Any] | None] | None,
    experts: int,
) -> tuple[Loading, list[Loading]]:
    """The loader arguments of the router and of each expert: the common ones, and a member's own over them.

    Args:
        common (`Mapping`): For all members, among `LOADER_ARGUMENTS`.
        router_kwargs (`Mapping`, *optional*): For the router.
        expert_kwargs (`list` of `Mapping`, *optional*): For each expert; None for one without its own.
        experts (`int`): How many there are.

    Raises:
        `SecureRouterValueError`: An argument is unknown, cannot be taken, or no token.
    """
    own = list(expert_kwargs) if isinstance(expert_kwargs, (list, tuple)) else expert_kwargs
    if own is not None and (not isinstance(own, list) or len(own) != experts):
        count = len(own) if isinstance(own, list) else type(own).__name__
        raise SecureRouterValueError(
            f"`expert_kwargs` should be a list with a dict, or None, for each of the {experts} experts, got {count}: "
            "to pass the same arguments to all members, pass them to `from_expert_pretrained` itself."
        )
    _check("from_expert_pretrained", common)
    _, of_router, of_experts = attention_of_members(common.get("attn_implementation"), experts, None)
    members = {"router_kwargs": router_kwargs}
    members |= {f"expert_kwargs[{index}]": given for index, given in enumerate(own or [None] * experts)}
    loading = []
    for (name, given), attention in zip(members.items(), [of_router, *of_experts], strict=True):
        if given is not None and not isinstance(given, Mapping):
            raise SecureRouterValueError(
                f"`{name}` should be a dict of loader arguments, got {type(given).__name__}: pass "
                "`{'revision': 'main'}`, for example."
            )
        if {"dtype", "torch_dtype"} & set(given or {}):
            raise SecureRouterValueError(
                f"`{name}` holds a dtype, and a pool has one: pass `dtype` to `from_expert_pretrained` itself."
            )
        _check(name, given or {})
        loading.append(Loading({**common, "attn_implementation": attention, **(given or {})}))
    return loading[0], loading[1:]


def _check(where: str, given: Mapping[str, Any]) -> None:
    refuse_not_taken(given)
    refuse_unknown(f"`{where}`", given, LOADER_ARGUMENTS)
    token = given.get("token")
    well_formed = isinstance(token, str) and token.isascii() and token.isprintable() and token.split() == [token]
    if token is not None and not isinstance(token, bool) and not well_formed:
        raise SecureRouterValueError(
            f"`token` of `{where}` is no token of the Hub: pass its text without blanks or line breaks, or True for "
            "the one that `hf auth login` has saved. (It is not shown here.)"
        )


def refuse_not_taken(given: Mapping[str, Any]) -> None:
    """Refuses what transformers' loaders take and a pool cannot.

    Raises:
        `SecureRouterValueError`: There is such an argument; the message holds the remedy.
    """
    for name in given:
        if name in _REFUSED:
            raise SecureRouterValueError(f"`{name}` cannot be passed to the members of a pool: {_REFUSED[name]}.")


def pool_dtype(dtype: Any, torch_dtype: Any = None) -> torch.dtype:
    """The dtype of all weights of a pool, from a dtype or its name; float32, PyTorch's default, if none is given.

    Args:
        dtype (`torch.dtype` or `str`, *optional*): Of floating point.
        torch_dtype (`torch.dtype` or `str`, *optional*): The same, under its older name.

    Raises:
        `SecureRouterValueError`: It is no dtype of floating point, or two are given.
    """
    if dtype is not None and torch_dtype is not None:
        raise SecureRouterValueError("`dtype` and `torch_dtype` are the same argument: pass `dtype` only.")
    given = torch_dtype if dtype is None else dtype
    if given is None:
        return torch.get_default_dtype()
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise SecureRouterValueError(
            f"`dtype` should be float32, float64, bfloat16 or float16, as a `torch.dtype` or by name, got {given!r}: "
            "members of a pool have one dtype."
        )
    return found


@contextlib.contextmanager
def only_download_bars() -> Iterator[None]:
    """Leaves out transformers' progress bars inside the block: there is one for each member that is loaded, and for
    each file that is saved. Downloads keep theirs.
    """
    previous = logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **kwargs | {"disable": True}))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
