# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A converted model in clear text, for its owner: what an encrypted answer should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...lengths import copy_into_padding
from ..protocols.masked.layout import member_weights
from .clear_encoder import ClearEncoder
from .converted import Converted


class ClearModel:
    """The experts of a converted model, computed as shares compute them, in float32.

    Args:
        converted (`Converted`): The model.
    """

    def __init__(self, converted: Converted) -> None:
        self._client = converted.client
        manifest = converted.manifest
        self._experts = [f"experts.{index}" for index in range(len(manifest.experts))]
        weights = {name: member_weights(manifest, name, converted.weights) for name in self._experts}
        self._encoders = {
            name: ClearEncoder(manifest.members[name], own, torch.float32) for name, own in weights.items()
        }

    @torch.no_grad()
    def error(self, encoded: Mapping[str, Tensor], logits: Tensor, experts: Sequence[int] | None) -> Tensor:
        """How far each row is from the expert that answered it, or if that is secret, from the nearest expert.

        Args:
            encoded (`Mapping[str, torch.Tensor]`): The batch, as `Client.tokenize` gives it.
            logits (`torch.Tensor`): The encrypted answer, (B, C).
            experts (`list[int]`, *optional*): The expert of each row.

        Returns:
            `torch.Tensor`: (B,), the largest difference of a row's logits.
        """
        is_token = encoded["attention_mask"]
        rows = torch.arange(len(logits)) if experts is None else torch.tensor(experts)
        errors = torch.full((len(self._experts), len(logits)), torch.inf)
        embedded = self._client.embed(encoded)
        for index, name in enumerate(self._experts):
            own = torch.ones(len(rows), dtype=torch.bool) if experts is None else rows == index
            if own.any():
                live = is_token[own, : embedded[name].shape[1]]
                clear = self._encoders[name](copy_into_padding(embedded[name][own], live), live)
                errors[index, own] = (clear - logits[own]).abs().amax(1).nan_to_num(torch.inf, torch.inf)
        return errors.amin(0)
