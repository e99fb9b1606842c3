# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter share`: a checkpoint in, one private folder per role out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_securerouter.cli.check import described, print_ranges, samples_of
from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_json
from hf_securerouter.errors import SecureRouterValueError


_FROM = "see `securerouter keygen`"


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
    guard: Annotated[
        bool, typer.Option("--guard", help="Let clients learn whether a value of a batch was beyond its bound.")
    ] = False,
    party0_key: Annotated[Path | None, typer.Option(help=f"The certificate of party0's key; {_FROM}")] = None,
    party1_key: Annotated[Path | None, typer.Option(help=f"The certificate of party1's key; {_FROM}")] = None,
    dealer_key: Annotated[Path | None, typer.Option(help=f"The certificate of the dealer's key; {_FROM}")] = None,
    client_key: Annotated[
        list[Path] | None, typer.Option(help=f"The certificate of a client's key, may be repeated; {_FROM}")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Share a model's weights between two servers and a dealer.

    Each role makes its key on its own machine, with `securerouter keygen`; pass their certificates. Without, all keys
    are made here, for a trial: whoever holds the folders can then pose as both servers and read what clients ask.

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
            guard=guard,
            calibration=calibration,
            keys={"party0": party0_key, "party1": party1_key, "dealer": dealer_key},
            clients=client_key or [],
        )
    if json:
        print_json(report)
    else:
        print_ranges(report)
        for line in report["keys"]:
            log(f"Key: {line}.")
        if report["trial"]:
            log(
                "A trial: all keys were made here, and whoever holds these folders can pose as both servers and read "
                "what clients ask. For use, let each role run `securerouter keygen`, and pass the certificates."
            )
        log(f"Give each of {', '.join(report['folders'].values())} to its role alone, then delete {out}.")


def share_model(
    model_path: str,
    out: Path,
    calibration: Path | None = None,
    keys: dict[str, Path | None] | None = None,
    clients: Sequence[Path] = (),
    **options: Any,
) -> dict[str, Any]:
    """Write the folders, and return a report as JSON-able values.

    Args:
        model_path: A folder, or a name on the Hub.
        out: A folder that does not exist yet.
        calibration: JSON lines with "text" and optionally "text_pair", or None for the built-in samples.
        keys: The certificate of each server's and the dealer's key by role; all of them, or none for a trial.
        clients: The certificates of clients.
        options: As for `to_mpc`.

    Raises:
        SecureRouterValueError: `out` exists already, a certificate is missing or of another role, or the model cannot
            be converted.
    """
    from hf_securerouter.cli.loading import load_model
    from hf_securerouter.mpc.convert import to_mpc
    from hf_securerouter.mpc.net.certificates import PEERS, USERS
    from hf_securerouter.mpc.net.trusted import read_list
    from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps

    forbid_core_dumps()
    if out.exists():
        raise SecureRouterValueError(f"`out` should not exist yet, got {str(out)!r}: name a new folder.")
    certificates = _certificates(keys or {}, clients)
    texts = None if calibration is None else samples_of(calibration)
    model, tokenizer = load_model(model_path)
    secure = to_mpc(model, tokenizer, protocol="masked", calibration=texts, **options)
    secure.save_shares(out, certificates)
    manifest = secure.manifest
    trusted = (*read_list(out / "party0" / PEERS), *read_list(out / "party0" / USERS))
    return {
        "model": model_path,
        "folders": {role: str(out / role) for role in (*manifest.roles, "client")},
        "trial": not certificates,
        "keys": [str(one) for one in trusted],
        "routing_privacy": manifest.routing_privacy,
        "quotas": list(manifest.quotas) or None,
        "max_length": manifest.max_length,
        "device": manifest.device,
        "network": manifest.network,
        "guard": manifest.guard,
        "samples": "built-in samples" if calibration is None else str(calibration),
        **described(secure),
    }


def _certificates(keys: dict[str, Path | None], clients: Sequence[Path]) -> list[Path]:
    """All certificates, each of the role for which it is passed."""
    from hf_securerouter.mpc.net.certificates import Certificate

    given = {role: path for role, path in keys.items() if path is not None}
    if (given or clients) and len(given) < len(keys):
        missing = ", ".join(f"`--{role}-key`" for role in keys if role not in given)
        raise SecureRouterValueError(f"{missing} is missing: pass the keys of both servers and the dealer, or none.")
    pairs = [*given.items(), *(("client", path) for path in clients)]
    for role, path in pairs:
        if (found := Certificate.load(path).role) != role:
            raise SecureRouterValueError(f"`--{role}-key` {str(path)!r} is a certificate of {found}.")
    return [path for _, path in pairs]


def parse_quotas(text: str) -> list[int]:
    """The counts in a text such as `3,2,1`.

    Raises:
        SecureRouterValueError: The text is not of this form.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise SecureRouterValueError(f"`quotas` should be counts such as 3,2,1, got {text!r}.")
    return [int(part) for part in parts]
