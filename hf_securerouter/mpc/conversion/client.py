# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The client: tokens, embeddings in clear, and labels from reconstructed logits.

The client holds the embedding tables of the router and of every expert, and no other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SecureRouterValueError
from ...lengths import padded_right, truncate
from ..models import Architecture


Text = str | tuple[str, str]


@dataclass(frozen=True)
class Labels:
    """How logits become labels.

    Args:
        names (`dict[int, str]`): `id2label`.
        regression (`bool`): Whether the first logit is the predicted number.
    """

    names: dict[int, str]
    regression: bool

    def __call__(self, logits: Tensor) -> list[str] | list[float]:
        """One label, or one number, for each row of (B, C) logits."""
        if self.regression:
            return logits[:, 0].tolist()
        return [self.names[index] for index in logits.argmax(-1).tolist()]


class Client:
    """Turns texts into the embedding outputs that are shared, all padded to one public length.

    Args:
        members (`dict[str, tuple[Architecture, nn.Module]]`): Architecture and base model of the router and of each
            expert; only the embeddings are copied. A router that shares an expert's encoder is left out.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for texts, not for token ids.
        max_length (`int`): Tokens to which every input is padded or truncated.
        labels (`Labels`): How logits become labels.
        pad_token_id (`int`): The token id of padding.
        lengths (`dict[str, int]`, *optional*): Tokens that a member reads, for members that read only a part.
    """

    def __init__(
        self,
        members: Mapping[str, tuple[Architecture, Any]],
        tokenizer: Any,
        max_length: int,
        labels: Labels,
        pad_token_id: int = 0,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.labels = labels
        self.pad_token_id = pad_token_id
        self.lengths = dict(lengths or {})
        self.configs = {name: encoder.config for name, (_, encoder) in members.items()}
        self._members = {
            name: (architecture, copy.deepcopy(architecture.embeddings(encoder)).to("cpu", torch.float32).eval())
            for name, (architecture, encoder) in members.items()
        }

    @property
    def embeddings(self) -> dict[str, nn.Module]:
        """The modules that the client keeps in clear, by member."""
        return {name: module for name, (_, module) in self._members.items()}

    def tokenize(self, inputs: Sequence[Text] | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Token ids, attention mask and token types of shape (B, max_length), with padding on the right.

        Args:
            inputs (`list` or `Mapping`): Texts and (text, pair) tuples, or the tensors that a tokenizer returned.

        Raises:
            `SecureRouterValueError`: The inputs are no list of texts or an empty one, texts are given without a
                tokenizer, token ids are not of shape (B, at most `max_length`), or an attention mask has another
                shape or a row of zeros.
        """
        if isinstance(inputs, Mapping):
            return self._pad(inputs)
        if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not inputs:
            raise SecureRouterValueError(
                f"`inputs` should be a list with at least one text, got {type(inputs).__name__}: pass `[text]`."
            )
        if self.tokenizer is None:
            raise SecureRouterValueError(
                "`tokenizer` was not given to `to_mpc`, so texts cannot be read: pass it there."
            )
        encoded = []
        for index, text in enumerate(inputs):
            pair = (text,) if isinstance(text, str) else text
            if not isinstance(pair, (tuple, list)) or len(pair) > 2 or not all(isinstance(part, str) for part in pair):
                raise SecureRouterValueError(
                    f"`inputs[{index}]` should be a text or a (text, pair) tuple of two, got {type(text).__name__}."
                )
            encoded.append(self.tokenizer(*pair, truncation=True, max_length=self.max_length))
        padded = self.tokenizer.pad(encoded, padding="max_length", max_length=self.max_length, return_tensors="pt")
        return padded_right(padded)

    def _pad(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = inputs["input_ids"]
        if ids.dim() != 2 or not ids.shape[0] or ids.shape[1] > self.max_length:
            raise SecureRouterValueError(
                f"`input_ids` should be of shape (examples, up to {self.max_length} tokens), got {tuple(ids.shape)}: "
                "truncate them, or convert with a larger `max_length`."
            )
        mask = inputs.get("attention_mask")
        types = inputs.get("token_type_ids")
        width = self.max_length - ids.shape[1]
        padded = {"attention_mask": nn.functional.pad(torch.ones_like(ids) if mask is None else mask, (0, width))}
        padded["input_ids"] = nn.functional.pad(ids, (0, width), value=self.pad_token_id)
        if types is not None:
            padded["token_type_ids"] = nn.functional.pad(types, (0, width))
        return padded_right(padded)

    def embed(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The embedding output of every member with an encoder of its own, (B, tokens the member reads, H) float32."""
        embedded = {}
        for name, (architecture, module) in self._members.items():
            read, _ = truncate(encoded, self.lengths.get(name))
            embedded[name] = architecture.embed(module, read["input_ids"], read.get("token_type_ids"))
        return embedded
