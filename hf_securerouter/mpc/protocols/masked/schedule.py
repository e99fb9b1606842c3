# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The programs that a party runs for a batch, one after another, in each mode of routing privacy.

The order depends on public values alone: the manifest, the size of the batch, and what a program revealed (the chosen
experts under `revealed`, ranks in a secret order under `quota`, nothing under `oblivious`). An expert that shares its
encoder with the router gets its logits from the first program and is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...gates.secret import Secret
from ...models.manifest import Manifest
from .layout import ATTENTION_MASK, LOGITS, encoders, logit_width
from .program_name import Kind, ProgramName
from .programs import HIDDEN, ORDER, Inputs
from .row_bytes import row_bytes


# Most rows that an encoder computes in one program under `quota`, and what they may take at all roles, roughly.
# A larger set of tuples does not fit into memory, and would be dealt while the query waits.
SERVED, SERVED_BYTES = 8, 8 << 30

Share = TypeVar("Share", Tensor, Secret, Tensor | Secret)

Run = Callable[[str, Inputs], Any]
"""Runs the program of this name on this party's shares."""


def _name(kind: Kind, *counts: int, expert: int | None = None) -> str:
    return str(ProgramName(kind, counts, expert))


def rows_at_a_time(manifest: Manifest) -> int:
    """Most rows that an encoder computes in one program under `quota`: `SERVED`, halved until they and the rows of the
    experts beside them take no more than `SERVED_BYTES`. Public: all roles find the same. An encoder alone is compared
    with a pool at as many rows as it would take beside no other."""
    together = [name for name in manifest.members if name != "router"]
    if manifest.router_shares_expert is not None:  # that expert is not run again
        together.remove(f"experts.{manifest.router_shares_expert}")
    one = sum(row_bytes(manifest, name) for name in together)
    if manifest.routes:
        one = max(one, row_bytes(manifest, "router"))
    rows = SERVED
    while rows > 1 and rows * one > SERVED_BYTES:
        rows //= 2
    return rows


def first_program(manifest: Manifest, batch: int) -> str:
    """The name of a batch's first program."""
    if not manifest.routes:
        return _name(Kind.EXPERTS, batch, expert=0)
    if manifest.routing_privacy == "quota":
        most = rows_at_a_time(manifest)
        return _name(Kind.ROUTE, batch) if batch <= most else _name(Kind.READ, most)
    return _name({"revealed": Kind.ROUTER, "oblivious": Kind.OBLIVIOUS}[manifest.routing_privacy], batch)


def programs(manifest: Manifest, batch: int) -> list[tuple[str, ...]]:
    """The programs of a batch by name, in order; of several at one place only some run, or all on fewer rows."""
    first = first_program(manifest, batch)
    if not manifest.routes or manifest.routing_privacy == "oblivious":
        return [(first,)]
    experts = range(len(manifest.experts))
    if manifest.routing_privacy == "revealed":
        others = [index for index in experts if index != manifest.router_shares_expert]
        return [(first,), tuple(_name(Kind.EXPERTS, batch, expert=index) for index in others)]
    names, most = [first], rows_at_a_time(manifest)
    if batch > most:
        names = [_name(Kind.READ, min(most, batch - start)) for start in range(0, batch, most)]
        names.append(_name(Kind.RANK, batch))
    left = [0 if index == manifest.router_shares_expert else manifest.quotas[index] for index in experts]
    for start in range(0, max(left), most):
        names.append(_name(Kind.SERVE, *(min(max(count - start, 0), most) for count in left)))
    return [(name,) for name in (*names, _name(Kind.RESTORE, batch))]


def run_schedule(manifest: Manifest, run: Run, inputs: Mapping[str, Tensor]) -> tuple[list[int] | None, Tensor]:
    """Classify a batch.

    Args:
        manifest (`Manifest`): The model's manifest.
        run (callable): Runs a program at this party.
        inputs (`Mapping[str, torch.Tensor]`): Shares of the embeddings (B, T, E) of every member of
            `manifest.inputs`, and of the attention mask (B, T).

    Returns:
        `tuple[list[int] or None, torch.Tensor]`: The expert of each row if the parties know it, and a share of the
        logits, int64 (B, C) mod 2^`logit_width`.
    """
    batch = len(inputs[ATTENTION_MASK])
    first = first_program(manifest, batch)
    if not manifest.routes:
        return [0] * batch, _words(manifest, run(first, inputs))
    if manifest.routing_privacy == "revealed":
        return _by_expert(manifest, run, inputs, *run(first, inputs))
    if manifest.routing_privacy == "quota":
        whole = batch <= rows_at_a_time(manifest)
        routed = run(first, inputs) if whole else _read_and_ranked(manifest, run, inputs)
        return None, _by_rank(manifest, run, *routed)
    return None, _words(manifest, run(first, inputs))


