# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""What mixtures of 8 to 128 experts cost: the tables and the figure of docs/moe.md.

python tests/benchmarks/moe.py --seconds runs.json      # runs what fits into this machine's memory, 8 tokens each
python tests/benchmarks/moe.py --figure docs/moe.svg --seconds runs.json    # and plans the rest; some minutes
python tests/benchmarks/moe.py --seconds pairs.json --layers 2 --rounds 5   # one sparse layer: 128 experts fit

Runs that `runs.json` has already are not repeated, so that a stopped benchmark goes on.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from transformers import AutoModelForSequenceClassification

from hf_securerouter.files import write_text
from hf_securerouter.mpc.profiled_models import ARCHITECTURES, config_of
from hf_securerouter.mpc.profiler import planned


NAMES = [name for name in ARCHITECTURES if name.startswith(("moe-small-", "switch-base-"))]
WAYS = ("exact", "capacity")
_KINDS = {"online": "with the query", "preprocess": "prepared by the servers", "dealer": "at the dealer"}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Cost of mixtures of experts.")
    parser.add_argument("--seconds", type=Path, help="JSON file of measured runs, which is made or completed")
    parser.add_argument("--rounds", type=int, default=1, help="sessions of each model")
    parser.add_argument("--layers", type=int, help="run models of so many layers, with sparse ones as often as before")
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


def shortened(name, layers, folder):
    """A model of a known name with fewer layers, in a folder."""
    config = config_of(name, 8)
    config.num_hidden_layers = layers
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def measured(path, layers, rounds):
    """The runs of each model that fits into memory, by name; those that do not are left out with a line.

    Every round runs each model once, so that a machine that is slower for a while is so for all of them.
    """
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for done in range(rounds):
        for name in NAMES:
            if len(runs.get(name, [])) > done:
                continue
            run = measure(name, layers)
            if run is not None:
                runs.setdefault(name, []).append(run)
                print(json.dumps({name: run}), flush=True)
                write_text(json.dumps(runs, indent=1), path)
    return runs


def measure(name, layers):
    """One session's medians, in a process of its own, which leaves no memory behind; None without the memory."""
    with tempfile.TemporaryDirectory() as folder:
        model = shortened(name, layers, folder) if layers else name
        command = ("securerouter", "profile", "--architecture", model, "--seq-length", "8", "--json")
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} did not run: {done.stderr.splitlines()[-1]}")
        return None
    report = json.loads(done.stdout)
    kept = ("online_seconds", "preprocess_seconds", "dealer_seconds", "peak_rss_bytes", "max_abs_logit_error")
    return {field: report[field] for field in kept} | {"way": report["choices"]["moe_dispatch"]}


def median(runs, field):
    """Of the sessions of one model."""
    return statistics.median(run[field] for run in runs)


def seconds_table(runs):
    """One line a model that ran: the median of its sessions, and how many times that of the smallest of its shape."""
    lines = ["| | online | least and most | times 8 experts | prepared before | at the dealer | memory of a server |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, own in runs.items():
        smallest = median(runs[name.rpartition("-")[0] + "-8"], "online_seconds")
        online = sorted(run["online_seconds"] for run in own)
        cells = [
            f"`{name}`",
            f"{median(own, 'online_seconds'):.2f} s",
            f"{online[0]:.2f} to {online[-1]:.2f} s",
            f"{median(own, 'online_seconds') / smallest:.1f}",
            f"{median(own, 'preprocess_seconds'):.2f} s",
            f"{median(own, 'dealer_seconds'):.2f} s",
            f"{own[0]['peak_rss_bytes']['party0'] / 1e9:.1f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(reports, runs, path):
    """Parameters against megabytes between the servers, and against seconds, of `moe-small-8` to `-128`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "moe"  # the same file from the same figures
    figure, (axes, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
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
    figure.legend(frameon=False, loc="outside upper center", ncols=4)
    ran = [name for name in runs if name.startswith("moe-small-")]
    places = [reports[8][name]["parameters"] / 1e6 for name in ran]
    for kind, marker in (("online", "o"), ("preprocess", "s"), ("dealer", "^")):
        taken = [median(runs[name], f"{kind}_seconds") for name in ran]
        right.plot(places, taken, marker=marker, color="0.3", label=_KINDS[kind])
    right.set(xlabel="million parameters", ylabel="seconds, 8 tokens", ylim=(0, None), xlim=(0, None))
    right.legend(frameon=False)
    for one in (axes, right):
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main(argv=None):
    args = parse_args(argv)
    runs = measured(args.seconds, args.layers, args.rounds) if args.seconds else {}
    if args.layers:
        print(f"\nMeasured, {args.layers} layers, one text of 8 tokens:\n\n{seconds_table(runs)}")
        return
    reports = {length: {name: planned(name, length) for name in NAMES} for length in (8, 128)}
    for length, models in reports.items():
        print(f"\nOne text of {length} tokens:\n\n{table(models)}")
    if runs:
        print(f"\nMeasured, one text of 8 tokens:\n\n{seconds_table(runs)}")
    if args.figure:
        draw(reports, runs, args.figure)


if __name__ == "__main__":
    main()
