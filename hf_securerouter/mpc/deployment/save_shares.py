# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Writes a converted model as one folder per role.

`party0` and `party1` hold the masked weights and one seed each, `dealer` both seeds, `client` the embedding layers,
the tokenizer, the labels and the configs of its embeddings. Every folder holds the public manifest, the digest of its
tensors, and the certificates of the roles that it trusts. The dealer's folder and a party's together reveal the
weights: give each folder to its role alone, and keep no copy.

Private keys stay with their holders, whose certificates are passed as `keys`. Without, all keys are made here: that is
for trials, because whoever holds these folders can pose as both servers, and read what clients ask.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...errors import SecureRouterValueError
from ...files import new_folder
from ...known_arguments import refuses_unknown
from ..conversion.client import Client
from ..conversion.converted import Converted
from ..models.manifest import PARTIES
from ..net.certificates import Certificate, distinct, make_certificates, trust_files
from .integrity import INTEGRITY, TENSORS, file_digest, weights_digest


MANIFEST, CLIENT = "manifest.json", "client.json"


@refuses_unknown
def save_shares(converted: Converted, folder: str | os.PathLike, keys: Sequence[str | os.PathLike] = ()) -> None:
    """Share the weights afresh and write a folder for every role.

    Args:
        converted (`Converted`): The converted model.
        folder (`str` or `os.PathLike`): Must not exist yet, so that no two sharings are mixed. It appears when it is
            complete; only its owner can open it.
        keys (`Sequence[str | os.PathLike]`, *optional*): Certificates that `securerouter keygen` made: one of each
            server and of the dealer, and any number of clients'. Without, all keys are made here, for a trial.

    Raises:
        `SecureRouterValueError`: `folder` exists already; `keys` has not one certificate of each server and of the
            dealer, or one that has ended.
    """
    certificates = tuple(Certificate.load(Path(path)) for path in keys)
    if certificates:
        _check_keys(certificates, converted.manifest.roles)
    target, client = Path(folder), converted.client
    if target.exists():
        raise SecureRouterValueError(f"`folder` should not exist yet, got {str(folder)!r}: name a new one.")
    with new_folder(target, private=True) as part:
        roles: dict[str, dict[str, Tensor]] = {role: {} for role in converted.manifest.roles}
        for shares in converted.sharing.weights(converted.weights):
            for role, tensors in shares.items():
                roles[role] |= {name: values.contiguous() for name, values in tensors.items()}
        roles["client"] = {
            f"{member}.{name}": values.clone().contiguous()
            for member, module in client.embeddings.items()
            for name, values in module.state_dict().items()
        }
        for role, tensors in roles.items():
            (part / role).mkdir()
            save_file(tensors, part / role / TENSORS)
        salt = secrets.token_bytes(32)
        digest = weights_digest(part / PARTIES[0] / TENSORS, salt)
        manifest = dataclasses.replace(converted.manifest, sharing=secrets.token_hex(16), digest=digest)
        for role in roles:
            own = {"tensors": file_digest(part / role / TENSORS)}
            _write_json(part / role / INTEGRITY, own | ({"salt": salt.hex()} if role in PARTIES else {}))
            _write_json(part / role / MANIFEST, manifest.to_dict())
        made = {role: trust_files(role, certificates) for role in roles} if certificates else None
        for role, files in (made or make_certificates(tuple(roles))).items():
            for name, content in files.items():
                (part / role / name).write_bytes(content)
        _write_json(part / "client" / CLIENT, _described(client))
        if client.tokenizer is not None:
            client.tokenizer.save_pretrained(part / "client")


def _check_keys(certificates: Sequence[Certificate], roles: Sequence[str]) -> None:
    distinct(certificates)
    found = [one.role for one in certificates if one.role != "client"]
    if sorted(found) != sorted(roles):
        raise SecureRouterValueError(
            f"`keys` should have one certificate each of {', '.join(roles)}, got {', '.join(found) or 'none of them'}."
        )
    for one in certificates:
        if one.ended:
            raise SecureRouterValueError(f"`keys`: {one.warning()}")


def _described(client: Client) -> dict[str, Any]:
    """The client's labels and configs, without fields that tell the owner's paths or versions."""
    unwanted = ("_name_or_path", "architectures", "transformers_version", "dtype")
    return {
        "labels": {str(index): name for index, name in client.labels.names.items()},
        # Versions that know no multi-label models look for "regression", and refuse a folder without it.
        **({"multi_label": True} if client.labels.multi_label else {"regression": client.labels.regression}),
        "pad_token_id": client.pad_token_id,
        "members": {
            name: {key: value for key, value in config.to_dict().items() if key not in unwanted}
            for name, config in client.configs.items()
        },
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2))
