# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter env`: what is installed here, and what is missing."""

import importlib.metadata
import os
import platform
from typing import Any

import typer

from hf_securerouter.cli.output import JsonOption, only_results_on_stdout, print_json, print_table


_REPORTED = (
    "hf_securerouter",
    "torch",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "cryptography",
    "omegaconf",
    "onnx",
)
_OPTIONAL = {  # the extra that has it, and what it is for
    "datasets": ("train", "the training scripts"),
    "evaluate": ("train", "the training scripts"),
    "matplotlib": ("train", "the training scripts"),
    "numba": ("fast", "faster products of a few rows"),
}


def env(json: JsonOption = False) -> None:
    """Print versions, devices, CrypTen's state and what is missing."""
    with only_results_on_stdout():
        report = environment()
    if json:
        print_json(report)
        return
    crypten = report["crypten"]
    rows = [[name, version or "not installed"] for name, version in report["versions"].items()]
    rows.append(["crypten", f"{crypten['version'] or 'not installed'} ({crypten['state']})"])
    rows += [[device["device"], device["name"]] for device in report["devices"]]
    print_table("Environment", ["what", "found"], rows)
    if report["missing"]:
        print_table(
            "Missing",
            ["what", "needed for", "install with"],
            [[item["name"], item["needed_for"], item["install"]] for item in report["missing"]],
        )
    else:
        typer.echo("Nothing is missing.")


def environment() -> dict[str, Any]:
    """Collect versions, devices and the state of CrypTen, as JSON-able values."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    versions |= {name: _version(name) for name in (*_REPORTED, *_OPTIONAL)}
    crypten = _crypten_state()
    missing: list[dict[str, Any]] = [
        {"name": name, "needed_for": "hf_securerouter", "install": f"pip install {name}"}
        for name in _REPORTED
        if versions[name] is None
    ]
    missing += [
        {"name": name, "needed_for": what, "install": f"pip install 'hf_securerouter[{extra}]'"}
        for name, (extra, what) in _OPTIONAL.items()
        if versions[name] is None
    ]
    if crypten["state"] != "ready":
        missing.append({"name": "crypten", "needed_for": "protocol='crypten'", "install": crypten["install"]})
    return {"versions": versions, "devices": _devices(), "crypten": crypten, "missing": missing}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _crypten_state() -> dict[str, str | None]:
    from hf_securerouter.mpc.protocols.crypten.compat import CRYPTEN_INSTALL, import_crypten

    state: dict[str, str | None] = {
        "version": _version("crypten"),
        "state": "ready",
        "error": None,
        "install": CRYPTEN_INSTALL,
    }
    try:
        import_crypten()
    except ImportError as error:
        state["state"] = "missing" if state["version"] is None else "broken"
        state["error"] = str(error)
    return state


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        devices.append({"device": f"cuda:{index}", "name": name})
    return devices
