# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A role's program is made of a whole set-up message only."""

import pytest

from hf_securerouter import SecureRouterValueError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.protocols.base import make_program
from tests.tiny import noisy_classifier


@pytest.fixture(scope="module")
def described():
    return to_mpc(noisy_classifier("bert", width=16, heads=2), max_length=8).manifest.to_dict()


def test_a_message_that_lacks_something_is_refused(described, tmp_path):
    cut = {name: value for name, value in described.items() if name != "quotas"}
    place = {"folder": str(tmp_path), "timeout": 1}
    for role, setup, message in (
        ("party0", {}, "`setup` should have manifest, and lacks manifest: pass"),
        ("party0", {"manifest": cut}, r"`setup\['manifest'\]` lacks 'quotas': pass"),
        ("dealer", {"manifest": described}, "lacks folder, timeout: pass"),
        ("party1", {"manifest": described, **place}, "lacks debug, ahead, silence: pass"),
        ("dealer", {"manifest": described | {"protocol": "crypten"}, "timeout": 1}, "lacks folder: pass"),
        ("party2", {"manifest": described, **place}, "`role` should be one of party0, party1, dealer, got 'party2'"),
    ):
        with pytest.raises(SecureRouterValueError, match=message):
            make_program(role, setup, None)
