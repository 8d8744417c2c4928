"""What a design can tell, before it is run: the smallest true difference that it finds with a given power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from benchmarks.reproduction.scores import Predictions, Score, drawn

LEVEL = 0.05  # of the two-sided test, as the intervals are of 95 %
POWER = 0.8


class Pilot(NamedTuple):
    """How far paired differences of a fold lie apart when there is none.

    Attributes:
        runs: the deviation, around 0, of two networks that differ in their random numbers alone.
        people: the same from one pair of runs, when other people are drawn.
    """

    runs: float
    people: float

    @property
    def deviation(self) -> float:
        """The larger of the two: few folds may agree by chance, and people alone leave training out."""
        return max(self)


def pilot(runs: Sequence[Predictions], again: Sequence[Predictions], score: Score) -> Pilot:
    """Deviation of a fold's paired difference, from runs and their repetitions with other random numbers.

    Args:
        runs: one a fold.
        again: the same folds.
        score: of :mod:`benchmarks.reproduction.scores`.

    Raises:
        ValueError: there is no fold.
    """
    if not runs:
        raise ValueError("a pilot needs one fold or more with both runs; run the pilot first")
    columns = [drawn(one, score) - drawn(other, score) for one, other in zip(runs, again, strict=True)]
    between = math.sqrt(float(np.mean([column[0] ** 2 for column in columns])))
    within = math.sqrt(float(np.mean([np.nanvar(column[1:], ddof=1) for column in columns])))
    return Pilot(between, within)


def smallest_difference(deviation: float, folds: int, power: float = POWER, level: float = LEVEL) -> float:
    """The true difference that a paired t-test over folds finds with the given power.

    Args:
        deviation: of a fold's difference.
        folds: how many, two or more.
        power: how often it is found.
        level: of the two-sided test.

    Example:
        >>> round(smallest_difference(1.0, 8), 2)
        1.15
    """
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    freedom = folds - 1
    # The noncentral t distribution by its definition, a normal over a chi: scipy's own fails far from 0.
    chances = (np.arange(4000) + 0.5) / 4000
    needed = stats.t.ppf(1 - level / 2, freedom) * np.sqrt(stats.chi2.ppf(chances, freedom) / freedom)

    def lacking(shift: float) -> float:
        return float(np.mean(stats.norm.cdf(shift - needed) + stats.norm.cdf(-shift - needed))) - power

    return float(optimize.brentq(lacking, 0.0, 1000.0)) * deviation / math.sqrt(folds)
