# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter keygen`: the key of one role or client, on its own machine."""

from pathlib import Path
from typing import Annotated

import typer

from hf_securerouter.cli.output import JsonOption, log, print_json
from hf_securerouter.errors import SecureRouterValueError


def keygen(
    role: Annotated[str, typer.Argument(help="Whose key: party0, party1, dealer or client.")],
    name: Annotated[str, typer.Option(help="The holder's name, which the others see: letters, digits and . _ @ -")],
    out: Annotated[Path | None, typer.Option(help="A new folder for the key; default: ROLE-key.")] = None,
    json: JsonOption = False,
) -> None:
    """Make a key that never leaves this machine, and a certificate to hand over.

    Give certificate.pem to the model's owner, who passes it to `securerouter share`, and tell the printed fingerprint
    to all who connect to this role, over another channel. A certificate is valid for a year.
    """
    from hf_securerouter.files import new_folder
    from hf_securerouter.mpc.net.certificates import CERTIFICATE, Certificate, make_key
    from hf_securerouter.mpc.sessions.core_dumps import forbid_core_dumps

    forbid_core_dumps()
    target = out or Path(f"{role}-key")
    if target.exists():
        raise SecureRouterValueError(f"`out` should not exist yet, got {str(target)!r}: name a new folder.")
    files = make_key(role, name)
    with new_folder(target, private=True) as part:
        for file, content in files.items():
            (part / file).write_bytes(content)
    made = Certificate.load(target / CERTIFICATE)
    if json:
        print_json(
            {
                "role": role,
                "name": name,
                "certificate": str(target / CERTIFICATE),
                "fingerprint": made.fingerprint,
                "until": f"{made.until:%Y-%m-%d}",
            }
        )
    else:
        log(f"Made the key of {made}.")
        log(f"Hand over {target / CERTIFICATE}, and nothing else of {target}.")
