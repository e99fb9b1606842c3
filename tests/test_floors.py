# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Imports run one way: down the floors of the house, without a circle, and relatively in what travels to the Hub."""

import ast
import functools
import re
from pathlib import Path

from tests.support import ROOT


# From the ground up. A module may import its own floor and those below, wherever the import stands in it.
HOUSE = (
    "errors",
    "value_checks",
    "abstention card_figures expert_places files families hub_ids lengths number_format plain_messages texts "
    "token_ids config_fields known_arguments member_configs",
    "configuration_securerouter configuration_moe configuration_pooled linear_head routing metrics windows",
    "admission labels loading forward_arguments outputs",
    "losses adapters modeling_moe modeling_pooled sentence_transformer pool router model_card reports range_penalty "
    "fixed_point_layers mpnet_attention mpc_friendly members checkpoint checkpoint_files",
    "mpc",
    "modeling_securerouter card_callback",
    "trainer classification client",
    "async_client",
    "recipes cli",
    "registration",  # waits for transformers, and then loads config and model
)
MPC = (
    "ring net",
    "gates models",
    "tuples",
    "protocols",
    "conversion",
    "sessions",
    "deployment",
    "secure_model",
    "profiled_models",
    "convert profiler",
)
PACKAGE = "hf_securerouter"


@functools.cache
def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name; a folder's `__init__` has the name of the folder."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, node: ast.AST) -> list[str]:
    """What one statement of a module imports of the package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in modules()]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        is_folder = modules()[module].name == "__init__.py"
        parts = module.split(".") if is_folder else module.split(".")[:-1]
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, node.module] if node.module else parts)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in modules() else base for name in names if base in modules() or name in modules()]


@functools.cache
def edges() -> frozenset[tuple[str, str]]:
    """All imports within the package, as (who, what), at any depth of a file and for types alone as well."""
    return frozenset(
        (module, other)
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for other in imported(module, node)
    )


def upward(floors: tuple[str, ...], place: int) -> list[str]:
    """Imports of a higher floor; the part of a module's name at `place` gives its floor."""
    floor = {name: index for index, names in enumerate(floors) for name in names.split()}
    found = []
    for who, what in sorted(edges()):
        parts = [name.split(".") for name in (who, what)]
        if any(len(part) <= place or (place == 2 and part[1] != "mpc") for part in parts):
            continue
        here, there = (floor[part[place]] for part in parts)
        if there > here:
            found.append(f"{who} -> {what}")
    return found


def test_imports_run_down_the_house():
    assert not upward(HOUSE, 1)


def test_imports_run_down_the_floors_of_mpc():
    assert not upward(MPC, 2)


def test_every_module_has_a_floor():
    tops = {name.split(".")[1] for name in modules() if name.count(".")}
    rooms = {name.split(".")[2] for name in modules() if name.startswith(f"{PACKAGE}.mpc.")}
    assert tops == set(" ".join(HOUSE).split()) and rooms == set(" ".join(MPC).split())
    entries = [path for path in (ROOT / PACKAGE / "mpc").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 14


def test_there_is_no_circle():
    """Remove modules that import none of the others until no such module is left; circles remain."""
    left = {name: {what for who, what in edges() if who == name and what != name} for name in modules()}
    left[PACKAGE] = set()  # public names are loaded when they are first used
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_nobody_imports_the_face_or_what_stands_on_top():
    """Importing any module loads the package's `__init__`; no module needs to import it."""
    assert not [f"{who} -> {what}" for who, what in sorted(edges()) if what in (PACKAGE, f"{PACKAGE}.cli")]


def test_what_travels_to_the_hub_imports_relatively():
    """transformers copies the relative imports of a model's file, and demands every other one at module level."""
    travelling, waiting = set(), ["modeling_securerouter", "configuration_securerouter"]
    while waiting:
        name = waiting.pop()
        if name not in travelling:
            travelling.add(name)
            text = modules()[f"{PACKAGE}.{name}"].read_text(encoding="utf-8")
            waiting += re.findall(r"^\s*from\s+\.(\w+)\s+import", text, flags=re.MULTILINE)
    assert {"pool", "losses", "families", "number_format", "range_penalty", "checkpoint"} <= travelling
    for name in travelling:
        for node in ast.parse(modules()[f"{PACKAGE}.{name}"].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or not (node.module or "").startswith(PACKAGE), name
            assert not (isinstance(node, ast.Import) and node.names[0].name.startswith(PACKAGE)), name


def test_no_file_is_two_rooms():
    """Neither the package nor its tests nor its scripts have a file of more than 490 lines."""
    paths = [path for folder in (PACKAGE, "tests", "training") for path in (ROOT / folder).rglob("*.py")]
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {name: lines for name, lines in long.items() if lines > 490}


def test_every_folder_has_a_map():
    """The `__init__` of a folder of `mpc` names each of its files."""
    for folder in [path for path in (ROOT / PACKAGE).rglob("*") if (path / "__init__.py").is_file()]:
        if folder.name in ("cli", "models"):  # one file a subcommand, one a family
            continue
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
        assert not [name for name in names if f"`{name}`" not in text], folder
