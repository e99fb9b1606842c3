# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Measure both protocols on the same models and inputs, and write docs/benchmark.md: `make benchmark`.

Every cell is one `securerouter profile` in a process of its own. Its report is kept as soon as it ends, and what is
kept is not measured again: remove the results to start afresh.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "benchmark.json"
PROTOCOLS = ("masked", "crypten")
PROFILE = (sys.executable, "-c", "from hf_securerouter.cli import main; main()", "profile", "--json")
LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    architecture: str
    batch_size: int
    seq_length: int
    protocol: str
    delay_ms: float | None = None

    @property
    def name(self) -> str:
        """The key of its result, such as `bert-base/1x128/masked` or `bert-base/1x128/masked/10ms`."""
        name = f"{self.architecture}/{self.batch_size}x{self.seq_length}/{self.protocol}"
        return name if self.delay_ms is None else f"{name}/{self.delay_ms:g}ms"

    def command(self) -> list[str]:
        """The command that measures it."""
        options = {
            "architecture": self.architecture,
            "batch-size": self.batch_size,
            "seq-length": self.seq_length,
            "protocol": self.protocol,
        }
        if self.delay_ms is not None:
            options["delay-ms"] = self.delay_ms
        return [*PROFILE, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def grid() -> Iterator[Cell]:
    """All cells: small ones first, the two protocols of a cell one after the other."""
    for batch_size in (1, 4, 16):
        for seq_length in (32, 128, 512):
            for protocol in PROTOCOLS:
                yield Cell("bert-tiny", batch_size, seq_length, protocol)
    for batch_size, seq_length in ((1, 32), (1, 128), (4, 128)):
        for protocol in PROTOCOLS:
            yield Cell("bert-base", batch_size, seq_length, protocol)
    yield Cell("bert-base", 1, 512, "masked")
    yield Cell("bert-large", 1, 128, "masked")
    for protocol in PROTOCOLS:
        yield Cell("bert-base", 1, 128, protocol, delay_ms=10)


def load(path: Path) -> dict[str, Any]:
    """What has been measured so far, and where."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"machine": machine(), "cells": {}}


def save(results: dict[str, Any], path: Path) -> None:
    """Keep the results; the file is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1), encoding="utf-8")
    part.rename(path)


def machine() -> str:
    """The processor, its cores and the memory, in words; products of int64, of which `crypten` is made, are many times
    faster with AVX-512."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    vectors = "with" if any(line.startswith("flags") and "avx512f" in line for line in lines) else "without"
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model or platform.machine()} {vectors} AVX-512, {memory:.0f} GiB"


def measure(cell: Cell) -> dict[str, Any] | None:
    """The report of one cell, or None where it failed."""
    print(f"{cell.name} ...", flush=True)
    try:
        done = subprocess.run(cell.command(), stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{cell.name} took more than {LIMIT_SECONDS} seconds and was stopped.", flush=True)
        return None
    if done.returncode != 0:
        print(f"{cell.name} failed.", flush=True)
        return None
    found = json.loads(done.stdout)
    print(f"{cell.name}: {found['online_seconds']:.2f} s, {found['online_bytes'] / 1e6:.1f} MB", flush=True)
    return found


def main() -> int:
    """Measure what is missing, then write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="measure only cells with this in their name (bert-tiny/1x)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the measurements are kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmark.md", help="what gets the tables")
    arguments = parser.parse_args()
    results, failed = load(arguments.results), []
    for cell in grid():
        if arguments.only in cell.name and cell.name not in results["cells"]:
            found = measure(cell)
            if found is None:
                failed.append(cell.name)
                continue
            results["cells"][cell.name] = found
            save(results, arguments.results)
    print(report.gates(results))
    report.plot(results, Path(__file__).with_name("cost_by_length.png"))
    report.write_section(arguments.page, report.section(results))
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
