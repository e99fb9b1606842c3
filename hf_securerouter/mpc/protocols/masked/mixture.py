# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The feed-forward layer of a sparse layer on shares: a mixture of experts, of which each token uses one or two.

The router's scores are compared under encryption, and no choice is ever revealed: it stays a shared one-hot. There are
two ways from there, and the spec says which:

    exact       Without `expert_capacity` no token is dropped. The products of a token's one-hot and its hidden state
                are opened once, N (H + 1) elements, and multiplied by all first matrices, which stand one above the
                other: what remains is the product with the chosen one. Behind the activation every expert's second
                matrix multiplies the same opened rows, and the one-hot chooses among the N results.
    capacity    Each expert has C places. How many tokens before a token chose its expert is a sum of shared one-hots;
                it is compared with the numbers of the places, also in secret. The bit of a token, an expert and a
                place makes a matrix that moves tokens to places by one product, and back by another. Every expert
                computes its C places, filled or not, so that the cost is that of N C rows. A token without a place
                gets 0 from the mixture, as in Switch; padding takes no place.

Both multiply what comes back by the router's probability of the expert, computed beside the experts: exp(s - max) over
the sum of all exp. The last layer computes the first token only, whose first choice always finds a place.

Who sees what: openings of gates only, each under a mask of its own; sizes depend on N, C and the padded length alone.
Cost: 11 rounds more than a dense layer for 8 experts, 18 for 128; with a capacity 6 more. Elements opened: about 2 N H
+ F for a token and a choice, or with a capacity N C (2 H + F) for a text and 2 N C for a token.
Error: a token whose two best experts differ by less than the error of scores (about 2^-10) may use the other one.

Reference:
    Fedus, Zoph and Shazeer, Switch Transformers, 2021 (capacity, dropped tokens); Lepikhin et al., GShard, 2020 (the
    product that moves tokens, in clear); SecMoE, 2026 (hides the choice: select, then compute).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...gates.bit_to_ring import BitToRing
from ...gates.compare import Compare
from ...gates.conjunction import And
from ...gates.expert_linear import ExpertLinear
from ...gates.exponential import EXP_SCALE, Exponential
from ...gates.gate import SecretProtocol, together
from ...gates.in_range import InRange
from ...gates.largest import largest
from ...gates.linear import Linear
from ...gates.matmul import Matmul
from ...gates.party import Party
from ...gates.product import Product
from ...gates.row_function import RowFunction
from ...gates.row_scale import RowScale
from ...gates.secret import Secret
from .steps import SecureSteps


