# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The sequence of gates that one program runs, known before any input.

A model, a batch shape and a protocol fix every gate, ring and message length. Tracing the program on meta tensors,
which have no data, records them: the dealer works from the plan, both parties check that they have the same plan, and
the cost of a run is known exactly without running it.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..gates.gate import Draw, Gate, Opening, SecretProtocol, Tuple
from ..gates.guard import PlannedGuard
from ..gates.party import Party
from ..net.ledger import GateCount
from ..ring.randomness import AES, Csprng, Pad
from ..ring.words import checked_width, packed_size
from .shapes import MetaShapes


# Version of plan, messages and public tables: parties and dealer must agree. Raise it with anything that neither the
# gates nor their draws show, such as a table: roles of different versions then refuse each other.
FORMAT = "2"


@dataclass(frozen=True)
class Plan:
    """The gates of a program, and what they need from the dealer and send over the link.

    Args:
        gates (`tuple[Gate, ...]`): In the order in which the parties take their tuples.
        correction_bytes (`tuple[int, ...]`): Bytes from the dealer to P0 for each gate.
        rounds (`int`): Exchanges on the parties' link.
        payload_bytes (`int`): Bytes that one party sends, without the frames' headers.
        by_gate (`dict[str, GateCount]`): The split by gate for one party; `dealer` counts the corrections.
        cipher (`str`): Cipher that expands seeds.
        draws (`tuple[tuple[Draw, ...], ...]`): The draws of a party from each gate's tuple, in order.
        ends (`tuple[int, ...]`): For each gate, how many gates have taken their tuples when its own is dropped.
        guarded (`bool`): Whether the run has a guard, for which gates need more words; see `gates/guard.py`.
    """

    gates: tuple[Gate, ...]
    correction_bytes: tuple[int, ...]
    rounds: int
    payload_bytes: int
    by_gate: dict[str, GateCount] = field(compare=False, hash=False)
    cipher: str = AES
    draws: tuple[tuple[Draw, ...], ...] = field(default=(), compare=False, hash=False, repr=False)
    ends: tuple[int, ...] = field(default=(), compare=False, hash=False, repr=False)
    guarded: bool = False

    @property
    def digest(self) -> str:
        """Hex SHA-256 of everything that both parties and the dealer must agree on."""
        guard = ["guarded"] if self.guarded else []
        text = "\n".join([FORMAT, self.cipher, *guard, *map(repr, self.gates), *map(repr, self.draws)])
        return hashlib.sha256(text.encode()).hexdigest()

    def words(self, seed: bytes, index: int, device: str = "cpu") -> Csprng:
        """The words of gate `index` under one party's seed: that party and the dealer expand the same words."""
        return Csprng(seed, b"tuple/%d" % index, self.cipher, device)

    @property
    def dealer_bytes(self) -> int:
        """Bytes of corrections in one set of tuples."""
        return sum(self.correction_bytes)


class _EmptySource:
    """A source of meta tensors: words without data."""

    def ring(self, shape: Sequence[int], bits: int) -> Tensor:
        checked_width(bits, "A gate")
        return torch.empty(tuple(shape), dtype=torch.uint8 if bits <= 8 else torch.int64, device="meta")

    def pad(self, shape: Sequence[int], bits: int) -> Pad:
        return Pad(self.ring(shape, bits), bits)


@dataclass
class _Record:
    """What one gate's tuple was used for.

    Args:
        gate (`Gate`): The gate.
        draws (`list[Draw]`): Its draws, in order.
        end (`int`, *optional*): How many gates had taken their tuples when this one was dropped.
    """

    gate: Gate
    draws: list[Draw] = field(default_factory=list)
    end: int | None = None

    @property
    def correction_bytes(self) -> int:
        return sum(packed_size(math.prod(shape), bits) for kind, shape, bits in self.draws if kind in ("word", "bits"))


class _TracedTuple(Tuple):
    """A tuple that records its draws."""

    def __init__(self, record: _Record):
        super().__init__(record.gate, 0, _EmptySource())
        self._record = record

    def _make(self, kind: str, shape: tuple[int, ...], bits: int) -> Any:
        self._record.draws.append((kind, shape, bits))
        return self._source.pad(shape, bits) if kind == "mask" else self._source.ring(shape, bits)


class _Tracer(Party):
    """A party that computes on meta tensors, and records its tuples, rounds and bytes."""

    def __init__(self, weights: Mapping[str, Any], guarded: bool):
        guard = PlannedGuard() if guarded else None
        super().__init__(0, None, self._record, weights, guard=guard)  # type: ignore[arg-type]
        self.records: list[_Record] = []
        self.rounds = 0
        self.by_gate: dict[str, GateCount] = {}

    def _record(self, gate: Gate) -> Tuple:
        record = _Record(gate)
        self.records.append(record)
        found = _TracedTuple(record)
        weakref.finalize(found, self._dropped, record).atexit = False
        return found

    def _dropped(self, record: _Record) -> None:
        record.end = len(self.records)

    def constant(self, values: Tensor) -> Tensor:
        return values.to("meta")

    def _open(self, openings: list[Opening]) -> list[Tensor]:
        self.rounds += 1
        for index, opening in enumerate(openings):
            count = self.by_gate.setdefault(opening.gate, GateCount())
            count.sent += packed_size(opening.words.numel(), opening.mask.bits)
            count.rounds += index == 0
            assert opening.words.shape == opening.mask.words.shape
            opening.mask.spend()
        return [opening.words + opening.mask.words for opening in openings]


def trace(
    program: Callable[[Party], SecretProtocol[Any]],
    weights: Mapping[str, Any] | None = None,
    cipher: str = AES,
    guarded: bool = False,
) -> Plan:
    """Record the plan of a program.

    Args:
        program (callable): From a party to its protocol; of its inputs only the shapes count.
        weights (`Mapping[str, WeightShare]`, *optional*): Fixed weights, on the `meta` device.
        cipher (`str`): Cipher with which the roles expand seeds.
        guarded (`bool`): Whether the parties have a guard.

    Returns:
        `Plan`: Exact in every byte and round.

    Example:
        >>> x = torch.empty(4, dtype=torch.int64, device="meta")
        >>> plan = trace(lambda party: ReLU((4,), bits=32, width=40).run(party, party.secret(x, 40, 14, 8)))
    """
    tracer = _Tracer(weights or {}, guarded)
    with MetaShapes():
        tracer.run(program(tracer))
    for record in tracer.records:
        tracer.by_gate.setdefault(record.gate.name, GateCount()).dealer += record.correction_bytes
    return Plan(
        gates=tuple(record.gate for record in tracer.records),
        correction_bytes=tuple(record.correction_bytes for record in tracer.records),
        rounds=tracer.rounds,
        payload_bytes=sum(count.sent for count in tracer.by_gate.values()),
        by_gate=tracer.by_gate,
        cipher=cipher,
        draws=tuple(tuple(record.draws) for record in tracer.records),
        ends=tuple(len(tracer.records) if record.end is None else record.end for record in tracer.records),
        guarded=guarded,
    )
