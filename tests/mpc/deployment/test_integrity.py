# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Damaged and mixed folders are noticed before anything is computed, and on the disk a sharing is whole."""

import json
import os
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_securerouter import SecureRouterValueError, SecureRouterWarning
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment.integrity import file_digest, weights_digest
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.channel import Channel
from hf_securerouter.mpc.net.sockets import MeetingError
from hf_securerouter.mpc.net.tls import connect
from hf_securerouter.mpc.net.tls_listener import TlsListener
from tests.support.deployed import Command
from tests.support.transport_ends import make_keys
from tests.tiny import pool_model


pytestmark = pytest.mark.timeout(120)

LIMIT = 20.0
ROLES = ("party0", "party1", "dealer", "client")


@pytest.fixture(scope="module")
def secure(tokenizer):
    return to_mpc(pool_model(("bert", "electra")), tokenizer, max_length=16, quotas=[1, 1])


@pytest.fixture(scope="module")
def shares(secure, tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrity")
    secure.save_shares(folder / "out")
    secure.save_shares(folder / "other")
    return folder


def copied(shares, role, folder):
    return shutil.copytree(shares / "out" / role, folder / role)


def edited(folder, **values):
    """Change a folder's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))
    return folder


def started(folder, log):
    """party0 as a process, which listens before the other roles are there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    options = ["--listen", "127.0.0.1:0", "--dealer", f"127.0.0.1:{free}", "--timeout", "60"]
    return Command(log, "party", str(folder), *options)


def test_one_flipped_bit_ends_a_role_at_its_start(shares, tmp_path):
    for role in ROLES:
        damaged = copied(shares, role, tmp_path)
        RoleFolder.load(damaged, role)
        content = bytearray((damaged / "tensors.safetensors").read_bytes())
        content[-1] ^= 1
        (damaged / "tensors.safetensors").write_bytes(content)
        with pytest.raises(SecureRouterValueError, match="is not what `securerouter share` wrote"):
            RoleFolder.load(damaged, role)
    party = started(tmp_path / "party0", tmp_path / "log")
    assert party.status() == 2 and "is not what `securerouter share` wrote" in party.said
    assert "listens" not in party.said and "Traceback" not in party.said


def test_a_partys_tensors_of_another_sharing_are_noticed(shares, tmp_path):
    for role in ("party0", "party1"):
        folder = copied(shares, role, tmp_path)
        for name in ("tensors.safetensors", "integrity.json"):  # which fit each other
            shutil.copy(shares / "other" / role / name, folder)
        with pytest.raises(SecureRouterValueError, match="is not what `securerouter share` wrote"):
            RoleFolder.load(folder, role)
    (folder / "integrity.json").unlink()
    with pytest.raises(SecureRouterValueError, match="integrity.json.* cannot be read .FileNotFoundError"):
        RoleFolder.load(folder, "party1")


def test_both_servers_have_one_digest_and_it_is_salted(shares, tmp_path):
    files = [shares / "out" / role / "tensors.safetensors" for role in ("party0", "party1")]
    manifest = json.loads((shares / "out" / "dealer" / "manifest.json").read_text())
    salts = {json.loads((shares / "out" / role / "integrity.json").read_text()).get("salt") for role in ROLES[:2]}
    (salt,) = salts
    assert {weights_digest(file, bytes.fromhex(salt)) for file in files} == {manifest["digest"]}
    assert weights_digest(files[0], bytes(32)) != manifest["digest"]
    for role in ("dealer", "client"):
        assert not any(salt.encode() in path.read_bytes() for path in (shares / "out" / role).iterdir())
    tensors = load_file(files[0])
    save_file(dict(reversed(tensors.items())), tmp_path / "reversed")
    assert weights_digest(tmp_path / "reversed", bytes.fromhex(salt)) == manifest["digest"]
    first, second = [name for name in tensors if name != "seed"][:2]
    for changed in (
        {first: tensors[second], second: tensors[first]},
        {first: tensors[first].reshape(-1, 1)},
        {first: tensors[first].view(torch.uint8)},
    ):
        save_file(tensors | changed, tmp_path / "changed")
        assert weights_digest(tmp_path / "changed", bytes.fromhex(salt)) != manifest["digest"]
    assert file_digest(files[0]) != file_digest(files[1])  # the seeds differ


def test_every_pair_of_roles_compares_and_names_what_differs(shares, tmp_path):
    """At each of the four kinds of links, for each kind of difference."""
    links = [("party1", "party0"), ("party0", "dealer"), ("party1", "dealer"), ("client", "party0")]
    differences = [("quotas", [2, 1]), ("sharing", "0" * 32), ("max_length", 8)]
    for number, (caller, served) in enumerate(links):
        lines = []
        own = RoleFolder.load(shares / "out" / served, served)
        with TlsListener(own.identity, ("127.0.0.1", 0), (caller,), lambda *_: None, lines.append) as listener:
            for name, value in differences:
                folder = edited(copied(shares, caller, tmp_path / f"{number}-{name}"), **{name: value})
                with pytest.raises(MeetingError, match=f"{caller} and {served} do not agree on: `{name}`"):
                    connect(
                        listener.address, served, RoleFolder.load(folder, caller).identity, time.monotonic() + LIMIT
                    )
            same = RoleFolder.load(shares / "out" / caller, caller).identity
            connect(listener.address, served, same, time.monotonic() + LIMIT).sock.close()
            same.facts = same.facts | {"version": "0.0.0", "quotas": ""}
            with pytest.raises(MeetingError, match="do not agree on: `version`. Give both"):
                connect(listener.address, served, same, time.monotonic() + LIMIT)
        deadline = time.monotonic() + LIMIT
        while len(lines) < len(differences) + 1:
            assert time.monotonic() < deadline, lines
            time.sleep(0.02)
        assert all("do not agree on" in line for line in lines)


def test_a_server_and_a_client_with_another_manifest_both_say_so(shares, tmp_path):
    party = started(shares / "out" / "party0", tmp_path / "log")
    try:
        address = "127.0.0.1", int(party.wait_for(r"listens at 127\.0\.0\.1:(\d+)\.")[1])
        other = edited(copied(shares, "client", tmp_path), quotas=[2, 1])
        with pytest.raises(MeetingError, match="client and party0 do not agree on: `quotas`"):
            connect(address, "party0", RoleFolder.load(other, "client").identity, time.monotonic() + LIMIT)
        party.wait_for("Refused a connection from 127.0.0.1: client and party0 do not agree on: `quotas`")
    finally:
        party.kill()


def test_folders_of_earlier_versions_load_with_a_warning(shares, tmp_path):
    make_keys(tmp_path / "keys")
    identities = {}
    for role in ("party0", "party1"):
        folder = copied(shares, role, tmp_path)
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["sharing"], manifest["digest"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for name in ("integrity.json", "peers.json", "users.json"):
            (folder / name).unlink()
        shutil.copy(tmp_path / "keys" / "ca.pem", folder / "ca.pem")
        shutil.copy(tmp_path / "keys" / f"{role}.pem", folder / "certificate.pem")
        shutil.copy(tmp_path / "keys" / f"{role}.key", folder / "key.pem")
        (folder / "key.pem").chmod(0o600)
        with pytest.warns(SecureRouterWarning, match="was shared by an earlier version"):
            identities[role] = RoleFolder.load(folder, role).identity
    entered = []

    def enter(role, stream):
        entered.append((role, stream.role, stream.name))
        Channel(stream, role).close()

    with TlsListener(identities["party0"], ("127.0.0.1", 0), ("party1",), enter, print) as listener:
        connect(listener.address, "party0", identities["party1"], time.monotonic() + LIMIT).sock.close()
    deadline = time.monotonic() + LIMIT
    while not entered:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert entered == [("party1", "party1", "party1")]


def test_everything_is_on_the_disk_before_the_folder_has_its_name(secure, tmp_path, monkeypatch):
    written, renamed, real = set(), [], os.fsync

    def fsync(descriptor):
        if (tmp_path / "out").exists() and not renamed:
            renamed.append(set(written))
        written.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    secure.save_shares(tmp_path / "out")
    paths = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_ino for path in paths} <= renamed[0]
    assert tmp_path.stat().st_ino in written - renamed[0]
