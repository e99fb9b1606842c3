# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The package as it is installed, and the rules that hold for every file of it."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import pytest

import hf_securerouter
from tests.support import ROOT
from tests.support.each import each


PACKAGE = Path(hf_securerouter.__file__).parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_securerouter").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in PROJECT["dependencies"]}


def distributions(modules: set[str]) -> set[str]:
    """The names under which top-level modules are installed; those of Python itself are left out."""
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    return {names.get(module, module) for module in modules - set(sys.stdlib_module_names)}


def imported_names(path: Path) -> set[str]:
    """The absolute names that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            names.add(".".join([*package, node.module] if node.module else package))
    return names


@pytest.fixture(scope="module")
def modules_after_import() -> set[str]:
    code = "import sys, json, hf_securerouter; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout))


def test_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", hf_securerouter.__version__)
    assert importlib.metadata.version("hf_securerouter") == hf_securerouter.__version__


def test_importing_the_package_loads_nothing_else(modules_after_import):
    """Role processes import it, and what a model needs would dominate their start-up time."""
    assert not {"torch", "transformers", "crypten"} & modules_after_import
    own = {name for name in modules_after_import if name.startswith("hf_securerouter")}
    assert own == {"hf_securerouter", "hf_securerouter.registration"}


KNOWN = "hf_securerouter.SecureRouterConfig in AutoModelForSequenceClassification._model_mapping"


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_securerouter; from transformers import AutoModelForSequenceClassification",
        "from transformers import AutoModelForSequenceClassification; import hf_securerouter",
        "import hf_securerouter; from transformers import BertForSequenceClassification, pipeline; "
        "from transformers import AutoModelForSequenceClassification",
        "import hf_securerouter.pool, hf_securerouter.trainer; "
        "from transformers import AutoModelForSequenceClassification",
    ],
)
def test_transformers_knows_the_model_in_whatever_order_the_two_are_imported(imports):
    code = f"{imports}; from transformers import AutoConfig; AutoConfig.for_model('secure_router'); print({KNOWN})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_what_the_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hf_securerouter' has no attribute 'SecureRouter'"):
        hf_securerouter.SecureRouter  # noqa: B018
    assert set(hf_securerouter.__all__) <= set(dir(hf_securerouter))


def test_public_names_exist():
    assert {"SecureRouterConfig", "SecureRouterForSequenceClassification"} <= set(hf_securerouter.__all__)
    for name in hf_securerouter.__all__:
        assert getattr(hf_securerouter, name) is not None


def test_package_is_typed_and_carries_its_data():
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "model_card_template.md").is_file()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (PACKAGE / "assets" / "demo").iterdir()
    }


def test_wheel_holds_the_data_files(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=120,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "hf_securerouter/model_card_template.md" in names
    assert "hf_securerouter/assets/demo/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "training/"))]


def test_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="securerouter")
    assert callable(entry.load())


def test_crypten_is_no_declared_dependency():
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *(item for extra in extras.values() for item in extra)]
    assert not [requirement for requirement in declared if requirement.startswith("crypten")]


def test_what_crypten_imports_is_declared():
    """CrypTen is installed without its dependencies, so that ours have to cover them."""
    crypten = importlib.metadata.distribution("crypten")
    files = [file for file in crypten.files or [] if file.parts[0] == "crypten" and file.suffix == ".py"]
    optional = {"tensorboard", "torchvision", "tensorflow", "tf2onnx"}  # imported lazily or in try blocks
    top_level = set()
    for file in files:
        with warnings.catch_warnings(action="ignore"):  # about escape sequences in its strings
            tree = ast.parse(crypten.locate_file(file).read_text())
        for node in tree.body:
            if isinstance(node, ast.Import):
                top_level.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                top_level.add(node.module.split(".")[0])
    needed = distributions(top_level - optional - {"crypten"})
    assert {"torch", "omegaconf", "onnx"} <= needed
    assert needed <= DECLARED


def test_what_the_package_imports_is_declared():
    imported = {name.split(".")[0] for module in MODULES for name in imported_names(ROOT / module)}
    installed_by_hand, optional = {"crypten"}, {"datasets", "evaluate", "matplotlib", "numba", "peft", "triton"}
    assert distributions(imported - {"hf_securerouter"} - installed_by_hand - optional) <= DECLARED


@each("module", MODULES)
def test_every_file_says_its_licence_and_what_it_is(module):
    text = (ROOT / module).read_text(encoding="utf-8")
    assert text.startswith("# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License")
    assert ast.get_docstring(ast.parse(text))


def test_crypten_is_imported_in_one_place_at_import_time():
    """Elsewhere an import of crypten at module level would break a machine that has none."""
    for module in MODULES:
        for node in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "crypten" for name in names):
                assert module.startswith("hf_securerouter/mpc/protocols/"), module


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_changelog_names_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{hf_securerouter.__version__}]" in text or "## [Unreleased]" in text


@pytest.mark.parametrize("target", ["demo", "test", "peer-test", "lint", "style"])
def test_make_help_lists_the_target(target):
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(rf"^\s*make {target}\s+\S", done.stdout, flags=re.MULTILINE)
