# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""Write docs/reference.md: public names, one line each, and where they live.

    python docs/make_reference.py

Lines are the first sentences of docstrings, read from the source without importing it. A test compares the page with
what this script would write.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("reference.md")
SECTIONS = {
    "Model": (
        "configuration_securerouter",
        "modeling_securerouter",
        "configuration_moe",
        "modeling_moe",
        "router",
        "outputs",
        "texts",
        "errors",
    ),
    "Training and evaluation": (
        "trainer",
        "losses",
        "metrics",
        "routing",
        "reports",
        "model_card",
        "card_callback",
        "classification",
    ),
    "Experts for encryption": (
        "mpc_friendly",
        "mpnet_attention",
        "range_penalty",
        "fixed_point_layers",
        "number_format",
        "families",
    ),
    "Conversion": ("mpc/convert", "mpc/secure_model", "mpc/profiler", "mpc/conversion/validation"),
    "Sessions and deployment": (
        "client",
        "async_client",
        "mpc/sessions/session",
        "mpc/sessions/local",
        "mpc/protocols/masked/memory",
        "mpc/deployment/save_shares",
        "mpc/deployment/role_folder",
        "mpc/deployment/remote_session",
        "mpc/deployment/party_server",
        "mpc/deployment/dealer_server",
        "mpc/net/cost",
    ),
    "For those who add to it": (
        "mpc/gates/gate",
        "mpc/gates/party",
        "mpc/gates/secret",
        "mpc/models/architecture",
        "mpc/models/spec",
        "mpc/models/manifest",
        "mpc/protocols/base",
        "mpc/tuples/plan",
    ),
}
HEAD = """# Reference

Public names, one line each, and where they live. `python docs/make_reference.py` writes this page from docstrings.

- Arguments, shapes, errors and examples are in the docstrings: `help(name)`.
- `from hf_securerouter import ...` has configs, models, a pool's output, the clients, `to_mpc`,
  `classifier_from_sentence_transformer`, `SecureRouterError`, `SecureRouterValueError`, `UnknownArgumentError` and
  `SecureRouterWarning`; all else, other errors too, by its module.
- Commands: `securerouter COMMAND --help`. Recipes: `hf_securerouter/recipes/__init__.py` is their map.
- Terms: [glossary](glossary.md). The folders: [architecture](architecture.md).
"""


def first_sentence(docstring: str | None) -> str:
    """The first sentence of a docstring's first paragraph, in one line."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    paragraph = re.sub(r"\[(`[^`]*`)\](?!\()", r"\1", paragraph)  # links of docstrings, which Markdown does not know
    sentence = re.split(r"(?<=[.:])\s+(?=[A-Z`]|$)", paragraph)[0].rstrip(":")
    return sentence.replace("|", "\\|")


def names_of(module: str) -> list[tuple[str, str]]:
    """Public classes and functions of a module, in its order, with their first sentences."""
    tree = ast.parse((ROOT / "hf_securerouter" / f"{module}.py").read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    found = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [(node.name, first_sentence(ast.get_docstring(node))) for node in found]


def render() -> str:
    """The page."""
    parts = [HEAD]
    for title, modules in SECTIONS.items():
        parts.append(f"## {title}\n")
        for module in modules:
            rows = [f"| `{name}` | {text} |" for name, text in names_of(module) if text]
            dotted = f"hf_securerouter.{module.replace('/', '.')}"
            parts.append("\n".join([f"### `{dotted}`\n", "| name | what it is |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
