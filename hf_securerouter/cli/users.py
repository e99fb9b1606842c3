# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter users`: which clients a server lets in, changed while it runs."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hf_securerouter.cli.output import JsonOption, only_results_on_stdout, print_json
from hf_securerouter.errors import SecureRouterValueError


PATIENCE = 10.0  # seconds to wait for another command that changes the list


def users(
    folder: Annotated[Path, typer.Argument(help="The folder of party0 or party1.")],
    add: Annotated[
        list[Path] | None, typer.Option(help="The certificate of a client to let in; may be repeated.")
    ] = None,
    revoke: Annotated[
        list[str] | None, typer.Option(help="The name or the fingerprint of a client to shut out; may be repeated.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the clients that a server lets in, after adding and revoking some.

    A running server follows within a second, and ends the connections of revoked keys. Do it at both servers. To
    rotate a key, add the new one, and revoke the fingerprint of the old one when it is no longer used.
    """
    with only_results_on_stdout():
        listed = change_users(folder, add or [], revoke or [])
    if json:
        print_json({"users": listed})
    else:
        for one in listed:  # in lines, as a table would break the fingerprints
            typer.echo(f"{one['name']}, until {one['until']}, fingerprint {one['fingerprint']}")
        if not listed:
            typer.echo("No client is let in.")


def change_users(folder: Path, add: list[Path], revoke: list[str]) -> list[dict[str, str]]:
    """Change the allow list of a server, and return it.

    Args:
        folder: The server's folder.
        add: Certificates of clients.
        revoke: Names (all keys of that name) and fingerprints.

    Raises:
        FileError: The list belongs to another user, and this one may not keep it so.
        SecureRouterValueError: `folder` is no server's, a certificate is not a client's or has ended, nobody of the
            list is meant by an entry of `revoke`, or another command is changing the list.
    """
    from hf_securerouter.mpc.net.certificates import USERS, Certificate
    from hf_securerouter.mpc.net.trusted import read_list, write_list

    if not (folder / USERS).is_file():
        raise SecureRouterValueError(
            f"`folder` should be the folder of party0 or party1, which has {USERS}, got {str(folder)!r}."
        )
    with _changing_alone(folder) if add or revoke else contextlib.nullcontext():
        found = list(read_list(folder / USERS))
        for text in revoke:
            meant = [one for one in found if text == one.name or text.replace(":", "").lower() == one.fingerprint]
            if not meant:
                raise SecureRouterValueError(
                    f"`revoke` names {text!r}, and no client of that name or key is on the list."
                )
            found = [one for one in found if one not in meant]
        for path in add:
            new = Certificate.load(path)
            if new.role != "client":
                raise SecureRouterValueError(f"`add` {str(path)!r} is a certificate of {new.role}, not of a client.")
            if new.ended:
                raise SecureRouterValueError(f"`add` {str(path)!r}: {new.warning()}")
            found += [] if new in found else [new]
        if add or revoke:
            write_list(folder / USERS, found)
    return [{"name": one.name, "until": f"{one.until:%Y-%m-%d}", "fingerprint": one.fingerprint} for one in found]


@contextlib.contextmanager
def _changing_alone(folder: Path) -> Iterator[None]:
    """Lock a server's folder, since of two commands that change the list at once, one's change would be lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SecureRouterValueError(
                        f"`folder` {str(folder)!r}: another command is changing its list: wait for it or stop it."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
