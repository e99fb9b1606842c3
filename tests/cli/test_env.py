# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter env`: what is installed, and what is missing."""

import json

import pytest
import torch

from tests.support.commands import run


class TestEnv:
    def test_json_is_one_document_with_versions_devices_and_crypten(self):
        done = run("env", "--json")
        report = json.loads(done.stdout)
        assert report["versions"]["torch"] == torch.__version__
        assert report["devices"][0]["device"] == "cpu"
        assert report["crypten"]["state"] == "ready" and report["crypten"]["version"] == "0.4.1"
        assert report["missing"] == []

    def test_missing_crypten_is_reported_with_its_install_line(self, monkeypatch):
        from hf_securerouter.cli import env as env_module

        monkeypatch.setattr(env_module, "_version", lambda name: None if name == "crypten" else "1.0")

        def absent():
            raise ImportError("`crypten` is not installed.")

        monkeypatch.setattr("hf_securerouter.mpc.protocols.crypten.compat.import_crypten", absent)
        report = json.loads(run("env", "--json").stdout)
        assert report["crypten"]["state"] == "missing"
        assert report["missing"] == [
            {
                "name": "crypten",
                "needed_for": "protocol='crypten'",
                "install": "pip install --no-deps crypten==0.4.1",
            }
        ]
        assert "pip install --no-deps crypten==0.4.1" in " ".join(run("env").stdout.split())

    def test_broken_crypten_is_told_from_a_missing_one(self, monkeypatch):
        def broken():
            raise ImportError("`onnx` is missing")

        monkeypatch.setattr("hf_securerouter.mpc.protocols.crypten.compat.import_crypten", broken)
        crypten = json.loads(run("env", "--json").stdout)["crypten"]
        assert crypten["state"] == "broken" and crypten["error"] == "`onnx` is missing"

    @pytest.mark.parametrize(("name", "extra"), [("datasets", "train"), ("matplotlib", "train"), ("numba", "fast")])
    def test_a_missing_extra_is_reported(self, monkeypatch, name, extra):
        from hf_securerouter.cli import env as env_module

        version = env_module._version
        monkeypatch.setattr(env_module, "_version", lambda one: None if one == name else version(one))
        (item,) = json.loads(run("env", "--json").stdout)["missing"]
        assert item["name"] == name and f"hf_securerouter[{extra}]" in item["install"]

    def test_table_for_people(self):
        done = run("env")
        assert torch.__version__ in done.stdout and "Nothing is missing." in done.stdout
