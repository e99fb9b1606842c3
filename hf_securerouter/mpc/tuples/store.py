# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Sets of tuples at rest: a folder for each party, and a log in which every set is burned before it is used.

The log decides, not the files: a set whose id is in it is refused for ever, also when the process died right after the
mark, and when a copy of the file comes back. A folder restored as a whole brings an old log back; then the other
party's log still passes over its sets, unless that was restored too. Restore neither: deal new sets.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import SecureRouterError
from ..ring.randomness import SEED_BYTES, new_seed
from .deal import deal_set
from .party_set import Corrections, PartySet, SetLabel
from .plan import Plan


_SUFFIX = ".safetensors"
_NUMBER = struct.Struct("<Q")
_NEXT = struct.Struct("<Q32s")
_NONE_LEFT = 2**64 - 1


class StoreError(SecureRouterError):
    """A folder of tuples cannot be used, or has no set left."""


class Pair(Protocol):
    """The part of the parties' link that a store needs."""

    def exchange(self, parts: Any) -> list[Any]: ...


class TupleStore:
    """One party's folder of sets. One process uses it at a time; a context manager.

    Args:
        folder (`str` or `Path`): Made, with mode 0700, if it does not exist.
        rank (`int`): Whose folder it is.

    Raises:
        `StoreError`: Others can read the folder, another process uses it, or its log is gone.

    Example:
        ```python
        with TupleStore("tuples/party0", rank=0) as store:
            tuples = store.take("experts.0/1", plan, link).open(plan)
        ```
    """

    def __init__(self, folder: str | Path, rank: int) -> None:
        self.folder, self.rank = Path(folder), rank
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            pass
        if self.folder.stat().st_mode & 0o077:
            raise StoreError(f"{self.folder} is open to other users, and holds secrets: `chmod 700 {self.folder}`.")
        self._log = self._open_log()
        for path in self.folder.glob("*.part"):  # of a dealer that died; no other process is here
            path.unlink()
        for path in self._files():
            if _id_of(path) in self._burned:
                _erase(path)

    def _open_log(self) -> int:
        path = self.folder / "burned"
        if not path.exists() and self._files():
            raise StoreError(f"{path} is gone, so nobody knows which sets were used: delete them and deal new ones.")
        log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(log)
            raise StoreError(f"Another process uses {self.folder}; end it first.") from None
        _sync_folder(self.folder)
        lines = path.read_text()
        if lines and not lines.endswith("\n"):  # a crash within a mark, which no use followed
            os.write(log, b"\n")
        self._burned = set(lines.split())
        return log

    def _files(self) -> list[Path]:
        """The sets, oldest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def __len__(self) -> int:
        """Number of sets that are left, of all plans."""
        return len([path for path in self._files() if _id_of(path) not in self._burned])

    def close(self) -> None:
        """Let another process use the folder."""
        os.close(self._log)

    def __enter__(self) -> TupleStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, number: int, label: SetLabel, seed: bytes, corrections_bytes: int = 0) -> SetWriter:
        """Write a set, which is there once the writer is finished.

        Args:
            number (`int`): Its place in the order of use, the same for both parties.
            label (`SetLabel`): Its label.
            seed (`bytes`): The party's seed.
            corrections_bytes (`int`): How many bytes of corrections will follow.
        """
        return SetWriter(self.folder / f"{number:020d}-{label.id}{_SUFFIX}", label, seed, corrections_bytes)

    def take(self, name: str, plan: Plan, link: Pair) -> PartySet:
        """The next set of a plan that both parties still have. It is burned on the disk before this returns.

        Args:
            name (`str`): Of the program, for messages.
            plan (`Plan`): Its plan.
            link (`Link`): To the other party.

        Raises:
            `StoreError`: At both parties: their plans differ, or there is none left.

        Cost: 40 bytes each way, one round; one more where a party has lost or burned sets that the other still has.
        """
        ours = {int(path.name[:20]): path for path in self._files() if _id_of(path) not in self._burned}
        ours = {number: path for number, path in ours.items() if _label_of(path).plan == plan.digest}
        number = min(ours, default=_NONE_LEFT)
        while True:
            theirs, their_plan = _NEXT.unpack(link.exchange([_NEXT.pack(number, bytes.fromhex(plan.digest))])[0])
            if their_plan.hex() != plan.digest:
                raise StoreError(f"The parties run different plans of `{name}`; do both have this model and version?")
            if number == theirs:
                break
            number = min((known for known in ours if known >= max(number, theirs)), default=_NONE_LEFT)
        if number == _NONE_LEFT:
            raise StoreError(f"{self.folder} has no set left for `{name}` that both parties have; deal more.")
        for passed in sorted(known for known in ours if known < number):
            self._burn(_id_of(ours[passed]))
            _erase(ours[passed])
        return self._use(ours[number], plan)

    def _use(self, path: Path, plan: Plan) -> PartySet:
        label = _label_of(path)
        self._burn(label.id)
        with path.open("rb") as file:
            start = _seed_start(file)
            file.seek(start)
            seed = file.read(SEED_BYTES)
            sizes = plan.correction_bytes if self.rank == 0 else ()
            corrections = Corrections(file, start + SEED_BYTES, sizes) if self.rank == 0 else None
        # The mapping outlives the name: nothing is left to find once the run is over.
        _erase(path)
        return PartySet(label, self.rank, seed, corrections, received=SEED_BYTES + sum(sizes))

    def _burn(self, identity: str) -> None:
        """Mark a set as used, on the disk, before anything of it is."""
        if identity in self._burned:
            raise StoreError(f"Set {identity} has been used before.")
        os.write(self._log, f"{identity}\n".encode())
        os.fsync(self._log)
        _sync_folder(self.folder)
        self._burned.add(identity)


class SetWriter:
    """Writes one set to a temporary name, in safetensors' format, and renames it when all is on the disk."""

    def __init__(self, path: Path, label: SetLabel, seed: bytes, corrections_bytes: int) -> None:
        end = SEED_BYTES + corrections_bytes
        header = json.dumps(
            {
                "__metadata__": label.to_dict(),
                "seed": {"dtype": "U8", "shape": [SEED_BYTES], "data_offsets": [0, SEED_BYTES]},
                "corrections": {"dtype": "U8", "shape": [corrections_bytes], "data_offsets": [SEED_BYTES, end]},
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        self._path, self._part = path, path.with_suffix(".part")
        self._left = corrections_bytes
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._file.write(_NUMBER.pack(len(header)) + header + seed)

    def write(self, corrections: Tensor) -> None:
        """Append the corrections of one gate, uint8."""
        self._left -= corrections.numel()
        self._file.write(corrections.numpy().data)

    def finish(self) -> None:
        """Bring the set to the disk, under its name."""
        if self._left:
            raise StoreError(f"A set of tuples misses {self._left} bytes.")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._part, self._path)
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Leave nothing of an unfinished set."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def deal_to_stores(
    plan: Plan,
    stores: tuple[TupleStore, TupleStore],
    count: int = 1,
    weight_mask: Callable[[str], Tensor] | None = None,
) -> None:
    """Make sets and keep them in the folders of both parties, gate by gate; the dealer keeps nothing.

    Args:
        plan (`Plan`): Which gates.
        stores (`tuple[TupleStore, TupleStore]`): Of P0 and of P1.
        count (`int`): Number of sets.
        weight_mask (callable, *optional*): As for `deal_set`.
    """
    for _ in range(count):
        number, label, seeds = time.time_ns(), SetLabel.new(plan), (new_seed(), new_seed())
        writers = [
            stores[0].add(number, label, seeds[0], plan.dealer_bytes),
            stores[1].add(number, label, seeds[1]),
        ]
        try:
            for corrections in deal_set(plan, seeds, weight_mask):
                writers[0].write(corrections)
            for writer in writers:
                writer.finish()
        except BaseException:
            for writer in writers:
                writer.discard()
            raise


def _id_of(path: Path) -> str:
    return path.stem[21:]


def _label_of(path: Path) -> SetLabel:
    try:
        with safe_open(path, "pt") as file:
            found = SetLabel(**(file.metadata() or {}))
            complete = set(file.keys()) == {"seed", "corrections"}
    except (SafetensorError, TypeError) as error:
        raise StoreError(f"{path} cannot be read as a set of tuples ({type(error).__name__}); delete it.") from error
    if not complete or found.id != _id_of(path):
        raise StoreError(f"{path} is not the set that its name says; delete it.")
    return found


def _seed_start(file: IO[bytes]) -> int:
    """Where the header of a safetensors file ends, and the seed begins."""
    return _NUMBER.size + _NUMBER.unpack(file.read(_NUMBER.size))[0]


def _erase(path: Path) -> None:
    """Overwrite the seed, without which the corrections are noise, and remove the file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(_seed_start(file))
        file.write(bytes(SEED_BYTES))
        os.fsync(file.fileno())
    path.unlink()
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
