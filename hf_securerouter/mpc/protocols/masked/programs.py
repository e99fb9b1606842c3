# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The programs that answer a query under the masked protocol, by routing privacy.

    revealed    router/B, then experts.k/n for each chosen expert, on the n rows that chose it
    quota       route/B, or for a large batch read/n for every n rows and then rank/B; serve/n.n.n on the ranks of
                each expert's quota; restore/B
    oblivious   oblivious/B: every expert, or one that is selected under encryption if all have one shape

If the router shares an expert's encoder, the first program also computes that expert's logits, for all rows and in
parallel with the router's scores; the expert is not run again.

Under `quota` the parties shuffle each query's score, embeddings and attention mask with a permutation that neither
knows, and learn the ranks in the shuffled order: a uniform permutation, because the keys are made distinct before the
shuffle. Which expert serves which rank is public and fixed before any data is seen. Logits that the first program has
computed are shuffled too.

Additive shares pass from one program to another as `Secret`s, which know their ring: a program that needs a larger
one refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....errors import SecureRouterError
from ...gates.argmax import Argmax, Reveal
from ...gates.gate import SecretProtocol, together
from ...gates.matmul import Matmul
from ...gates.party import Party
from ...gates.ranks import ranks
from ...gates.secret import Secret
from ...gates.select import Select
from ...gates.shuffle import Shuffle, Shuffled
from ...gates.widen import Widen
from ...models.manifest import Manifest
from .evaluator import SecureProgram
from .layout import ATTENTION_MASK, LOGITS, all_weight_shapes, encoders, input_width, logit_width
from .program_name import Kind, ProgramName
from .ring_widths import RingWidths
from .selected_encoder import SelectedEncoder


Inputs = Mapping[str, Tensor | Secret]
"""By name: the client's shares as words, whose rings the layout fixes, or a `Secret` from an earlier program."""

HIDDEN = "row"  # name of the hidden state that heads read
ORDER = "order"  # name of the share of the permutation


def classify(manifest: Manifest, member: str, party: Party, shares: Inputs) -> SecretProtocol[Secret]:
    """The logits of a batch, from shares of a member's embeddings and of the attention mask."""
    hidden = yield from summarize(manifest, member, party, shares)
    return (yield from encoders(manifest)[member].head(party, hidden))


def summarize(manifest: Manifest, member: str, party: Party, shares: Inputs) -> SecretProtocol[Secret]:
    """The hidden state that a member's head reads, (B, H), from its own or its shared encoder."""
    owner = manifest.encoder_of(member)
    encoder, x = encoders(manifest)[owner], received(manifest, owner, party, shares)
    if x.width < encoder.input_width:
        x = yield from Widen(x.shape, x.width, encoder.input_width).run(party, x)
    return (yield from encoder.run_encoder(party, x, is_token(shares)[:, : manifest.length_of(owner)]))


def expert_head(manifest: Manifest, party: Party, hidden: Secret) -> list[SecretProtocol[Secret]]:
    """If the router shares an expert's encoder, that expert's head, to run in parallel with the router's; else []."""
    owner = manifest.encoder_of("router")
    return [] if owner == "router" else [encoders(manifest)[owner].head(party, hidden)]


def received(manifest: Manifest, member: str, party: Party, shares: Inputs) -> Secret:
    """A member's embeddings, (B, T, E), as the client shared them or as they were shuffled.

    Raises:
        `SecureRouterError`: An earlier program left them in a smaller ring.
    """
    found, width, rings = shares[member], input_width(manifest, member), encoders(manifest)[member].rings
    if isinstance(found, Secret):
        return found.narrow(width)
    return party.secret(found, width, rings.bits.hidden, rings.bounds.embedding)


def is_token(shares: Inputs) -> Tensor:
    """XOR shares of the attention mask, uint8 (B, T)."""
    found = shares[ATTENTION_MASK]
    assert isinstance(found, Tensor)
    return found


def carried(shares: Inputs, name: str, width: int) -> Secret:
    """The result of an earlier program, in a ring of `width` bits.

    Raises:
        `SecureRouterError`: It was left in a smaller ring.
    """
    found = shares[name]
    assert isinstance(found, Secret)
    return found.narrow(width)


