# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The map in `recipes/__init__.py`: every file with what it gives, in an order in which imports go upwards only."""

import ast
import importlib
import re

from hf_securerouter import recipes
from tests.support import ROOT


FOLDER = ROOT / "hf_securerouter" / "recipes"
ROWS = re.findall(r"^\| `(\w+)` \| (.*) \|$", recipes.__doc__, re.MULTILINE)


def imports_of(path):
    """Modules of this package that a file imports, wherever in it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def test_every_file_is_named_with_what_it_gives():
    assert sorted(name for name, _ in ROWS) == sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    for name, text in ROWS:
        module = importlib.import_module(f"hf_securerouter.recipes.{name}")
        given = re.findall(r"`(\w+)`", text.split(":")[0])
        assert given and all(hasattr(module, symbol) for symbol in given), name


def test_a_file_imports_files_above_it():
    order = [name for name, _ in ROWS]
    for index, name in enumerate(order):
        own = [module for module in imports_of(FOLDER / f"{name}.py") if module.startswith("hf_securerouter.")]
        below = [module for module in own if module.rpartition(".recipes.")[2] in order[index:]]
        assert not below and not [module for module in own if module.startswith("hf_securerouter.cli")], name


def test_scripts_are_short_and_import_no_script():
    scripts = sorted((ROOT / "training").glob("*.py"))
    for path in scripts:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= (200 if path.stem == "run_glue_no_trainer" else 60), path.name
        imported = [module for module in imports_of(path) if module in {script.stem for script in scripts}]
        assert not imported, path.name
        assert path.read_text(encoding="utf-8").endswith('if __name__ == "__main__":\n    run_script(main)\n'), (
            path.name
        )
