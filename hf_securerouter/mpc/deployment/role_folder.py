# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Loads the folder of one role, which `save_shares` wrote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel

from ...checkpoint_files import read_tokenizer
from ...errors import FileError, SecureRouterError, SecureRouterValueError
from ...files import read_json
from ..conversion.client import Client, Labels
from ..models import Architecture, architecture_for
from ..models.manifest import Manifest
from ..net.certificates import KEY
from ..net.identity import Identity
from .integrity import TENSORS, check_folder, facts
from .save_shares import CLIENT, MANIFEST


_REMEDY = "copy the role's folder again from where `securerouter share` made it"


@dataclass(frozen=True)
class RoleFolder:
    """One role's folder, with the identity and the manifest that every role has.

    Args:
        path (`Path`): The folder.
        identity (`Identity`): The role and its key.
        manifest (`Manifest`): The public description of the model.
    """

    path: Path
    identity: Identity
    manifest: Manifest

    @classmethod
    def load(
        cls, path: Path, *roles: str, key: Path | None = None, pins: Mapping[str, str] | None = None
    ) -> RoleFolder:
        """The folder of one of `roles`.

        Args:
            path (`Path`): The folder.
            roles (`str`): The roles whose folder may be loaded.
            key (`Path`, *optional*): The folder of the role's key that `securerouter keygen` made; None if the key is
                in the role's folder, as in a trial.
            pins (`Mapping[str, str]`, *optional*): Fingerprints of other roles' keys, as their operators tell them.

        Raises:
            `FileError`: The manifest is cut or wrong.
            `SecureRouterValueError`: `path` is no role's folder, belongs to another role, is open to other users, is
                damaged, or was shared for another protocol; a key is missing, has ended, or is not that of its pin.
        """
        manifest = read_manifest(path)
        for secret in (key or path, (key or path) / KEY):
            _check_private(secret)
        identity = Identity.load(path, key)
        if identity.role not in roles:
            raise SecureRouterValueError(
                f"`folder` {str(path)!r} is that of {identity.role}, and {' or '.join(roles)} is asked for: pass the "
                "folder of that role."
            )
        if identity.role == "client":  # whose folder has no secret but perhaps the key
            _check_unchanged(path)
        else:
            _check_private(path)
        check_folder(path, manifest, identity.role)
        identity.check_pins(pins or {})
        identity.facts = facts(manifest)
        return cls(path, identity, manifest)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors by name, one at a time.

        Raises:
            `FileError`: Their file is missing, or is cut.
        """
        try:
            with safe_open(self.path / TENSORS, "pt") as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            what = f"{TENSORS} cannot be read ({type(error).__name__})"
            raise FileError(what, str(self.path / TENSORS), _REMEDY) from error

    def client(self) -> Client:
        """The client of this folder: embedding layers, labels, and the tokenizer if the folder has one.

        Raises:
            `FileError`: A file is missing, cut or wrong.
            `SecureRouterValueError`: An embedding's architecture is unknown to this version.
        """
        described = read_json(self.path / CLIENT)
        tensors = dict(self.tensors())
        with _describing(self.path / CLIENT):
            members = {name: _embeddings(name, values, tensors) for name, values in described["members"].items()}
            names = {int(index): label for index, label in described["labels"].items()}
            multi_label = described.get("multi_label", False)
            labels = Labels(names, not multi_label and described["regression"], multi_label)
            padding = described["pad_token_id"]
        has_tokenizer = (self.path / "tokenizer_config.json").exists()
        tokenizer = read_tokenizer(str(self.path)) if has_tokenizer else None
        lengths = {name: self.manifest.length_of(name) for name in members}
        return Client(members, tokenizer, self.manifest.max_length, labels, padding, lengths)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a role's folder.

    Raises:
        `FileError`: The manifest is cut or wrong.
        `SecureRouterValueError`: `path` is no role's folder, or was shared for another protocol.
    """
    if not (path / MANIFEST).is_file():
        raise SecureRouterValueError(
            f"`folder` should be a role's folder that `securerouter share` made, got {str(path)!r}."
        )
    with _describing(path / MANIFEST):
        manifest = Manifest.from_dict(read_json(path / MANIFEST))
    if manifest.protocol != "masked":
        raise SecureRouterValueError(
            f"`folder` {str(path)!r} was shared for protocol {manifest.protocol!r}; only 'masked' runs on machines of "
            "different owners."
        )
    return manifest


@contextlib.contextmanager
def _describing(path: Path) -> Iterator[None]:
    """Name a JSON file of which a field is missing or wrong."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, SecureRouterError):
            raise
        field = f" without {error}" if isinstance(error, KeyError) else f" ({type(error).__name__})"
        raise FileError(f"{path.name} does not describe a model{field}", str(path), _REMEDY) from error


def _embeddings(name: str, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Architecture, Any]:
    """A member of the pool, of which only the embeddings have weights."""
    config = AutoConfig.for_model(**values)
    architecture = architecture_for(config.model_type)
    if architecture is None:
        raise SecureRouterValueError(f"This version does not know the architecture {config.model_type!r}.")
    with accelerate.init_empty_weights():
        encoder = AutoModel.from_config(config)
    prefix = f"{name}."
    own = {key.removeprefix(prefix): words for key, words in tensors.items() if key.startswith(prefix)}
    architecture.embeddings(encoder).load_state_dict(own, assign=True)
    return architecture, encoder


def _check_unchanged(path: Path) -> None:
    if path.stat().st_mode & 0o002:
        raise SecureRouterValueError(
            f"`folder` {str(path)!r} can be changed by every user, who could pose as the servers: `chmod o-w {path}`."
        )


def _check_private(path: Path) -> None:
    if not path.exists():
        return  # what is missing is said where it is needed
    status = path.stat()
    if status.st_mode & 0o077:
        raise SecureRouterValueError(
            f"`folder` {str(path)!r} holds secrets and is open to other users: `chmod -R go= {path}`."
        )
    if status.st_uid != os.geteuid():
        raise SecureRouterValueError(f"`folder` {str(path)!r} holds secrets and belongs to another user: copy it.")
