# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What a router or an expert may be. It is decided when the pool is made.

Families of `families.py` are known. Others, in clear text only, are tried on two texts: the router has to tell them
apart, and neither padding nor the other text may change an answer. Causal models read the last token of a text, as
their classifiers do. Encoder-decoders are refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
)

from .configuration_pooled import PooledEncoderConfig
from .errors import SecureRouterValueError
from .families import FAMILIES
from .lengths import padded_right


if TYPE_CHECKING:
    from .configuration_securerouter import SecureRouterConfig


_USE = "use an encoder such as BERT, DistilBERT, RoBERTa, ELECTRA, ALBERT or MPNet"
_LENGTHS = 3, 11  # tokens of the two texts: the first token of the shorter one has padding near it
_TOLERANCE = 1e-4


def is_known(config: PreTrainedConfig) -> bool:
    """Whether a family, of a pooled encoder its encoder's, is in `families.py`."""
    inner = config.text_config if isinstance(config, PooledEncoderConfig) else config
    return getattr(inner, "model_type", None) in FAMILIES


def reads_last_token(config: PreTrainedConfig) -> bool:
    """Whether a model is causal, so that only the last token of a text has seen all of it."""
    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING and not is_known(config)


def check_buildable(config: SecureRouterConfig) -> None:
    """Checks that a pool can be made from a config.

    Raises:
        `SecureRouterValueError`: The config has no expert or no router, or a member that can be none.
    """
    remedy = (
        "Build the pool with `SecureRouterForSequenceClassification.from_expert_pretrained(router=..., experts=[...])`"
        ", or load a checkpoint that was saved from one."
    )
    if not config.expert_configs:
        raise SecureRouterValueError(f"`expert_configs` is empty: the pool needs at least one expert. {remedy}")
    if config.router_config is None:
        raise SecureRouterValueError(f"`router_config` is None: the router needs a summary encoder. {remedy}")
    members: dict[str, Any] = {f"expert_configs[{i}]": expert for i, expert in enumerate(config.expert_configs)}
    for name, member in members.items():
        check_expert(name, member)
    if config.router_shares_expert is None:
        check_router("router_config", config.router_config)  # type: ignore[arg-type]


def check_expert(argument: str, config: PreTrainedConfig) -> None:
    """Checks what a config alone says about an expert.

    Args:
        argument (`str`): Where it was given, for the message.
        config (`PreTrainedConfig`): Its config.

    Raises:
        `SecureRouterValueError`: It cannot be one; the message says why.
    """
    _check_member(argument, config)
    if isinstance(config, PooledEncoderConfig) and isinstance(config.text_config, PreTrainedConfig):
        _check_pooled(argument, config, config.text_config)
    own_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not own_code:
        raise SecureRouterValueError(
            f"`{argument}` is a {type(config).__name__}, for which transformers has no sequence classifier: {_USE}."
        )
    if getattr(config, "summary_type", None) == "last":
        raise SecureRouterValueError(
            f"`{argument}.summary_type` is 'last': a {type(config).__name__} reads the last place of a row, where a "
            f"pool has padding: {_USE}."
        )
    padding = config.get_text_config().pad_token_id if reads_last_token(config) else 0
    if not isinstance(padding, int):
        raise SecureRouterValueError(
            f"`{argument}.pad_token_id` is None, and the classifier of a {type(config).__name__} finds the last token "
            "of a text by it: set it in the checkpoint's config.json, to the tokenizer's padding token."
        )


def check_router(argument: str, config: PreTrainedConfig) -> None:
    """Checks what a config alone says about a router's encoder; arguments and error as for [`check_expert`]."""
    _check_member(argument, config)
    own_code = "AutoModel" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_MAPPING and not own_code:
        raise SecureRouterValueError(f"`{argument}` is a {type(config).__name__}, which is no encoder: {_USE}.")
    inputs: set[str] = {"input_ids"}
    if not own_code:
        model: Any = MODEL_MAPPING[type(config)]
        if isinstance(model, tuple) and not config.architectures:
            raise SecureRouterValueError(
                f"`{argument}` is a {type(config).__name__}, of which there are several models, "
                f"{', '.join(kind.__name__ for kind in model)}: name one in its `architectures`."
            )
        model = model[0] if isinstance(model, tuple) else model
        inputs = set(inspect.signature(model.forward).parameters)
    if "input_ids" not in inputs or not isinstance(getattr(config, "hidden_size", None), int):
        raise SecureRouterValueError(f"`{argument}` is a {type(config).__name__}, which encodes no texts: {_USE}.")


def _check_pooled(argument: str, config: PooledEncoderConfig, inner: PreTrainedConfig) -> None:
    check_router(f"{argument}.text_config", inner)
    if config.pooling == "first" and reads_last_token(inner):
        raise SecureRouterValueError(
            f"`{argument}.pooling` is 'first', and the first token of a {type(inner).__name__}, which is causal, sees "
            f"no other: {_USE}, or mean pooling."
        )


