# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a BERT whose feed-forward layers are mixtures of experts."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig

from .errors import SecureRouterValueError


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
        `SecureRouterValueError`: A field of a mixture is out of range, or the config is of a decoder.

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
        least = {"num_experts": 2, "sparse_step": 1, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise SecureRouterValueError(f"`{name}` should be at least {low}, got {getattr(self, name)!r}.")
        if self.num_experts_per_tok not in (1, 2):
            raise SecureRouterValueError(f"`num_experts_per_tok` should be 1 or 2, got {self.num_experts_per_tok!r}.")
        if self.expert_capacity is not None and self.expert_capacity < 1:
            raise SecureRouterValueError(
                f"`expert_capacity` should be at least 1, or None for no limit, got {self.expert_capacity!r}."
            )
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
