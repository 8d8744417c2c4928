"""Summarise the rows of :mod:`benchmarks.reproduction.crossval`: scores, differences, intervals and power."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from benchmarks.reproduction.data.faces import FOLDS, REAL
from benchmarks.reproduction.power import POWER, pilot, smallest_difference
from benchmarks.reproduction.scores import (
    Interval,
    Predictions,
    Score,
    cross_validated,
    drawn,
    weighted_accuracy,
    weighted_auc,
)

SCORE_KEYS: Final = ("fold", "person", "kind")
SCORES: Final[dict[str, Score]] = {"ACC": weighted_accuracy, "AUC": weighted_auc}
Row = Mapping[str, str]
Part = Callable[[Predictions], Predictions]


def label(network: str, repeat: int = 0) -> str:
    """Return the column of a network's scores: its name, and its family only if that is of a recipe."""
    family, _, name = network.partition(" ")
    return (network if family == "recipe" else name) + (f" again {repeat}" if repeat else "")


def score_rows(column: str, scored: Predictions, **more: Any) -> list[dict[str, Any]]:
    """Return a row for each picture, with its person, kind and logit.

    Args:
        column: name of the column of logits.
        scored: predictions of a run.
        **more: columns that all rows share.
    """
    return [
        {**more, "person": person, "kind": kind, column: f"{logit:.5g}"}
        for person, kind, logit in zip(scored.people, scored.kinds, scored.logits.tolist(), strict=True)
    ]


def predictions(rows: Sequence[Row], column: str) -> dict[int, Predictions]:
    """Return a network's predictions by fold; folds without complete predictions are missing."""
    folds: dict[int, list[Row]] = {}
    for row in rows:
        folds.setdefault(int(row["fold"]), []).append(row)
    return {
        fold: Predictions(
            np.asarray([int(row["kind"] != REAL) for row in members]),
            np.asarray([float(row[column]) for row in members], np.float32),
            tuple(row["person"] for row in members),
            tuple(row["kind"] for row in members),
        )
        for fold, members in sorted(folds.items())
        if all(row.get(column) for row in members)
    }


@dataclass
class Evidence:
    """The scores of all networks by fold, and selections of the pictures.

    Attributes:
        rows: rows of a table of scores.
        parts: selections of pictures, by name; ``"all"`` is one of them.
        fewest: fewest folds for a score or difference. With one fold, intervals reflect only the sampling of people.
    """

    rows: Sequence[Row]
    parts: Mapping[str, Part]
    fewest: int = 2
    _scored: dict[str, dict[int, Predictions]] = field(default_factory=dict)
    _columns: dict[tuple[str, int, str, str], NDArray[np.float64]] = field(default_factory=dict)

    def folds(self, *networks: str, part: str = "all") -> list[int]:
        """Return the folds on which all named networks were tested and that have real and fake pictures of a part."""
        for name in networks:
            if name not in self._scored:
                self._scored[name] = predictions(self.rows, name)
        shared = [fold for fold in self._scored[networks[0]] if all(fold in self._scored[name] for name in networks)]
        return [fold for fold in shared if len(set(self.parts[part](self._scored[networks[0]][fold]).labels)) == 2]

    def score(self, network: str, score: str = "AUC", part: str = "all") -> Interval | None:
        """Return the mean of a network's score over folds; None for fewer than :attr:`fewest` folds."""
        folds = self.folds(network, part=part)
        if len(folds) < self.fewest:
            return None
        return cross_validated([self._column(network, fold, part, score) for fold in folds]).clipped(0, 1)

    def difference(self, network: str, other: str, score: str = "AUC", part: str = "all") -> Interval | None:
        """Return the difference in score of two networks over the folds of both; None for fewer than :attr:`fewest`.

        Raises:
            ValueError: the two were not tested on the same pictures.
        """
        folds = self.folds(network, other, part=part)
        if len(folds) < self.fewest:
            return None
        pairs = [[self._column(name, fold, part, score) for name in (network, other)] for fold in folds]
        return cross_validated([one - another for one, another in pairs])

    def _column(self, network: str, fold: int, part: str, score: str) -> NDArray[np.float64]:
        key = (network, fold, part, score)
        if key not in self._columns:
            self._columns[key] = drawn(self.parts[part](self._scored[network][fold]), SCORES[score])
        return self._columns[key]


def among(people: Collection[str]) -> Part:
    """Return a selection of the pictures of some people."""
    return lambda scored: scored.among(people)


def of_kind(kind: str) -> Part:
    """Return a selection of the real pictures and those of one manipulation."""
    return lambda scored: scored.of(kind)


def write_power(results: Path) -> list[dict[str, Any]]:
    """Write power.csv and print it: the smallest difference that the design detects, from the pilot's folds."""
    rows = harness.read(results / "study_scores.csv")
    first, again = (predictions(rows, name) for name in ("bare", label("lite bare", 1)))
    folds = [fold for fold in first if fold in again]
    table = []
    for name, score in SCORES.items():
        measured = pilot([first[fold] for fold in folds], [again[fold] for fold in folds], score)
        smallest = smallest_difference(measured.deviation, FOLDS)
        table.append(
            {
                "score": name,
                "pilot folds": " ".join(map(str, folds)),
                "deviation of runs": round(measured.runs, 5),
                "deviation of people": round(measured.people, 5),
                "folds": FOLDS,
                "power": POWER,
                "smallest difference": round(smallest, 5),
            }
        )
        print(power_sentence(table[-1]))
    harness.write(results / "power.csv", table)
    return table


def power_sentence(row: Mapping[str, Any]) -> str:
    """Format a row of power.csv as sentences."""
    deviation = max(float(row["deviation of runs"]), float(row["deviation of people"]))
    smallest = float(row["smallest difference"])
    return (
        f"{row['score']}: with {row['folds']} folds, a true difference of {100 * smallest:.1f} points is detected "
        f"with {100 * float(row['power']):.0f} % power. Without a true difference, the difference on one fold has a "
        f"standard deviation of {100 * deviation:.1f} points, estimated in a pilot on folds "
        f"{' and '.join(row['pilot folds'].split())}."
    )
