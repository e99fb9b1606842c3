# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What transformers' models take in `forward` and the pool cannot give: it is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from .errors import SecureRouterValueError
from .known_arguments import refuse_unknown


_MEMBERS = "experts differ in depth and width; ask one by itself, as `model.experts[0](..., {name}=True)`"
_OWN_EMBEDDINGS = "each member has embeddings of its own: pass `input_ids`"
_NO_CACHE = "a text is classified in one pass, without a cache: leave it out"
_REFUSED = {
    "output_attentions": _MEMBERS.format(name="output_attentions"),
    "output_hidden_states": _MEMBERS.format(name="output_hidden_states"),
    "position_ids": "each member numbers positions in its own way, from the attention mask: leave it out",
    "inputs_embeds": _OWN_EMBEDDINGS,
    "encoder_hidden_states": "no member reads another encoder: leave it out",
    "encoder_attention_mask": "no member reads another encoder: leave it out",
    "head_mask": "prune heads of an expert instead",
    "cache": _NO_CACHE,
    "cache_position": _NO_CACHE,
    "past_key_values": _NO_CACHE,
    "use_cache": _NO_CACHE,
    "num_items_in_batch": "the losses are means over the batch: leave it out, and divide by accumulation steps",
    "is_causal": "each member attends as it was trained: leave it out",
    "cu_seq_lens_q": "texts are rows of a padded batch, not packed: pass an `attention_mask`",
    "cu_seq_lens_k": "texts are rows of a padded batch, not packed: pass an `attention_mask`",
    "max_length_q": "texts are rows of a padded batch, not packed: pass an `attention_mask`",
    "max_length_k": "texts are rows of a padded batch, not packed: pass an `attention_mask`",
    "seq_idx": "texts are rows of a padded batch, not packed: pass an `attention_mask`",
}
_ALWAYS_GIVEN = "output_router_logits"
_FROM_CONFIG = ("output_attentions", "output_hidden_states")


def check_forward(config: PreTrainedConfig, known: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuses arguments of `forward` that have no effect, and tracing, which would keep one batch's choice of experts.

    Args:
        config (`PreTrainedConfig`): The pool's, whose `output_attentions` and `output_hidden_states` are defaults.
        known (`tuple[str, ...]`): The arguments that `forward` knows.
        given (`Mapping`): The others. None and False ask for nothing.

    Raises:
        `SecureRouterValueError`: An argument, or the field of the config, asks for what the pool cannot give; or the
            call is traced.
        `UnknownArgumentError`: An argument is neither the pool's nor one of transformers' models.
    """
    refuse_unknown("`forward`", given, (*known, *_REFUSED, _ALWAYS_GIVEN, "return_dict"))
    asked = {name: getattr(config, name, None) for name in _FROM_CONFIG} | dict(given)
    for name, reason in _REFUSED.items():
        value = asked.get(name)
        if value is not None and value is not False:
            place = f"`{name}`" if name in given else f"`{name}` of the config"
            raise SecureRouterValueError(f"{place} cannot be used with a pool: {reason}.")
    refuse_tracing()


def refuse_tracing() -> None:
    """Refuses `torch.jit.trace`, `torch.export` and ONNX export of a pool.

    Raises:
        `SecureRouterValueError`: The call is traced.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise SecureRouterValueError(
            "A pool cannot be traced or exported as one graph: which experts run depends on the texts, and the graph "
            "would keep the choice of its example. Export `model.router` and each of `model.experts` by itself, or "
            "use `torch.compile`."
        )
