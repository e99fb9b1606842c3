# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""After any failure between the masked protocol's processes, every remaining role reports it, and soon."""

import re
import signal
import time

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.net.channel import ChannelError
from hf_securerouter.mpc.sessions import local as session_module
from tests.support import script
from tests.tiny import family_config


pytestmark = pytest.mark.timeout(240)

LIMIT = 10.0
LENGTH = 8
ROLES = ("party0", "party1", "dealer")
SCRIPT = script("masked_recording_role")
# One role in `make test`, all of them in `make faults`.
KILLED = ["party1", *(pytest.param(name, marks=pytest.mark.fault) for name in ("party0", "dealer"))]


@pytest.fixture(scope="module")
def secure():
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(family_config("bert"))
    return to_mpc(model, protocol="masked", max_length=LENGTH)


def ask(session, rows=2, lost=None):
    """Send every role a query, without waiting for the answers; a role that has ended need not take it."""
    ids = torch.full((rows, LENGTH), 7)
    embeddings = session.model.client.embed({"input_ids": ids})
    shares = session.model.sharing.inputs(embeddings, torch.ones_like(ids))
    for name, role in session._roles.items():
        try:
            role.channel.send({"kind": "query", "batch": rows}, shares.get(name), timeout=5)
        except ChannelError:
            assert lost is not None


def endings(session, roles, since):
    """The last message of each role before it ends; all roles end within the limit."""
    told = {}
    while set(told) < set(roles):
        role, event = session._events.get(timeout=max(since + LIMIT - time.monotonic(), 0.01))
        if role in roles and not isinstance(event, ChannelError) and event[0]["kind"] == "error":
            told[role] = event[0]["error"]
    for role in roles:
        assert session._roles[role].process.wait(timeout=LIMIT) == 1
    return told


@pytest.mark.parametrize("killed", KILLED)
def test_a_killed_role_ends_the_others_with_a_clear_error(secure, killed):
    with secure.local_session(timeout=120) as session:
        session({"input_ids": torch.full((2, LENGTH), 7)})
        ask(session)
        time.sleep(0.05)  # in the middle of dealing or computing, or just after
        since = time.monotonic()
        session._roles[killed].process.kill()
        ask(session, lost=killed)  # if the query ended before the kill, the next query fails
        told = endings(session, [role for role in ROLES if role != killed], since)
    for role, text in told.items():
        assert text.startswith(("LinkError: ", "SupplyError: ")), (role, text)
        assert re.search(r"closed the link|link to .* is closed|gave up", text), (role, text)


@pytest.mark.fault
def test_a_dealer_that_stands_still_is_given_up_by_both(secure):
    with secure.local_session(timeout=120, silence=4) as session:
        session({"input_ids": torch.full((2, LENGTH), 7)})
        session._roles["dealer"].process.send_signal(signal.SIGSTOP)
        since = time.monotonic()
        ask(session, rows=3)  # another size than that of the set that was dealt ahead
        told = endings(session, ("party0", "party1"), since)
        session._roles["dealer"].process.send_signal(signal.SIGCONT)
    assert all("the dealer was silent for 4 seconds" in text or "closed the link" in text for text in told.values())
    assert any("the dealer was silent" in text for text in told.values())


def test_a_role_of_another_version_is_noticed_by_all(secure, tmp_path, monkeypatch):
    monkeypatch.setenv("SECUREROUTER_RECORD", str(tmp_path))
    monkeypatch.setenv("SECUREROUTER_ODD", "party1")
    monkeypatch.setattr(session_module, "ROLE_PROGRAM", (SCRIPT,))
    with secure.local_session(timeout=120) as session:
        ask(session)
        told = endings(session, ROLES, time.monotonic() + 60)  # the roles trace their plans first
    for role, text in told.items():
        assert "the plans of `experts.0/2` differ between the parties and the dealer" in text, (role, text)
