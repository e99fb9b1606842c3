# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The client: tokens, embeddings in clear, and labels from reconstructed logits.

The client holds the embedding tables of the router and of every expert, and no other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import SecureRouterValueError
from ...lengths import padded_right, truncate
from ...texts import Text, as_texts
from ...token_ids import as_id_tensors, check_ids, vocabulary_of
from ..models import Architecture


Inputs = Iterable[Text] | Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """How logits become labels.

    Args:
        names (`dict[int, str]`): `id2label`.
        regression (`bool`): Whether the first logit is the predicted number.
    """

    names: dict[int, str]
    regression: bool

    def __call__(self, logits: Tensor, abstain_below: float | None = None) -> list[str | None] | list[float]:
        """One label, or one number, for each row of (B, C) logits; None where the label's probability is below
        `abstain_below`."""
        if self.regression:
            return logits[:, 0].tolist()
        least = 0.0 if abstain_below is None else abstain_below
        scores, classes = logits.softmax(dim=-1).max(dim=-1)
        return [
            self.names[index] if score >= least else None
            for index, score in zip(classes.tolist(), scores.tolist(), strict=True)
        ]


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

    def tokenize(self, inputs: Inputs) -> dict[str, Tensor]:
        """Token ids, attention mask and token types of shape (B, max_length), with padding on the right.

        Args:
            inputs (iterable or `Mapping`): Texts and (text, pair) tuples, see `as_texts`, or what a tokenizer
                returned, as lists, arrays or tensors.

        Raises:
            `BadRowsError`: A row is no text, is empty, has half of a surrogate pair, holds anything but integers, or
                has an id beyond the vocabulary or the token types. All such rows are named.
            `SecureRouterValueError`: The inputs are neither texts nor token ids, or have no row; texts are given
                without a tokenizer; token ids are not of shape (B, at most `max_length`); or an attention mask has a
                row of zeros.
        """
        is_tokenized = isinstance(inputs, Mapping) and "input_ids" in inputs
        encoded = padded_right(self._pad(cast(Mapping[str, Any], inputs)) if is_tokenized else self._tokenize(inputs))
        check_ids(
            "input_ids" if is_tokenized else "inputs", encoded["input_ids"], vocabulary_of(*self.configs.values())
        )
        if "token_type_ids" in encoded:
            check_ids("token_type_ids", encoded["token_type_ids"], self._token_types())
        return encoded

    def _tokenize(self, inputs: Any) -> Mapping[str, Tensor]:
        texts = as_texts(inputs)
        if self.tokenizer is None:
            raise SecureRouterValueError(
                "`tokenizer` was not given to `to_mpc`, so texts cannot be read: pass it there."
            )
        encoded = [
            self.tokenizer(*((text,) if isinstance(text, str) else text), truncation=True, max_length=self.max_length)
            for text in texts
        ]
        return self.tokenizer.pad(encoded, padding="max_length", max_length=self.max_length, return_tensors="pt")

    def _pad(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        given = as_id_tensors(inputs, self.pad_token_id)
        ids = given["input_ids"]
        if ids.shape[1] > self.max_length:
            raise SecureRouterValueError(
                f"`input_ids` should be of shape (examples, up to {self.max_length} tokens), got {tuple(ids.shape)}: "
                "truncate them, or convert with a larger `max_length`."
            )
        width = self.max_length - ids.shape[1]
        fill = {"input_ids": self.pad_token_id}
        return {name: nn.functional.pad(values, (0, width), value=fill.get(name, 0)) for name, values in given.items()}

    def _token_types(self) -> int | None:
        """How many token types all members have that have more than one; the others read none."""
        sizes = [getattr(config, "type_vocab_size", 0) or 0 for config in self.configs.values()]
        return min((size for size in sizes if size > 1), default=None)

    def embed(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The embedding output of every member with an encoder of its own, (B, tokens the member reads, H) float32."""
        embedded = {}
        for name, (architecture, module) in self._members.items():
            read, _ = truncate(encoded, self.lengths.get(name))
            embedded[name] = architecture.embed(module, read["input_ids"], read.get("token_type_ids"))
        return embedded
