# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Whether the files of a role are those that `save_shares` wrote, and whether two roles have the same sharing.

`manifest.json` has, for everybody, the id of the sharing and a digest of the masked weights D. The digest is salted:
the dealer, who knows the masks, could otherwise compare it with that of weights that it guesses. Each folder has
`integrity.json`, with the digest of its own tensors, and at a server with the salt.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import SecureRouterValueError, warn
from ..models.manifest import PARTIES, Manifest
from ..protocols.masked.layout import SEED


INTEGRITY, TENSORS = "integrity.json", "tensors.safetensors"


def weights_digest(file: Path, salt: bytes) -> str:
    """SHA-256 of a salt and of all masked weights in a server's file, in the order of their names.

    Args:
        file (`Path`): A server's `tensors.safetensors`; its seed is left out.
        salt (`bytes`): Secret of the two servers.

    Returns:
        `str`: 64 hex digits, the same at both servers of a sharing.
    """
    digest = hashlib.sha256(salt)
    with safe_open(file, "pt") as opened:
        for name in sorted(name for name in opened.keys() if name != SEED):
            _add(digest, name, opened.get_tensor(name))
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_folder(path: Path, manifest: Manifest, role: str) -> None:
    """Compare a role's tensors with what the sharing says of them.

    Args:
        path (`Path`): The role's folder.
        manifest (`Manifest`): The folder's manifest.
        role (`str`): Whose folder it is.

    Raises:
        `SecureRouterValueError`: They differ, or `integrity.json` is missing.
    """
    if not manifest.sharing:
        warn(f"{str(path)!r} was shared by an earlier version, and nothing in it tells a damaged file: share anew.")
        return
    try:
        own: Mapping[str, Any] = json.loads((path / INTEGRITY).read_text())
        sound = file_digest(path / TENSORS) == own["tensors"]
        if sound and role in PARTIES:
            sound = weights_digest(path / TENSORS, bytes.fromhex(own["salt"])) == manifest.digest
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SecureRouterValueError(
            f"{str(path / INTEGRITY)!r} cannot be read ({type(error).__name__}): copy the folder anew."
        ) from error
    if not sound:
        raise SecureRouterValueError(
            f"{str(path / TENSORS)!r} is not what `securerouter share` wrote: copy the folder anew, or share anew."
        )


def facts(manifest: Manifest) -> dict[str, str]:
    """What must be equal at all roles, by name: the version, and each field of the manifest."""
    found = {"version": importlib.metadata.version("hf_securerouter")}
    for name, value in manifest.to_dict().items():
        is_public_id = name in ("sharing", "digest")
        found[name] = value if is_public_id else hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return found


def _add(digest: Any, name: str, values: Tensor) -> None:
    digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
    digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy())
