# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Options of the roles' commands."""

import pytest
import typer

from hf_securerouter.cli.serving import memory_size


def test_sizes_have_a_unit_or_are_of_bytes():
    sizes = {"12GB": 12 * 10**9, "1.5g": 1_500_000_000, "800 MB": 800 * 10**6, "64": 64, "2TB": 2 * 10**12, "1k": 1000}
    assert {text: memory_size(text) for text in sizes} == sizes
    for text in ("", "GB", "-1", "0", "12 apples", "1e9", "nan", "12GiB"):
        with pytest.raises(typer.BadParameter, match="is not a size such as 12GB"):
            memory_size(text)
