# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Keys that their holders made: nobody with what `share` wrote is a server, and clients come and go at once."""

import datetime
import json
import os
import resource
import shutil
import stat
import time
import warnings

import pytest
from typer.testing import CliRunner

from hf_securerouter import SecureRouterValueError, SecureRouterWarning, cli
from hf_securerouter.cli.share import share_model
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.key_watch import KeyWatch
from hf_securerouter.mpc.deployment.remote_session import RemoteSession
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.certificates import Certificate, make_key, trust_files
from hf_securerouter.mpc.net.channel import Channel, ChannelError
from hf_securerouter.mpc.net.identity import Identity
from hf_securerouter.mpc.net.sockets import MeetingError
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.net.tls_listener import TlsListener
from hf_securerouter.mpc.protocols.masked.layout import SEED
from hf_securerouter.mpc.protocols.masked.sharing import as_tensor
from tests.support.deployed import ROLES, Deployment
from tests.tiny import pool_model


pytestmark = pytest.mark.timeout(240)

NAMES = {"party0": "first.example", "party1": "second.example", "dealer": "third.example"}
TEXTS = ["the film was very good", "bad"]
LIMIT = 20.0
FEW = 256  # descriptors that the roles begin with


def run(*arguments, fails=False):
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert (done.exit_code != 0) is fails, (done.output, done.exception)
    return done.stderr if fails else done.stdout


def new_key(folder, role, name, lifetime=None):
    """A key's folder as `securerouter keygen` makes it, but with any lifetime."""
    folder.mkdir(mode=0o700, parents=True)
    for file, content in make_key(role, name, *([] if lifetime is None else [lifetime])).items():
        (folder / file).write_bytes(content)
        (folder / file).chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """The keys of all roles and of two clients, and a sharing that was made with their certificates."""
    folder = tmp_path_factory.mktemp("keys")
    fingerprints = {}
    for role, name in {**NAMES, "client": "ada"}.items():
        made = json.loads(run("keygen", role, "--name", name, "--out", folder / f"{role}-key", "--json"))
        fingerprints[role] = made["fingerprint"]
    new_key(folder / "bob-key", "client", "bob")
    keys = [folder / f"{role}-key" / "certificate.pem" for role in (*NAMES, "client")]
    to_mpc(pool_model(("bert", "electra")), tokenizer, max_length=16, routing_privacy="revealed").save_shares(
        folder / "shares", keys
    )
    return folder, fingerprints


def few_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.fixture(scope="module")
def served(place):
    folder, fingerprints = place
    (folder / "logs").mkdir()
    options = {role: ["--key", str(folder / f"{role}-key")] for role in ROLES}
    for role in ROLES:
        others = [item for other in NAMES if other != role for item in ("--pin", f"{other}={fingerprints[other]}")]
        options[role] += others
    for role in ("party0", "party1"):
        options[role] += ["--audit", str(folder / f"{role}.audit")]
    with Deployment(folder / "shares", folder / "logs", options=options, before=few_descriptors) as deployment:
        yield deployment


def client_of(folder, name):
    return RoleFolder.load(folder / "shares" / "client", "client", key=folder / f"{name}-key")


def test_keygen_keeps_the_key_and_prints_what_to_hand_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        "hand over party0-key/certificate.pem"
        in CliRunner().invoke(cli.app, ["keygen", "party0", "--name", "example.org"]).stderr.lower()
    )
    folder = tmp_path / "party0-key"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    made = Certificate.load(folder / "certificate.pem")
    assert (made.role, made.name) == ("party0", "example.org")
    assert 363 < (made.until - datetime.datetime.now(datetime.UTC)).days <= 365
    assert "should not exist yet" in run("keygen", "party0", "--name", "x", fails=True)
    for role, name, match in (("party2", "x", "`role` should be one of"), ("dealer", "a\nb", "`name` should be")):
        assert match in run("keygen", role, "--name", name, "--out", tmp_path / "new", fails=True)
        assert not (tmp_path / "new").exists()


def test_share_writes_public_parts_only(place):
    folder, _ = place
    secrets = [(folder / f"{role}-key" / "key.pem").read_bytes() for role in (*NAMES, "client")]
    for path in (folder / "shares").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"PRIVATE KEY" not in content and not any(secret in content for secret in secrets)


