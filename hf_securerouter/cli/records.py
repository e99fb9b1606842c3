# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""JSON lines in: what each line holds, or why it cannot be answered; and a line out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_securerouter.errors import SecureRouterValueError


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from hf_securerouter.texts import Text

Record = dict[str, Any]

MOST = 8  # lines that a message lists


@dataclass(frozen=True)
class Row:
    """A line of the input that is not empty.

    Attributes:
        number: The line's number, from 1.
        record: What it holds; None if that cannot be read.
        problem: Why it cannot be answered; None if it can.
    """

    number: int
    record: Record | None
    problem: str | None


def rows_of(content: bytes, path: Path) -> list[Row]:
    """The JSON lines of a file that was read; empty lines are left out.

    Args:
        content: What the file held. It is read by the caller, since a pipe can be read only once.
        path: The file, as errors name it.

    Raises:
        SecureRouterValueError: The file has no line, or none that can be answered.
    """
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # some editors write a byte order mark
    rows = [_row(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise SecureRouterValueError(f"`input` {str(path)!r} holds no line.")
    if all(row.problem is not None for row in rows):
        raise bad_lines({row.number: row.problem for row in rows if row.problem is not None})
    return rows


def read_records(path: Path) -> list[Record]:
    """Read JSON lines of which each can be answered; empty lines are left out.

    Raises:
        SecureRouterValueError: The file has no line, or a line is not as required.
    """
    return checked_records(rows_of(path.read_bytes(), path))


def checked_records(rows: list[Row]) -> list[Record]:
    """What the lines hold.

    Raises:
        SecureRouterValueError: A line cannot be answered.
    """
    bad = {row.number: row.problem for row in rows if row.problem is not None}
    if bad:
        raise bad_lines(bad)
    return [row.record for row in rows if row.record is not None]


def bad_lines(problems: dict[int, str]) -> SecureRouterValueError:
    """The error that names lines by their numbers, and never repeats what is written in them."""
    listed = [f"Line {number} of `input` {problem}." for number, problem in list(problems.items())[:MOST]]
    if len(problems) > MOST:
        listed.append(f"{len(problems) - MOST} more lines cannot be answered either.")
    return SecureRouterValueError(
        f'{" ".join(listed)} Each line must be like {{"text": "..."}}, with "text_pair" for the second text of a '
        "pair. With `--on-error skip`, `predict` and `client` answer the other lines."
    )


def text_of(record: Record) -> Text:
    """The text of a line, or its pair of texts."""
    pair = record.get("text_pair")
    return record["text"] if pair is None else (record["text"], pair)


def as_line(record: Record) -> bytes:
    """A record as one line of JSON in UTF-8; half of a surrogate pair stays the escape that it was."""
    try:
        return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record, allow_nan=False) + "\n").encode()


def _row(number: int, line: bytes) -> Row:
    try:
        record = json.loads(line.decode(), parse_constant=_refuse_constant)
        as_line(record)  # what can be read can still be too deep, or too large a number, to be written
    except UnicodeDecodeError as error:
        return Row(number, None, f"is not UTF-8 text (byte {error.start} of the line)")
    except RecursionError:
        return Row(number, None, "is nested too deeply")
    except ValueError:
        return Row(number, None, "is not JSON")
    if not isinstance(record, dict):
        return Row(number, None, "is not a JSON object")
    return Row(number, record, _problem(record))


def _problem(record: Record) -> str | None:
    from hf_securerouter.texts import unreadable

    text, pair = record.get("text"), record.get("text_pair")
    if not isinstance(text, str):
        return 'has no "text" that is a string'
    if not isinstance(pair, str | None):
        return 'has a "text_pair" that is not a string'
    for name, value in (("text", text), ("text_pair", pair)):
        problem = None if value is None else unreadable(value)
        if problem is not None:
            return f'has a "{name}" that {problem}'
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")  # Python's json reads and writes NaN, which is not JSON
