# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter dealer`: random numbers for two servers on other machines."""

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
    parse_pins,
    until_stopped,
)


def dealer(
    folder: Annotated[Path, typer.Argument(help="The dealer's folder, made by `securerouter share`.")],
    listen: ListenOption,
    key: KeyOption = None,
    pin: PinOption = None,
    timeout: TimeoutOption = 600.0,
    memory: MemoryOption = None,
) -> None:
    """Deal to both servers until stopped (Ctrl-C). Only servers with the keys of this sharing can connect."""
    from hf_securerouter.mpc.deployment.dealer_server import DealerServer
    from hf_securerouter.mpc.deployment.role_folder import RoleFolder
    from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps

    forbid_core_dumps()
    with until_stopped():
        own = RoleFolder.load(folder, "dealer", key=key, pins=parse_pins(pin))
        DealerServer(own, listen, timeout, log, memory=memory).run()