def test_the_owner_poses_as_no_server_with_what_share_wrote(place, tmp_path):
    folder, fingerprints = place
    with pytest.raises(SecureRouterValueError, match="has no private key"):
        Identity.load(folder / "shares" / "party0")
    # With a key of its own it is not the role that the client's folder names.
    own = new_key(tmp_path / "own", "party0", NAMES["party0"])
    with pytest.raises(SecureRouterValueError, match="made for another key of party0"):
        Identity.load(folder / "shares" / "party0", own)
    entries = json.loads((folder / "shares" / "party0" / "peers.json").read_text())
    posing = shutil.copytree(folder / "shares" / "party0", tmp_path / "posing")
    (posing / "peers.json").write_text(json.dumps([entry for entry in entries if entry["role"] != "party0"]))
    entered = []
    with TlsListener(
        Identity.load(posing, own), ("127.0.0.1", 0), ("client",), lambda *_: entered.append(1), print
    ) as listener:
        with pytest.raises(MeetingError, match="is not `party0` of this sharing.*" + fingerprints["party0"]):
            connect(listener.address, "party0", client_of(folder, "client").identity, time.monotonic() + LIMIT)
    assert not entered


def test_an_owner_who_replaces_a_servers_key_is_noticed_by_the_pin(place, tmp_path):
    folder, fingerprints = place
    changed = shutil.copytree(folder / "shares" / "client", tmp_path / "client")
    forged = new_key(tmp_path / "own", "party1", NAMES["party1"])
    peers = [Certificate.load(folder / f"{role}-key" / "certificate.pem") for role in ("party0", "dealer")]
    own = Certificate.load(forged / "certificate.pem")
    (changed / "peers.json").write_bytes(trust_files("client", [*peers, own])["peers.json"])
    pins = {role: fingerprints[role] for role in ("party0", "party1")}
    with pytest.raises(SecureRouterValueError) as raised:
        RoleFolder.load(changed, "client", key=folder / "client-key", pins=pins)
    assert own.fingerprint in str(raised.value) and fingerprints["party1"] in str(raised.value)
    colons = ":".join(fingerprints["party0"][index : index + 2] for index in range(0, 64, 2)).upper()
    RoleFolder.load(folder / "shares" / "client", "client", key=folder / "client-key", pins=pins | {"party0": colons})
    for pins, match in (({"party2": fingerprints["party0"]}, "names 'party2'"), ({"party0": "ab"}, "64 hex digits")):
        with pytest.raises(SecureRouterValueError, match=match):
            RoleFolder.load(folder / "shares" / "client", "client", key=folder / "client-key", pins=pins)


def test_the_client_says_what_it_did_not_compare(place, tmp_path):
    folder, fingerprints = place
    (tmp_path / "in.jsonl").write_text('{"text": "bad"}\n')
    arguments = ["client", folder / "shares" / "client", "--key", folder / "client-key", "--timeout", "0.1"]
    arguments += ["--party0", "127.0.0.1:1", "--party1", "127.0.0.1:1"]
    arguments += ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    pins = {role: ["--pin", f"{role}={fingerprints[role]}"] for role in ("party0", "party1")}
    for given in ((), ("party0",), ("party0", "party1")):
        pinned = [item for role in given for item in pins[role]]
        done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments + pinned])
        assert done.exit_code == 1 and "was not reached" in done.stderr
        told = [role for role in pins if f"`{pins[role][0]} {pins[role][1]}`" in done.stderr]
        assert told == [role for role in pins if role not in given]


def test_a_certificate_of_another_sharing_role_or_holder_is_refused(place, served, tmp_path):
    folder, _ = place
    for role, name in (("client", "ada"), ("party0", NAMES["party0"]), ("party1", NAMES["party1"])):
        stranger = new_key(tmp_path / role, role, name)  # the same role and name, another key
        trusting = shutil.copytree(folder / "shares" / "client", tmp_path / f"{role}-trusting")
        entries = json.loads((trusting / "peers.json").read_text())
        (trusting / "peers.json").write_text(json.dumps([one for one in entries if one["role"] != role]))
        at = "party1" if role == "party0" else "party0"
        with pytest.raises(MeetingError, match="refuses the certificate of this role"):
            connect(served.address(at), at, Identity.load(trusting, stranger), time.monotonic() + LIMIT)
    # A key of the sharing, under the role of another: the dealer's as a client's.
    shutil.copytree(folder / "shares" / "client", tmp_path / "trusting")
    dealer = Identity.load(tmp_path / "trusting", folder / "dealer-key")
    with pytest.raises(MeetingError, match="its certificate is for `dealer`, and party1 serves client"):
        connect(served.address("party1"), "party1", dealer, time.monotonic() + LIMIT)


def asked(folder, served, name):
    with RemoteSession(client_of(folder, name), served.address("party0"), served.address("party1"), 60) as session:
        return session(TEXTS).labels


