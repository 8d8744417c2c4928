"""Compute what a design can detect: the smallest true difference that it finds with a given power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from benchmarks.reproduction.scores import Predictions, Score, drawn

LEVEL = 0.05  # level of the two-sided test, matching the 95 % intervals
POWER = 0.8


class Pilot(NamedTuple):
    """The standard deviation of a fold's paired difference when there is no true difference.

    Attributes:
        runs: deviation, around 0, between two networks that differ only in their random numbers.
        people: deviation of one pair of runs when its people are resampled.
    """

    runs: float
    people: float

    @property
    def deviation(self) -> float:
        """The larger of the two, since few folds can agree by chance and resampling people ignores training."""
        return max(self)


def pilot(runs: Sequence[Predictions], again: Sequence[Predictions], score: Score) -> Pilot:
    """Estimate the deviation of a fold's paired difference from runs that were repeated with other random numbers.

    Args:
        runs: one run per fold.
        again: repeated runs on the same folds.
        score: function of :mod:`benchmarks.reproduction.scores`.

    Raises:
        ValueError: there is no fold.
    """
    if not runs:
        raise ValueError("a pilot needs at least one fold with both runs; run the pilot first")
    columns = [drawn(one, score) - drawn(other, score) for one, other in zip(runs, again, strict=True)]
    between = math.sqrt(float(np.mean([column[0] ** 2 for column in columns])))
    within = math.sqrt(float(np.mean([np.nanvar(column[1:], ddof=1) for column in columns])))
    return Pilot(between, within)


def smallest_difference(deviation: float, folds: int, power: float = POWER, level: float = LEVEL) -> float:
    """Return the true difference that a paired t-test over folds detects with the given power.

    Args:
        deviation: standard deviation of a fold's difference.
        folds: number of folds, two or more.
        power: probability of detection.
        level: level of the two-sided test.

    Raises:
        ValueError: there are fewer than two folds.

    Example:
        >>> round(smallest_difference(1.0, 8), 2)
        1.16
    """
    if folds < 2:
        raise ValueError(f"folds must be 2 or more, got {folds}")
    freedom = folds - 1
    # The noncentral t distribution from its definition, a normal over a chi: scipy's own fails far from 0.
    chances = (np.arange(4000) + 0.5) / 4000
    needed = stats.t.ppf(1 - level / 2, freedom) * np.sqrt(stats.chi2.ppf(chances, freedom) / freedom)

    def shortfall(shift: float) -> float:
        return float(np.mean(stats.norm.cdf(shift - needed) + stats.norm.cdf(-shift - needed))) - power

    return float(optimize.brentq(shortfall, 0.0, 1000.0)) * deviation / math.sqrt(folds)
