# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Servers with many clients: nobody hurts another, users share batches, and a client outlives a restart."""

import contextlib
import json
import math
import os
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from hf_securerouter import SecureRouterValueError, cli
from hf_securerouter.classification import classify, load_checkpoint
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.channel import SMALL_HEADER, Channel, ChannelError, ChannelTimeout
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.sessions.session import SessionError
from tests.support.deployed import Deployment
from tests.support.waiting import ended, until
from tests.tiny import pool_model


pytestmark = pytest.mark.timeout(240)

TEXTS = ["the film was very good", ("a dull movie .", "it was slow"), "bad", "the bright and fast film was great"]
QUOTAS = [3, 1]
LIMITS = {"waiting": 4, "rows_a_minute": 100_000}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A checkpoint and its sharings under `quota` and `revealed`."""
    folder = tmp_path_factory.mktemp("clients")
    model = pool_model(("bert", "electra"))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    to_mpc(model, tokenizer, max_length=16, routing_privacy="quota", quotas=QUOTAS).save_shares(folder / "quota")
    to_mpc(model, tokenizer, max_length=16, routing_privacy="revealed").save_shares(folder / "revealed")
    return folder


@pytest.fixture(scope="module")
def served(place):
    """Servers under `quota`, which let a batch wait for a while; every test leaves them able to serve."""
    (place / "limits.json").write_text(json.dumps(LIMITS))
    (place / "quota-logs").mkdir()
    options = both("--limits", str(place / "limits.json"), "--max-wait-ms", "4000")
    with Deployment(place / "quota", place / "quota-logs", options=options) as deployment:
        yield deployment


def both(*options):
    """The same options for both parties."""
    return dict.fromkeys(("party0", "party1"), list(options))


def session(deployment, **options):
    folder = RoleFolder.load(deployment.shares / "client", "client")
    return RemoteSession(folder, deployment.address("party0"), deployment.address("party1"), 60, **options)


def caller(deployment, role):
    identity = Identity.load(deployment.shares / "client")
    return Channel(connect(deployment.address(role), role, identity, time.monotonic() + 20), role)


def query(identity, batch=1):
    return {"kind": "query", "id": identity, "batch": batch}


def clear(place, texts, quotas=None):
    model, tokenizer = load_checkpoint(place / "model")
    return [answer.logits for answer in classify(model, tokenizer, texts, quotas)]


def together(sessions, texts):
    """The results of several users' questions, asked at the same time."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        users = [stack.enter_context(one) for one in sessions]
        return list(pool.map(lambda user, asked: user(asked), users, texts))


# Answers.


def test_users_share_a_batch_and_each_gets_its_own_rows(place, served):
    found = together([session(served, share_batches=True) for _ in range(3)], [TEXTS[:1], TEXTS[1:3], TEXTS[3:]])
    logits = torch.cat([result.logits for result in found])
    # Which expert serves a text depends on all four, so this is the answer of one batch alone.
    assert torch.allclose(logits, torch.tensor(clear(place, TEXTS, QUOTAS)), atol=0.02)
    for role in ("party0", "party1"):
        assert served.roles[role].wait_for("Answered 4 texts of (.) queries")[1] == "3"


def test_copies_fill_what_is_missing(place, served):
    with session(served, share_batches=True) as open_session:
        result = open_session(TEXTS[:2])
    assert result.logits.shape == (2, 2) and result.cost.rounds > 0
    assert result.cost.online_seconds == 0.0  # seconds and memory of the servers are not a client's business
    assert [result.cost.peak_rss_bytes.get(role, 0) for role in ("party0", "party1", "dealer")] == [0, 0, 0]
    expected = torch.tensor(clear(place, [TEXTS[index % 2] for index in range(4)], QUOTAS))
    rows = [(result.logits[row] - expected[row::2]).abs().amax(1).min() for row in (0, 1)]  # of a copy, perhaps
    assert max(rows) < 0.02
    served.roles["party0"].wait_for("Answered 2 texts of 1 queries")


