# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a BERT whose feed-forward layers are mixtures of experts."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig

from .errors import SecureRouterValueError
from .known_arguments import refuse_misspelt
from .value_checks import check_integer, integer, number, one_of


def _capacity(value: Any) -> None:
    if value is not None:
        check_integer("expert_capacity", value, 1, "leave it out for no limit")


_CHECKS = {
    "num_experts": integer("num_experts", 2),
    "num_experts_per_tok": one_of("num_experts_per_tok", (1, 2)),
    "sparse_step": integer("sparse_step", 1),
    "expert_capacity": _capacity,
    "router_aux_loss_coef": number("router_aux_loss_coef", at_least=0),
    "router_z_loss_coef": number("router_z_loss_coef", at_least=0),
}


@strict
class SecureMoeConfig(BertConfig):
    r"""Configuration of [`SecureMoeForSequenceClassification`]: BERT's fields, and those of its mixtures.

    Args:
        num_experts (`int`, *optional*, defaults to 8):
            Experts of each sparse layer, at least 2.
        num_experts_per_tok (`int`, *optional*, defaults to 1):
            How many experts serve a token: 1, as in Switch, or 2.
        sparse_step (`int`, *optional*, defaults to 2):
            Every `sparse_step`-th layer is sparse: 2 makes the second, the fourth, ... layer sparse, 1 all of them.
        expert_capacity (`int`, *optional*):
            How many tokens of one text an expert serves at most. Tokens are served in their order, all first choices
            before any second one; those that find their expert full keep their hidden state, as in Switch. A number
            and no factor of the length, so that padding changes no answer. By default an expert serves all tokens
            that choose it.
        router_aux_loss_coef (`float`, *optional*, defaults to 0.01):
            Weight of the load-balance loss.
        router_z_loss_coef (`float`, *optional*, defaults to 0.001):
            Weight of the z-loss, which keeps router logits small.

    Raises:
        `SecureRouterValueError`: A field of a mixture is out of range or misspelt, or the config is of a decoder.

    Example:
        ```python
        >>> from hf_securerouter import SecureMoeConfig, SecureMoeForSequenceClassification

        >>> config = SecureMoeConfig(num_hidden_layers=4, num_experts=4, num_labels=3)
        >>> model = SecureMoeForSequenceClassification(config)
        ```

    Reference:
        Fedus, Zoph and Shazeer, Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient
        Sparsity, arXiv 2101.03961; Zoph et al., ST-MoE, arXiv 2202.08906 (the z-loss).
    """

    model_type = "secure_moe"
    keys_to_ignore_at_inference = ["router_logits", "aux_loss", "z_loss", "router_loss"]

    num_experts: int = 8
    num_experts_per_tok: int = 1
    sparse_step: int = 2
    expert_capacity: int | None = None
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        refuse_misspelt(f"`{type(self).__name__}`", kwargs, _CHECKS)
        for name, check in _CHECKS.items():
            check(getattr(self, name))
        if self.sparse_step > self.num_hidden_layers:
            raise SecureRouterValueError(
                f"`sparse_step` should be at most the {self.num_hidden_layers} layers, or none is sparse, got "
                f"{self.sparse_step!r}."
            )
        if self.is_decoder or self.add_cross_attention:
            raise SecureRouterValueError(
                "`is_decoder` and `add_cross_attention` should be False: a mixture's capacity is shared by all tokens "
                "of a text, so that early tokens would depend on later ones."
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer of this index, counted from 0, is sparse."""
        return (layer + 1) % self.sparse_step == 0


# Here and not in `registration`: a pool's checkpoint on the Hub brings this file, and perhaps not the package.
AutoConfig.register(SecureMoeConfig.model_type, SecureMoeConfig, exist_ok=True)


__all__ = ["SecureMoeConfig"]
