# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Options of the deployed roles' commands (addresses, deadlines), and how a server ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hf_securerouter.cli.output import log
from hf_securerouter.errors import SecureRouterValueError


def address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host may be in brackets.

    Raises:
        typer.BadParameter: `text` is not of this form.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise typer.BadParameter(f"{text!r} is not HOST:PORT.")
    return host, int(port)


ListenOption = Annotated[
    tuple, typer.Option(parser=address, metavar="HOST:PORT", help="Where to listen; 0.0.0.0:PORT for every interface.")
]
KeyOption = Annotated[
    Path | None,
    typer.Option(help="The folder of this role's key, made by `securerouter keygen`; default: FOLDER has the key."),
]
PinOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="ROLE=FINGERPRINT",
        help="The fingerprint of another role's key, as its operator tells it; may be repeated.",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds to wait for another role, and for each text of a query.")
]


def parse_pins(texts: list[str] | None) -> dict[str, str]:
    """Fingerprints by role, of texts such as `party0=0f3a...`.

    Raises:
        SecureRouterValueError: A text is not of this form, or names a role twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        role, equals, fingerprint = text.partition("=")
        if not (role and equals and fingerprint) or role in found:
            raise SecureRouterValueError(f"`pin` should be ROLE=FINGERPRINT, one for each role, got {text!r}.")
        found[role] = fingerprint
    return found


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a server without a traceback, with exit status 0."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        log("Stopped.")
