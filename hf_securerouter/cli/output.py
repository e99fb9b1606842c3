# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The output of every subcommand: results on stdout, everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send the prints of libraries to stderr inside the block."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document.

    Raises:
        ValueError: `document` holds a NaN or an infinity, which JSON does not have.
    """
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_cost(cost: dict[str, Any]) -> None:
    """Print the cost of encrypted answers, as a table for people."""
    rows = [
        ["between the servers", f"{cost['online_bytes'] / 1e6:,.1f} MB in {cost['rounds']:,} rounds"],
        ["from the dealer", f"{cost['dealer_bytes'] / 1e6:,.1f} MB"],
        ["client and servers", f"{cost['client_bytes'] / 1e6:,.1f} MB"],
        ["set-up, once", f"{cost['setup_seconds']:.2f} s"],
        ["before the input", f"{cost['preprocess_seconds']:.2f} s"],
        ["with the input", f"{cost['online_seconds']:.2f} s"],
        ["dealer's work", f"{cost['dealer_seconds']:.2f} s"],
    ]
    rows += [[f"peak memory, {role}", f"{peak / 2**20:,.0f} MiB"] for role, peak in cost["peak_rss_bytes"].items()]
    print_table("Cost", ["what", "measured"], rows)


def log(message: str) -> None:
    """Print a line of progress on stderr."""
    typer.echo(message, err=True)