def test_users_share_batches_where_the_experts_are_revealed(place, tmp_path):
    with Deployment(place / "revealed", tmp_path, options=both("--max-wait-ms", "4000")) as deployment:
        found = together([session(deployment) for _ in range(2)], [TEXTS[:1], TEXTS[:3]])
        for rows, result in zip((1, 3), found, strict=True):
            assert torch.allclose(result.logits, torch.tensor(clear(place, TEXTS[:rows])), atol=0.02)
            assert len(result.expert_indices) == rows
            assert result.cost.online_bytes == 0  # it would tell about the other user's texts
        deployment.roles["party0"].wait_for("Answered 4 texts of 2 queries")


# Clients that hurt themselves only.


def payloads(shares):
    """Payloads that are no share, with what the answer says."""
    wrong = {"router": shares["router"][:, None]}
    yield save(shares | wrong), "not of shape"
    yield save(shares | {"router": shares["router"].to(torch.int8)}), "not of shape"
    yield save(shares | {"more": shares["router"].clone()}), "1 tensors are no shares"
    yield save({}), "is missing"
    head = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [0], "data_offsets": [0, 0]}}).encode()
    yield struct.pack("<Q", len(head)) + head, "unknown dtype"
    yield b"\x80\x04N.", "cannot be read"


def test_nonsense_is_answered_and_leaves_one_line(served):
    with session(served) as open_session:
        encoded = open_session.client.tokenize(TEXTS)
        shares = open_session.sharing.inputs(open_session.client.embed(encoded), encoded["attention_mask"])["party0"]
    channel = caller(served, "party0")
    said = served.roles["party0"].said.count("is refused")
    header = json.dumps(query("ab" * 16, len(TEXTS))).encode()
    cases = [(header, payload, match) for payload, match in payloads(shares)]
    cases.append((b"[" * 30_000 + b"]" * 30_000, b"", "cannot be read"))
    cases += [(json.dumps(query("ab" * 16, batch)).encode(), b"", "not a query") for batch in (True, 1.5, None, [])]
    for head, payload, match in cases:
        for _ in range(3):
            channel.send_bytes(struct.pack("<4sIQ", b"SRF1", len(head), len(payload)) + head + payload)
            answer, _ = channel.receive(timeout=20)
            assert answer["kind"] == "error" and match in answer["error"] and "again" not in answer
    channel.close()
    lines = served.roles["party0"].said.count("is refused") - said
    assert 0 < lines <= len(cases)
    assert not any("Traceback" in role.said for role in served.roles.values())


def test_large_headers_are_refused_before_they_are_read_and_the_roles_keep_their_links(served):
    met = {role: served.roles[role].said.count("All roles are here") for role in ("party0", "party1")}
    head = b'{"kind":"query","x":[' + b"[]," * (1 << 16) + b"[]]}"
    prefixes = [struct.pack("<4sIQ", b"SRF1", length, 0) for length in (SMALL_HEADER + 1, len(head), 16 << 20)]
    channels = [caller(served, role) for role in ("party0", "party1") for _ in range(8)]
    for number, channel in enumerate(channels):
        channel.send_bytes(prefixes[number % 3] + head)
    for channel in channels:
        assert "past the limit" in channel.receive(timeout=20)[0]["error"]
        with pytest.raises(ChannelError, match="closed"):
            channel.receive(timeout=20)
        channel.close()
    for role, count in met.items():
        served.roles[role].wait_for("past the limit")
        assert served.roles[role].said.count("All roles are here") == count
    with session(served) as open_session:
        assert len(open_session(TEXTS).labels) == len(TEXTS)


