# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whom a role trusts, from the lists of certificates in its folder.

`peers.json` has the servers and the dealer, for as long as the role runs. `users.json`, which only servers have, is
the allow list of clients: it is read anew whenever it changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ...errors import SecureRouterValueError
from ...files import write_atomically
from .certificates import Certificate, list_bytes


def read_list(path: Path) -> tuple[Certificate, ...]:
    """The certificates of a file.

    Raises:
        `SecureRouterValueError`: The file is missing, or is no list of certificates.
    """
    try:
        entries = json.loads(path.read_text())
        pems = [entry["certificate"] for entry in entries]
        return tuple(Certificate.from_pem(pem.encode(), f"An entry of {str(path)!r}") for pem in pems)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, SecureRouterValueError):
            raise
        raise SecureRouterValueError(
            f"{str(path)!r} is no list of certificates ({type(error).__name__}): change it with `securerouter users`, "
            "or share anew."
        ) from error


def write_list(path: Path, certificates: Iterable[Certificate]) -> None:
    """Write a file of certificates in the place of an earlier one, at once and for good."""
    with write_atomically(path, private=True) as temporary:
        temporary.write_bytes(list_bytes(certificates))


class AllowList:
    """The clients in a server's `users.json`.

    When the file becomes unreadable while the server runs, the last list that could be read stays in force, and
    `problem` says what is wrong.

    Args:
        path (`Path`): The file.

    Raises:
        `SecureRouterValueError`: The file is missing, or is no list of clients' certificates.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._seen()
        self.problem: str | None = None
        self.users = self._read()

    def refresh(self) -> bool:
        """Read the file if it has changed, again and again until it can be read; whether the list is another one."""
        if (stamp := self._seen()) == self._stamp:
            return False
        try:
            found = self._read()
        except SecureRouterValueError as error:
            self.problem = f"{error} The list as it was before stays in force."
            return False
        self._stamp, self.problem = stamp, None
        changed = found != self.users
        self.users = found
        return changed

    def _seen(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._path)
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[Certificate, ...]:
        found = read_list(self._path)
        if other := [one for one in found if one.role != "client"]:
            raise SecureRouterValueError(
                f"{str(self._path)!r} has a certificate of {other[0].role}; only clients stand in it."
            )
        return found