def choose(manifest: Manifest, party: Party, hidden: Secret) -> SecretProtocol[Tensor]:
    """XOR shares of the one-hot of each row's expert, chosen by the router's head; uint8 (K, B)."""
    scores = yield from encoders(manifest)["router"].head(party, hidden)
    rows, choices = scores.shape
    return (yield from Argmax(rows, choices, scores.value_bits).run(party, scores))


def choose_and_answer(manifest: Manifest, party: Party, shares: Inputs) -> SecretProtocol[tuple[Tensor, list[Secret]]]:
    """The one-hot of `choose`, and the logits of the expert that shares its encoder with the router, if any."""
    hidden = yield from summarize(manifest, "router", party, shares)
    bits, *logits = yield from together(choose(manifest, party, hidden), *expert_head(manifest, party, hidden))
    return bits, logits


# Revealed.


def reveal(manifest: Manifest, party: Party, shares: Inputs) -> SecretProtocol[tuple[Tensor, list[Secret]]]:
    """The result of `choose_and_answer`, with the one-hot opened to both parties."""
    bits, logits = yield from choose_and_answer(manifest, party, shares)
    one_hot = yield from Reveal(tuple(bits.shape)).run(party, bits)
    return one_hot, logits


# Quota.


def route(
    manifest: Manifest, party: Party, shares: Inputs
) -> SecretProtocol[tuple[Tensor, Secret, dict[str, Tensor | Secret], list[Secret]]]:
    """Score, shuffle and rank a batch, from the router's embeddings or, if `read` has run its encoder, from `HIDDEN`.

    Returns:
        The public ranks in the shuffled order, int64 (B,), 0 for the query that needs the costliest expert most; a
        share of the permutation, (B, B) in Z_2^`logit_width` or a larger ring; and, in the shuffled order, shares of
        the attention mask and of the inputs of the experts still to run, and the logits of the expert that has run,
        if any.
    """
    batch, answer_width = len(is_token(shares)), logit_width(manifest)
    key_width = encoders(manifest)["router"].logit_width + (batch - 1).bit_length()
    owner = manifest.encoder_of("router")
    embeddings = {name: received(manifest, name, party, shares) for name in manifest.inputs if name != owner}
    travelling = [*(x.words for x in embeddings.values()), is_token(shares)]
    widths = [*(x.width for x in embeddings.values()), 1]
    tensors = [(words.numel() // batch, width) for words, width in zip(travelling, widths, strict=True)]
    if owner != "router":
        tensors.append((manifest.experts[0].head.num_outputs, answer_width))
    shuffle = Shuffle(batch, ((1, key_width), *tensors), answer_width).start(party)

    def ranked(hidden: Secret) -> SecretProtocol[Tensor]:
        scores = yield from encoders(manifest)["router"].head(party, hidden)
        return (yield from rank_in_secret_order(party, shuffle, scores))

    def answered(answer: SecretProtocol[Secret]) -> SecretProtocol[Secret]:
        logits = (yield from answer).narrow(answer_width)
        return replace(logits, words=(yield from shuffle.open(len(tensors), logits.words)))

    def routed() -> SecretProtocol[list[Any]]:
        if HIDDEN in shares:
            hidden = carried(shares, HIDDEN, encoders(manifest)[owner].hidden_width)
        else:
            hidden = yield from summarize(manifest, "router", party, shares)
        return (yield from together(ranked(hidden), *map(answered, expert_head(manifest, party, hidden))))

    (found, *logits), *moved, tokens = yield from together(
        routed(), *(shuffle.open(index, words) for index, words in enumerate(travelling, 1))
    )
    shuffled: dict[str, Tensor | Secret] = {ATTENTION_MASK: tokens}
    shuffled |= {name: replace(x, words=words) for (name, x), words in zip(embeddings.items(), moved, strict=True)}
    return found, shuffle.order, shuffled, logits


def rank_in_secret_order(party: Party, shuffle: Shuffled, scores: Secret) -> SecretProtocol[Tensor]:
    """The public ranks of scores, in the order of a shuffle.

    Args:
        party (`Party`): The party.
        shuffle (`Shuffled`): A shuffle whose first tensor are the keys.
        scores (`Secret`): (B, 1), ranked as signed numbers in their ring, which holds twice their bound. Scores
            beyond it are ranked wrongly, and still by a permutation.

    Returns:
        `torch.Tensor`: int64 (B,), how many scores are higher. Of equal scores, the first query's counts as higher.
    """
    batch = scores.shape[0]
    index_bits = (batch - 1).bit_length()
    # Keys are made distinct before the shuffle: breaking a tie afterwards would reveal a part of the secret order.
    index = torch.arange(batch - 1, -1, -1, device=scores.words.device)[:, None]
    keys = (scores.words << index_bits) + (index if party.rank == 0 else 0)
    keys = yield from shuffle.open(0, keys)
    bits = scores.width + index_bits
    return (yield from ranks(party, party.secret(keys[:, 0], bits, 0, bits - 2), bits))


def serve(manifest: Manifest, counts: tuple[int, ...], party: Party, shares: Inputs) -> SecretProtocol[list[Secret]]:
    """The logits of each expert for its rows, all experts in parallel.

    Args:
        manifest (`Manifest`): The model's manifest.
        counts (`tuple[int, ...]`): Rows of each expert; the attention mask holds them expert after expert.
        party (`Party`): The party.
        shares (`Mapping[str, torch.Tensor]`): Inputs of every expert with rows, and the attention mask of all rows.
    """
    runs, start = [], 0
    for index, count in enumerate(counts):
        if count:
            member = f"experts.{index}"
            own = {member: shares[member], ATTENTION_MASK: is_token(shares)[start : start + count]}
            runs.append(classify(manifest, member, party, own))
            start += count
    return (yield from together(*runs))


def restore(manifest: Manifest, party: Party, shares: Inputs) -> SecretProtocol[Secret]:
    """Logits in the order of the queries, from logits in the shuffled order and the share of the permutation.

    Raises:
        `SecureRouterError`: One of the two was left in a smaller ring than that of the logits.
    """
    width = logit_width(manifest)
    back = carried(shares, ORDER, width).map(Tensor.t)
    logits = carried(shares, LOGITS, width)
    return (yield from Matmul(back.shape, logits.shape, width).run(party, back, logits))


# Oblivious.


def oblivious(manifest: Manifest, party: Party, shares: Inputs) -> SecretProtocol[Secret]:
    """The logits of each row's chosen expert; every expert computes every row."""
    width = logit_width(manifest)
    others = [name for name in manifest.inputs if name not in ("router", manifest.encoder_of("router"))]
    (bits, own), *logits = yield from together(
        choose_and_answer(manifest, party, shares), *(classify(manifest, name, party, shares) for name in others)
    )
    if manifest.router_shares_expert is not None:
        logits.insert(manifest.router_shares_expert, *own)
    words = torch.stack([logit.narrow(width).words for logit in logits])
    gate = Select(len(logits), words.shape[1], words.shape[2], width)
    return (yield from gate.run(party, bits, party.secret(words, width, logits[0].scale, logits[0].bound)))


def select_then_compute(manifest: Manifest, party: Party, shares: Inputs) -> SecretProtocol[Secret]:
    """The logits of one expert for each row, whose weights are selected under encryption among experts of one shape.

    Reference:
        SecMoE: select the expert, then compute once.
    """
    members = [f"experts.{index}" for index in range(len(manifest.experts))]
    encoder = encoders(manifest)[members[0]]
    hidden = yield from summarize(manifest, "router", party, shares)
    bits = yield from choose(manifest, party, hidden)
    width = encoder.rings.embedding_width  # embeddings that the router reads too come wider, and are narrowed
    candidates = [received(manifest, member, party, shares).narrow(width) for member in members]
    candidate = candidates[0]
    words = torch.stack([candidate.words.flatten(1) for candidate in candidates])
    gate = Select(len(members), words.shape[1], words.shape[2], width)
    x = yield from gate.run(party, bits, party.secret(words, width, candidate.scale, candidate.bound))
    x = x.map(lambda words: words.view(candidate.shape))
    x = yield from Widen(x.shape, x.width, encoder.input_width).run(party, x)
    prefixes = tuple(f"{member}." for member in members)
    selected = SelectedEncoder(
        encoder.spec, encoder.rings, "", encoder.layers, encoder.head_width, members=prefixes, bits=bits
    )
    return (yield from selected.run(party, x, is_token(shares)[:, : x.shape[1]]))


def secure_program(manifest: Manifest, name: str) -> SecureProgram:
    """The program of a name such as `router/8`, `experts.2/3`, `route/6`, `serve/3.2.1`; see `program_name.Kind`.

    Raises:
        `SecureRouterError`: No program of this model has the name.
    """
    parsed = ProgramName.parse(name)
    kind, count, experts = parsed.kind, parsed.counts[0], len(manifest.experts)
    everyone = dict.fromkeys(manifest.members, count)
    if kind is Kind.EXPERTS and parsed.expert is not None and parsed.expert < experts:
        member = f"experts.{parsed.expert}"
        return _program(manifest, name, partial(classify, manifest, member), {member: count}, count)
    if kind is Kind.SERVE and len(parsed.counts) == experts:
        some = {f"experts.{index}": own for index, own in enumerate(parsed.counts) if own}
        return _program(manifest, name, partial(serve, manifest, parsed.counts), some, sum(parsed.counts))
    if kind is Kind.RESTORE:
        return _restore_program(manifest, name, count)
    if manifest.routes and kind is Kind.ROUTER:
        return _program(manifest, name, partial(reveal, manifest), {"router": count}, count)
    if manifest.routes and kind is Kind.READ:
        return _program(manifest, name, partial(summarize, manifest, "router"), {"router": count}, count)
    if manifest.routes and kind is Kind.ROUTE:
        return _program(manifest, name, partial(route, manifest), everyone, count)
    if manifest.routes and kind is Kind.RANK:
        return _rank_program(manifest, name, count)
    if manifest.routes and kind is Kind.OBLIVIOUS:
        run = select_then_compute if manifest.selects else oblivious
        return _program(manifest, name, partial(run, manifest), everyone, count)
    raise SecureRouterError(f"There is no program {name!r}.")


def _rank_program(manifest: Manifest, name: str, count: int) -> SecureProgram:
    """`route` for a batch whose hidden states were computed by `read`: they stand in for the router's embeddings."""
    program = _program(manifest, name, partial(route, manifest), dict.fromkeys(manifest.members, count), count)
    owner = manifest.encoder_of("router")
    encoder, width = encoders(manifest)[owner], manifest.members[owner].hidden_size
    inputs = {member: words for member, words in program.inputs.items() if member != owner}
    inputs[HIDDEN] = _planned((count, width), encoder.hidden_width, encoder.rings.bits.hidden, encoder.hidden_bound)
    return replace(program, inputs=inputs)


def _restore_program(manifest: Manifest, name: str, count: int) -> SecureProgram:
    """`restore`, which reads no weights."""
    width, scale = logit_width(manifest), RingWidths.logits
    inputs = {
        ORDER: _planned((count, count), width, 0, 0),
        LOGITS: _planned((count, manifest.experts[0].head.num_outputs), width, scale, width - scale - 2),
    }
    return SecureProgram(name, partial(restore, manifest), inputs, {}, manifest.guard)


def _planned(shape: tuple[int, ...], width: int, scale: int, bound: int) -> Secret:
    """What a plan knows of an earlier program's result."""
    return Secret(torch.empty(shape, dtype=torch.int64, device="meta"), width, scale, bound, rank=0)


def _program(manifest: Manifest, name: str, run: object, rows: Mapping[str, int], batch: int) -> SecureProgram:
    """A program on the inputs and weights of some members, with an attention mask of `batch` rows."""
    inputs = {
        manifest.encoder_of(member): torch.empty(
            count,
            manifest.length_of(member),
            manifest.members[member].input_size,
            dtype=torch.int64,
            device="meta",
        )
        for member, count in rows.items()
    }
    prefixes = tuple(f"{member}." for member in {*rows, *inputs})
    inputs[ATTENTION_MASK] = torch.empty(batch, manifest.max_length, dtype=torch.uint8, device="meta")
    weights = {name: shape for name, shape in all_weight_shapes(manifest).items() if name.startswith(prefixes)}
    return SecureProgram(name, run, inputs, weights, manifest.guard)  # type: ignore[arg-type]
