# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Names of programs: public labels by which parties and dealer agree on what is run, such as `serve/3.2.1`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ....errors import SecureRouterError


class Kind(StrEnum):
    """What a program computes for B queries.

    | kind | computes | counts |
    |---|---|---|
    | `router` | which expert each query gets, revealed to the parties | B |
    | `experts` | the logits of one expert, for the queries that chose it | n |
    | `route` | the router's scores, the shuffle and the ranks of a batch | B |
    | `read` | the router's encoder alone, for some queries of a large batch | n |
    | `rank` | what is left of `route`, once `read` has run | B |
    | `serve` | the logits of several experts in parallel, each for its queries | n of each expert |
    | `restore` | logits back in the order of the queries | B |
    | `oblivious` | the chosen expert's logits, with every expert or a selected one computed | B |
    """

    ROUTER = "router"
    EXPERTS = "experts"
    ROUTE = "route"
    READ = "read"
    RANK = "rank"
    SERVE = "serve"
    RESTORE = "restore"
    OBLIVIOUS = "oblivious"


@dataclass(frozen=True)
class ProgramName:
    """A program and the sizes that it runs for. Public.

    Args:
        kind (`Kind`): What it computes.
        counts (`tuple[int, ...]`): Numbers of queries; several for `serve` alone.
        expert (`int`, *optional*): Which expert, for `experts` alone.
    """

    kind: Kind
    counts: tuple[int, ...]
    expert: int | None = None

    def __str__(self) -> str:
        which = "" if self.expert is None else f".{self.expert}"
        return f"{self.kind.value}{which}/{'.'.join(map(str, self.counts))}"

    @classmethod
    def parse(cls, text: str) -> ProgramName:
        """The name that `str` gave.

        Raises:
            `SecureRouterError`: `text` is no name of a program.
        """
        head, _, numbers = text.partition("/")
        word, _, expert = head.partition(".")
        if word in [kind.value for kind in Kind]:
            counts = tuple(int(number) for number in numbers.split(".") if number.isdecimal())
            name = cls(Kind(word), counts, int(expert) if expert.isdecimal() else None)
            needs = name.kind is Kind.EXPERTS, name.kind is Kind.SERVE or len(counts) == 1
            if str(name) == text and counts and needs == (name.expert is not None, True):
                return name
        raise SecureRouterError(f"There is no program {text!r}.")
