# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""A client's folder on the Hub: it makes a client, and neither a key nor any other secret ever leaves for there."""

import base64
import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file

from hf_securerouter import SecureRouterClient, SecureRouterError, SecureRouterValueError
from hf_securerouter.errors import FileError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.deployment import public_folder
from hf_securerouter.mpc.deployment.role_folder import RoleFolder
from hf_securerouter.mpc.net.certificates import make_key
from tests.tiny import pool_model


ROLES = ("party0", "party1", "dealer", "client")
SERVERS = {"party0": "127.0.0.1:1", "party1": ("127.0.0.1", 2)}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A trial's sharing, whose client's folder has a key, and one with keys of the roles' own, with these."""
    folder = tmp_path_factory.mktemp("public")
    for role in ROLES:
        (folder / f"{role}-key").mkdir(mode=0o700)
        for name, content in make_key(role, "example.org").items():
            (folder / f"{role}-key" / name).write_bytes(content)
            (folder / f"{role}-key" / name).chmod(0o600)
    secure = to_mpc(pool_model(("bert", "electra")), tokenizer, max_length=16, routing_privacy="revealed")
    secure.save_shares(folder / "trial")
    secure.save_shares(folder / "own", [folder / f"{role}-key" / "certificate.pem" for role in ROLES])
    return folder


