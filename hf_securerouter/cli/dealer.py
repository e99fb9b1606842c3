# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter dealer`: random numbers for two servers on other machines."""

from pathlib import Path
from typing import Annotated

import typer

from hf_securerouter.cli.output import log
from hf_securerouter.cli.serving import ListenOption, MemoryOption, TimeoutOption, until_stopped


def dealer(
    folder: Annotated[Path, typer.Argument(help="The dealer's folder, made by `securerouter share`.")],
    listen: ListenOption,
    timeout: TimeoutOption = 600.0,
    memory: MemoryOption = None,
) -> None:
    """Deal to both servers until stopped (Ctrl-C). Only servers with the keys of this sharing can connect."""
    from hf_securerouter.mpc.deployment.dealer_server import DealerServer
    from hf_securerouter.mpc.deployment.role_folder import RoleFolder

    with until_stopped():
        DealerServer(RoleFolder.load(folder, "dealer"), listen, timeout, log, memory).run()
