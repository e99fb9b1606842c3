# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The router of a pool: from a text's summary, one number for each expert."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .admission import is_known, reads_last_token
from .configuration_securerouter import SecureRouterConfig
from .lengths import last_tokens, padded_right, truncate
from .modeling_pooled import pooled_row
from .pool import accepted_inputs


class SecureRouterGate(nn.Module):
    """The router: a summary encoder, whose first token is the summary (the last token of a causal encoder), and a
    two-layer perceptron with ReLU and dropout.

    Args:
        config (`SecureRouterConfig`): Gives the encoder's config, the hidden width and the dropout.
        encoder (`PreTrainedModel`, *optional*): A loaded encoder, instead of a new one. With
            `config.router_shares_expert` it is the expert's, and stays a module of the expert.

    Inputs: token ids, mask and token types of shape (B, T), or their summaries, (B, H), as `summary`. Output: (B, K),
    one number for each expert.
    """

    def __init__(self, config: SecureRouterConfig, encoder: PreTrainedModel | None = None):
        super().__init__()
        encoder_config = cast(PreTrainedConfig, config.router_config)
        if encoder is None:
            encoder = AutoModel.from_config(encoder_config, dtype=torch.get_default_dtype())
        if config.router_shares_expert is not None:
            # Past `nn.Module.__setattr__`, which would register the expert's encoder twice: its weights are saved,
            # moved and trained once, by the expert.
            self.__dict__["encoder"] = encoder
        else:
            if getattr(encoder, "pooler", None) is not None:
                # The perceptron reads a token, not the pooler's output; some families call what is there.
                encoder.pooler = None if is_known(encoder.config) else nn.Identity()
            self.encoder = encoder
        self.max_length = (
            None if config.router_shares_expert is None else config.length_of(config.router_shares_expert)
        )
        shared = config.router_shares_expert
        expert = None if shared is None else cast(list[PreTrainedConfig], config.expert_configs)[shared]
        own = "last" if reads_last_token(encoder.config) else "first"
        self.pooling = getattr(expert, "pooling", own)  # a pooled expert's row is the summary too
        self.dense = nn.Linear(encoder_config.hidden_size, config.router_hidden_size)
        self.dropout = nn.Dropout(config.router_dropout)
        self.out_proj = nn.Linear(config.router_hidden_size, config.num_experts)

    def summarize(self, **inputs: torch.Tensor | None) -> torch.Tensor:
        """The summary of each text, (B, H): the hidden state of the first token, or of the last one if the encoder is
        causal. A shared encoder reads as many tokens as its expert, and a pooled expert's is pooled as for the expert.
        """
        separators = not reads_last_token(self.encoder.config)
        inputs, _ = truncate(padded_right(inputs), self.max_length, separators)
        hidden = self.encoder(**accepted_inputs(self.encoder, inputs)).last_hidden_state
        hidden = hidden.to(cast(torch.Tensor, inputs["input_ids"]).device)  # a `device_map` may place a shared encoder
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden)), last_tokens(inputs)]
        return pooled_row(hidden, inputs.get("attention_mask"), self.pooling)

    def forward(self, summary: torch.Tensor | None = None, **inputs: torch.Tensor | None) -> torch.Tensor:
        if summary is None:
            summary = self.summarize(**inputs)
        return self.out_proj(self.dropout(F.relu(self.dense(summary))))
