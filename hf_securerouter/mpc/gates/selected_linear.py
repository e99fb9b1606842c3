# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Products with one of several fixed weights, chosen for each row by secret bits: select, then compute.

With s_k = f_k xor b_k (f opened), E = x + A opened once as in `linear.py`, and W_k = D_k + B_k,

    [sum s_k W_k] = sum f_k [W_k] + (1 - 2 f_k) [b_k W_k],    [b_k W_k] = [b_k] D_k + [b_k B_k]
    [x sum s_k W_k] = E [sum s_k W_k] - sum f_k [A W_k] + (1 - 2 f_k) [b_k A W_k],

where the shares of A W_k and of b_k A W_k are computed before the query arrives: [A] D_k + [A B_k] and [b_k A] D_k +
[b_k A B_k]. The online bytes do not depend on the size of the weights; each candidate adds one bit a row.

Who sees what: both parties see E and f, uniform because A and b are. The dealer sees A, b and B_k.
Cost: K bits an element of x and one bit a row and candidate, one round. Dealer, a row and candidate: K bits for each
element of x and of the weights, 2 K bits an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ring.matmul import ring_matmul
from ..ring.randomness import Pad
from .gate import Dealing, Gate, SecretProtocol, Tuple
from .party import Party
from .secret import Secret
from .weight_share import WeightShare


class _Weight(NamedTuple):
    """Shares for one weight and its bias, of all candidates, computed before the query arrives.

    Args:
        masked_products (`torch.Tensor`): Shares of A W_k, (K, B, T, n).
        chosen_products (`torch.Tensor`): Shares of b_k A W_k, (K, B, T, n).
        chosen (`torch.Tensor`): Shares of b_k W_k, (K, B, F, n) or (K, B, F).
        chosen_bias (`torch.Tensor`): Shares of b_k times the bias, (K, B, n).
    """

    masked_products: Tensor
    chosen_products: Tensor
    chosen: Tensor
    chosen_bias: Tensor


