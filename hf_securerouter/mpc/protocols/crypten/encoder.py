# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""An encoder and its head over CrypTen's tensors: a norm behind each step, as in BERT, or before each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...models import EncoderSpec
from ...models.log_buckets import entries_of_pairs
from ...models.relative_positions import relative_buckets
from ...models.rotary import rotary_tables
from ...net.ledger import Ledger
from . import functions
from .sharing import MASKED_SCORE


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": functions.gelu,
    "relu": functions.relu,
    "silu": functions.silu,
    "tanh": functions.tanh,
}


class CryptenEncoder:
    """The layers of one encoder and its head.

    Args:
        spec (`EncoderSpec`): Its public shape.
        weights (`dict[str, MPCTensor]`): By canonical name; linear weights as (in, out).
        ledger (`Ledger`): Attributes messages to gates.
    """

    def __init__(self, spec: EncoderSpec, weights: dict[str, Any], ledger: Ledger) -> None:
        self.spec = spec
        self._weights = weights
        self._ledger = ledger

    def __call__(self, x: Any, attention_bias: Any) -> Any:
        """Classify: `run_encoder`, then `head`.

        Returns:
            `MPCTensor`: Logits, (B, C).
        """
        return self.head(self.run_encoder(x, attention_bias))

    def run_encoder(self, x: Any, attention_bias: Any) -> Any:
        """The row that heads read after the last layer: the first token's, or the mean of all tokens' rows.

        Args:
            x (`MPCTensor`): Embedding output, (B, T, E).
            attention_bias (`MPCTensor`): Added to the attention scores, (B, T); negative for padding.

        Returns:
            `MPCTensor`: (B, H).
        """
        bias = attention_bias.unsqueeze(1).unsqueeze(1)
        if self.spec.relative_buckets is not None:
            places = relative_buckets(x.size(1)).to(x.device)
            bias = bias + self._weights["relative_attention_bias.weight"][:, places]
        if self.spec.embedding_size is not None:
            x = self._linear(x, "embedding_projection")
        for position, index in enumerate(self.spec.layer_map):
            step = self._norm_first_layer if self.spec.norm_first else self._layer
            x = step(x, bias, f"layers.{index}", position)
        if self.spec.norm_first:
            x = self._norm(x, "final_norm")
        if self.spec.pooling == "first":
            return x[:, 0]
        if self.spec.pooling == "late":
            x = self._active(x)
        with self._ledger.gate("pooling"):
            # The bias is 0 for tokens and `MASKED_SCORE` for padding.
            return functions.masked_mean(x, 1 - attention_bias.div(round(MASKED_SCORE)))

    def head(self, hidden: Any) -> Any:
        """Logits, (B, C), from the hidden state of `run_encoder`, which several heads may read."""
        head = self.spec.head
        if self.spec.pooling != "late":
            hidden = self._active(hidden)
        if head.centred:
            with self._ledger.gate("layernorm"):
                hidden = functions.layer_norm(hidden, hidden.size(-1) ** -0.5, 0.0, self.spec.layer_norm_eps)
        return self._linear(hidden, head.classifier)

    def _active(self, rows: Any) -> Any:
        """The head's first linear layer and its activation."""
        head = self.spec.head
        if head.dense is not None:
            rows = self._linear(rows, head.dense)
        return rows if head.activation == "identity" else self._activation(head.activation, rows)

    def _layer(self, x: Any, bias: Any, name: str, position: int) -> Any:
        x = self._norm(x + self._attended(x, bias, name, position), f"{name}.attention_norm")
        return self._norm(x + self._feed_forward(x, name), f"{name}.output_norm")

    def _norm_first_layer(self, x: Any, bias: Any, name: str, position: int) -> Any:
        bare = self.spec.bare_first and not position
        read = x if bare else self._norm(x, f"{name}.attention_norm")
        x = x + self._attended(read, bias, name, position)
        return x + self._feed_forward(self._norm(x, f"{name}.output_norm"), name)

    def _feed_forward(self, x: Any, name: str) -> Any:
        inner = self._activation(self.spec.hidden_act, self._linear(x, f"{name}.intermediate"))
        if self.spec.gated:
            gate = self._linear(x, f"{name}.gate")
            with self._ledger.gate("gate"):
                inner = inner * gate
        return self._linear(inner, f"{name}.output")

    def _attended(self, x: Any, bias: Any, name: str, position: int) -> Any:
        return self._linear(self._attention(x, bias, name, position), f"{name}.attention_output")

    def _attention(self, x: Any, bias: Any, name: str, position: int) -> Any:
        query, key, value = (self._heads(self._linear(x, f"{name}.{part}")) for part in ("query", "key", "value"))
        spec, length = self.spec, x.size(1)
        if spec.rotary:
            tables = rotary_tables(length, spec.head_size, spec.rotary[position])
            cos, sin = (table.float().to(x.device) for table in tables)
            query, key = (one * cos + _turned_by_quarter(one) * sin for one in (query, key))
        reach = spec.windows[position] if spec.windows else None
        if reach is not None and reach < length - 1:
            bias = functions.windowed(bias, reach, MASKED_SCORE)
        with self._ledger.gate("attention"):
            scores = (query * spec.score_scale).matmul(key.transpose(2, 3)) + bias
            if spec.position_terms:
                scores = scores + self._of_positions(query, key, name) * spec.score_scale
        with self._ledger.gate("softmax"):
            probabilities = functions.softmax(scores)
        with self._ledger.gate("attention"):
            context = probabilities.matmul(value).transpose(1, 2)
        return context.reshape(*x.size())

    def _of_positions(self, query: Any, key: Any, name: str) -> Any:
        """The terms of the scores between contents and positions, from queries and keys (B, heads, T, d)."""
        spec, length, terms = self.spec, query.size(2), []
        pairs = entries_of_pairs(length, spec.position_span, spec.position_limit)
        used, column = (words.to(query.device) for words in pairs.unique(return_inverse=True))
        place = torch.arange(length, device=query.device)

        def products(content: Any, part: str) -> Any:
            table = self._weights[f"{name}.{part}.weight"]
            table = table.reshape(1, spec.num_heads, spec.head_size, table.size(-1))[..., used]
            return content.matmul(table)

        if "c2p" in spec.position_terms:
            terms.append(products(query, "position_keys")[:, :, place[:, None], column])
        if "p2c" in spec.position_terms:
            terms.append(products(key, "position_queries")[:, :, place[None, :], column])
        return sum(terms[1:], terms[0])

    def _heads(self, x: Any) -> Any:
        """(B, T, H) to (B, heads, T, H / heads)."""
        batch, length, _ = x.size()
        return x.reshape(batch, length, self.spec.num_heads, self.spec.head_size).transpose(1, 2)

    def _linear(self, x: Any, name: str) -> Any:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        shape = x.size()
        with self._ledger.gate("linear"):
            return functions.linear(x.reshape(-1, shape[-1]), weight, bias).reshape(*shape[:-1], bias.size(0))

    def _norm(self, x: Any, name: str) -> Any:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        with self._ledger.gate("layernorm"):
            return functions.layer_norm(x, weight, bias, self.spec.layer_norm_eps, self.spec.norm == "layer")

    def _activation(self, name: str, x: Any) -> Any:
        with self._ledger.gate(name):
            return _ACTIVATIONS[name](x)


def _turned_by_quarter(x: Any) -> Any:
    """As `models.rotary.turned_by_quarter`, for an `MPCTensor`."""
    half = x.size(-1) // 2
    return functions.crypten.cat([-x[..., half:], x[..., :half]], -1)
