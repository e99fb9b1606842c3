# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""`securerouter profile`: the cost of one encoder under encryption, measured on this machine."""

from typing import Annotated, Any

import typer

from hf_securerouter.cli.output import JsonOption, log, only_results_on_stdout, print_cost, print_json, print_table
from hf_securerouter.errors import SecureRouterValueError


def profile(
    architecture: Annotated[
        str, typer.Option(help="A name such as bert-base or ettin-17m (random weights), or a classifier's folder.")
    ] = "bert-tiny",
    seq_length: Annotated[int, typer.Option(min=2, help="Tokens of every input.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs of the batch.")] = 1,
    protocol: Annotated[str, typer.Option(help='The two-party protocol: "masked" or "crypten".')] = "masked",
    provider: Annotated[
        str | None, typer.Option(help='For "crypten": "tfp" (no dealer, to measure only) or "ttp".')
    ] = None,
    device: Annotated[str, typer.Option(help='Where the servers compute: "cpu" or "cuda".')] = "cpu",
    network: Annotated[str, typer.Option(help='The network to optimise for: "lan" or "wan".')] = "lan",
    delay_ms: Annotated[
        float | None,
        typer.Option(help="Measure once more with this one-way delay between the servers, in milliseconds."),
    ] = None,
    hidden_act: Annotated[str, typer.Option(help='Activation: "exact", "quadratic" or "relu".')] = "exact",
    softmax: Annotated[str, typer.Option(help='Attention: "exact", "2quad" or "2relu".')] = "exact",
    precision: Annotated[str, typer.Option(help='Number format: "full" or "reduced".')] = "full",
    moe_dispatch: Annotated[
        str | None,
        typer.Option(help='A mixture of experts: "exact" or "capacity"; without it the cheaper one by their plans.'),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option(help="Run nothing: print the plan's bytes, rounds and memory. A run has one round more.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Measure one encoder, its pooler and head on shared embeddings: median of three runs after a warm-up.

    A run of more than 30 seconds is not repeated. --delay-ms needs root on Linux, with TUN devices: each server gets a
    network namespace, and a relay between the two delays every packet.
    """
    from hf_securerouter.mpc.profiler import planned
    from hf_securerouter.mpc.profiler import profile as measure

    if plan_only:
        for name, value, plain in (
            ("protocol", protocol, "masked"),
            ("provider", provider, None),
            ("device", device, "cpu"),
            ("delay_ms", delay_ms, None),
        ):
            if value != plain:
                raise SecureRouterValueError(f"`{name}` {value!r} is of a run, and a plan has none: leave it out.")
        functions = hidden_act, softmax, precision
        _print_plan(planned(architecture, seq_length, batch_size, network, *functions, moe_dispatch), json)
        return
    with only_results_on_stdout():
        report = measure(
            architecture,
            seq_length,
            batch_size,
            protocol,
            provider,
            device,
            network,
            delay_ms,
            hidden_act,
            softmax,
            precision,
            progress=log,
            moe_dispatch=moe_dispatch,
        )
    if json:
        print_json(report)
        return
    print_cost(report)
    estimated = report["estimated_seconds"]
    names = {"lan": "estimated, LAN", "wan": "estimated, WAN", "delay": f"estimated, {delay_ms or 0:g} ms one way"}
    rows = [["measured, no delay", f"{report['compute_seconds']:.2f}"]]
    rows += [[names[name], f"{seconds:.2f}"] for name, seconds in estimated.items()]
    if delay_ms is not None:
        rows.append([f"measured, {delay_ms:g} ms one way", f"{report['online_seconds']:.2f}"])
    print_table("with the input, by network", ["network", "seconds"], rows)
    print_table(
        f"by gate; largest error of a logit {report['max_abs_logit_error']:.4f}",
        ["gate", "MB between the servers", "rounds", "MB from the dealer", "seconds"],
        [
            [
                gate["gate"],
                f"{gate['online_bytes'] / 1e6:.2f}",
                str(gate["rounds"]),
                f"{gate['dealer_bytes'] / 1e6:.2f}",
                f"{gate['seconds']:.3f}",
            ]
            for gate in sorted(report["by_gate"], key=lambda gate: -gate["online_bytes"])
        ],
    )


def _print_plan(report: dict[str, Any], json: bool) -> None:
    if json:
        print_json(report)
        return
    choice = report["choices"].get("moe_dispatch")
    title = f"planned for {report['parameters'] / 1e6:.0f} million parameters" + (f", {choice}" if choice else "")
    memory = [report[role] / 1e9 for role in ("party0", "party1", "dealer")]
    rows = [
        ["between the servers", f"{report['online_bytes'] / 1e6:.2f} MB"],
        ["rounds", str(report["rounds"])],
        ["from the dealer", f"{report['dealer_bytes'] / 1e6:.1f} MB"],
        ["memory of party 0, party 1 and dealer", " / ".join(f"{size:.1f}" for size in memory) + " GB"],
    ]
    print_table(title, ["", ""], rows)