def _check_member(argument: str, config: PreTrainedConfig) -> None:
    name = type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise SecureRouterValueError(
            f"`{argument}` is a {name}, an encoder-decoder, which a pool does not take: {_USE}."
        )
    if getattr(config, "is_decoder", False) and not reads_last_token(config):
        raise SecureRouterValueError(
            f"`{argument}.is_decoder` is True: such a {name} reads from left to right, and its first token, which is "
            "its summary, sees no other. Set `is_decoder=False` in its config, if it was trained so."
        )


def probe_pool(model: Any) -> None:
    """Tries the members of a pool that are not of a known family on two texts.

    Nothing is tried while weights are not there, as on the `meta` device.

    Args:
        model (`SecureRouterForSequenceClassification`): The pool.

    Raises:
        `SecureRouterValueError`: The router cannot tell the texts apart; padding, or the other text, changes an answer
            by more than 1e-4; or a member fails. The message names the member.
    """
    members: list[tuple[str, nn.Module, Callable[..., torch.Tensor]]] = []
    if model.config.router_shares_expert is None:
        members.append(("router", model.router.encoder, model.router.summarize))
    for index, expert in enumerate(model.experts):
        members.append((f"experts[{index}]", expert, partial(_answer, model, index)))
        if model.config.router_shares_expert == index:
            members.append(("router", expert, model.router.summarize))
    unknown = [member for member in members if not is_known(member[1].config)]  # type: ignore[arg-type]
    if not unknown or any(parameter.is_meta or not parameter.numel() for parameter in model.parameters()):
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(model):
        for name, member, run in unknown:
            _probe_member(name, member, run, model.config.max_length)


def probe_texts(model: Any) -> torch.Tensor:
    """What a classifier answers to the two texts of a probe, (2, C); each is asked alone."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(model):
        device = next(model.parameters()).device
        return torch.cat([model(input_ids=text.to(device)[None]).logits for text in _texts(model.config, None)])


def _answer(model: Any, index: int, **inputs: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = model._run_expert(index, padded_right(inputs))[0]
    return answer


def _probe_member(name: str, member: Any, run: Callable[..., torch.Tensor], longest: int | None) -> None:
    config = member.config
    kind = f"`{name}` is a {type(member).__name__}, a family that is not known"
    first = next(member.parameters())
    texts = [text.to(first.device) for text in _texts(config, longest)]
    width, padding = max(map(len, texts)), config.get_text_config().pad_token_id or 0

    def batch(left: bool) -> torch.Tensor:
        def row(values: torch.Tensor, fill: int) -> torch.Tensor:
            rest = values.new_full((width - len(values),), fill)
            return torch.cat([rest, values] if left else [values, rest])

        ids = torch.stack([row(text, padding) for text in texts])
        mask = torch.stack([row(torch.ones_like(text), 0) for text in texts])
        return run(input_ids=ids, attention_mask=mask).float()

    try:
        alone = torch.cat(
            [run(input_ids=text[None], attention_mask=torch.ones_like(text)[None]) for text in texts]
        ).float()
        padded = {side: batch(side == "left") for side in ("right", "left")}
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise SecureRouterValueError(
            f"{kind}, and it failed on two short texts ({type(error).__name__}: {first_line}): {_USE}."
        ) from error
    if not bool(torch.isfinite(alone).all()):
        raise SecureRouterValueError(f"{kind}, and its outputs are not finite: {_USE}.")
    scale, apart = float(alone.abs().max()), float((alone[0] - alone[1]).abs().max())
    if first.dtype in (torch.float32, torch.float64):
        # A new head answers almost the same to every text: there the difference of the two texts is the measure.
        tolerance = min(_TOLERANCE * max(1.0, scale), max(1e-2 * apart, 1e-5 * scale))
    else:
        tolerance = 5e-2 * scale
    for side, answers in padded.items():
        change = float((answers - alone).abs().max())
        if not change <= tolerance:
            raise SecureRouterValueError(
                f"{kind}, and padding on the {side} in a batch changes its outputs by {change:.2g}: {_USE}."
            )
    if name == "router" and apart <= 1e-6 * scale:
        raise SecureRouterValueError(
            f"{kind}, and its summaries of two different texts are equal, so that it could not route: {_USE}."
        )


def _texts(config: PreTrainedConfig, longest: int | None) -> list[torch.Tensor]:
    """Two texts of different length and the same first token, as ids."""
    config = config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in "pad bos eos cls sep mask unk".split()}
    ordinary = [index for index in range(getattr(config, "vocab_size", 256)) if index not in special]
    lengths = [min(length, longest or length) for length in _LENGTHS]
    count = sum(lengths)
    chosen = [ordinary[(place + 1) * len(ordinary) // (count + 2)] for place in range(count)]
    texts = torch.tensor(chosen[: lengths[0]]), torch.tensor(chosen[lengths[0] :])
    texts[1][0] = texts[0][0]
    return list(texts)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
