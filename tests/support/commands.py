# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Running the `securerouter` command in this process, and the files that it reads and writes."""

import contextlib
import json

from typer.testing import CliRunner

from hf_securerouter import cli


COST_FIELDS = {
    "online_bytes",
    "rounds",
    "dealer_bytes",
    "client_bytes",
    "setup_seconds",
    "preprocess_seconds",
    "online_seconds",
    "dealer_seconds",
    "peak_rss_bytes",
}
COMMANDS = [
    "card",
    "check",
    "client",
    "dealer",
    "demo",
    "env",
    "keygen",
    "party",
    "predict",
    "profile",
    "share",
    "users",
]


class FakeSecure:
    """A converted model whose session starts nothing."""

    def local_session(self):
        return contextlib.nullcontext()


def run(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
