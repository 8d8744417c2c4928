"""Format the rows of ``benchmarks.gpu_report`` as Markdown tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.gpu_rates import DEVICES, Device

Record = Mapping[str, str]
PIPES: Final = ("special", "float32", "alu", "issue", "load/store", "memory")
START, END = "<!-- gpu -->\n", "<!-- end of gpu -->"


def tables(rows: Sequence[Record], devices: Iterable[Device] = DEVICES, gates: bool = True) -> str:
    """Format the resources for every target, then the counts and bounds of the kernels on each device.

    Args:
        rows: rows of the CSV file.
        devices: devices to show, if there are rows for them.
        gates: whether to show the kernels without a window as well.
    """
    first = rows[0]
    parts = [
        f"Map {first['map']} (N, C, H, W), S = {first['S']}; {first['versions']}; {first['commit']}, {first['date']}.",
        _targets(rows),
    ]
    for device in devices:
        shown = [row for row in rows if row["target"] == device.target and _shown(row) and (gates or row["K"])]
        if shown:
            parts += [f"### {device.name} ({device.target})", _figures(shown)]
    return "\n\n".join(parts) + "\n"


def filled(page: str, rows: Sequence[Record], devices: Iterable[Device]) -> str:
    """Insert the tables of the kernels with a window between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page has no lines {START.strip()} and {END}; put them where the tables belong")
    return f"{before}{start}\n{tables(rows, devices, gates=False)}\n{end}{after}"


def bound(row: Record) -> tuple[str, float]:
    """Return the pipe that takes longest, and its time in picoseconds per output."""
    times = {pipe: float(row[f"{pipe} ps"]) for pipe in PIPES if row.get(f"{pipe} ps")}
    pipe = max(times, key=lambda name: times[name])
    return pipe, times[pipe]


def plot(rows: Iterable[Record], path: Path) -> None:
    """Plot the bound that each pipe sets, with a panel for each device and a group for each float32 kernel in NCHW."""
    from benchmarks.plots import panels_of  # and Matplotlib

    chosen = [row for row in rows if _shown(row) and row["layout"] == "NCHW" and row["K"]]
    devices = [device for device in DEVICES if any(row["target"] == device.target for row in chosen)]
    figure, panels = panels_of(len(devices), width=9, height=2.6, most=1)
    for ax, device in zip(panels, devices, strict=True):
        found = [row for row in chosen if row["target"] == device.target]
        width = 0.85 / len(PIPES)
        for place, pipe in enumerate(PIPES):
            lefts = [group + (place - (len(PIPES) - 1) / 2) * width for group in range(len(found))]
            ax.bar(lefts, [float(row.get(f"{pipe} ps") or 0) for row in found], width, label=pipe)
        ax.set_xticks(range(len(found)), [f"{row['kernel']}\nK = {row['K']}" for row in found], fontsize=8)
        ax.set_ylabel("ps by output", fontsize=8)
        ax.set_title(f"{device.name} ({device.target})", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False, ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _shown(row: Record) -> bool:
    """Tell whether to show a row in the tables; the CSV file has all rows."""
    return row["dtype"] == "float32" and row["K"] != "5" and row["resolved"] == "True" and "gated" not in row["kernel"]


def _targets(rows: Sequence[Record]) -> str:
    lines = []
    for target in dict.fromkeys(row["target"] for row in rows):
        built = [row for row in rows if row["target"] == target]
        lines.append([
            target, str(len(built)), str(max(int(row["registers"]) for row in built)),
            str(sum(int(row["spills"]) for row in built)), str(max(int(row["shared bytes"]) for row in built)),
            str(sum(row["resolved"] == "False" for row in built)),
        ])  # fmt: skip
    return _table(("target", "kernels", "most registers", "spills", "most shared bytes", "not resolved"), lines)


def _figures(rows: Sequence[Record]) -> str:
    """Format the counts per output and the picoseconds per output on every pipe."""
    pipes = [pipe for pipe in PIPES if any(row.get(f"{pipe} ps") for row in rows)]
    lines = []
    for row in rows:
        pipe, time = bound(row)
        flops = float(row["float32"]) + 2 * float(row["packed float32"])
        moved = float(row["loaded bytes"]) + float(row["stored bytes"])
        lines.append([
            row["kernel"], row["K"], row["layout"], row["registers"], _short(row["exponential"]), _short(flops),
            _short(row["load"]), _short(row["store"]), _short(moved), _short(row["instructions"]),
            *(f"{float(row[f'{name} ps']):.2f}" for name in pipes), pipe, f"{float(row['memory ps']) / time:.0%}",
        ])  # fmt: skip
    heads = ("kernel", "K", "layout", "registers", "exponentials", "float32", "loads", "stores", "bytes",
             "instructions", *(f"{name} ps" for name in pipes), "bound by", "of roofline")  # fmt: skip
    return _table(heads, lines)


def _short(value: str | float) -> str:
    return f"{float(value):.3g}" if float(value) < 1000 else f"{float(value):.0f}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *lines))
