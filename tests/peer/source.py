# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The tests in transformers' source distribution: downloaded once, unpacked, and loaded as the package `PACKAGE`."""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from unittest import mock

import transformers

from hf_securerouter.files import new_folder
from tests.support import ROOT


PACKAGE = "transformers_tests"


def tests_folder() -> Path:
    """The folder with the tests of the installed version, downloaded if it is not there yet.

    Raises:
        `SystemExit`: It is not there, and cannot be downloaded.
    """
    name = f"transformers-{transformers.__version__}"
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(cache) / "hf_securerouter" if cache else ROOT / ".cache") / "peer" / name
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as downloaded, new_folder(folder) as unpacked:
            _download(f"transformers=={transformers.__version__}", downloaded, folder)
            with tarfile.open(next(Path(downloaded).glob("*.tar.gz"))) as archive:
                members = [member for member in archive if member.name.startswith(f"{name}/tests/")]
                archive.extractall(unpacked, members, filter="data")
    return folder / name / "tests"


def _download(requirement: str, target: str, folder: Path) -> None:
    arguments = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", target, requirement]
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], stderr=subprocess.PIPE, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(
            f"{done.stderr.strip()}\nThe source distribution of {requirement}, which holds the tests, could not be "
            "downloaded. Without a network: download it elsewhere, with `pip "
            f"{' '.join(arguments[:-3])} {requirement}`, and unpack it into {folder}."
        )


def load(module: str) -> types.ModuleType:
    """A module of the tests, such as `test_modeling_common`. What it imports and the source distribution lacks is
    replaced: an empty class for the tests of text generation and for those of export, and fields of a config.
    """
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(tests_folder())]
    absent = {
        "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "utils.test_configuration_utils": {"config_common_kwargs": _COMMON_FIELDS},
    }
    sys.modules.setdefault(PACKAGE, package)
    for name, members in absent.items():
        parent = f"{PACKAGE}.{name.split('.')[0]}"
        sys.modules.setdefault(parent, types.ModuleType(parent))
        stand_in = types.ModuleType(f"{PACKAGE}.{name}")
        vars(stand_in).update(members)
        sys.modules.setdefault(f"{PACKAGE}.{name}", stand_in)
    # The tests look for transformers beside themselves, as in its repository.
    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        return importlib.import_module(f"{PACKAGE}.{module}")


# Fields of every config, with values that are not the defaults.
_COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["SomeModel"],
    "id2label": {0: "bad", 1: "so-so", 2: "good"},
    "label2id": {"bad": 0, "so-so": 1, "good": 2},
    "problem_type": "multi_label_classification",
}
