"""Plot the rows of the benchmarks, just measured or read from a CSV file."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Rows = Iterable[Mapping[str, Any]]


def speedups(rows: Rows, path: Path) -> None:
    """Plot the time of each provider in multiples of the kernels' time, with a panel for each map and pass."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        usual = row["dtype"] == "float32" and row["S"] and row["layout"] == "NCHW"
        if usual and isinstance(row.get("times"), int | float) and row["times"] != 1:
            panel = panels.setdefault(f"{row['map']}, {row['pass']}", {})
            panel.setdefault(row["provider"], {})[f"K = {row['K']}"] = row["times"]
    figure, axes = panels_of(len(panels))
    for ax, (title, bars) in zip(axes, panels.items(), strict=True):
        _grouped(ax, bars)
        ax.set_yscale("log")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_title(title, fontsize=9)
        ax.set_ylabel("times as long as the kernel", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    _save(figure, path)


def added(rows: Rows, path: Path) -> None:
    """Plot the percentage of time that each variant adds to a model, with a panel for each model."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if isinstance(row.get("added %"), int | float) and row["variant"] != "bare":
            panel = panels.setdefault(row["model"], {}).setdefault(f"{row['pass']}, batch {row['batch']}", {})
            panel[row["variant"]] = row["added %"]
    figure, axes = panels_of(len(panels))
    for ax, (title, bars) in zip(axes, panels.items(), strict=True):
        _grouped(ax, bars)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.tick_params(axis="x", rotation=15)
        ax.set_title(title, fontsize=9)
        ax.set_ylabel("added time, %", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    _save(figure, path)


def limits(rows: Rows, path: Path) -> None:
    """Plot the share of the machine's limit that the kernel reaches."""
    bars([{**row, "window": f"K = {row['K']}, S = {row['S']}"} for row in rows], path, "window", ("of limit %",))


def bars(rows: Rows, path: Path, group: str, values: Sequence[str]) -> None:
    """Plot columns of the rows by group, with a panel for each column; bars are medians over all other columns."""
    rows = list(rows)
    figure, axes = panels_of(len(values))
    for ax, value in zip(axes, values, strict=True):
        by_group: dict[str, list[float]] = {}
        for row in rows:
            if isinstance(row.get(value), int | float):
                by_group.setdefault(str(row[group]), []).append(row[value])
        drawn = ax.bar(list(by_group), [statistics.median(found) for found in by_group.values()])
        ax.bar_label(drawn, fmt="%.3g", fontsize=7)
        ax.tick_params(axis="x", rotation=40, labelsize=8)
        several = any(len(found) > 1 for found in by_group.values())
        ax.set_title(f"{value}, median over all cases" if several else value, fontsize=9)
    _save(figure, path)


def curves(rows: Rows, path: Path) -> None:
    """Plot time over size on logarithmic axes, with a panel for each axis and the fitted slope in the legend."""
    axes_of: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        axes_of.setdefault(row["axis"], {}).setdefault(row["provider"], []).append(row)
    figure, panels = panels_of(len(axes_of))
    for ax, (axis, providers) in zip(panels, axes_of.items(), strict=True):
        for provider, found in providers.items():
            slope = found[-1].get("slope")
            label = f"{provider}, slope {slope:.2f}" if slope else provider
            ax.plot([row["size"] for row in found], [row["ms"] for row in found], marker="o", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel("rows and columns" if axis == "pixels" else axis, fontsize=9)
        ax.set_ylabel("ms", fontsize=9)
        ax.legend(fontsize=8, frameon=False)
    _save(figure, path)


def panels_of(count: int, width: float = 4.6, height: float = 3.4, most: int = 3) -> tuple[Figure, list[Axes]]:
    """Create a figure of ``count`` panels, at most ``most`` side by side, each of a width and height in inches."""
    columns = min(most, max(1, count))
    rows = -(-max(1, count) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes[:count]


def _grouped(ax: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Draw bars side by side: a group for each key of the inner mappings, a colour for each key of the outer one."""
    groups = list(dict.fromkeys(key for heights in bars.values() for key in heights))
    width = 0.8 / max(1, len(bars))
    for position, (label, heights) in enumerate(bars.items()):
        places = [
            index + (position - (len(bars) - 1) / 2) * width for index, key in enumerate(groups) if key in heights
        ]
        drawn = ax.bar(places, [heights[key] for key in groups if key in heights], width, label=label)
        ax.bar_label(drawn, fmt="%.3g", fontsize=6)
    ax.set_xticks(range(len(groups)), groups, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# The function that plots the rows of each benchmark.
DRAWN: Final[dict[str, Callable[[Rows, Path], None]]] = {
    "op": speedups,
    "scaling": curves,
    "module": functools.partial(bars, group="layer", values=("forward ms", "training ms")),
    "model": added,
    "limit": limits,
}
