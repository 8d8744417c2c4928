"""What the rows of :mod:`benchmarks.reproduction.crossval` say: tables with intervals, power, and the paper's claims."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.reproduction.data.faces import FOLDS, REAL
from benchmarks.reproduction.power import POWER, pilot, smallest_difference
from benchmarks.reproduction.scores import (
    Interval,
    Predictions,
    Score,
    cross_validated,
    weighted_accuracy,
    weighted_auc,
)

SCORE_KEYS: Final = ("fold", "person", "kind")
SCORES: Final[dict[str, Score]] = {"ACC": weighted_accuracy, "AUC": weighted_auc}
Row = Mapping[str, str]


def label(network: str, repeat: int = 0) -> str:
    """The column of a network's scores."""
    return network.partition(" ")[2] + (f" again {repeat}" if repeat else "")


def score_rows(column: str, found: Predictions, **more: Any) -> list[dict[str, Any]]:
    """A row for each picture: whose it is, of what kind, and its logit.

    Args:
        column: what the logits are called.
        found: of a run.
        **more: columns that all rows share.
    """
    return [
        {**more, "person": person, "kind": kind, column: f"{logit:.5g}"}
        for person, kind, logit in zip(found.people, found.kinds, found.logits.tolist(), strict=True)
    ]


def predictions(rows: Sequence[Row], column: str) -> dict[int, Predictions]:
    """What a network said, by fold; folds that it was not tested on, or not whole, are missing."""
    folds: dict[int, list[Row]] = {}
    for row in rows:
        folds.setdefault(int(row["fold"]), []).append(row)
    return {
        fold: Predictions(
            np.asarray([int(row["kind"] != REAL) for row in held]),
            np.asarray([float(row[column]) for row in held], np.float32),
            tuple(row["person"] for row in held),
            tuple(row["kind"] for row in held),
        )
        for fold, held in sorted(folds.items())
        if all(row.get(column) for row in held)
    }


class Compared(NamedTuple):
    """A score of a network on the folds that it and another one were tested on.

    Attributes:
        score: its own, with interval.
        difference: it less the other's.
        folds: how many.
    """

    score: Interval
    difference: Interval
    folds: int


def compared(
    found: Mapping[int, Predictions], others: Mapping[int, Predictions], score: Score,
    part: Callable[[Predictions], Predictions] = lambda each: each,
) -> Compared | None:  # fmt: skip
    """Compare two networks on the folds that both were tested on; None where there are not two of them.

    Args:
        found: of the one.
        others: of the other.
        score: of :data:`SCORES`.
        part: the pictures that count, of all those of a fold.
    """
    folds = [fold for fold in found if fold in others]
    if len(folds) < 2:
        return None
    ours, theirs = ([part(each[fold]) for fold in folds] for each in (found, others))
    return Compared(cross_validated(ours, None, score), cross_validated(ours, theirs, score), len(folds))


def write_power(results: Path) -> list[dict[str, Any]]:
    """Write power.csv, and print it: the smallest difference that the design tells, from the pilot's folds."""
    rows = harness.read(results / "study_scores.csv")
    first, again = (predictions(rows, name) for name in ("bare", label("lite bare", 1)))
    folds = [fold for fold in first if fold in again]
    made = []
    for name, score in SCORES.items():
        found = pilot([first[fold] for fold in folds], [again[fold] for fold in folds], score)
        smallest = smallest_difference(found.deviation, FOLDS)
        made.append(
            {
                "score": name,
                "pilot folds": " ".join(map(str, folds)),
                "deviation of runs": round(found.runs, 5),
                "deviation of people": round(found.people, 5),
                "folds": FOLDS,
                "power": POWER,
                "smallest difference": round(smallest, 5),
            }
        )
        print(
            f"{name}: with {FOLDS} folds a true difference of {100 * smallest:.1f} points is told {100 * POWER:.0f} % "
            f"of the time (a fold's difference deviates by {100 * found.deviation:.1f} points where there is none, in "
            f"a pilot of {len(folds)} folds)"
        )
    harness.write(results / "power.csv", made)
    return made


def of_people(people: Collection[str]) -> Callable[[Predictions], Predictions]:
    """The part of the pictures that are of some people."""
    return lambda found: found.among(people)
