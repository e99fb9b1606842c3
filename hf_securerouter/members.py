# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What transformers asks of a model as a whole, and what the members of a pool answer: attention and embeddings."""

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from .configuration_securerouter import SecureRouterConfig
from .member_configs import attention_of_members


class PoolOfMembers(PreTrainedModel):
    """A model whose attention and embeddings are those of `router.encoder` and `experts`."""

    config: SecureRouterConfig
    router: Any
    experts: nn.ModuleList

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Sets the attention of all members by one name, or of some by a dict.

        Args:
            attn_implementation (`str` or `dict`): A name, or a dict with `"router_config"`, with `"expert_configs"`
                (one name for all, or a list with one name or None for each) and with `""` for the rest.

        Raises:
            `SecureRouterValueError`: The dict is not of this form.
            `ValueError`: A member does not have this implementation.
        """
        if not isinstance(attn_implementation, dict):
            super().set_attn_implementation(attn_implementation, *args, **kwargs)
            return
        shared = self.config.router_shares_expert
        own, router, experts = attention_of_members(attn_implementation, len(self.experts), shared)
        if own is not None:
            super().set_attn_implementation(own, *args, **kwargs)
        for member, chosen in zip((self.router.encoder, *self.experts), (router, *experts), strict=True):
            if chosen is not None:
                cast(PreTrainedModel, member).set_attn_implementation(chosen, *args, **kwargs)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Sets the embeddings of the router, which `get_input_embeddings` gives; each expert keeps its own."""
        self.router.encoder.set_input_embeddings(value)

    def _find_shared_encoder(self) -> None:
        """Points the router to the encoder of this pool's own expert: a replica of `nn.DataParallel` is made with the
        first device's.
        """
        shared = self.config.router_shares_expert
        if shared is not None:
            encoder = cast(PreTrainedModel, self.experts[shared]).base_model
            if self.router.encoder is not encoder:
                self.router.__dict__["encoder"] = encoder