@dataclass(frozen=True)
class SelectedLinear(Gate):
    """x W + c, for a weight W and its bias c that are chosen row by row.

    Args:
        rows (`int`): B.
        length (`int`): T; x has B x T rows, of which T share one choice.
        features (`int`): F, columns of x.
        width (`int`): K, the ring of the opening and of the results.
        candidates (`tuple[str, ...]`): Prefixes of the weights' names.
        matrices (`tuple[tuple[str, int], ...]`): Names of weights of shape (F, n), and n; the bias of `w` is `w.bias`.
        diagonals (`tuple[str, ...]`): Names of weights of shape (F,), multiplied elementwise.
    """

    rows: int
    length: int
    features: int
    width: int
    candidates: tuple[str, ...]
    matrices: tuple[tuple[str, int], ...]
    diagonals: tuple[str, ...] = ()

    @property
    def _weights(self) -> list[tuple[str, int | None]]:
        return [*self.matrices, *((name, None) for name in self.diagonals)]

    def _names(self, name: str) -> list[str]:
        return [f"{prefix}{name}" for prefix in self.candidates]

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        return ring_matmul(left, right, self.width)

    def deal(self, dealing: Dealing) -> None:
        mask = dealing.mask((self.rows, self.length, self.features), self.width)
        bit = dealing.mask((len(self.candidates), self.rows), 1).to(torch.int64)
        dealing.give(bit, self.width)
        dealing.give(bit[..., None, None] * mask, self.width)
        for name, columns in self._weights:
            for index, candidate in enumerate(self._names(name)):
                weight, bias = dealing.weight_mask(candidate), dealing.weight_mask(f"{candidate}.bias")
                product = mask * weight if columns is None else self._product(mask, weight)
                chosen = bit[index].view(-1, *[1] * weight.dim()) * weight
                dealing.give(product, self.width)
                dealing.give(bit[index][:, None, None] * product, self.width)
                dealing.give(chosen, self.width)
                dealing.give(bit[index][:, None] * bias, self.width)

    def prepare(self, randomness: Tuple, weights: Mapping[str, WeightShare]) -> tuple[Pad, Pad, list[_Weight]]:
        mask = randomness.mask((self.rows, self.length, self.features), self.width)
        hidden = randomness.mask((len(self.candidates), self.rows), 1)
        bit = randomness.word((len(self.candidates), self.rows), self.width).to(torch.int64)
        chosen_mask = randomness.word((len(self.candidates), *mask.words.shape), self.width)
        prepared = []
        for name, columns in self._weights:
            parts: tuple[list[Tensor], ...] = ([], [], [], [])
            for index, candidate in enumerate(self._names(name)):
                masked = weights[candidate].masked
                bias = weights[f"{candidate}.bias"].masked
                multiply = torch.mul if columns is None else self._product
                shape = (self.rows, self.length, self.features if columns is None else columns)
                own = bit[index].view(-1, *[1] * masked.dim())
                parts[0].append(multiply(mask.words, masked).add_(randomness.word(shape, self.width)))
                parts[1].append(multiply(chosen_mask[index], masked).add_(randomness.word(shape, self.width)))
                parts[2].append((own * masked).add_(randomness.word((self.rows, *masked.shape), self.width)))
                parts[3].append(
                    (bit[index][:, None] * bias).add_(randomness.word((self.rows, *bias.shape), self.width))
                )
            prepared.append(_Weight(*(torch.stack(part) for part in parts)))
        return mask, hidden, prepared

    def run(
        self, party: Party, x: Secret, bits: Tensor, scales: tuple[int, ...], bound: int
    ) -> SecretProtocol[list[Secret]]:
        """Open x and the bits once, and multiply.

        Args:
            party (`Party`): The party, with the weights' shares.
            x (`Secret`): (B * T, F), in a ring of at least K bits.
            bits (`torch.Tensor`): XOR shares of a one-hot for each row, uint8 (candidates, B).
            scales (`tuple[int, ...]`): Fraction bits of each weight, matrices first.
            bound (`int`): Bound of every result.

        Returns:
            `list[Secret]`: (B * T, n) for each matrix, then (B * T, F) for each diagonal, in Z_2^K at scale x.scale +
            the weight's, biases added.
        """
        randomness = party.take(self)
        mask, hidden, weights = randomness.prepared
        words = x.narrow(self.width).words.view(self.rows, self.length, self.features)
        opened, flips = yield [randomness.open(words, mask), randomness.open(bits, hidden)]
        flip = flips.to(torch.int64)
        sign = 1 - 2 * flip
        results = []
        for (name, columns), weight, scale in zip(self._weights, weights, scales, strict=True):
            shares = [party.weights[candidate].share for candidate in self._names(name)]
            biases = [party.weights[f"{candidate}.bias"].share for candidate in self._names(name)]
            chosen = _combined(flip, shares, sign, weight.chosen)
            bias = _combined(flip, biases, sign, weight.chosen_bias)
            bracket = _combined(flip, list(weight.masked_products), sign, weight.chosen_products)
            product = opened * chosen[:, None] if columns is None else self._product(opened, chosen)
            words = product.sub_(bracket).add_(bias[:, None])
            words = words.view(-1, words.shape[-1])
            results.append(party.secret(words, self.width, x.scale + scale, bound))
        return results


def _combined(flip: Tensor, plain: list[Tensor], sign: Tensor, chosen: Tensor) -> Tensor:
    """The sum over k of f_k u_k + (1 - 2 f_k) v_k, (B, ...); `plain` are (...) or (B, ...)."""
    shape = (-1, *[1] * (chosen.dim() - 2))
    total = torch.zeros_like(chosen[0])
    for index, words in enumerate(plain):
        total.addcmul_(flip[index].view(shape), words.expand_as(total))
        total.addcmul_(sign[index].view(shape), chosen[index])
    return total
