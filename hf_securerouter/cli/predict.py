# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter predict`: a file of texts in, the same file with labels out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_securerouter.cli.labelling import (
    AbstainOption,
    Answering,
    Clear,
    Encrypted,
    MaxWindowsOption,
    OnError,
    OnErrorOption,
    StrideOption,
    label_file,
    say_what_was_written,
)
from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_json
from hf_securerouter.cli.serving import MemoryOption
from hf_securerouter.errors import SecureRouterValueError


def predict(
    model: Annotated[str, typer.Argument(help="A pool or a classifier: a folder, or a name on the Hub.")],
    input: Annotated[Path, typer.Option(help='JSON lines with "text" and optionally "text_pair".')],
    output: Annotated[Path, typer.Option(help='The same lines with "label", "score", "logits" and "expert".')],
    encrypted: Annotated[
        bool, typer.Option("--encrypted", help="Answer on secret shares: two servers and a dealer on this machine.")
    ] = False,
    on_error: OnErrorOption = OnError.STOP,
    abstain_below: AbstainOption = None,
    memory: MemoryOption = None,
    max_windows: MaxWindowsOption = 1,
    stride: StrideOption = 0,
    json: JsonOption = False,
) -> None:
    """Label every line of a file; a stopped run continues where it was, when it is started again.

    The output appears under its name when it is complete.
    """
    with only_results_on_stdout():
        windows = max_windows, stride
        report = predict_file(model, input, output, encrypted, on_error, memory, *windows, abstain_below)
    if json:
        print_json(report)
    else:
        say_what_was_written(report)


def predict_file(
    model_path: str,
    input_path: Path,
    output_path: Path,
    encrypted: bool = False,
    on_error: OnError = OnError.STOP,
    memory: int | None = None,
    max_windows: int = 1,
    stride: int = 0,
    abstain_below: float | None = None,
) -> dict[str, Any]:
    """Label the lines of `input_path`, and return a report as JSON-able values.

    Args:
        model_path: A folder, or a name on the Hub.
        input_path: JSON lines with "text" and optionally "text_pair".
        output_path: The file for the same lines with the answers.
        encrypted: Whether to answer on secret shares, with the default protocol of `to_mpc`.
        on_error: What to do about a line that cannot be answered.
        memory: Bytes that the servers and the dealer may take together; by default half of what is free.
        max_windows: Windows into which long texts are cut; the answer is the mean of their logits.
        stride: Tokens that neighbouring windows share.
        abstain_below: The probability below which a label is withheld; None withholds none.

    Raises:
        SecureRouterValueError: A line is wrong (its number is named, its text is not repeated), the output cannot
            be written, the smallest batch does not fit into `memory`, which only encrypted answers have, or a
            regression is to abstain.
    """
    if memory is not None and not encrypted:
        raise SecureRouterValueError("`memory` is of servers and dealer: pass it with `--encrypted` only.")
    from hf_securerouter.cli.loading import load_model
    from hf_securerouter.mpc.convert import to_mpc

    windows = (max_windows, stride)

    @contextlib.contextmanager
    def answering() -> Iterator[Answering]:
        model, tokenizer = load_model(model_path)
        if not encrypted:
            yield Clear(model, tokenizer, windows, abstain_below)
            return
        secure = to_mpc(model, tokenizer)
        log("Starting two servers and a dealer, and sharing the weights ...")
        with secure.local_session(memory=memory) as session:
            yield Encrypted(model.config, session, windows=windows, abstain_below=abstain_below)

    return label_file(model_path, input_path, output_path, answering, encrypted, on_error, windows, abstain_below)