def test_users_are_added_and_revoked_while_the_servers_run(place, served):
    folder, fingerprints = place
    parties = [folder / "shares" / role for role in ("party0", "party1")]
    assert len(asked(folder, served, "client")) == len(TEXTS)
    with pytest.raises(MeetingError, match="is this key on its list"):
        asked(folder, served, "bob")
    for party in parties:
        listed = json.loads(run("users", party, "--add", folder / "bob-key" / "certificate.pem", "--json"))["users"]
        assert [one["name"] for one in listed] == ["ada", "bob"]
    for name, line in zip(("client", "bob"), run("users", parties[0]).splitlines(), strict=True):
        made = Certificate.load(folder / f"{name}-key" / "certificate.pem")
        assert line == f"{made.name}, until {made.until:%Y-%m-%d}, fingerprint {made.fingerprint}"
    assert len(asked(folder, served, "bob")) == len(TEXTS)
    address = served.address("party0"), served.address("party1")
    with RemoteSession(client_of(folder, "client"), *address, 60) as session:
        with RemoteSession(client_of(folder, "bob"), *address, 60) as revoked:
            for party in parties:
                run("users", party, "--revoke", "bob")
            for role in ("party0", "party1"):
                served.roles[role].wait_for("Ended a connection of bob: its key is revoked")
            with pytest.raises(MeetingError, match="on its list"):
                revoked(TEXTS)
        assert len(session(TEXTS).labels) == len(TEXTS)  # the other one goes on
    with pytest.raises(MeetingError, match="is this key on its list"):
        asked(folder, served, "bob")
    # A list that cannot be read changes nothing, and is told.
    before = (parties[0] / "users.json").read_text()
    (parties[0] / "users.json").write_text("[")
    served.roles["party0"].wait_for("The list as it was before stays in force")
    assert len(asked(folder, served, "client")) == len(TEXTS)
    (parties[0] / "users.json").write_text(before)
    for arguments, match in (
        (["--revoke", "eve"], "no client of that name or key"),
        (["--add", folder / "dealer-key" / "certificate.pem"], "is a certificate of dealer, not of a client"),
        (["--add", folder / "bob-key" / "key.pem"], "holds a private key"),
    ):
        assert match in run("users", parties[0], *arguments, fails=True)
    assert (parties[0] / "users.json").read_text() == before


def test_the_audit_log_says_who_asked_how_much_and_no_more(place, served):
    folder, fingerprints = place
    files = [folder / f"{role}.audit" for role in ("party0", "party1")]
    before = [len(file.read_text().splitlines()) for file in files]
    asked(folder, served, "client")
    identity = client_of(folder, "client").identity
    channel = Channel(connect(served.address("party0"), "party0", identity, time.monotonic() + LIMIT), "party0")
    channel.send({"kind": "query", "id": "0" * 32, "batch": 2, "text": "a secret"}, timeout=LIMIT)
    assert channel.receive(timeout=LIMIT)[0]["kind"] == "error"
    channel.send({"kind": "query", "id": "1" * 32, "batch": "a secret"}, timeout=LIMIT)
    assert channel.receive(timeout=LIMIT)[0]["kind"] == "error"
    channel.close()
    channel = Channel(connect(served.address("party1"), "party1", identity, time.monotonic() + LIMIT), "party1")
    channel.send({"kind": "query", "id": "2" * 32, "batch": 2}, {SEED: as_tensor(bytes(32))}, timeout=LIMIT)
    channel.close()
    expected = ["answered", "refused", "refused"], ["answered", "left"]
    for file, count, outcomes in zip(files, before, expected, strict=True):
        deadline = time.monotonic() + LIMIT
        while len(lines := file.read_text().splitlines()[count:]) < len(outcomes):
            assert time.monotonic() < deadline, lines
            time.sleep(0.02)
        found = [json.loads(line) for line in lines]
        assert [one["outcome"] for one in found] == outcomes
        for one in found:
            assert set(one) == {"time", "role", "user", "key", "rows", "bytes", "outcome"}
            assert (one["user"], one["key"]) == ("ada", fingerprints["client"]) and one["bytes"] > 0
            assert (
                abs(datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(one["time"])).seconds < 240
            )
        assert [one["rows"] for one in found] == [2, 2, None][: len(found)]
        assert "secret" not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_role_leaves_a_core_dump(served):
    for role in served.roles.values():
        limits = role.file_of_process("limits")
        assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]


