# Copyright 2026 The hf_securerouter authors. Licensed under the Apache License, Version 2.0.
"""The benchmark's tables and plot, from what `benchmark.py` measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


BEGIN = "<!-- benchmark: written by tests/benchmarks/benchmark.py -->"
END = "<!-- end of benchmark -->"
PLOT = "../tests/benchmarks/cost_by_length.png"  # from the page
NONE = "–"
# The cell whose split by gate the page shows.
SHOWN = "bert-base/1x128"

# The protocols build softmax and LayerNorm of different gates, so that their parts compare only together.
GROUPS = {
    "linear layers": ("Linear", "linear"),
    "products of attention": ("Matmul", "RelativeScores", "attention"),
    "softmax and LayerNorm": ("Exponential", "Knockout", "RowFunction", "RowScale", "softmax", "layernorm"),
    "GeLU and tanh": ("Activation", "gelu", "tanh"),
}

# Online bytes both ways, rounds, seconds, bytes from the dealer and hardware, one text of 128 tokens.
PUBLISHED = [
    ("SHAFT", "base", "10.46 GiB", "1,495", "104.6", "none: a party deals", "36-core CPU (Skylake)"),
    ("SHAFT", "base", "10.46 GiB", "1,495", "36.4", "none: a party deals", "one H200 for both servers"),
    ("SIGMA", "tiny", "0.020 GiB", NONE, "0.064", "0.33 GiB", "two RTX PRO 6000 Blackwell"),
    ("SIGMA", "base", "0.989 GiB", "about 1,130", "1.61", "16.8 GiB", "two RTX PRO 6000 Blackwell"),
    ("SIGMA", "large", "2.64 GiB", NONE, "4.03", "45.4 GiB", "two RTX PRO 6000 Blackwell"),
    ("FuseFSS", "tiny", "0.017 GiB", NONE, "0.043", "0.25 GiB", "two RTX PRO 6000 Blackwell"),
    ("FuseFSS", "base", "0.830 GiB", "about 1,115", "1.15", "12.7 GiB", "two RTX PRO 6000 Blackwell"),
    ("FuseFSS", "large", "2.21 GiB", NONE, "3.00", "34.5 GiB", "two RTX PRO 6000 Blackwell"),
]
SOURCES = (
    "SHAFT: NDSS 2025, measured by github.com/Jwrede/snni-memory-reduction, whole process.",
    "SIGMA (PoPETs 2024) and FuseFSS (ICML 2026, arXiv 2606.09551): measured by FuseFSS's authors.",
    "The rounds of SIGMA and FuseFSS are worked out from the latencies that they state.",
)


def section(results: dict[str, Any]) -> str:
    """The section of docs/benchmark.md, as Markdown."""
    parts = [
        _claims(
            f"Measured on {results['machine']}, all roles on it.",
            "Entries are `masked` / `crypten` (how many times less); a dash was not measured.",
            "Both protocols had the same weights and inputs.",
            "`crypten` deals its own triples here, within its seconds.",
            "The dealer of `masked` works before the input comes: its bytes and seconds are apart.",
            "Seconds are medians of three runs after a warm-up.",
            "A star marks the seconds of a single run, where it took over 30 s.",
            "Seconds depend on what else the machine does.",
            "Those of `crypten` depend on the processor's int64 products, many times slower without AVX-512.",
            "Bytes and rounds never change.",
        ),
        _table(
            ["model", "texts × tokens", "MB between the servers", "rounds", "seconds with the input", "GiB, all roles"]
            + ["`masked`: MB from the dealer", "s before the input", "s of the dealer"],
            [_whole(name, *pair) for name, pair in _pairs(results).items()],
        ),
        f"![Bytes and seconds against length]({PLOT})",
    ]
    if SHOWN in _pairs(results):
        parts += [f"By kind of gate, {_words(SHOWN)}:", _by_gate(*_pairs(results)[SHOWN])]
    delayed = _delayed(results)
    if delayed:
        parts += [
            "With a delay between the servers, one way (`--delay-ms`):",
            _claims(
                "Measured seconds, and an estimate from the run without it: computation + trips × delay.",
                "`masked` takes one trip a round, the all-reduce of `crypten` four.",
                "LAN (0.5 ms, 8 Gbit/s) and WAN (20 ms, 400 Mbit/s) are estimates.",
            ),
            _table(
                ["model", "texts × tokens", "delay", "measured s", "estimated s", "LAN, estimated s"]
                + ["WAN, estimated s"],
                delayed,
            ),
        ]
    parts += [
        "For orientation, **published, not run here**: one text of 128 tokens, on other hardware, with other number "
        "formats and threat models.",
        _table(
            ["system", "model", "between the servers", "rounds", "seconds", "from the dealer", "hardware"],
            [list(row) for row in PUBLISHED],
        ),
        _claims(*SOURCES),
    ]
    return "\n\n".join(parts)


def gates(results: dict[str, Any]) -> str:
    """The split by gate of every cell that both protocols have, as Markdown."""
    return "\n\n".join(
        f"{_words(name)}\n\n{_by_gate(*pair)}" for name, pair in _pairs(results).items() if None not in pair
    )


def write_section(path: Path, text: str) -> None:
    """Put `text` between the two marks of a file, in the place of what was there.

    Raises:
        `ValueError`: The file has not each mark once.
    """
    content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise ValueError(f"{path} should have `{BEGIN}` and, below it, `{END}`, each once.")
    before, _, rest = content.partition(BEGIN)
    part = path.with_name(f".{path.name}.part")
    part.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    os.chmod(part, path.stat().st_mode & 0o777)
    part.rename(path)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bytes and seconds of one text against its length, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), dpi=90, layout="constrained")
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in _plain(results).values():
        if cell["batch_size"] == 1 and cell["architecture"] != "bert-large":
            series.setdefault((cell["architecture"], cell["protocol"]), []).append(cell)
    what: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("MB between the servers", lambda cell: cell["online_bytes"] / 1e6),
        ("seconds with the input", lambda cell: cell["online_seconds"]),
    ]
    for panel, (title, value) in zip(panels, what, strict=True):
        for (architecture, protocol), cells in sorted(series.items()):
            cells.sort(key=lambda cell: cell["seq_length"])
            panel.loglog(
                [cell["seq_length"] for cell in cells],
                [value(cell) for cell in cells],
                "o-" if protocol == "masked" else "s--",
                color="tab:blue" if architecture == "bert-tiny" else "tab:red",
                label=f"{architecture}, {protocol}",
            )
        lengths = sorted({cell["seq_length"] for cells in series.values() for cell in cells})
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.minorticks_off()
        panel.set_xlabel("tokens")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    if series:
        panels[0].legend(fontsize=8)
    part = path.with_suffix(".part")
    figure.savefig(part, format="png", metadata={"Software": None})
    part.rename(path)
    pyplot.close(figure)


def _plain(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells without a delay."""
    return {name: cell for name, cell in results["cells"].items() if cell["delay_ms"] is None}


