# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the parties' link share."""

import pytest

from tests.support.transport_ends import Party1, make_keys


@pytest.fixture(scope="module")
def party1():
    """The other process."""
    party = Party1()
    yield party
    party.stop()


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A folder with a certificate authority and the keys of three roles, and a stranger's authority below it."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    make_keys(folder / "stranger")
    return folder