def test_half_queries_delay_nobody_and_are_dropped(served):
    """At either server: a half is the seed of the masks at party1, masked words at party0."""
    with session(served) as open_session:
        encoded = open_session.client.tokenize(TEXTS)
        shares = open_session.sharing.inputs(open_session.client.embed(encoded), encoded["attention_mask"])
    channels, extra = [], []
    for role in ("party1", "party0"):
        for number in range(LIMITS["waiting"] + 1):
            channel = caller(served, role)
            channel.send(query(f"{ord(role[-1]):016x}{number + 1:016x}", len(TEXTS)), shares[role], timeout=20)
            (channels if number < LIMITS["waiting"] else extra).append(channel)
            if number == LIMITS["waiting"] - 1:
                time.sleep(0.3)  # until the others are in the queue
    for channel in extra:
        answer, _ = channel.receive(timeout=20)
        assert answer["busy"] and answer["again"] > 0 and "`waiting`: 4 queries" in answer["error"]
    start = time.monotonic()
    seeds, words = channels[: LIMITS["waiting"]], channels[LIMITS["waiting"] :]
    for channel in words:  # a seed would have arrived at once
        answer, _ = channel.receive(timeout=20)
        assert "other server did not get its share" in answer["error"] and answer["again"] > 0
    for channel in seeds:  # the words that belong to a seed may be under way for long
        with pytest.raises(ChannelTimeout):
            channel.receive(timeout=0.0)
        channel.close()
    with session(served) as open_session:
        assert len(open_session(TEXTS).labels) == len(TEXTS)
    assert time.monotonic() - start < 40
    for channel in (*words, *extra):
        channel.close()


# Failures.


def test_a_client_outlives_a_restart_and_the_role_that_is_gone_is_named(served):
    told = []
    with session(served, retries=5, log=told.append) as open_session:
        first = open_session(TEXTS).logits
        before = {role: len(served.roles[role].said) for role in ("dealer", "party0")}
        served.roles["party0"].signal(signal.SIGSTOP)  # so that party1 is lost within a query
        asked = []
        asking = threading.Thread(target=lambda: asked.append(open_session(TEXTS).logits))
        asking.start()
        time.sleep(0.5)
        served.roles["party1"].kill()
        served.roles["party0"].signal(signal.SIGCONT)
        served.roles["party0"].wait_for("party1 is gone; waiting for it")
        served.start("party1")
        ended(asking, "the answer to a query that is asked again")
    assert torch.allclose(asked[0], first, atol=0.02)
    assert told and all("asked again" in line for line in told)
    later = {role: served.roles[role].said[start:] for role, start in before.items()}
    assert "party1 is gone" in later["dealer"] and "party0 is gone" not in later["dealer"]
    assert "dealer is gone" not in later["party0"]
    served.roles["dealer"].kill()
    for role in ("party0", "party1"):
        served.roles[role].wait_for("the dealer is gone; waiting for it")
        assert "party1 is gone" not in served.roles[role].said[len(later["party0"]) :] or role == "party0"
    served.start("dealer")


def test_a_connection_that_ended_while_it_was_idle_is_made_anew(served):
    with session(served, retries=0) as open_session:
        first = open_session(TEXTS).logits
        for channel in open_session._channels.values():
            channel.hang_up()
        until(lambda: open_session._events.qsize() == 2, "both servers to be seen as gone")
        assert torch.allclose(open_session(TEXTS).logits, first, atol=0.02)


def reaped(child):
    """The process id and the exit status of a child that has ended, else None."""
    found = os.waitpid(child, os.WNOHANG)
    return found if found[0] else None


def test_a_fork_of_a_client_leaves_its_connections_alone(served):
    told = []
    with session(served, retries=0, log=told.append) as open_session:
        first = open_session(TEXTS).logits
        before = list(open_session._channels.values())
        child = os.fork()
        if not child:
            status = 1
            try:
                for ask in (lambda: open_session(TEXTS), open_session.__enter__):
                    with contextlib.suppress(SessionError):
                        ask()
                        status = 2
                open_session.close()
                with contextlib.suppress(SessionError):
                    open_session.__enter__()
                    status = 3
                status = 0 if status == 1 else status
            finally:
                os._exit(status)
        try:
            _, status = until(lambda: reaped(child), "the fork of a client to end")
        except AssertionError:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        assert status == 0
        assert torch.allclose(open_session(TEXTS).logits, first, atol=0.02)
        assert list(open_session._channels.values()) == before and not told


