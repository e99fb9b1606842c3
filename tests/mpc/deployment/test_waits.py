# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A time to wait is checked where a role takes it, before anything waits for ever."""

import math
from types import SimpleNamespace

import pytest

from hf_securerouter import SecureRouterValueError
from hf_securerouter.mpc.deployment.dealer_server import DealerServer
from hf_securerouter.mpc.deployment.party_server import PartyServer
from hf_securerouter.mpc.net.sockets import LONGEST, check_seconds


HERE = ("127.0.0.1", 0)
FOLDER = SimpleNamespace()  # nothing is read of it before
ROLES = {
    "dealer": lambda seconds: DealerServer(FOLDER, HERE, seconds, print),
    "party": lambda seconds: PartyServer(FOLDER, HERE, HERE, None, seconds, print),
}


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 0.0, -1.0, 1e9, "60", None])
@pytest.mark.parametrize("role", ROLES)
def test_a_timeout_is_a_number_of_seconds_that_end(role, seconds):
    with pytest.raises(SecureRouterValueError, match=f"`timeout` should be .* to {LONGEST}, got {seconds!r}"):
        ROLES[role](seconds)


@pytest.mark.parametrize("name", ["silence", "max_wait"])
def test_a_party_checks_its_other_waits(name):
    with pytest.raises(SecureRouterValueError, match=f"`{name}` should be .* got inf"):
        PartyServer(FOLDER, HERE, HERE, None, 60.0, print, **{name: math.inf})


def test_a_batch_need_not_wait_for_company():
    check_seconds("max_wait", 0.0, least=0)
    with pytest.raises(SecureRouterValueError, match="from 0 to"):
        check_seconds("max_wait", -0.1, least=0)