class Hub:
    """Stands in for the Hub: keeps what is sent there, and hands out what is asked for."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.files, self.asked, self.branches = folder, {}, [], []
        monkeypatch.setattr(HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(HfApi, "create_branch", lambda _, repo, branch, exist_ok: self.branches.append(branch))
        monkeypatch.setattr(HfApi, "file_exists", lambda _, repo, name, revision: name in self.files)
        monkeypatch.setattr(HfApi, "upload_folder", self.upload_folder)
        monkeypatch.setattr(public_folder, "snapshot_download", self.snapshot_download)

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        self.asked.append((repo_id, private))
        return type("RepoUrl", (), {"repo_id": repo_id})()

    def upload_folder(self, folder_path, ignore_patterns, **commit):
        self.commit = commit
        found = {str(path.relative_to(folder_path)): path for path in Path(folder_path).rglob("*") if path.is_file()}
        for name in filter_repo_objects(found, ignore_patterns=ignore_patterns):
            self.files[name] = found[name].read_bytes()
        return "commit"

    def snapshot_download(self, repo_id, allow_patterns, **options):
        self.options = options
        for name in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            (self.folder / name).write_bytes(self.files[name])
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o755)
    return Hub(folder, monkeypatch)


def secrets_of(folder):
    """All that no client may have, by a name of it."""
    found = {}
    for path in folder.rglob("key.pem"):
        body = b"".join(path.read_bytes().splitlines()[1:-1])
        found[path] = base64.b64decode(body)
        found[f"{path} as text"] = body[:40]
    for sharing in ("trial", "own"):
        for rank in (0, 1):
            party = folder / sharing / f"party{rank}"
            tensors = load_file(party / "tensors.safetensors")
            found |= {f"{party} {name}": words.numpy().tobytes() for name, words in tensors.items()}
            salt = json.loads((party / "integrity.json").read_text())["salt"]
            found |= {f"{party} salt": salt.encode(), f"{party} salt as bytes": bytes.fromhex(salt)}
    return found


def leaking(files, secrets):
    """Which of the secrets are in the files."""
    return [what for what, secret in secrets.items() if any(secret in content for content in files.values())]


@pytest.mark.parametrize("sharing", ["trial", "own"])
def test_nothing_secret_is_pushed_or_saved(place, hub, tmp_path, sharing):
    folder = shutil.copytree(place / sharing / "client", tmp_path / "client")
    for stray in ("key.pem.bak", "notes.txt"):  # what lies beside by accident stays here
        shutil.copy(place / "client-key" / "key.pem", folder / stray)
    shutil.copytree(place / "client-key", folder / "my-key")
    client = SecureRouterClient.from_pretrained(folder)
    assert client.push_to_hub("you/client", private=True) == "commit"
    assert hub.asked == [("you/client", True)] and hub.commit["commit_message"] == "Upload client"
    expected = {"manifest.json", "client.json", "tensors.safetensors", "integrity.json", "peers.json", "README.md"}
    assert set(hub.files) == expected | {"tokenizer.json", "tokenizer_config.json"}
    client.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == set(hub.files)
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    secrets = secrets_of(place)
    for files in (hub.files, saved):
        assert leaking(files, secrets) == []
        assert not any(b"PRIVATE KEY" in content for content in files.values())
    assert len(secrets) > 20
    for what in ("client-key/key.pem", "own/party0/tensors.safetensors", "own/party1/integrity.json"):
        assert leaking({what: (place / what).read_bytes()}, secrets)  # the check sees each kind of secret


def test_what_was_pushed_makes_the_same_client(place, hub, tmp_path):
    SecureRouterClient.from_pretrained(place / "own" / "client").push_to_hub("you/client", revision="v2")
    assert hub.branches == ["v2"] and hub.commit["revision"] == "v2"
    fingerprints = {
        peer.role: peer.fingerprint
        for peer in RoleFolder.load(place / "own" / "dealer", "dealer", key=place / "dealer-key").identity.peers
    }
    for role in ("party0", "party1"):
        assert fingerprints[role] in hub.files["README.md"].decode()
    # Whoever may write there adds a key and an authority: neither is downloaded.
    hub.files |= {"key.pem": (place / "client-key" / "key.pem").read_bytes(), "ca.pem": b"", "certificate.pem": b""}
    told = []
    load = {**SERVERS, "log": told.append, "revision": "v2", "token": "hf_x"}
    found = SecureRouterClient.from_pretrained("you/client", key=place / "client-key", **load)
    assert {path.name for path in hub.folder.iterdir()} == set(hub.files) - {
        "key.pem",
        "ca.pem",
        "certificate.pem",
        "README.md",
    }
    assert hub.options["revision"] == "v2" and hub.options["token"] == "hf_x"
    assert [role in line for role, line in zip(("party0", "party1"), told, strict=True)] == [True, True]
    assert found.session._addresses == {"party0": ("127.0.0.1", 1), "party1": ("127.0.0.1", 2)}
    own = RoleFolder.load(place / "own" / "client", "client", key=place / "client-key")
    assert found.session.manifest == own.manifest and found.session._identity.facts == own.identity.facts
    texts = ["the film was good", ("bad", "a dull movie")]
    encoded, expected = found.session.client.tokenize(texts), own.client().tokenize(texts)
    for member, values in own.client().embed(expected).items():
        assert torch.equal(found.session.client.embed(encoded)[member], values)
    pins = {role: fingerprints[role] for role in ("party0", "party1")}
    SecureRouterClient.from_pretrained("you/client", key=place / "client-key", pins=pins, **load)
    assert len(told) == 2  # nothing is left to compare
    with pytest.raises(SecureRouterValueError, match="somebody else may pose as party1"):
        SecureRouterClient.from_pretrained("you/client", key=place / "client-key", pins={"party1": "0" * 64}, **load)
    with pytest.raises(SecureRouterValueError, match="`key` is missing, and 'you/client' is a repository"):
        SecureRouterClient.from_pretrained("you/client", **load)


def test_a_card_of_ones_own_stays(place, hub, tmp_path):
    client = SecureRouterClient.from_pretrained(place / "own" / "client")
    hub.files["README.md"] = b"my words"
    client.push_to_hub("you/client")
    (tmp_path / "README.md").write_text("my words")
    client.save_pretrained(tmp_path)
    assert hub.files["README.md"] == b"my words" and (tmp_path / "README.md").read_text() == "my words"
    assert (tmp_path / "client.json").exists() and "client.json" in hub.files


def test_only_a_clients_folder_is_pushed(place, hub, tmp_path):
    for role in ("party0", "party1", "dealer"):
        with pytest.raises(FileError, match="There is no client.json"):
            SecureRouterClient.from_pretrained(place / "own" / role).push_to_hub("you/client")
    damaged = shutil.copytree(place / "own" / "client", tmp_path / "damaged")
    content = bytearray((damaged / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "tensors.safetensors").write_bytes(content)
    with pytest.raises(SecureRouterValueError, match="is not what `securerouter share` wrote"):
        SecureRouterClient.from_pretrained(damaged).push_to_hub("you/client")
    assert not hub.files and not hub.asked


def test_what_is_no_client_is_named(place, hub, tmp_path, monkeypatch):
    for name, match in ((tmp_path / "nowhere", "neither a client's folder nor a name"), (tmp_path, "share. made")):
        with pytest.raises(SecureRouterValueError, match=match):
            SecureRouterClient.from_pretrained(name)
    for given, match in (({"party0": "a:1"}, "both servers"), ({**SERVERS, "party0": "a"}, "'a' is not HOST:PORT")):
        with pytest.raises(SecureRouterValueError, match=match):
            SecureRouterClient.from_pretrained(place / "trial" / "client", log=print, **given)
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    for error, kind, match in (
        (
            RepositoryNotFoundError("secret", response=response),
            SecureRouterValueError,
            "is not on the Hub, or not open",
        ),
        (LocalEntryNotFoundError("secret"), SecureRouterError, "is this machine online"),
    ):
        monkeypatch.setattr(
            public_folder, "snapshot_download", lambda *_, error=error, **__: (_ for _ in ()).throw(error)
        )
        with pytest.raises(kind, match=match) as raised:
            SecureRouterClient.from_pretrained("you/client")
        assert "secret" not in str(raised.value)


def test_a_folder_without_a_key_may_be_open_but_not_to_write(place, tmp_path):
    client, party = (shutil.copytree(place / "own" / role, tmp_path / role) for role in ("client", "party0"))
    for folder in (client, party):
        folder.chmod(0o755)
    RoleFolder.load(client, "client", key=place / "client-key")
    with pytest.raises(SecureRouterValueError, match="holds secrets and is open to other users"):
        RoleFolder.load(party, "party0", key=place / "party0-key")
    client.chmod(0o777)
    with pytest.raises(SecureRouterValueError, match="can be changed by every user"):
        RoleFolder.load(client, "client", key=place / "client-key")
    trial = shutil.copytree(place / "trial" / "client", tmp_path / "trial")
    trial.chmod(0o755)
    with pytest.raises(SecureRouterValueError, match="holds secrets and is open to other users"):
        RoleFolder.load(trial, "client")
    assert not stat.S_IMODE((trial / "key.pem").stat().st_mode) & 0o077
