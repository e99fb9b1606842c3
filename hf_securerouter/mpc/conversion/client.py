# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The client: tokens, embeddings in clear, and labels from reconstructed logits.

The client holds the embedding layers (tables and their norm) of the router and of every expert, and no other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...abstention import AbstainBelow, least_probabilities
from ...configuration_securerouter import ProblemType
from ...errors import BadRowsError, SecureRouterValueError
from ...lengths import padded_right, truncate
from ...texts import Text, as_texts
from ...token_ids import as_id_tensors, check_ids, vocabulary_of
from ...windows import Windows
from ..models import Architecture


Inputs = Iterable[Text] | Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """How logits become labels.

    Args:
        names (`dict[int, str]`): `id2label`.
        regression (`bool`): Whether the first logit is the predicted number.
        multi_label (`bool`): Whether a text has any number of labels, each with a probability of its own.
    """

    names: dict[int, str]
    regression: bool
    multi_label: bool = False

    @classmethod
    def of(cls, config: Any) -> Labels:
        """The labels of a model with this config."""
        multi_label = config.problem_type == "multi_label_classification"
        one_number = config.problem_type == "regression" or config.num_labels == 1
        return cls(dict(config.id2label), one_number and not multi_label, multi_label)

    @property
    def problem_type(self) -> ProblemType:
        """As in a config."""
        if self.regression:
            return "regression"
        return "multi_label_classification" if self.multi_label else "single_label_classification"

    def __call__(
        self, logits: Tensor, abstain_below: AbstainBelow | None = None
    ) -> list[str | None] | list[float] | list[list[str]]:
        """One label or one number for each row of (B, C) logits; of a multi-label model, the list of all labels that
        are more likely than not. Labels whose probability is below `abstain_below` are withheld: None, or left out."""
        least = self.least(abstain_below)
        probabilities = self.probabilities(logits)
        if probabilities is None:
            return logits[:, 0].tolist()
        given = (probabilities.double() >= torch.tensor(least, dtype=torch.float64)).tolist()
        if self.multi_label:
            return [[self.names[index] for index, likely in enumerate(row) if likely] for row in given]
        best = logits.argmax(dim=-1).tolist()
        return [self.names[index] if row[index] else None for index, row in zip(best, given, strict=True)]

    def least(self, abstain_below: AbstainBelow | None) -> list[float]:
        """The probability from which on each label is given, see `least_probabilities`."""
        return least_probabilities(abstain_below, self.names, self.problem_type)

    def probabilities(self, logits: Tensor) -> Tensor | None:
        """The probability of each label, (B, C): a sigmoid for each label of a multi-label model, otherwise a softmax
        over all; None for a regression."""
        if self.regression:
            return None
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)


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

    def cut(self, inputs: Inputs, windows: Windows) -> tuple[dict[str, Tensor], list[int]]:
        """As `tokenize`, for texts that are read in windows.

        Args:
            inputs (iterable or `Mapping`): As for `tokenize`; token ids only with one window.
            windows (`Windows`): How many, and how far they overlap.

        Returns:
            `tuple[dict[str, torch.Tensor], list[int]]`: Tensors of `windows.most` rows for each input, and how many of
            these rows count.

        Raises:
            `BadRowsError`, `SecureRouterValueError`: As `tokenize` and `Windows.split`; or token ids are given.
        """
        if windows.most == 1:
            encoded = self.tokenize(inputs)
            return encoded, [1] * len(encoded["input_ids"])
        if isinstance(inputs, Mapping) and "input_ids" in inputs:
            raise SecureRouterValueError("`max_windows` cuts texts, and `inputs` holds token ids: pass the texts.")
        rows, counts = windows.split(self._known_tokenizer(), as_texts(inputs), self.max_length)
        encoded = padded_right(self._padded(rows))
        try:
            check_ids("inputs", encoded["input_ids"], vocabulary_of(*self.configs.values()))
        except BadRowsError as error:
            bad = {row // windows.most: problem for row, problem in error.rows.items()}
            raise BadRowsError("inputs", bad) from None
        return encoded, counts

    def _known_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise SecureRouterValueError(
                "`tokenizer` was not given to `to_mpc`, so texts cannot be read: pass it there."
            )
        return self.tokenizer

    def _tokenize(self, inputs: Any) -> Mapping[str, Tensor]:
        texts, tokenizer = as_texts(inputs), self._known_tokenizer()
        return self._padded(
            [
                tokenizer(*((text,) if isinstance(text, str) else text), truncation=True, max_length=self.max_length)
                for text in texts
            ]
        )

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        return self.tokenizer.pad(rows, padding="max_length", max_length=self.max_length, return_tensors="pt")

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