@pytest.mark.parametrize("restarted", ["party1", pytest.param("party0", marks=pytest.mark.fault)])
def test_a_party_that_is_restarted_while_the_other_waits_for_the_dealer_is_met(place, tmp_path, restarted):
    with Deployment(place / "revealed", tmp_path) as deployment:
        other = deployment.roles["party0" if restarted == "party1" else "party1"]
        deployment.roles["dealer"].kill()
        for role in ("party0", "party1"):
            deployment.roles[role].wait_for("have to connect again")
        time.sleep(1.0)  # both have met, and wait for the dealer
        deployment.roles[restarted].kill()
        deployment.start(restarted)
        other.wait_for("The other party left before the dealer was there")
        deployment.start("dealer")
        other.wait_for("All roles are here", 2)
        with session(deployment) as open_session:
            assert len(open_session(TEXTS).labels) == len(TEXTS)


@pytest.mark.fault
@pytest.mark.parametrize("stopped", ["party0", "party1", "dealer"])
def test_a_role_that_stands_still_in_a_query_is_given_up_within_its_silence(place, tmp_path, stopped):
    with Deployment(place / "quota", tmp_path, options=both("--silence", "4")) as deployment:
        told = []
        with session(deployment, retries=5, log=told.append) as open_session:
            first = open_session(TEXTS).logits
            asked = []
            asking = threading.Thread(target=lambda: asked.extend(open_session(TEXTS).logits for _ in range(5)))
            asking.start()
            time.sleep(0.1)
            deployment.roles[stopped].signal(signal.SIGSTOP)
            start = time.monotonic()
            for role in {"party0", "party1"} - {stopped}:
                deployment.roles[role].wait_for("gone")
            assert time.monotonic() - start < 20  # of a `timeout` of 60
            deployment.roles[stopped].signal(signal.SIGCONT)
            asking.join(120)
        assert len(asked) == 5 and all(torch.allclose(one, first, atol=0.02) for one in asked) and told


def test_no_role_starts_with_a_wait_that_never_ends(place):
    arguments = ["dealer", str(place / "quota" / "dealer"), "--listen", "127.0.0.1:0", "--timeout", "inf"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2 and "`timeout` should be" in done.stderr and "got inf" in done.stderr
    folder = RoleFolder.load(place / "quota" / "client", "client")
    for seconds in (math.inf, math.nan, 0.0):
        with pytest.raises(SecureRouterValueError, match="`timeout` should be"):
            RemoteSession(folder, ("127.0.0.1", 1), ("127.0.0.1", 1), seconds)


def test_servers_end_with_0_while_clients_are_connected(place, tmp_path):
    with Deployment(place / "revealed", tmp_path) as deployment:
        over = threading.Event()

        def ask(user):
            with user as open_session:
                while not over.is_set():
                    try:
                        open_session(TEXTS)
                    except Exception:
                        return

        users = [threading.Thread(target=ask, args=(session(deployment, retries=0),)) for _ in range(3)]
        for user in users:
            user.start()
        deployment.roles["party0"].wait_for("Answered", 3)
        for role in ("party1", "party0", "dealer"):
            deployment.roles[role].signal(signal.SIGTERM)
        for role in deployment.roles.values():
            assert role.status() == 0 and role.said.splitlines()[-1] == "Stopped."
            assert "Traceback" not in role.said and "terminate" not in role.said
        over.set()
        for user in users:
            ended(user, "a user whose servers have ended")
