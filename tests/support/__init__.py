# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What tests share: two parties in one process, deployed roles, views to enumerate, scripts of other processes."""

from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> str:
    """The path of a script of this folder, which a test runs in a process of its own."""
    return str(Path(__file__).with_name(f"{name}.py"))
