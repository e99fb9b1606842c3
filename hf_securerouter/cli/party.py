# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter party`: one of the two servers that compute."""

from pathlib import Path
from typing import Annotated

import typer

from hf_securerouter.cli.output import log
from hf_securerouter.cli.serving import (
    KeyOption,
    ListenOption,
    MemoryOption,
    PinOption,
    TimeoutOption,
    address,
    parse_pins,
    until_stopped,
)


def party(
    folder: Annotated[Path, typer.Argument(help="The folder of party0 or party1, made by `securerouter share`.")],
    listen: ListenOption,
    dealer: Annotated[tuple, typer.Option(parser=address, metavar="HOST:PORT", help="Where the dealer listens.")],
    peer: Annotated[
        tuple | None,
        typer.Option(parser=address, metavar="HOST:PORT", help="Where party0 listens; only party1 takes it."),
    ] = None,
    key: KeyOption = None,
    pin: PinOption = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="A file for one JSON line a query of a client: who, when, rows, bytes and outcome."),
    ] = None,
    timeout: TimeoutOption = 600.0,
    silence: Annotated[
        float, typer.Option(min=2.0, help="Seconds without a sign of life after which another role counts as hung.")
    ] = 60.0,
    memory: MemoryOption = None,
    limits: Annotated[
        Path | None,
        typer.Option(help='JSON of what one client may use: "connections", "waiting", "rows_a_minute", ...'),
    ] = None,
    max_wait_ms: Annotated[
        float, typer.Option(min=0.0, help="Milliseconds for which a batch waits for other clients' texts.")
    ] = 20.0,
) -> None:
    """Compute for clients, with the other server and the dealer, until stopped (Ctrl-C).

    Clients connect to both servers, and party1 connects to party0, at the --listen address. Keys show who connects;
    `securerouter users` changes which clients may, while this runs. When a role is lost, the others wait for it for
    --timeout seconds, and then continue with it.
    """
    from hf_securerouter.mpc.deployment.limits import Limits
    from hf_securerouter.mpc.deployment.party_server import PartyServer
    from hf_securerouter.mpc.deployment.role_folder import RoleFolder
    from hf_securerouter.mpc.models.manifest import PARTIES
    from hf_securerouter.mpc.net.sockets import take_all_descriptors
    from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps

    forbid_core_dumps()
    take_all_descriptors()
    with until_stopped():
        PartyServer(
            RoleFolder.load(folder, *PARTIES, key=key, pins=parse_pins(pin)),
            listen,
            dealer,
            peer,
            timeout,
            log,
            silence=silence,
            memory=memory,
            limits=Limits() if limits is None else Limits.load(limits),
            max_wait=max_wait_ms / 1000,
            audit=audit,
        ).run()