def _words(manifest: Manifest, logits: Secret) -> Tensor:
    """The words of logits, int64 (B, C) mod 2^`logit_width`.

    Raises:
        `SecureRouterError`: A program left them in a smaller ring.
    """
    return logits.narrow(logit_width(manifest)).words


def _gathered(manifest: Manifest, batch: int, parts: Sequence[tuple[Tensor, Secret]]) -> Secret:
    """The logits of a batch, from those of its parts, each with the places of its rows."""
    first = parts[0][1]
    words = torch.empty(batch, first.shape[1], dtype=torch.int64, device=first.words.device)
    for rows, logits in parts:
        words[rows] = _words(manifest, logits)
    return replace(first, words=words, width=logit_width(manifest))


def _rows(share: Share, rows: Tensor | slice) -> Share:
    """Some rows of a share."""
    return share.map(lambda words: words[rows]) if isinstance(share, Secret) else share[rows]


def _by_expert(
    manifest: Manifest, run: Run, inputs: Mapping[str, Tensor], one_hot: Tensor, known: list[Secret]
) -> tuple[list[int], Tensor]:
    """Run each chosen expert once, on its rows; `known` holds the logits that the router's program has computed."""
    chosen = one_hot.argmax(0)
    parts = []
    for index in chosen.unique().tolist():
        rows = (chosen == index).nonzero()[:, 0]
        if index == manifest.router_shares_expert:
            logits = _rows(known[0], rows)
        else:
            own = {name: _rows(words, rows) for name, words in inputs.items()}
            logits = run(_name(Kind.EXPERTS, len(rows), expert=index), own)
        parts.append((rows, logits))
    return chosen.tolist(), _gathered(manifest, len(chosen), parts).words


def _read_and_ranked(manifest: Manifest, run: Run, inputs: Mapping[str, Tensor]) -> Any:
    """The result of `route` for a large batch, of which the router's encoder reads `rows_at_a_time`."""
    batch, owner = len(inputs[ATTENTION_MASK]), manifest.encoder_of("router")
    width, most = encoders(manifest)[owner].hidden_width, rows_at_a_time(manifest)
    read = []
    for start in range(0, batch, most):
        some = {name: inputs[name][start : start + most] for name in (owner, ATTENTION_MASK)}
        read.append(run(_name(Kind.READ, len(some[ATTENTION_MASK])), some).narrow(width))
    hidden = replace(read[0], words=torch.cat([part.words for part in read]))
    others = {name: words for name, words in inputs.items() if name != owner}
    return run(_name(Kind.RANK, batch), others | {HIDDEN: hidden})


def _by_rank(
    manifest: Manifest, run: Run, ranks: Tensor, order: Secret, shuffled: Inputs, known: list[Secret]
) -> Tensor:
    """Serve the hardest queries by the first expert of `hardest_first`, and so on; then restore the queries' order."""
    by_rank = ranks.argsort()
    quotas = [manifest.quotas[index] for index in manifest.hardest_first]
    rows = dict(zip(manifest.hardest_first, by_rank.split(quotas), strict=True))
    parts = []
    done = manifest.router_shares_expert
    if done is not None:
        parts.append((rows[done], _rows(known[0], rows[done])))
        rows[done] = rows[done][:0]
    most = rows_at_a_time(manifest)
    for start in range(0, max(map(len, rows.values())), most):
        part = {index: rows[index][start : start + most] for index in sorted(rows)}
        served = {f"experts.{index}": some for index, some in part.items() if len(some)}
        own = {name: _rows(shuffled[name], some) for name, some in served.items()}
        own[ATTENTION_MASK] = _rows(shuffled[ATTENTION_MASK], torch.cat(list(served.values())))
        parts += zip(served.values(), run(_name(Kind.SERVE, *map(len, part.values())), own), strict=True)
    logits = _gathered(manifest, len(ranks), parts)
    return _words(manifest, run(_name(Kind.RESTORE, len(ranks)), {ORDER: order, LOGITS: logits}))
