"""Draw figures of the results, from the CSV files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.plots import panels_of

CsvRow = Mapping[str, str]
COLORS: Final = {"bare": "0.55", "SE": "C2", "CBAM": "C1", "SIA": "C0", "Norm": "0.55", "CDC": "C1", "Depthwise": "C0"}
AVERAGE: Final = "all five"


def draw(results: Path, images: Path) -> list[Path]:
    """Draw every figure whose CSV exists; return the paths."""
    paths = []
    for name, (file, function) in FIGURES.items():
        if (results / f"{file}.csv").exists():
            path = images / f"reproduction_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            function(harness.read(results / f"{file}.csv")).savefig(path, dpi=110)
            paths.append(path)
    return paths


def differences(rows: Sequence[CsvRow]) -> Figure:
    """Draw the difference in AUC of every variant from the bare network, with its interval."""
    shown = [row for row in rows if row["kinds"] == "all" and row.get("AUC - bare")][::-1]
    figure, (ax,) = panels_of(1, width=6.4, height=0.8 + 0.28 * len(shown))
    _points(ax, [row["network"] for row in shown], shown, "AUC - bare")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("AUC − bare, and its 95 % interval", fontsize=9)
    return figure


def self_information(rows: Sequence[CsvRow]) -> Figure:
    """Draw accuracy over average self-information: a panel per manipulation, a point per trained network."""
    trained = [row for row in rows if (row["state"], row["behind"]) == ("trained", "layer")]
    kinds = list(dict.fromkeys(row["kinds"] for row in trained))
    figure, axes = panels_of(len(kinds), most=2)
    for ax, kind in zip(axes, kinds, strict=True):
        for name in dict.fromkeys(row["network"] for row in trained):
            selected = [row for row in trained if (row["kinds"], row["network"]) == (kind, name)]
            ax.scatter([float(row["AVG"]) for row in selected], [float(row["ACC"]) for row in selected],
                       color=COLORS[name], label=name)  # fmt: skip
        ax.set_title(kind, fontsize=9)
        ax.set_xlabel("average self-information, nats", fontsize=9)
        ax.set_ylabel("ACC", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def robustness(rows: Sequence[CsvRow]) -> Figure:
    """Draw AUC over the severity of each corruption, with a curve per network."""
    corruptions = list(dict.fromkeys(row["corruption"] for row in rows))
    figure, axes = panels_of(len(corruptions), most=2)
    for ax, corruption in zip(axes, corruptions, strict=True):
        for name in dict.fromkeys(row["network"] for row in rows):
            selected = [row for row in rows if (row["corruption"], row["network"]) == (corruption, name)
                    and row["severity"] != AVERAGE]  # fmt: skip
            places = [int(row["severity"]) for row in selected]
            ax.plot(places, [float(row["AUC"]) for row in selected], marker="o", color=COLORS[name], label=name)
            if name in ("bare", "SIA"):
                low, high = ([float(row[f"AUC {end}"]) for row in selected] for end in ("low", "high"))
                ax.fill_between(places, low, high, color=COLORS[name], alpha=0.15, linewidth=0)
        strengths = [row["strength"] for row in selected]
        ax.set_xticks(places, [strength or "clean" for strength in strengths], fontsize=8)
        ax.set_title(corruption, fontsize=9)
        ax.set_ylabel("AUC", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def bars(rows: Sequence[CsvRow]) -> Figure:
    """Draw the paper's Figure 1: bare and SIA side by side under every corruption, as means over five severities."""
    selected = [row for row in rows if row["severity"] == AVERAGE and row["network"] in ("bare", "SIA")]
    corruptions = list(dict.fromkeys(row["corruption"] for row in selected))
    figure, (ax,) = panels_of(1, width=6.4)
    for side, name in ((-0.2, "bare"), (0.2, "SIA")):
        of = {row["corruption"]: row for row in selected if row["network"] == name}
        places = [index + side for index in range(len(corruptions))]
        drawn = ax.bar(places, [float(of[each]["AUC"]) for each in corruptions], 0.4, color=COLORS[name], label=name,
                       yerr=_errors([of[each] for each in corruptions], "AUC"), capsize=3)  # fmt: skip
        ax.bar_label(drawn, fmt="%.3f", fontsize=8, label_type="center")
    ax.set_xticks(range(len(corruptions)), corruptions, fontsize=9)
    ax.set_ylim(0, 1)
    ax.set_ylabel("mean AUC of five severities", fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    return figure


def localisation(rows: Sequence[CsvRow]) -> Figure:
    """Draw the pixel AUC of every map on the fakes, and on the real pictures with the same masks."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    panels = [[row for row in rows if (row["size"], row["kinds"]) == (size, "all")][::-1] for size in sizes]
    figure, axes = panels_of(len(sizes), width=5.6, most=2, height=0.9 + 0.3 * max(map(len, panels)))
    for ax, size, selected in zip(axes, sizes, panels, strict=True):
        names = [row["map"] for row in selected]
        _points(ax, names, selected, "real", color="0.55", label="real picture, same mask", shift=-0.15)
        _points(ax, names, selected, "AUC", color="C0", label="fake", shift=0.15)
        ax.axvline(0.5, color="black", linewidth=0.8)
        ax.set_xlabel(f"pixel AUC at {size} pixels; chance is 0.5", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


FIGURES: Final = {
    "table1": ("table1", differences),
    "table4": ("table4_runs", self_information),
    "fig1_curves": ("fig1", robustness),
    "fig1_bars": ("fig1", bars),
    "localise": ("localise", localisation),
}


def _points(
    ax: Axes, names: Sequence[str], rows: Sequence[CsvRow], column: str, color: str = "C0", label: str | None = None,
    shift: float = 0.0,
) -> None:  # fmt: skip
    """Draw means with their intervals, one line below the other."""
    places = [index + shift for index in range(len(names))]
    means = [float(row[column]) for row in rows]
    ax.errorbar(means, places, xerr=_errors(rows, column), fmt="o", color=color, markersize=4, capsize=2, label=label)
    ax.set_yticks(range(len(names)), names, fontsize=8)


def _errors(rows: Sequence[CsvRow], column: str) -> tuple[list[float], list[float]]:
    """Return the distances from the mean to the ends of the interval, which may exclude the mean if seeds vary much."""
    low = [max(0.0, float(row[column]) - float(row[f"{column} low"])) for row in rows]
    high = [max(0.0, float(row[f"{column} high"]) - float(row[column])) for row in rows]
    return low, high
