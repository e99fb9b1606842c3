# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The files of a checkpoint, read so that a missing, cut or wrong one is named, with the field and a remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .admission import check_buildable
from .config_fields import shown, wrong_field
from .configuration_securerouter import SecureRouterConfig
from .errors import FileError, SecureRouterError, SecureRouterValueError, UnknownArgumentError
from .files import read_json
from .loading import only_download_bars
from .pool import has_tokenizer


CONFIG, WEIGHTS = "config.json", "model.safetensors"
_CORRECT = "correct the field, or copy the file again from where it was saved"


def read_config(name: str) -> PreTrainedConfig:
    """The config of a checkpoint, of which every field has a value that it may have.

    Args:
        name (`str`): A folder, or a name on the Hub.

    Raises:
        `FileError`: There is no config.json, or it is cut or wrong; a wrong field is named.
        `SecureRouterError`: The Hub was not reached.
    """
    path = _path_of(name, CONFIG)
    if not path.exists():
        raise FileError(f"`model` {name!r} has no {CONFIG}", str(path), "pass the folder of a saved model")
    values = read_json(path)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        what = f"`model_type` should be a family that transformers knows, got {shown(kind)}"
        raise FileError(what, _place(path, "model_type"), _CORRECT)
    if (wrong := wrong_field(values)) is not None:
        field, what = wrong
        raise FileError(f"`{field}` {what}", _place(path, field), _CORRECT)
    try:
        config = AutoConfig.from_pretrained(name)
        if isinstance(config, SecureRouterConfig):
            check_buildable(config)
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        message = str(cause).strip().split("\n")[0].rstrip(".")
        after = message.find("does not know") if isinstance(cause, UnknownArgumentError) else 0  # its class is first
        found = re.search(r"`(\w[^`]*)`|[Ff]ield '(\w+)'", message[after:])
        if not message or isinstance(cause, KeyError):
            message = f"transformers cannot read {CONFIG}: {type(cause).__name__} {message}"
        raise FileError(message, _place(path, found[1] or found[2] if found else None), _CORRECT) from error
    return config


@contextlib.contextmanager
def reading_weights(name: str) -> Iterator[None]:
    """Name the weights of a checkpoint in whatever goes wrong while they are loaded, which shows no progress bar.

    Raises:
        `FileError`: The weights are missing, corrupt, or of other shapes than the config says.
    """
    where = f"{name}/{WEIGHTS}"
    try:
        with only_download_bars():
            yield
    except (SecureRouterError, MemoryError):
        raise
    except SafetensorError as error:
        what = f"`model` {name!r} has a corrupt safetensors file ({error})"
        raise FileError(what, where, "download or copy it again") from error
    except OSError as error:
        what = f"`model` {name!r} has no weights that can be read"
        raise FileError(what, where, "save or copy them there, as safetensors") from error
    except Exception as error:
        what = f"`model` {name!r} has weights that do not fit its {CONFIG} ({type(error).__name__})"
        raise FileError(what, f"{where} and {CONFIG}", "copy both files again, from the same checkpoint") from error


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        `FileError`: There is none, or its files are cut or wrong.
    """
    remedy = "save it there, with `tokenizer.save_pretrained`"
    if not has_tokenizer(name):
        what = f"`model` {name!r} has no tokenizer, without which no text can be read"
        raise FileError(what, f"{name}/tokenizer.json", remedy)
    if Path(name).is_dir():
        for file in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"):
            if (Path(name) / file).exists():
                read_json(Path(name) / file)
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        what = f"The tokenizer in {name!r} cannot be read ({type(error).__name__})"
        raise FileError(what, f"{name}/tokenizer.json and tokenizer_config.json", remedy) from error


def _place(path: Path, field: str | None) -> str:
    return str(path) if field is None else f"{path}, field `{field}`"


def _path_of(name: str, file: str) -> Path:
    """Where a file of a checkpoint is on this machine, once it was downloaded."""
    if Path(name).exists():
        return Path(name) / file
    try:
        return Path(str(cached_file(name, file)))
    except (OSError, ValueError) as error:
        raise not_got(name, file, error) from error


def not_got(name: str, file: str, error: Exception, argument: str = "model") -> SecureRouterError:
    """The error for the user, when a file of a repository was not got.

    Args:
        name (`str`): The repository.
        file (`str`): The file.
        error (`Exception`): Of huggingface_hub or transformers; its text is not shown.
        argument (`str`): The argument that names the repository.

    Returns:
        `SecureRouterError`: A `SecureRouterValueError` if the name may be wrong.
    """
    causes = [error, error.__cause__, error.__context__]
    absent = (EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)
    if any(isinstance(one, absent) and not isinstance(one, LocalEntryNotFoundError) for one in causes):
        return SecureRouterValueError(
            f"`{argument}` {name!r} is not on the Hub, or not open to you, or has no {file}: correct the name, or "
            "sign in with `hf auth login`."
        )
    return SecureRouterError(
        f"`{argument}` {name!r} was not got from the Hub ({type(error).__name__}): is this machine online? A folder "
        "on this machine needs no network."
    )
