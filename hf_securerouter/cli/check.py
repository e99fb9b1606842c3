# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter check`: what a model's values reach, whether shares compute them rightly, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_securerouter.cli.output import JsonOption, only_results_on_stdout, print_json, print_table


if TYPE_CHECKING:  # `securerouter --help` should not wait for torch and transformers
    from hf_securerouter.mpc.models.manifest import Manifest
    from hf_securerouter.mpc.secure_model import SecureModel


def check(
    model: Annotated[str, typer.Argument(help="A pool or a classifier: a folder, or a name on the Hub.")],
    input_path: Annotated[
        Path | None,
        typer.Option("--input", help="JSON lines with texts like those to be answered; default: built-in samples."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens to which every text is padded, by default the checkpoint's.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure every layer in clear text, and say which bounds a model gets and what they cost.

    Values beyond what 64-bit shares compute rightly are an error, which names the layer.
    """
    with only_results_on_stdout():
        report = check_model(model, input_path, max_length)
    if json:
        print_json(report)
        return
    print_ranges(report)
    print_table(
        "what a text costs at these bounds",
        ["member", "MB between the servers", "at default bounds", "MB from the dealer", "rounds"],
        [
            [
                one["member"],
                f"{one['online_bytes'] / 1e6:.1f}",
                f"{one['default_online_bytes'] / 1e6:.1f}",
                f"{one['dealer_bytes'] / 1e6:.1f}",
                str(one["rounds"]),
            ]
            for one in report["members"]
        ],
    )
    print_table(
        "memory that a batch takes at each role, GB",
        ["texts", "party0", "party1", "dealer", "temporary files of party0"],
        [
            [str(one["batch"]), *(f"{one[role] / 1e9:.2f}" for role in ("party0", "party1", "dealer", "dealer_bytes"))]
            for one in report["batches"]
        ],
    )


def check_model(model_path: str, input_path: Path | None, max_length: int | None) -> dict[str, Any]:
    """Convert a model, and return its ranges and costs as JSON-able values.

    Args:
        model_path: A folder, or a name on the Hub.
        input_path: JSON lines with "text" and optionally "text_pair", or None for the built-in samples.
        max_length: As for `to_mpc`.

    Raises:
        SecureRouterValueError: The model cannot be converted, or a line is wrong.
    """
    from hf_securerouter.cli.loading import load_model
    from hf_securerouter.mpc.convert import to_mpc

    texts = None if input_path is None else samples_of(input_path)
    model, tokenizer = load_model(model_path)
    secure = to_mpc(model, tokenizer, protocol="masked", max_length=max_length, calibration=texts)
    sizes = sorted({secure.manifest.batch or 1, secure.manifest.largest_batch})
    return {
        "model": model_path,
        "samples": "built-in samples" if input_path is None else str(input_path),
        "max_length": secure.manifest.max_length,
        **described(secure),
        "members": costs(secure.manifest),
        "batches": [secure.plan(batch).to_dict() for batch in sizes],
    }


def samples_of(path: Path) -> list[Any]:
    """The texts and pairs of a file of JSON lines."""
    from hf_securerouter.cli.records import read_records, text_of

    return [text_of(record) for record in read_records(path)]


def described(secure: SecureModel) -> dict[str, Any]:
    """The ranges of a converted model and their summary, as JSON-able values."""
    from hf_securerouter.mpc.conversion.ranges import summary

    return summary(secure.ranges) | {"ranges": [one.to_dict() for one in secure.ranges]}


def print_ranges(report: dict[str, Any]) -> None:
    """The table of a report with `ranges`, `samples` and `max_length`."""
    print_table(
        f"what {Path(report['samples']).name} reach, within {report['max_length']} tokens",
        ["member", "layer", "value", "reached", "bound", "default", "margin, bits"],
        [
            [
                one["member"],
                "" if one["layer"] is None else str(one["layer"]),
                one["kind"].replace("_", " "),
                f"{one['reached']:.3g}",
                f"{one['bound']:.3g}",
                f"{one['default']:.3g}",
                "" if one["margin_bits"] is None else f"{one['margin_bits']:.1f}",
            ]
            for one in report["ranges"]
        ],
    )


def costs(manifest: Manifest) -> list[dict[str, Any]]:
    """Bytes and rounds of one text by each expert, at the model's bounds and at the default ones."""
    from hf_securerouter.mpc.protocols.masked.programs import secure_program

    found = []
    for index in range(len(manifest.experts)):
        plan = secure_program(manifest, f"experts.{index}/1").plan()
        default = (
            secure_program(replace(manifest, bounds={}), f"experts.{index}/1").plan() if manifest.bounds else plan
        )
        found.append(
            {
                "member": f"experts.{index}",
                "online_bytes": 2 * plan.payload_bytes,
                "default_online_bytes": 2 * default.payload_bytes,
                "dealer_bytes": plan.dealer_bytes,
                "rounds": plan.rounds,
            }
        )
    return found
