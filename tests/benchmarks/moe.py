# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What mixtures of 8 to 128 experts cost by their plans: the tables and the figure of docs/moe.md.

python tests/benchmarks/moe.py --figure docs/moe.svg    # prints the tables as Markdown; some minutes, runs nothing
"""

import argparse
from pathlib import Path

from hf_securerouter.mpc.profiled_models import ARCHITECTURES
from hf_securerouter.mpc.profiler import planned


NAMES = [name for name in ARCHITECTURES if name.startswith(("moe-small-", "switch-base-"))]
WAYS = ("exact", "capacity")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Planned cost of mixtures of experts.")
    parser.add_argument("--figure", type=Path, help="file of the figure, such as docs/moe.svg")
    return parser.parse_args(argv)


def table(reports):
    """One line a model: both ways' bytes, rounds and dealer's bytes, and what is chosen."""
    lines = [
        "| | parameters | `exact` | `capacity` | rounds | from the dealer | chosen | memory of a server |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        both = [report["choices"]["planned"][way] for way in WAYS]
        cells = [
            f"`{name}`",
            f"{report['parameters'] / 1e6:.0f} M",
            *(f"{cost['online_bytes'] / 1e6:.1f} MB" for cost in both),
            " / ".join(str(cost["rounds"]) for cost in both),
            " / ".join(f"{cost['dealer_bytes'] / 1e6:.0f}" for cost in both) + " MB",
            f"`{report['choices']['moe_dispatch']}`",
            f"{report['party0'] / 1e9:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(reports, path):
    """Parameters against megabytes between the servers, of `moe-small-8` to `-128`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "moe"  # the same file from the same figures
    figure, axes = pyplot.subplots(figsize=(7.6, 3.6), layout="constrained")
    for length, models in reports.items():
        small = [report for name, report in models.items() if name.startswith("moe-small-")]
        sizes = [report["parameters"] / 1e6 for report in small]
        for way, line in zip(WAYS, ("-", "--"), strict=True):
            sent = [report["choices"]["planned"][way]["online_bytes"] / 1e6 for report in small]
            axes.plot(sizes, sent, line, marker="o", color=f"C{length // 128}", label=f"{way}, {length} tokens")
    axes.set(xscale="log", yscale="log", xlabel="million parameters", ylabel="MB between the servers")
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    axes.set_yticks([5, 10, 20, 50, 100, 200, 400], ["5", "10", "20", "50", "100", "200", "400"])
    figure.legend(frameon=False, loc="outside right upper")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main(argv=None):
    args = parse_args(argv)
    reports = {length: {name: planned(name, length) for name in NAMES} for length in (8, 128)}
    for length, models in reports.items():
        print(f"\nOne text of {length} tokens:\n\n{table(models)}")
    if args.figure:
        draw(reports, args.figure)


if __name__ == "__main__":
    main()