def test_a_server_may_open_as_many_files_as_the_system_allows(served):
    for role in ("party0", "party1"):
        limits = served.roles[role].file_of_process("limits")
        ((soft, hard),) = [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")]
        assert soft == hard and int(soft) > FEW


def test_expiry_is_told_before_and_at_the_end_by_its_own_role(place, tmp_path):
    folder, _ = place
    client = folder / "shares" / "client"
    day = datetime.timedelta(days=1)
    with pytest.raises(SecureRouterValueError, match=r"certificate of client \(ada\) ended on .*keygen"):
        RoleFolder.load(client, "client", key=new_key(tmp_path / "ended", "client", "ada", -day))
    soon = RoleFolder.load(client, "client", key=new_key(tmp_path / "soon", "client", "ada", 13 * day))
    with pytest.warns(SecureRouterWarning, match="ends on"):
        with pytest.raises(MeetingError), RemoteSession(soon, ("127.0.0.1", 1), ("127.0.0.1", 1), 0.1):
            pass
    late = RoleFolder.load(client, "client", key=new_key(tmp_path / "late", "client", "ada", 15 * day))
    assert late.identity.own.warning() is None
    made = Certificate.load(tmp_path / "ended" / "certificate.pem")
    assert made.ended and "nobody lets it in any more" in made.warning()


def test_an_ended_certificate_ends_a_clients_connection_and_is_told(tmp_path):
    lifetimes = {"party0": 6, "dealer": 60, "client": 4}  # seconds
    files = {role: make_key(role, "ada", datetime.timedelta(seconds=lifetimes[role])) for role in lifetimes}
    own = [Certificate.from_pem(made["certificate.pem"], role) for role, made in files.items()]
    for role, made in files.items():
        (tmp_path / role).mkdir()
        for name, content in (made | trust_files(role, own)).items():
            (tmp_path / role / name).write_bytes(content)
    lines = []
    server = Identity.load(tmp_path / "party0")
    with KeyWatch(server, lines.append) as watch:

        def enter(role, stream):
            with watch.connected(stream), pytest.raises(ChannelError):
                Channel(stream, role).receive(timeout=LIMIT)

        with TlsListener(server, ("127.0.0.1", 0), ("client",), enter, lines.append) as listener:
            stream = connect(listener.address, "party0", Identity.load(tmp_path / "client"), time.monotonic() + LIMIT)
            with pytest.raises(ChannelError, match="closed"):
                Channel(stream, "party0").receive(timeout=LIMIT)
        deadline = time.monotonic() + LIMIT
        while not any("nobody lets it in any more" in line for line in lines):
            assert time.monotonic() < deadline, lines
            time.sleep(0.02)
    assert any("Ended a connection of ada" in line for line in lines)
    warned = [line for line in lines if line.startswith("The certificate of party0 (ada)")]
    assert len(warned) == 2 and "ends on" in warned[0] and "ended on" in warned[1]


def test_share_takes_all_keys_or_none(place, checkpoint, tmp_path):
    folder, _ = place
    keys = {role: folder / f"{role}-key" / "certificate.pem" for role in NAMES}
    wrong = [
        ({"party0": keys["party0"], "party1": None, "dealer": keys["dealer"]}, [], "`--party1-key` is missing"),
        ({**keys, "party1": keys["party0"]}, [], "`--party1-key` .* is a certificate of party0"),
        ({**keys, "dealer": folder / "dealer-key" / "key.pem"}, [], "holds a private key"),
        (keys, [folder / "client-key" / "certificate.pem"] * 2, "is given twice"),
        (dict.fromkeys(keys), [folder / "client-key" / "certificate.pem"], "is missing"),
    ]
    for given, clients, match in wrong:
        with pytest.raises(SecureRouterValueError, match=match):
            share_model(checkpoint, tmp_path / "out", keys=given, clients=clients)
        assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(cli.app, ["share", checkpoint, str(tmp_path / "out"), "--max-length", "16"])
    assert done.exit_code == 0 and "A trial: all keys were made here" in done.stderr
    made = Certificate.load(tmp_path / "out" / "party0" / "certificate.pem")
    assert 88 < (made.until - datetime.datetime.now(datetime.UTC)).days <= 90


def test_secrets_of_another_user_are_refused(place, monkeypatch):
    folder, _ = place
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SecureRouterValueError, match="belongs to another user"):
        RoleFolder.load(folder / "shares" / "client", "client", key=folder / "client-key")


def test_keys_that_others_can_read_are_refused(place, tmp_path):
    folder, _ = place
    for part, mode in (("key.pem", 0o640), (".", 0o750)):
        key = shutil.copytree(folder / "client-key", tmp_path / str(mode))
        (key / part).chmod(mode)
        with warnings.catch_warnings():
            with pytest.raises(SecureRouterValueError, match="open to other users"):
                RoleFolder.load(folder / "shares" / "client", "client", key=key)
