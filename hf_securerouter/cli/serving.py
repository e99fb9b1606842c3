# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Options of the deployed roles' commands (addresses, deadlines), and how a server ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hf_securerouter.cli.output import log
from hf_securerouter.errors import SecureRouterValueError


GRACE = 5.0  # seconds in which a server that is stopped ends what it does


def address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; an IPv6 host may be in brackets.

    Raises:
        typer.BadParameter: `text` is not of this form.
    """
    from hf_securerouter.mpc.net.sockets import parse_address

    try:
        return parse_address(text)
    except SecureRouterValueError as error:
        raise typer.BadParameter(str(error)) from None


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def memory_size(text: str) -> int:
    """Bytes of a size such as `12GB`, `1.5G` or `800M`; a plain number is of bytes.

    Raises:
        typer.BadParameter: `text` is not of this form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text!r} is not a size such as 12GB.")
    return int(float(found[1]) * _UNITS[found[2]])


MemoryOption = Annotated[
    int | None,
    typer.Option(
        parser=memory_size, metavar="SIZE", help="Memory to plan batches for, such as 12GB; default: half of the free."
    ),
]
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
    """Let Ctrl-C, SIGTERM and, unless it is ignored, SIGHUP end a server without a traceback, with exit status 0.

    The first signal raises `KeyboardInterrupt`, so that the server can end what it does. It ends after `GRACE` seconds
    all the same, since Python drops what is raised in a finalizer; and a second signal ends it at once.
    """
    stopped = threading.Event()
    hang_ups = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    numbers = [signal.SIGTERM, signal.SIGINT, *hang_ups]

    def stop(*_: object) -> NoReturn:
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(0))
        stopped.set()
        raise KeyboardInterrupt

    def end_in_time() -> None:
        stopped.wait()
        time.sleep(GRACE)
        os._exit(0)

    # Started here, as a signal may arrive in the middle of another start, which holds a lock of `threading`.
    threading.Thread(target=end_in_time, daemon=True).start()
    try:
        for number in numbers:
            signal.signal(number, stop)
        yield
    finally:
        if stopped.is_set():
            try:
                with contextlib.suppress(OSError, ValueError):  # Ctrl-C may have ended what reads the log, too
                    log("Stopped.")
                    for stream in (sys.stdout, sys.stderr):
                        stream.flush()
            finally:
                # Threads may still be in a client's message or in torch; an ordinary exit would abort in one of them.
                os._exit(0)
