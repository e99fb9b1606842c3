# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are complete or absent: written under a temporary name beside the final one, then renamed.

What is private is also on the disk when the block ends, so that a loss of power leaves no part of it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import FileError


PRIVATE = 0o600  # a file that only its owner can read
COPY_AGAIN = "copy the file again from where it was saved"


@contextmanager
def write_atomically(path: str | os.PathLike, private: bool = False) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` when the block ends; after an error `path` is unchanged.

    Args:
        path (`str` or `os.PathLike`): The file to write, or to replace.
        private (`bool`): Whether only the owner may read the file; that is the owner of an earlier one.

    Raises:
        `FileError`: `path` is private and belongs to another user, and this one may not give it a new file.

    Example:
        ```python
        with write_atomically("report.json") as temporary:
            temporary.write_text("{}")
        ```
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if private:
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
            try:
                _keep_owner(descriptor, target)
            finally:
                os.close(descriptor)
        yield temporary
        if private:
            _sync(temporary)
        os.replace(temporary, target)
        if private:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike, private: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` when the block ends; after an error it is removed.

    Args:
        path (`str` or `os.PathLike`): Must not exist, or be an empty folder.
        private (`bool`): Whether only the owner may open the folder and read its files.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    mask = os.umask(0o077) if private else None
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))  # of mode 0700
    try:
        if not private:
            part.chmod(0o777 & ~_umask())
        yield part
        if private:
            for inner in (*part.rglob("*"), part):
                _sync(inner)
        part.rename(target)
        if private:
            _sync(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        if mask is not None:
            os.umask(mask)


def _keep_owner(descriptor: int, target: Path) -> None:
    """Give a new file the owner of the one that it will replace, such as a server's list that root changes."""
    if not target.exists() or (status := target.stat()).st_uid == os.geteuid():
        return
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError:
        what = f"{target.name} belongs to another user, who could not read a new one"
        raise FileError(what, str(target), "run the command as that user, or as root") from None


def _sync(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a text as UTF-8, with line ends as they are."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(value: Any, path: str | os.PathLike) -> None:
    """Write a value as indented JSON.

    Raises:
        `ValueError`: `value` holds a NaN or an infinity.
    """
    write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", path)


def read_json(path: Path, kind: type = dict) -> Any:
    """The value in a JSON file.

    Args:
        path (`Path`): The file.
        kind (`type`): What it should hold: `dict` or `list`.

    Raises:
        `FileError`: The file is missing, cannot be opened, or holds something else.
    """
    where = str(path)
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"There is no {path.name}", where, "pass a folder that has it") from None
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {error.strerror}", where, "mend its permissions") from None
    except RecursionError:
        raise FileError(f"{path.name} is nested too deeply", where, COPY_AGAIN) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise FileError(f"{path.name} is not JSON: {error.msg} at {place}", where, COPY_AGAIN) from None
    except ValueError:
        raise FileError(f"{path.name} is not JSON in UTF-8", where, COPY_AGAIN) from None
    if not isinstance(values, kind):
        wanted = "object" if kind is dict else "array"
        raise FileError(f"{path.name} should hold a JSON {wanted}, got {type(values).__name__}", where, COPY_AGAIN)
    return values
