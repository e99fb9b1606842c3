# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A time to wait is checked where a role takes it, before anything waits for ever."""

import math
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from hf_securerouter import SecureRouterClient, SecureRouterValueError, to_mpc
from hf_securerouter.mpc.deployment.dealer_server import DealerServer
from hf_securerouter.mpc.deployment.party_server import PartyServer
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.net.sockets import LONGEST, check_seconds
from hf_securerouter.mpc.profiler import profile
from hf_securerouter.mpc.sessions.local import LocalSession
from tests.tiny import pool_model


HERE = ("127.0.0.1", 0)
FOLDER = SimpleNamespace()  # nothing is read of it before
ROLES = {
    "dealer": lambda seconds: DealerServer(FOLDER, HERE, seconds, print),
    "party": lambda seconds: PartyServer(FOLDER, HERE, HERE, None, seconds, print),
}


NO_WAITS = [math.inf, math.nan, 0.0, -1.0, 1e9, "60", None, True, np.True_, np.float32("nan"), np.int64(-1)]


@pytest.mark.parametrize("seconds", NO_WAITS)
@pytest.mark.parametrize("role", ROLES)
def test_a_timeout_is_a_number_of_seconds_that_end(role, seconds):
    with pytest.raises(
        SecureRouterValueError, match=f"`timeout` should be .* to {LONGEST}, got {re.escape(repr(seconds))}"
    ):
        ROLES[role](seconds)


@pytest.mark.parametrize("name", ["silence", "max_wait"])
def test_a_party_checks_its_other_waits(name):
    with pytest.raises(SecureRouterValueError, match=f"`{name}` should be .* got inf"):
        PartyServer(FOLDER, HERE, HERE, None, 60.0, print, **{name: math.inf})


def test_a_batch_need_not_wait_for_company():
    check_seconds("max_wait", 0.0, least=0)
    with pytest.raises(SecureRouterValueError, match="from 0 to"):
        check_seconds("max_wait", -0.1, least=0)


@pytest.mark.parametrize("silence", NO_WAITS)
def test_a_local_session_checks_its_silence_before_it_plans_or_starts_anything(silence):
    with pytest.raises(SecureRouterValueError, match="`silence` should be a number of seconds"):
        LocalSession(SimpleNamespace(), silence=silence)


@pytest.mark.parametrize("delay_ms", [math.inf, math.nan, 0, -1.0, 10_001, "60", True])
def test_a_delay_is_checked_before_anything_is_run_with_it(delay_ms):
    with pytest.raises(SecureRouterValueError, match="`delay_ms` should be a number above 0 and at most 10000"):
        LocalSession(SimpleNamespace(), delay_ms=delay_ms)
    with pytest.raises(SecureRouterValueError, match="`delay_ms` should be a number above 0 and at most 10000"):
        profile("no such folder", delay_ms=delay_ms)


@pytest.mark.parametrize("name", ["batch_size", "memory"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_a_local_session_checks_its_sizes_before_it_plans_or_starts_anything(name, value):
    with pytest.raises(SecureRouterValueError, match=f"`{name}` should be an integer of at least 1, got {value!r}"):
        LocalSession(SimpleNamespace(), **{name: value})


@pytest.mark.parametrize("retries", [-1, 2.5, "3", None, True])
def test_a_client_checks_how_often_it_asks_again(retries):
    with pytest.raises(SecureRouterValueError, match=f"`retries` should be an integer of at least 0, got {retries!r}"):
        RemoteSession(FOLDER, HERE, HERE, retries=retries)
    with pytest.raises(SecureRouterValueError, match=f"`retries` should be an integer of at least 0, got {retries!r}"):
        SecureRouterClient.from_pretrained("no such folder", retries=retries)


@pytest.mark.parametrize("seconds", [600, np.int64(600), np.float32(600), np.float64(600), Fraction(600)])
def test_any_real_number_is_a_wait_and_goes_on_as_a_float(seconds):
    checked = check_seconds("timeout", seconds)
    assert type(checked) is float and checked == 600.0


def test_a_local_session_takes_waits_out_of_arrays():
    waits = {"timeout": np.int64(60), "silence": np.float32(30), "delay_ms": np.float32(2)}
    session = to_mpc(pool_model(), max_length=8).local_session(**waits)
    assert [type(getattr(session, name)) for name in waits] == [float] * 3
    del waits["delay_ms"]  # not every machine can delay
    with to_mpc(pool_model(), max_length=8).local_session(**waits) as session:
        assert session.setup_seconds > 0
