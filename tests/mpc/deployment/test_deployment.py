# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The roles of a sharing as servers: their answers, the callers that they refuse, and recovery after a failure."""

import json
import shutil
import signal
import socket
import ssl
import stat
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from hf_securerouter import SecureRouterValueError, cli
from hf_securerouter.classification import classify, load_checkpoint
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.certificates import Certificate
from hf_securerouter.mpc.net.channel import Channel
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.socket_stream import TlsStream
from hf_securerouter.mpc.net.sockets import MeetingError
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.protocols.masked.layout import SEED
from hf_securerouter.mpc.protocols.masked.memory import batch_cost
from hf_securerouter.mpc.protocols.masked.sharing import as_tensor
from hf_securerouter.mpc.sessions.session import SessionError
from tests.support.deployed import ROLES, Command, Deployment
from tests.support.transport_ends import tcp_pair
from tests.support.waiting import ended
from tests.tiny import FAMILIES, family_config, pool_model


pytestmark = pytest.mark.timeout(240)

TEXTS = [
    "the film was very good",
    ("a dull movie .", "it was slow and awful"),
    "bad",
    "the bright and fast film was great but not good .",
]
QUOTAS = [3, 1]
MAX_LENGTH = 16
# Checkpoint, mode and quotas of each sharing.
SHARINGS = {
    "revealed": ("own", "revealed", None),
    "quota": ("own", "quota", QUOTAS),
    "trained": ("shared", "quota", QUOTAS),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with two checkpoints, one of them with a router that shares its small expert's encoder, as training
    makes it, and with their sharings."""
    folder = tmp_path_factory.mktemp("deployment")
    models = {
        "own": pool_model(("bert", "electra")),
        "shared": pool_model(
            ("bert", "bert"), router_config=None, router_shares_expert=0, expert_max_lengths=[8, MAX_LENGTH]
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for sharing, (name, privacy, quotas) in SHARINGS.items():
        options = ["--routing-privacy", privacy, "--max-length", str(MAX_LENGTH), "--json"]
        options += ["--quotas", ",".join(map(str, quotas)), "--guard"] if quotas else []
        done = CliRunner().invoke(cli.app, ["share", str(folder / name), str(folder / sharing), *options])
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["routing_privacy"] == privacy and report["quotas"] == quotas
    return folder


@pytest.fixture(scope="module")
def served(place):
    """The servers of the sharing in mode `revealed`; every test leaves them able to serve."""
    logs = place / "revealed-logs"
    logs.mkdir()
    with Deployment(place / "revealed", logs) as deployment:
        yield deployment


def write_lines(path, texts):
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    path.write_text("".join(json.dumps({"text": text, "text_pair": pair}) + "\n" for text, pair in pairs))


def ask(place, deployment, folder, verify=0.0):
    """Run the client command from a copy of its folder alone, and compare with the model in clear text."""
    name, privacy, quotas = SHARINGS[deployment.shares.name]
    client = shutil.copytree(deployment.shares / "client", folder / "client")
    write_lines(folder / "in.jsonl", [TEXTS[0], "", *TEXTS[1:]])
    arguments = ["client", str(client), *deployment.options, "--timeout", "60", "--verify", str(verify), "--json"]
    arguments += ["--on-error", "skip"]
    arguments += ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, (done.stderr, done.exception)
    report = json.loads(done.stdout)
    assert (report["lines"], report["skipped"], report["differing"]) == (len(TEXTS) + 1, 1, 0)
    assert report["routing_privacy"] == privacy
    model, tokenizer = load_checkpoint(place / name)
    expected = classify(model, tokenizer, TEXTS, quotas)
    answers = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert answers.pop(1)["error"] == 'The line has a "text" that is empty.'
    for found, own in zip(answers, expected, strict=True):
        assert found["label"] == own.label
        assert found["logits"] == pytest.approx(own.logits, abs=0.02)
        assert found["expert"] == (own.expert if privacy == "revealed" else None)
        assert found.get("verified") == (True if verify else None)
        assert found.get("in_bounds") == (True if quotas else None)
    return report["cost"]


def caller(deployment, role):
    """A client's connection to a party."""
    identity = RoleFolder.load(deployment.shares / "client", "client").identity
    return Channel(connect(deployment.address(role), role, identity, time.monotonic() + 20), role)


# Answers.


def test_answers_are_those_of_the_model_and_a_second_client_is_served(place, served, tmp_path):
    for verify in (0.0, 1.0):
        folder = tmp_path / str(verify)
        folder.mkdir()
        cost = ask(place, served, folder, verify)
        assert min(cost[what] for what in ("online_bytes", "rounds", "dealer_bytes", "client_bytes")) > 0
    assert all(role.said.count("meet again") == 0 for role in served.roles.values())


@pytest.mark.parametrize("sharing", ["quota", "trained"])
def test_answers_under_quota_and_a_clean_end(place, tmp_path, sharing):
    logs = tmp_path / "logs"
    logs.mkdir()
    with Deployment(place / sharing, logs) as deployment:
        ask(place, deployment, tmp_path)
        for role in reversed(ROLES):
            number = signal.SIGTERM if role == "party0" else signal.SIGINT
            deployment.roles[role].signal(number)
            assert deployment.roles[role].status() == 0
            assert deployment.roles[role].said.splitlines()[-1] == "Stopped."
        assert not any("Traceback" in role.said for role in deployment.roles.values())


# Clients that leave or misbehave.


def query(identity="ab" * 16, batch=1):
    return {"kind": "query", "id": identity, "batch": batch}


def test_clients_that_leave_cost_the_servers_nothing(place, served, tmp_path):
    meetings = [served.roles[role].said.count("All roles are here") for role in ("party0", "party1")]
    folder = RoleFolder.load(served.shares / "client", "client")
    with RemoteSession(folder, served.address("party0"), served.address("party1"), 60) as session:
        encoded = session.client.tokenize(TEXTS)
        shares = session.sharing.inputs(session.client.embed(encoded), encoded["attention_mask"])
    for number, leaving in enumerate(("party0", "party1", "both")):  # who got a share before the client leaves
        channels = {role: caller(served, role) for role in ("party1", "party0")}
        for role, channel in channels.items():
            if leaving in ("both", role):
                channel.send(query(f"{number + 1:032x}", len(TEXTS)), shares[role], timeout=20)
        time.sleep(0.05)
        for channel in channels.values():
            channel.close()
    half = caller(served, "party0")
    half._write(b"SRF1\x00\x01", time.monotonic() + 20)
    half.close()
    ask(place, served, tmp_path)
    assert meetings == [served.roles[role].said.count("All roles are here") for role in ("party0", "party1")]


@pytest.mark.parametrize(
    ("role", "header", "tensors", "match"),
    [
        ("party0", query(), {}, "share of `live` is missing"),
        ("party0", query(), {"live": torch.zeros(7, dtype=torch.uint8)}, "share of `live` is missing or not of shape"),
        ("party1", query(), {SEED: torch.zeros(3)}, "seed is missing or not 32 bytes"),
        ("party1", query(batch=1 << 40), {SEED: as_tensor(bytes(32))}, "rows, not"),
        ("party1", query(batch=-1), {SEED: as_tensor(bytes(32))}, "rows, not"),
        ("party1", query(identity="0" * 32), {SEED: as_tensor(bytes(32))}, "32 hex digits"),
        ("party1", query(identity="ab"), {SEED: as_tensor(bytes(32))}, "32 hex digits"),
        ("party1", query(identity="../" * 10), {SEED: as_tensor(bytes(32))}, "32 hex digits"),
        ("party0", {"kind": "result"}, {}, "is not a query"),
    ],
)
def test_nonsense_is_answered_with_an_error(served, role, header, tensors, match):
    channel = caller(served, role)
    channel.send(header, tensors, timeout=20)
    answer, _ = channel.receive(timeout=20)
    channel.close()
    assert answer["kind"] == "error" and match in answer["error"]


def test_a_frame_that_no_query_needs_is_not_taken(served):
    channel = caller(served, "party1")
    channel.send(query(), {SEED: torch.zeros(1 << 24, dtype=torch.uint8)}, timeout=20)
    assert "past the limit" in channel.receive(timeout=20)[0]["error"]


# Access.


def mixed(folder, trusting, own):
    """An identity with the key of one sharing that trusts the roles of another."""
    shutil.copytree(own, folder)
    for path in (trusting / "peers.json", trusting / "users.json"):
        if path.exists():
            shutil.copy(path, folder)
    entries = json.loads((folder / "peers.json").read_text())
    role = Certificate.load(own / "certificate.pem").role
    (folder / "peers.json").write_text(json.dumps([entry for entry in entries if entry["role"] != role]))
    return Identity.load(folder)


def refused(identity, deployment, role, at=None):
    with pytest.raises(MeetingError) as raised:
        connect(deployment.address(at or role), role, identity, time.monotonic() + 20)
    return str(raised.value)


def test_another_sharings_keys_are_refused_by_both_ends(place, served, tmp_path):
    other = RoleFolder.load(place / "quota" / "client", "client")
    with pytest.raises(MeetingError, match="is not `party1` of this sharing"):
        with RemoteSession(other, served.address("party0"), served.address("party1"), 20):
            pass
    for own, role in (("client", "party0"), ("client", "party1"), ("party1", "party0"), ("party0", "dealer")):
        identity = mixed(tmp_path / f"{own}-{role}", served.shares / own, place / "quota" / own)
        assert "refuses the certificate of this role" in refused(identity, served, role)
        served.roles[role].wait_for("Refused a connection from 127.0.0.1: .*CERTIFICATE_VERIFY_FAILED")


@pytest.mark.parametrize(
    ("own", "role", "served_roles"),
    [
        ("dealer", "party0", "party1 and client"),
        ("dealer", "party1", "client"),
        ("party0", "party1", "client"),
        ("party0", "party0", "party1 and client"),
    ],
)
def test_a_role_that_is_not_served_is_refused(served, own, role, served_roles):
    identity = Identity.load(served.shares / own)
    expected = f"its certificate is for `{own}`, and {role} serves {served_roles}"
    assert expected in refused(identity, served, role)
    served.roles[role].wait_for(expected)


def test_the_dealer_knows_no_client(served):
    identity = Identity.load(served.shares / "client")
    assert "refuses the certificate of this role" in refused(identity, served, "dealer")


def test_nobody_passes_for_another_role(served):
    identity = Identity.load(served.shares / "client")
    for at, role in (("party1", "party0"), ("party0", "party1"), ("dealer", "party0")):
        assert f"is not `{role}` of this sharing" in refused(identity, served, role, at)


@pytest.mark.parametrize("role", ROLES)
def test_without_a_certificate_or_in_clear_there_is_no_word(served, role):
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(served.shares / role / "certificate.pem")
    with socket.create_connection(served.address(role), timeout=20) as sock:
        with pytest.raises(OSError):
            bare.wrap_socket(sock, server_hostname=role).recv(1)
    with socket.create_connection(served.address(role), timeout=20) as sock:
        sock.sendall(b"SRF1" + bytes(12))
        assert sock.recv(1000)[:1] in (b"", bytes([21]))  # nothing, or a TLS alert


# Memory.


def test_batches_fit_the_memory_of_every_role(place, tmp_path):
    """The client learns the largest batch that all roles have memory for; a larger one is refused."""
    logs, folder = tmp_path / "logs", RoleFolder.load(place / "revealed" / "client", "client")
    logs.mkdir()
    memory = {"dealer": batch_cost(folder.manifest, 3).dealer, "party1": batch_cost(folder.manifest, 2).party1}
    with Deployment(place / "revealed", logs, memory=memory) as served:
        addresses = served.address("party0"), served.address("party1")
        with RemoteSession(folder, *addresses, 60) as session:
            assert session.batch_size == 2
            expected = session(TEXTS).logits
        with RemoteSession(folder, *addresses, 60, retries=0) as session:
            session.batch_size = 3
            with pytest.raises(SessionError, match="a query of 1 to 2 rows, not 3"):
                session(TEXTS)
        # As if the servers had had more memory before: the client learns it anew, and asks in parts.
        told = []
        with RemoteSession(folder, *addresses, 60, log=told.append) as session:
            session.batch_size = 3
            assert torch.allclose(session(TEXTS).logits, expected, atol=0.02)
            assert session.batch_size == 2 and "a query of 1 to 2 rows, not 3" in told[0]
        served.roles["party1"].kill()
        del served.memory["party1"]
        met = served.roles["party0"].said.count("All roles are here")
        served.start("party1")
        served.roles["party0"].wait_for("All roles are here", met + 1)
        with RemoteSession(folder, served.address("party0"), served.address("party1"), 60) as session:
            assert session.batch_size == 3


def test_a_role_without_memory_for_one_text_does_not_start(place):
    for role in ("dealer", "party0"):
        name = "dealer" if role == "dealer" else "party"
        options = ["--listen", "127.0.0.1:0", "--memory", "1MB"] + (["--dealer", "127.0.0.1:1"] * (name == "party"))
        done = CliRunner().invoke(cli.app, [name, str(place / "revealed" / role), *options])
        assert done.exit_code == 2, done.output
        assert f" at {role}), and `memory` is 1000000: convert with a smaller" in done.stderr


# Failures between the roles.


SAID = {"dealer": "Both parties are here", "party0": "All roles are here", "party1": "All roles are here"}


def test_a_dealer_that_comes_back_is_met_again(place, served, tmp_path):
    before = {role: served.roles[role].said.count(SAID[role]) for role in ("party0", "party1")}
    served.roles["dealer"].kill()
    served.start("dealer")
    for role, count in before.items():
        served.roles[role].wait_for(SAID[role], count + 1)
    ask(place, served, tmp_path)


def test_a_party_that_is_lost_in_a_query_is_met_again(place, served, tmp_path):
    before = {role: served.roles[role].said.count(SAID[role]) for role in ("dealer", "party0")}
    folder = RoleFolder.load(served.shares / "client", "client")
    with RemoteSession(folder, served.address("party0"), served.address("party1"), 60, retries=0) as session:
        session(TEXTS)
        killer = threading.Timer(0.2, served.roles["party1"].kill)
        killer.start()
        with pytest.raises(SessionError, match="ends the query|could not answer"):
            for _ in range(1000):
                session(TEXTS)
        ended(killer, "the timer that kills party1")
    served.start("party1")
    for role, count in before.items():
        served.roles[role].wait_for(SAID[role], count + 1)
    ask(place, served, tmp_path)


@pytest.mark.parametrize(
    ("role", "options", "match"),
    [
        ("dealer", [], "party0 and party1 did not connect in time"),
        ("party0", ["--dealer", "127.0.0.1:{free}"], "party1 did not connect in time"),
        ("party1", ["--dealer", "127.0.0.1:{free}", "--peer", "127.0.0.1:{free}"], "party0 was not reached at 127"),
        ("party1", ["--dealer", "127.0.0.1:{free}"], "only party 1 takes `peer`"),
    ],
)
def test_a_missing_role_ends_the_wait(place, tmp_path, role, options, match):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    options = [option.format(free=free) for option in options]
    name = "dealer" if role == "dealer" else "party"
    started = Command(
        tmp_path / "log", name, str(place / "revealed" / role), "--listen", "127.0.0.1:0", "--timeout", "1", *options
    )
    assert started.status() == 1
    assert match in started.said and "Traceback" not in started.said


def test_missing_servers_end_the_clients_wait(place, tmp_path):
    folder = RoleFolder.load(place / "revealed" / "client", "client")
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = server.getsockname()
    with pytest.raises(MeetingError, match="party1 was not reached at 127"):
        with RemoteSession(folder, nobody, nobody, 0.5):
            pass


# Folders.


def test_every_folder_holds_what_its_role_may_know_and_no_more(place):
    keys = {"certificate.pem", "key.pem", "peers.json", "integrity.json"}
    tables = {"tokenizer.json", "tokenizer_config.json", "client.json"}
    for sharing in SHARINGS:
        folder = place / sharing
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        private = {}
        for role in (*ROLES, "client"):
            files = {path.name for path in (folder / role).iterdir()}
            own = tables if role == "client" else {"users.json"} if role.startswith("party") else set()
            assert files == keys | {"manifest.json", "tensors.safetensors"} | own
            assert stat.S_IMODE((folder / role).stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in (folder / role).iterdir()} == {0o600}
            private[role] = (folder / role / "key.pem").read_text()
            holding = [
                path for path in folder.rglob("*") if path.is_file() and private[role].encode() in path.read_bytes()
            ]
            assert holding == [folder / role / "key.pem"]
            assert sum(path.read_bytes().count(b"PRIVATE KEY") for path in (folder / role).iterdir()) == 2
            assert Identity.load(folder / role).role == role
        assert len(set(private.values())) == 4
        assert set(load_file(folder / "dealer" / "tensors.safetensors")) == {"seed0", "seed1"}
        described = json.loads((folder / "client" / "client.json").read_text())
        assert set(described) == {"labels", "regression", "pad_token_id", "members"}
        assert str(place) not in json.dumps(described)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_is_made_of_its_folder_alone(family, tokenizer, tmp_path):
    model = AutoModelForSequenceClassification.from_config(family_config(family, num_labels=3))
    secure = to_mpc(model, tokenizer, max_length=16)
    secure.save_shares(tmp_path / "out")
    shutil.move(tmp_path / "out" / "client", tmp_path / "client")
    shutil.rmtree(tmp_path / "out")
    found = RoleFolder.load(tmp_path / "client", "client").client()
    encoded, own = found.tokenize(TEXTS), secure.client.tokenize(TEXTS)
    assert all(torch.equal(encoded[name], own[name]) for name in own)
    for member, values in secure.client.embed(own).items():
        assert torch.equal(found.embed(encoded)[member], values)
    assert found.labels == secure.client.labels and found.pad_token_id == secure.client.pad_token_id


def test_folders_of_other_roles_and_open_ones_are_refused(place, tmp_path):
    with pytest.raises(SecureRouterValueError, match="is that of client, and party0 or party1 is asked for"):
        RoleFolder.load(place / "revealed" / "client", "party0", "party1")
    with pytest.raises(SecureRouterValueError, match="folder that `securerouter share` made"):
        RoleFolder.load(tmp_path, "client")
    copy = shutil.copytree(place / "revealed" / "party0", tmp_path / "party0")
    copy.chmod(0o750)
    with pytest.raises(SecureRouterValueError, match="chmod -R go="):
        RoleFolder.load(copy, "party0")


class OneAtATime:
    """OpenSSL's object, which serves one thread at a time; a second thread at the same time is noticed."""

    def __init__(self, tls):
        self._tls, self._busy, self.disturbed = tls, threading.Lock(), False

    def __getattr__(self, name):
        def called(*args):
            if not self._busy.acquire(blocking=False):
                self.disturbed = True
                return getattr(self._tls, name)(*args)
            try:
                time.sleep(0.001)
                return getattr(self._tls, name)(*args)
            finally:
                self._busy.release()

        return called


def test_channels_under_tls_carry_both_directions_at_once(place):
    identities = [Identity.load(place / "revealed" / role) for role in ("party0", "party1")]
    sockets, wires = tcp_pair(), {}

    def accept():
        wires[1] = TlsStream(sockets[1], identities[1].server, True, "", time.monotonic() + 20)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    wires[0] = TlsStream(sockets[0], identities[0].client, False, "party1", time.monotonic() + 20)
    ended(thread, "the accepting end of a TLS connection")
    for stream in wires.values():
        stream._tls = OneAtATime(stream._tls)
    channels = [Channel(wires[rank], f"party{1 - rank}") for rank in (0, 1)]
    words = torch.arange(1 << 19)
    senders = [
        threading.Thread(target=lambda end=end: [end.send({"n": n}, {"w": words + n}, timeout=60) for n in range(4)])
        for end in channels
    ]
    for sender in senders:
        sender.start()
    for number in range(4):
        for end in channels:
            header, tensors = end.receive(timeout=60)
            assert header == {"n": number} and torch.equal(tensors["w"], words + number)
    for sender in senders:
        ended(sender, "a sender of frames that were received")
    assert channels[0].bytes_sent == channels[1].bytes_received > 4 * words.nbytes
    assert not any(stream._tls.disturbed for stream in wires.values())
    for end in channels:
        end.close()
