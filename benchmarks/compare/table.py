"""Summarise the runs of a comparison: the paired table, the plot, and the sentence that the figures support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from benchmarks import harness
from benchmarks.compare.runs import Store
from benchmarks.compare.variants import VARIANTS
from benchmarks.plots import panels_of
from benchmarks.reproduction.scores import Interval, difference, interval, weighted_accuracy, weighted_auc

FEW: Final = 10  # groups: with fewer, bootstrap intervals are too narrow
LEARNED, SOLVED = 0.6, 0.99  # AUC of bare: outside these bounds, differences are hardly visible
TABLE: Final = "compare.csv"
PICTURE: Final = "compare.png"
# A difference d is detected with a power of 80 % if d is (1.960 + 0.842) standard errors; the interval is 1.960 of
# them to either side.
POWER: Final = (1.960 + 0.842) / 1.960


class Line(NamedTuple):
    """A variant's figures; the differences to bare are None for bare itself."""

    variant: str
    parameters: int
    accuracy: Interval
    auc: Interval
    more_accuracy: Interval | None
    more_auc: Interval | None

    def cells(self) -> list[str]:
        """Return the figures as a row of the printed table, in percent."""
        figures = (as_percent(each) for each in (self.accuracy, self.auc))
        more = ("" if each is None else as_percent(each, "+") for each in (self.more_accuracy, self.more_auc))
        return [self.variant, f"{self.parameters:,}", *figures, *more]

    def as_row(self) -> dict[str, Any]:
        """Return the figures as a row of a CSV file."""
        row: dict[str, Any] = {"variant": self.variant, "about": VARIANTS[self.variant].about}
        row |= {"parameters": self.parameters, **self.accuracy.as_row("ACC"), **self.auc.as_row("AUC")}
        for name, more in (("ACC - bare", self.more_accuracy), ("AUC - bare", self.more_auc)):
            row |= {} if more is None else more.as_row(name)
        return row


def lines(store: Store, variants: Sequence[str], seeds: Sequence[int]) -> list[Line]:
    """Return the figures of every variant; differences are paired per seed, on the same pictures."""
    parameters = {row["variant"]: int(row["parameters"]) for row in store.rows}
    predicted = {variant: [store.load_predictions(variant, seed) for seed in seeds] for variant in variants}
    made = []
    for variant in variants:
        found, bare = predicted[variant], predicted["bare"]
        scores = [interval(found, score) for score in (weighted_accuracy, weighted_auc)]
        more = [
            None if variant == "bare" else difference(found, bare, score) for score in (weighted_accuracy, weighted_auc)
        ]
        made.append(Line(variant, parameters[variant], scores[0], scores[1], more[0], more[1]))
    return made


def as_percent(found: Interval, sign: str = "") -> str:
    """Format an interval in percent, such as ``74.9 [68.2, 80.9]``."""
    mean, low, high = (100 * each for each in found)
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def detectable(more: Interval) -> float:
    """Return the smallest true difference whose 95 % interval would exclude zero four times in five."""
    return POWER * (more.high - more.low) / 2


def sentence(line: Line, seeds: int) -> str:
    """Return the sentence that the figures support about a variant compared with bare."""
    assert line.more_auc is not None
    mean, low, high = (100 * each for each in line.more_auc)
    figures = f"{line.variant} - bare: {mean:+.1f} points of AUC, 95% interval [{low:+.1f}, {high:+.1f}]"
    least = f"this design could detect one of {100 * detectable(line.more_auc):.1f} points with 80 % power"
    if low == high:
        return f"{figures}: every resample gives the same value, so nothing was detected; use more or harder pictures."
    if seeds == 1:
        least += ", but with one seed it cannot separate the variant from the luck of one training run"
    if low > 0:
        return f"{figures}: higher here, by more than chance over these pictures and seeds explains; {least}."
    if high < 0:
        return f"{figures}: lower here, by more than chance over these pictures and seeds explains; {least}."
    return f"{figures}: no difference was detected; {least}."


def headline(variants: Sequence[str]) -> str | None:
    """Return the variant that the last sentence is about: the first form of SIA, otherwise the first besides bare."""
    return next(
        iter(sorted((each for each in variants if each != "bare"), key=lambda each: not each.startswith("sia"))), None
    )


def warnings(store: Store, bare: Line, seeds: Sequence[int]) -> list[str]:
    """Return warnings about figures that mean less than they seem to."""
    groups = {person for seed in seeds for person in store.load_predictions("bare", seed).people}
    auc, made = bare.auc.mean, []
    if len(groups) < FEW:
        made.append(f"only {len(groups)} groups of test pictures: intervals from so few are too narrow")
    if auc < LEARNED:
        made.append(
            f"bare has learned almost nothing (AUC {100 * auc:.1f}), and networks that guess differ little: train "
            "longer, start from pretrained weights or use more pictures"
        )
    if auc > SOLVED:
        made.append(
            f"bare classifies nearly all correctly (AUC {100 * auc:.1f}), which leaves nothing to gain: use harder "
            "pictures"
        )
    return made


def show(made: Sequence[Line]) -> str:
    """Return the table as text."""
    rows = [["variant", "parameters", "ACC", "AUC", "ACC - bare", "AUC - bare"], *(line.cells() for line in made)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write(store: Store, made: Sequence[Line]) -> list[Path]:
    """Write the table as CSV and the curves as a plot into the store's folder; return the paths."""
    harness.write(store.folder / TABLE, [line.as_row() for line in made])
    figure, (left, right) = panels_of(2, width=4.8)
    _curves(left, store.curves, [line.variant for line in made])
    _differences(right, made)
    figure.savefig(store.folder / PICTURE, dpi=110)
    return [store.folder / TABLE, store.folder / PICTURE]


def _curves(ax: Axes, rows: Sequence[Mapping[str, str]], variants: Sequence[str]) -> None:
    """Draw the validation AUC by epoch: a thin line for every seed, a thick one for their mean."""
    for index, variant in enumerate(variants):
        seeds: dict[str, list[float]] = {}
        for row in rows:
            if row["variant"] == variant:
                seeds.setdefault(row["seed"], []).append(100 * float(row["validation AUC"]))
        epochs = range(1, 1 + min(map(len, seeds.values())))
        for curve in seeds.values():
            ax.plot(epochs, curve[: len(epochs)], color=f"C{index}", linewidth=0.6, alpha=0.4)
        mean = np.mean([curve[: len(epochs)] for curve in seeds.values()], axis=0)
        ax.plot(epochs, mean, ".-", color=f"C{index}", linewidth=1.8, label=variant)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("AUC on the validation part, %", fontsize=9)
    ax.legend(fontsize=8, frameon=False)


def _differences(ax: Axes, made: Sequence[Line]) -> None:
    """Draw the difference in test AUC from bare, with its interval."""
    shown = [(line.variant, line.more_auc) for line in made if line.more_auc is not None][::-1]
    for place, (_, more) in enumerate(shown):
        ax.plot([100 * more.low, 100 * more.high], [place, place], color="black", linewidth=1)
        ax.plot([100 * more.mean], [place], "o", color="black", markersize=4)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.set_yticks(range(len(shown)), [variant for variant, _ in shown], fontsize=8)
    ax.set_xlabel("difference in test AUC from bare, points, 95 % interval", fontsize=9)
