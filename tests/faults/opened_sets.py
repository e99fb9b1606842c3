# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A record of every set of tuples that a party opens, over all restarts, to see that none is opened twice."""

import hashlib
import os
from pathlib import Path

from hf_securerouter.mpc.tuples.party_set import PartySet


def record(folder: str) -> None:
    """From now on, this process adds a line for each set that it opens."""
    original = PartySet.open

    def opened(self, *args, **kwargs):
        line = f"{self.label.id} {hashlib.sha256(self._seed or b'').hexdigest()}\n"
        descriptor = os.open(Path(folder) / f"opened-{self.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        return original(self, *args, **kwargs)

    PartySet.open = opened


def reused(folder: Path) -> int:
    """How many openings were of an id or a seed that the same party had opened before."""
    count, paths = 0, sorted(folder.glob("opened-*"))
    assert len(paths) == 2, "no party has opened a set"
    for path in paths:
        lines = [line.split() for line in path.read_text().splitlines()]
        count += sum(len(lines) - len({line[part] for line in lines}) for part in (0, 1))
    return count
