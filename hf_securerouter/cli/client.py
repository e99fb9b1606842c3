# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter client`: a file of texts in, the same file with labels out; the servers see neither."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_securerouter.cli.labelling import (
    AbstainOption,
    Encrypted,
    MaxWindowsOption,
    OnError,
    OnErrorOption,
    StrideOption,
    label_file,
    say_what_was_written,
)
from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_json
from hf_securerouter.cli.serving import KeyOption, PinOption, TimeoutOption, address, parse_pins


def client(
    folder: Annotated[
        str, typer.Argument(help="The client's folder, made by `securerouter share`, or its name on the Hub.")
    ],
    party0: Annotated[tuple, typer.Option(parser=address, metavar="HOST:PORT", help="Where party0 listens.")],
    party1: Annotated[tuple, typer.Option(parser=address, metavar="HOST:PORT", help="Where party1 listens.")],
    input: Annotated[Path, typer.Option(help='JSON lines with "text" and optionally "text_pair".')],
    output: Annotated[Path, typer.Option(help='The same lines with "label", "score", "logits" and "expert".')],
    key: KeyOption = None,
    pin: PinOption = None,
    timeout: TimeoutOption = 600.0,
    verify: Annotated[
        float, typer.Option(help="Share of the batches, such as 0.02, that are asked twice under fresh masks.")
    ] = 0.0,
    on_error: OnErrorOption = OnError.STOP,
    retries: Annotated[int, typer.Option(min=0, help="How often a query that failed is asked again.")] = 3,
    share_batches: Annotated[
        bool,
        typer.Option(
            "--share-batches", help="Let other users' texts fill a batch; servers then see how many texts there are."
        ),
    ] = False,
    max_windows: MaxWindowsOption = 1,
    stride: StrideOption = 0,
    abstain_below: AbstainOption = None,
    json: JsonOption = False,
) -> None:
    """Label every line of a file; a stopped run continues where it was, when it is started again.

    Each server gets one share of a text's embeddings, from which nothing can be learned; only this machine
    reconstructs the logits. The output appears under its name when it is complete.

    Ask the operators of both servers for their keys' fingerprints, and pass them as --pin: whoever made the folder
    could otherwise have put own keys into it, and be both servers.
    """
    with only_results_on_stdout():
        report = ask_servers(
            folder,
            party0,
            party1,
            input,
            output,
            timeout,
            verify=verify,
            on_error=on_error,
            retries=retries,
            share_batches=share_batches,
            abstain_below=abstain_below,
            key=key,
            pins=parse_pins(pin),
            windows=(max_windows, stride),
        )
    if json:
        print_json(report)
    else:
        say_what_was_written(report)
    if report["differing"]:
        raise typer.Exit(1)


def ask_servers(
    folder: str,
    party0: tuple[str, int],
    party1: tuple[str, int],
    input_path: Path,
    output_path: Path,
    timeout: float,
    verify: float = 0.0,
    on_error: OnError = OnError.STOP,
    retries: int = 3,
    share_batches: bool = False,
    abstain_below: float | None = None,
    key: Path | None = None,
    pins: dict[str, str] | None = None,
    windows: tuple[int, int] = (1, 0),
) -> dict[str, Any]:
    """Label the lines of `input_path` by the servers, and return a report as JSON-able values.

    Args:
        folder: The client's folder, or its name on the Hub.
        party0: Party 0's address.
        party1: Party 1's address.
        input_path: JSON lines with "text" and optionally "text_pair".
        output_path: The file for the same lines with the answers.
        timeout: Seconds to wait for the servers, and for the answer to each text.
        verify: Share of the batches that are asked twice; their lines then have "verified".
        on_error: What to do about a line that cannot be answered.
        retries: How often a query that failed is asked again.
        share_batches: Whether other users' texts may fill a batch.
        abstain_below: The probability below which a label is withheld, which no server learns of.
        key: The folder of the client's key; None if the client's folder has it.
        pins: Fingerprints of the servers' keys by role; what is not pinned is said.
        windows: Windows into which long texts are cut, and the tokens that they share.

    Raises:
        FileError: A file of the folder is missing, cut or wrong.
        SecureRouterValueError: The folder or a line is wrong, or the output cannot be written.
        SecureRouterError: A server was not reached, or failed.
    """
    from hf_securerouter.client import SecureRouterClient
    from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps

    forbid_core_dumps()
    loaded = SecureRouterClient.from_pretrained(
        folder,
        party0=party0,
        party1=party1,
        key=key,
        pins=pins,
        timeout=timeout,
        retries=retries,
        share_batches=share_batches,
        log=log,
    )

    @contextlib.contextmanager
    def answering() -> Iterator[Encrypted]:
        with loaded:
            yield Encrypted(loaded.config, loaded.session, verify, windows, abstain_below)

    return label_file(
        str(loaded.folder), input_path, output_path, answering, True, on_error, windows, abstain_below, verify
    )
