# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The record of opened sets sees a set that is opened twice, also by a later process."""

from tests.faults.opened_sets import reused


def test_an_id_or_a_seed_that_comes_back_is_seen(tmp_path):
    for rank in (0, 1):
        (tmp_path / f"opened-{rank}").write_text("a 1\nb 2\n")
    assert reused(tmp_path) == 0  # both parties open the same sets
    with open(tmp_path / "opened-1", "a") as file:
        file.write("c 1\nb 3\n")
    assert reused(tmp_path) == 2