def _pairs(results: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What each protocol took, by model and size; None where it was not measured."""
    cells = _plain(results)
    names = sorted({name.rpartition("/")[0] for name in cells}, key=_order)
    return {name: (cells.get(f"{name}/masked"), cells.get(f"{name}/crypten")) for name in names}


def _order(name: str) -> tuple[int, int, int]:
    architecture, _, size = name.partition("/")
    batch_size, length = map(int, size.split("x"))
    return ("bert-tiny", "bert-base", "bert-large").index(architecture), batch_size, length


def _words(name: str) -> str:
    architecture, _, size = name.partition("/")
    return f"{architecture}, {size.replace('x', ' × ')} tokens"


def _whole(name: str, masked: Any, crypten: Any) -> list[str]:
    architecture, _, size = name.partition("/")
    return [
        architecture,
        size.replace("x", " × "),
        _against(masked, crypten, lambda cell: cell["online_bytes"] / 1e6),
        _against(masked, crypten, lambda cell: cell["rounds"]),
        _online(masked, crypten),
        _against(masked, crypten, lambda cell: sum(cell["peak_rss_bytes"].values()) / 2**30),
        *(
            NONE if masked is None else _number(value)
            for value in (
                masked and masked["dealer_bytes"] / 1e6,
                masked and masked["preprocess_seconds"],
                masked and masked["dealer_seconds"],
            )
        ),
    ]


def _by_gate(masked: Any, crypten: Any) -> str:
    rows = []
    for title, names in {**GROUPS, "the rest": None}.items():
        totals = [_total(cell, names) for cell in (masked, crypten)]
        rows.append(
            [title]
            + [
                _against(*totals, lambda total, field=field, scale=scale: total[field] / scale)
                for field, scale in (("online_bytes", 1e6), ("rounds", 1), ("seconds", 1))
            ]
            + [NONE if masked is None else _number(totals[0]["dealer_bytes"] / 1e6)]
        )
    return _table(["", "MB between the servers", "rounds", "seconds", "`masked`: MB from the dealer"], rows)


def _total(cell: Any, names: Iterable[str] | None) -> dict[str, float] | None:
    """The sums over the gates of these names; of all other gates where None."""
    if cell is None:
        return None
    known = {name for group in GROUPS.values() for name in group}
    chosen = [gate for gate in cell["by_gate"] if (gate["gate"] in names if names else gate["gate"] not in known)]
    return {
        field: sum(gate[field] for gate in chosen) for field in ("online_bytes", "rounds", "seconds", "dealer_bytes")
    }


def _delayed(results: dict[str, Any]) -> list[list[str]]:
    cells = {name: cell for name, cell in results["cells"].items() if cell["delay_ms"] is not None}
    pairs: dict[tuple[str, float], dict[str, Any]] = {}
    for name, cell in cells.items():
        size = name.rpartition("/")[0].rpartition("/")[0]
        pairs.setdefault((size, cell["delay_ms"]), {})[cell["protocol"]] = cell
    rows = []
    for (name, delay), pair in pairs.items():
        both = (pair.get("masked"), pair.get("crypten"))
        architecture, _, size = name.partition("/")
        estimates = [
            _against(*both, lambda cell, network=network: cell["estimated_seconds"][network])
            for network in ("delay", "lan", "wan")
        ]
        rows.append([architecture, size.replace("x", " × "), f"{delay:g} ms", _online(*both), *estimates])
    return rows


def _against(masked: Any, crypten: Any, value: Callable[[Any], float]) -> str:
    """`masked / crypten (ratio)`."""
    first, second = (None if cell is None else value(cell) for cell in (masked, crypten))
    text = f"{_number(first)} / {_number(second)}"
    return f"{text} ({_number(second / first)}×)" if first and second else text


def _online(masked: Any, crypten: Any) -> str:
    """The seconds of both, each with a star where it is one run's."""
    text = _against(masked, crypten, lambda cell: cell["online_seconds"])
    first, slash, second = text.partition(" / ")
    if masked and masked["runs"] == 1:
        first += "*"
    if crypten and crypten["runs"] == 1:
        number, space, ratio = second.partition(" ")
        second = f"{number}*{space}{ratio}"
    return first + slash + second


def _number(value: float | None) -> str:
    """Three digits, or all of a larger number."""
    if value is None:
        return NONE
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _claims(*claims: str) -> str:
    """One claim a line."""
    return "\n".join(f"- {claim}" for claim in claims)


def _table(columns: list[str], rows: Iterable[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