class SecureMixture(SecureSteps):
    """The mixture of one sparse layer; a base class of `MaskedEncoder`, which describes the fields."""

    def _mixture(self, party: Party, name: str, x: Secret, is_token: Tensor) -> SecretProtocol[list[Secret]]:
        """The mixture of a layer, and the residual of its input.

        Args:
            party (`Party`): The party.
            name (`str`): The layer's name in folded weights.
            x (`Secret`): Hidden states, (B, L, H) at `bits.hidden` in Z_2^`feed_forward_width`.
            is_token (`torch.Tensor`): XOR share of the attention mask, uint8 (B, T); L is T or 1.
        """
        rings, bits = self.rings, self.rings.bits
        scores, residual = yield from self._linear(
            party,
            x,
            rings.feed_forward_width,
            rings.bounds.routing,
            {f"{name}.router": bits.intermediate_weights},
            f"{name}.middle",
        )
        scores = yield from party.checked(scores.truncate(bits.scores), f"{self.place} routing")
        if party.guard is not None:
            party.guard.later(InRange(scores.shape).run(party, scores))
        scores = scores.map(lambda words: words.reshape(-1, words.shape[-1]))
        chosen, best = yield from self._choices(party, scores)
        # A column of ones at the scale of x multiplies the biases, the last row of each first matrix.
        one = x.map(lambda words: torch.zeros_like(words[..., :1])).add_public(1 << x.scale)
        x = x.map(lambda words: torch.cat([words, one.words], -1))
        serve = self._by_place if self._has_places(x.shape[1]) else self._by_choice
        scale, outputs = yield from together(
            self._probabilities(party, scores, best), serve(party, name, x, chosen, is_token)
        )
        outputs = yield from party.checked(outputs, f"{self.place} expert")
        scaled = RowScale(outputs.shape, outputs.value_bits, scale.value_bits, rings.outer_width).start(party)
        yield from together(scaled.open_rows(outputs), scaled.open_scalar(scale))
        mixed = scaled.product(rings.bounds.residual)
        shape = (*x.shape[:2], -1)
        return [mixed.map(lambda words: words.sum(1).view(shape)), residual]

    def _has_places(self, length: int) -> bool:
        """Whether tokens may be dropped. The first token alone never is, nor is one if an expert takes all."""
        capacity = self.spec.expert_capacity
        return capacity is not None and capacity < length

    # The router.

    @property
    def _score_bits(self) -> int:
        """Ring in which two scores of a row differ without wrapping."""
        return self.rings.bits.scores + self.rings.bounds.routing + 2

    def _choices(self, party: Party, scores: Secret) -> SecretProtocol[tuple[Tensor, list[Secret]]]:
        """The experts of each row, and their scores.

        Returns:
            `tuple[torch.Tensor, list[Secret]]`: XOR shares of one-hots, uint8 (k, N, rows), and the k best scores,
            (rows,).
        """
        bits = self._score_bits
        one_hot, top = yield from largest(party, scores, bits)
        if self.spec.experts_per_token == 1:
            return one_hot[None], [top]
        # The best score is moved below all others, by twice the range of scores.
        bits += 2
        taken = yield from BitToRing(tuple(one_hot.shape), bits).run(party, one_hot)
        rest = scores.narrow(bits) - taken.map(lambda words: words.t() << (bits - 2), scale=scores.scale)
        second, next_top = yield from largest(party, rest, bits)
        return torch.stack([one_hot, second]), [top, next_top]

    def _probabilities(self, party: Party, scores: Secret, best: list[Secret]) -> SecretProtocol[Secret]:
        """The router's probability of each chosen expert, (rows, k, 1) at `bits.output_weights`."""
        rings, bits = self.rings, self.rings.bits
        rows, experts = scores.shape
        high = max(2, (experts * 10 // 9).bit_length())  # the gate reads sums up to 0.93 of 2^high
        below = [best[0].words[:, None] - scores.words]
        below += [(best[0].words - other.words)[:, None] for other in best[1:]]
        below_best = party.secret(torch.cat(below, -1), self._score_bits, scores.scale, rings.bounds.routing + 1)
        width = EXP_SCALE + high + 2
        gate = Exponential(below_best.shape, rings.bounds.routing + 2, scores.scale, width)
        powers = yield from gate.run(party, below_best)
        total = powers.map(lambda words: words[:, :experts].sum(-1)).truncate(bits.row_sum)
        divide = RowFunction("reciprocal", total.shape, bits.row_sum, -1, high, bits.output_weights)
        inverse = yield from divide.run(party, total.narrow(divide.bits))
        if len(best) == 1:
            return inverse.map(lambda words: words[:, None, None])
        other = powers.map(lambda words: words[:, experts]).truncate(bits.output_weights).with_bound(1)
        multiply = Product(
            other.shape + (1,), other.value_bits, inverse.value_bits, 2 * bits.output_weights + inverse.bound + 2
        )
        second = yield from multiply.run(party, *(part.map(lambda words: words[:, None]) for part in (other, inverse)))
        second = second.truncate(bits.output_weights)
        words = torch.stack([inverse.words[:, None], second.words], 1)
        return party.secret(words, min(inverse.width, second.width), inverse.scale, inverse.bound)

    # The experts.

    def _expert_activation(self, party: Party, inner: Secret) -> SecretProtocol[Secret]:
        rings, bits = self.rings, self.rings.bits
        inner = inner.with_bound(rings.bounds.inner)
        return (
            yield from self._activation(
                party, self.spec.hidden_act, inner, rings.bounds.inner, bits.inner, bits.active, rings.active_width
            )
        )

    def _outputs(self, party: Party, name: str, active: Secret, same: bool) -> SecretProtocol[Secret]:
        """Every expert's second product, (N, R, H) at `bits.active` in Z_2^`selected_width`."""
        spec, rings, bits = self.spec, self.rings, self.rings.bits
        weight = f"{self.prefix}{name}.experts.output"
        gate = ExpertLinear(
            spec.num_experts, active.shape[1], active.shape[2], spec.hidden_size, rings.active_width, weight, same
        )
        outputs = yield from gate.run(party, active, bits.output_weights, rings.bounds.expert)
        bias = party.weights[f"{weight}.bias"].share[:, None]
        return outputs.map(lambda words: words + bias).truncate(bits.active)

    def _by_choice(
        self, party: Party, name: str, x: Secret, chosen: Tensor, is_token: Tensor
    ) -> SecretProtocol[Secret]:
        """Each row's experts of all experts, (rows, k, H): the way without capacity."""
        spec, rings, bits = self.spec, self.rings, self.rings.bits
        choices, experts, rows = chosen.shape
        width, columns = rings.feed_forward_width, x.shape[-1]
        one_hot = yield from BitToRing(tuple(chosen.shape), width).run(party, chosen)
        one_hot = one_hot.map(lambda words: words.permute(2, 0, 1).contiguous())
        x = x.map(lambda words: words.reshape(rows, 1, columns))
        left = one_hot.map(lambda words: words.view(rows, choices * experts, 1)).with_bound(x.bound)
        spread = yield from Matmul(left.shape, x.shape, width).run(party, left, x)
        spread = spread.map(lambda words: words.view(rows * choices, experts * columns))
        weight = f"{self.prefix}{name}.experts.intermediate"
        gate = Linear(rows * choices, experts * columns, width, ((weight, spec.intermediate_size),))
        (inner,) = yield from gate.run(party, spread, (bits.intermediate_weights,), rings.bounds.inner)
        active = yield from self._expert_activation(party, inner.map(lambda words: words[None]))
        outputs = yield from self._outputs(party, name, active, same=True)
        outputs = outputs.map(lambda words: words.transpose(0, 1).contiguous())
        left = one_hot.map(lambda words: words.view(rows * choices, 1, experts)).with_bound(outputs.bound)
        found = yield from Matmul(left.shape, outputs.shape, rings.selected_width).run(party, left, outputs)
        return found.map(lambda words: words.view(rows, choices, -1))

    def _by_place(
        self, party: Party, name: str, x: Secret, chosen: Tensor, is_token: Tensor
    ) -> SecretProtocol[Secret]:
        """Each row's experts, where it has a place with them, (rows, k, H): the way with a capacity."""
        spec, rings, bits = self.spec, self.rings, self.rings.bits
        batch, length, columns = x.shape
        places = spec.expert_capacity or 0
        moves = yield from self._moves(party, chosen, is_token)  # (B, k, L, N, C)
        choices, experts = moves.shape[1], spec.num_experts
        slots = experts * places
        there = moves.map(lambda words: words.sum(1).view(batch, length, slots).transpose(1, 2).contiguous())
        move = Matmul(there.shape, x.shape, rings.feed_forward_width)
        own = yield from move.run(party, there.with_bound(x.bound), x)
        by_expert = own.map(
            lambda words: words.view(batch, experts, places, columns).transpose(0, 1).reshape(experts, -1, columns)
        )
        gate = ExpertLinear(
            experts,
            batch * places,
            columns,
            spec.intermediate_size,
            rings.feed_forward_width,
            f"{self.prefix}{name}.experts.intermediate",
        )
        inner = yield from gate.run(party, by_expert, bits.intermediate_weights, rings.bounds.inner)
        active = yield from self._expert_activation(party, inner)
        outputs = yield from self._outputs(party, name, active, same=False)
        outputs = outputs.map(
            lambda words: words.view(experts, batch, places, -1).transpose(0, 1).reshape(batch, slots, -1)
        )
        back = moves.map(lambda words: words.view(batch, choices * length, slots)).with_bound(outputs.bound)
        found = yield from Matmul(back.shape, outputs.shape, rings.selected_width).run(party, back, outputs)
        return found.map(
            lambda words: words.view(batch, choices, length, -1).transpose(1, 2).reshape(batch * length, choices, -1)
        )

    def _moves(self, party: Party, chosen: Tensor, is_token: Tensor) -> SecretProtocol[Secret]:
        """1 where a choice of a token takes a place of an expert: (B, k, L, N, C) in Z_2^`feed_forward_width`."""
        choices, experts, rows = chosen.shape
        batch, length = is_token.shape
        places = self.spec.expert_capacity or 0
        bits = chosen.view(choices * experts, rows)
        live = tuple((index, len(bits)) for index in range(len(bits)))
        bits = yield from And(len(bits) + 1, rows, live).run(party, torch.cat([bits, is_token.reshape(1, rows)]))
        # In the order in which experts take them: (B, k, L, N).
        queue = bits.view(choices, experts, batch, length).permute(2, 0, 3, 1).contiguous()
        width = max(9, max(length, places + 1).bit_length() + 1)  # words of 8 bits have no matrix product
        one_hot = yield from BitToRing(tuple(queue.shape), width).run(party, queue)
        one_hot = one_hot.map(lambda words: words.view(batch, choices * length, experts))
        before = one_hot.map(lambda words: words.cumsum(1)[..., None])
        own = one_hot.map(lambda words: words[:, :, None])
        count = yield from Matmul(own.shape, before.shape, width).run(party, own, before)
        thresholds = tuple(range(1, places + 2))
        count = count.map(lambda words: words.view(-1))
        less = yield from Compare(count.shape, width, thresholds).run(party, count)
        place = less[1:] ^ less[:-1]  # [number of tokens up to this one = 1, ..., C], and no place for padding's 0
        both = torch.cat([queue.view(-1, experts).t(), place])
        products = tuple((expert, experts + index) for expert in range(experts) for index in range(places))
        moves = yield from And(len(both), both.shape[1], products).run(party, both)
        moves = moves.t().contiguous().view(batch, choices, length, experts, places)
        return (yield from BitToRing(tuple(moves.shape), self.rings.feed_forward_width).run(party, moves))
