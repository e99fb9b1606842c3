# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A file of texts for the commands."""

import pytest

from tests.support.commands import write_lines


@pytest.fixture
def texts(tmp_path):
    """70 lines, more than two batches; their words are in the tiny vocabulary or unknown to it."""
    path = tmp_path / "in.jsonl"
    write_lines(path, [{"id": index, "text": f"good film number {index}"} for index in range(70)])
    return path
