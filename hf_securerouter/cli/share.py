# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter share`: a checkpoint in, one private folder per role out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_securerouter.cli.check import described, print_ranges, samples_of
from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_json
from hf_securerouter.errors import SecureRouterValueError


def share(
    model: Annotated[str, typer.Argument(help="A pool or a classifier: a folder, or a name on the Hub.")],
    out: Annotated[Path, typer.Argument(help="A new folder: it gets party0, party1, dealer and client.")],
    max_length: Annotated[
        int | None, typer.Option(help="Tokens to which every text is padded, by default the checkpoint's.")
    ] = None,
    routing_privacy: Annotated[
        str | None, typer.Option(help='What the servers may learn of the routing: "revealed", "quota" or "oblivious".')
    ] = None,
    quotas: Annotated[
        str | None, typer.Option(help="How many texts of a batch each expert serves under quota, such as 3,2,1.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with texts like those to be answered, which set the bounds; default: built-in samples."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='Where servers and dealer compute: "cpu" or "cuda".')] = "cpu",
    network: Annotated[str, typer.Option(help='The network to optimise for: "lan" or "wan".')] = "lan",
    json: JsonOption = False,
) -> None:
    """Share a model's weights between two servers and a dealer, and make the keys of all roles.

    Give each folder to its role alone, over a channel that nobody else reads, and delete it here: the dealer's folder
    and a server's together reveal the weights.
    """
    with only_results_on_stdout():
        report = share_model(
            model,
            out,
            max_length=max_length,
            routing_privacy=routing_privacy,
            quotas=None if quotas is None else parse_quotas(quotas),
            device=device,
            network=network,
            calibration=calibration,
        )
    if json:
        print_json(report)
    else:
        print_ranges(report)
        log(f"Give each of {', '.join(report['folders'].values())} to its role alone, then delete {out}.")


def share_model(model_path: str, out: Path, calibration: Path | None = None, **options: Any) -> dict[str, Any]:
    """Write the folders, and return a report as JSON-able values.

    Args:
        model_path: A folder, or a name on the Hub.
        out: A folder that does not exist yet.
        calibration: JSON lines with "text" and optionally "text_pair", or None for the built-in samples.
        options: As for `to_mpc`.

    Raises:
        SecureRouterValueError: `out` exists already, or the model cannot be converted.
    """
    from hf_securerouter.cli.loading import load_model
    from hf_securerouter.mpc.convert import to_mpc

    if out.exists():
        raise SecureRouterValueError(f"`out` should not exist yet, got {str(out)!r}: name a new folder.")
    texts = None if calibration is None else samples_of(calibration)
    model, tokenizer = load_model(model_path)
    secure = to_mpc(model, tokenizer, protocol="masked", calibration=texts, **options)
    secure.save_shares(out)
    manifest = secure.manifest
    return {
        "model": model_path,
        "folders": {role: str(out / role) for role in (*manifest.roles, "client")},
        "routing_privacy": manifest.routing_privacy,
        "quotas": list(manifest.quotas) or None,
        "max_length": manifest.max_length,
        "device": manifest.device,
        "network": manifest.network,
        "samples": "built-in samples" if calibration is None else str(calibration),
        **described(secure),
    }


def parse_quotas(text: str) -> list[int]:
    """The counts in a text such as `3,2,1`.

    Raises:
        SecureRouterValueError: The text is not of this form.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise SecureRouterValueError(f"`quotas` should be counts such as 3,2,1, got {text!r}.")
    return [int(part) for part in parts]
