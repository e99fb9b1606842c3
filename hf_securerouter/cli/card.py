# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter card`: write a checkpoint's model card again."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_securerouter.cli.output import JsonOption, only_results_on_stdout, print_json
from hf_securerouter.errors import SecureRouterValueError


def card(
    path: Annotated[Path, typer.Argument(help="The folder of a checkpoint.")],
    json: JsonOption = False,
) -> None:
    """Write the card of a checkpoint again, with the current costs of its config.

    Metadata and the text below the last generated line stay, and results unless they are of other weights.
    """
    with only_results_on_stdout():
        report = rewrite_card(path)
    if json:
        print_json(report)
    else:
        typer.echo(report["card"])


def rewrite_card(path: Path) -> dict[str, Any]:
    """Write the card of the checkpoint in `path` again, and return its path and the costs, as JSON-able values.

    Raises:
        SecureRouterValueError: `path` has no config.json or no pool, or a person wrote or edited the card.
    """
    from hf_securerouter.cli.loading import load_model
    from hf_securerouter.model_card import write_model_card
    from hf_securerouter.modeling_securerouter import SecureRouterForSequenceClassification

    if not (path / "config.json").is_file():
        raise SecureRouterValueError(
            f"`path` should be the folder of a checkpoint, with a config.json, got {str(path)!r}: name that folder."
        )
    model, _ = load_model(path)
    if not isinstance(model, SecureRouterForSequenceClassification):
        raise SecureRouterValueError(
            f"`path` {str(path)!r} holds a plain {model.config.model_type} classifier: only the card of a pool is "
            "written. Pass the folder of a pool."
        )
    if not write_model_card(model, path, same_weights=True):
        raise SecureRouterValueError(
            f"{str(path / 'README.md')!r} was written or edited by hand and is left as it is. Move your text below "
            "the line that starts with `<!-- Written by hf_securerouter`, or remove the file."
        )
    return {
        "card": str(path / "README.md"),
        "expert_costs": model.config.expert_costs,
        "expert_costs_source": model.config.expert_costs_source,
    }
