# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Folders of shares: each holds only what its role may know."""

import dataclasses
import json
import stat

import pytest
import torch
from safetensors.torch import load_file

from hf_securerouter.errors import SecureRouterValueError
from hf_securerouter.mpc.convert import to_mpc
from hf_securerouter.mpc.gates.weight_share import weight_share
from hf_securerouter.mpc.models.manifest import Manifest
from hf_securerouter.mpc.protocols.masked.folding import fold_weights
from hf_securerouter.mpc.protocols.masked.layout import encoders
from hf_securerouter.mpc.protocols.masked.sharing import as_seed
from tests.tiny import pool_model


@pytest.fixture(scope="module")
def secure(tokenizer):
    return to_mpc(pool_model(), tokenizer, max_length=16)


@pytest.fixture(scope="module")
def folder(secure, tmp_path_factory):
    target = tmp_path_factory.mktemp("shares") / "out"
    secure.save_shares(target)
    return target


def tensors_of(folder, role):
    return load_file(folder / role / "tensors.safetensors")


def test_the_parties_folders_make_the_weights_and_neither_does_alone(secure, folder):
    shares = [tensors_of(folder, f"party{rank}") for rank in (0, 1)]
    seeds = [as_seed(part.pop("seed")) for part in shares]
    assert shares[0].keys() == shares[1].keys() and seeds[0] != seeds[1]
    for prefix, encoder in encoders(secure.manifest).items():
        own = {k.removeprefix(f"{prefix}."): v for k, v in secure.weights.items() if k.startswith(f"{prefix}.")}
        for name, words in fold_weights(encoder.spec, own, encoder.rings).items():
            name = f"{prefix}.{name}"
            parts = [weight_share(rank, seeds[rank], name, shares[rank].pop(name)) for rank in (0, 1)]
            assert torch.equal(parts[0].share + parts[1].share, words)
            assert not torch.equal(parts[0].masked, words) and not torch.equal(parts[1].share, words)
    assert not shares[0]


def test_the_dealers_folder_holds_two_seeds_and_nothing_else(folder):
    found = tensors_of(folder, "dealer")
    parties = [tensors_of(folder, f"party{rank}")["seed"] for rank in (0, 1)]
    assert found.keys() == {"seed0", "seed1"}
    assert all(torch.equal(found[f"seed{rank}"], parties[rank]) for rank in (0, 1))


def test_the_clients_folder_holds_tables_and_tokenizer(secure, folder):
    found = tensors_of(folder, "client")
    assert {name.rsplit(".", 2)[0] for name in found} == set(secure.client.embeddings)
    assert not any("layer." in name or "classifier" in name or "dense" in name for name in found)
    assert (folder / "client" / "tokenizer.json").exists()


def test_every_folder_has_the_manifest_and_is_private(secure, folder):
    for role in ("party0", "party1", "dealer", "client"):
        found = Manifest.from_dict(json.loads((folder / role / "manifest.json").read_text()))
        assert dataclasses.replace(found, sharing="", digest="") == secure.manifest
        assert len(found.sharing) == 32 and len(found.digest) == 64
        for path in (folder, folder / role, *(folder / role).iterdir()):
            assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path


def test_a_folder_is_written_once(secure, folder):
    with pytest.raises(SecureRouterValueError, match="`folder` should not exist yet"):
        secure.save_shares(folder)


def test_two_sharings_have_nothing_in_common(secure, folder, tmp_path):
    secure.save_shares(tmp_path / "again")
    first, second = tensors_of(folder, "party0"), tensors_of(tmp_path / "again", "party0")
    assert not any(torch.equal(first[name], second[name]) for name in first)
    for name, fields in (("integrity.json", ["salt"]), ("manifest.json", ["sharing", "digest"])):
        one, other = (json.loads((own / "party0" / name).read_text()) for own in (folder, tmp_path / "again"))
        assert all(one[field] != other[field] for field in fields)


def test_a_failed_write_leaves_nothing(secure, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("hf_securerouter.mpc.deployment.save_shares.save_file", fail)
    with pytest.raises(OSError, match="the disk is full"):
        secure.save_shares(tmp_path / "out")
    assert not list(tmp_path.iterdir())
