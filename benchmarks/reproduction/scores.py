"""Accuracy and area under the ROC curve, with intervals for few people and few seeds.

Intervals are bootstrapped over two factors at once, the people of the test pictures and the seeds of the runs: each
draw resamples people and seeds with replacement, and a person in the test parts of several seeds is drawn for all of
them together, since a face that is hard for one is hard for the others too (the pigeonhole bootstrap of Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics, 2007). All pictures of a person are drawn together. Resampling a
handful of seeds would give intervals that are too narrow where training itself varies most. If Student's t interval of
the seeds' scores, or of their paired differences, is wider, it is therefore used instead. Taking the wider of two
intervals is conservative.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

DRAWS = 2000
Array = NDArray[np.float64]
Score = Callable[["Predictions", Array], Array]


class Predictions(NamedTuple):
    """A network's predictions for test pictures.

    Attributes:
        labels: int (N,), 0 real, 1 fake.
        logits: float (N,), above 0 for fake; or (V, N) for V versions of the same pictures, whose mean score is used.
        people: person of each picture.
        kinds: kind of each picture, "real" or the manipulation.
    """

    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    people: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def from_lists(cls, labels: list[int], logits: list[float], people: list[str], kinds: list[str]) -> Predictions:
        """Create predictions from lists, as stored in JSON."""
        return cls(np.asarray(labels), np.asarray(logits, np.float32), tuple(people), tuple(kinds))

    def to_lists(self) -> dict[str, list[Any]]:
        """Return the fields as lists, for JSON."""
        people, kinds = list(self.people), list(self.kinds)
        return {"labels": self.labels.tolist(), "logits": self.logits.tolist(), "people": people, "kinds": kinds}

    def of(self, kind: str) -> Predictions:
        """Select the real pictures and those of one manipulation."""
        selected = [index for index, own in enumerate(self.kinds) if own in ("real", kind)]
        people, kinds = (tuple(values[index] for index in selected) for values in (self.people, self.kinds))
        return Predictions(self.labels[selected], self.logits[selected], people, kinds)

    def among(self, wanted: Collection[str]) -> Predictions:
        """Select the pictures of some people."""
        selected = [index for index, person in enumerate(self.people) if person in wanted]
        people, kinds = (tuple(values[index] for index in selected) for values in (self.people, self.kinds))
        return Predictions(self.labels[selected], self.logits[selected], people, kinds)


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def clipped(self, lowest: float, highest: float) -> Interval:
        """Return the interval clipped to the possible values."""
        return self._replace(low=max(lowest, self.low), high=min(highest, self.high))

    def as_row(self, name: str) -> dict[str, float]:
        """Return the interval as three columns of a table."""
        return {name: self.mean, f"{name} low": self.low, f"{name} high": self.high}


def accuracy(scored: Predictions) -> float:
    """Return the balanced accuracy at the threshold of probability 0.5, with equal weight for real and fake."""
    return float(balanced_accuracy_score(scored.labels, scored.logits > 0))


def auc(scored: Predictions) -> float:
    """Return the area under the ROC curve."""
    return float(roc_auc_score(scored.labels, scored.logits))


def weighted_accuracy(scored: Predictions, weights: Array) -> Array:
    """Return :func:`accuracy` (B,) under weights (B, N) of the pictures; NaN where a class has no weight."""
    right = (scored.logits > 0) == (scored.labels == 1)
    with np.errstate(invalid="ignore"):
        shares = [(weights * (of & right)).sum(1) / (weights * of).sum(1) for of in _classes(scored)]
    return (shares[0] + shares[1]) / 2


def weighted_auc(scored: Predictions, weights: Array) -> Array:
    """Return :func:`auc` (B,) under weights (B, N) of the pictures; NaN where a class has no weight."""
    order = np.argsort(scored.logits, kind="stable")
    _, starts = np.unique(scored.logits[order], return_index=True)
    real, fake = (np.add.reduceat((weights * of)[:, order], starts, axis=1) for of in _classes(scored))
    below = real.cumsum(1) - real
    with np.errstate(invalid="ignore"):
        return (fake * (below + real / 2)).sum(1) / (fake.sum(1) * real.sum(1))


def interval(runs: Sequence[Predictions], score: Score, draws: int = DRAWS) -> Interval:
    """Return the mean of a score over runs with different seeds, with its interval.

    Args:
        runs: one run per seed.
        score: :func:`weighted_accuracy` or :func:`weighted_auc`.
        draws: number of bootstrap draws.
    """
    return _combined([_drawn(run, score, runs, draws) for run in runs]).clipped(0, 1)


def difference(
    runs: Sequence[Predictions], others: Sequence[Predictions], score: Score, draws: int = DRAWS
) -> Interval:
    """Return the mean difference in score, paired per seed on the same pictures, with its interval.

    Raises:
        ValueError: a pair was not tested on the same pictures.
    """
    return mean_difference([[run] for run in runs], [[other] for other in others], score, draws)


def mean_difference(
    runs: Sequence[Sequence[Predictions]], others: Sequence[Sequence[Predictions]], score: Score, draws: int = DRAWS
) -> Interval:
    """Return :func:`difference` for the mean score over several tasks; each seed has one run per task.

    Raises:
        ValueError: a pair was not tested on the same pictures.
    """
    everyone = [run for tasks in runs for run in tasks]
    columns = []
    for tasks, other_tasks in zip(runs, others, strict=True):
        differences = []
        for run, other in zip(tasks, other_tasks, strict=True):
            if (run.people, run.kinds) != (other.people, other.kinds):
                raise ValueError("a pair was tested on different pictures; give its runs in the order of their seeds")
            differences.append(_drawn(run, score, everyone, draws) - _drawn(other, score, everyone, draws))
        columns.append(np.mean(differences, axis=0))
    return _combined(columns)


def drawn(run: Predictions, score: Score, draws: int = DRAWS) -> Array:
    """Return the score of a run, followed by its score in every draw of people: (1 + draws,)."""
    return _drawn(run, score, [run], draws)


def cross_validated(columns: Sequence[Array]) -> Interval:
    """Return the mean over folds of a score or of a difference, with its interval.

    Every fold has its own people and its own network, so the spread of the folds reflects both sampling of people and
    variation of training: the interval is Student's t over the folds. Few folds can agree by chance, so the bootstrap
    over people within the folds is used instead if it is wider.

    Args:
        columns: output of :func:`drawn` for each fold, or the difference of two such outputs for the same people.

    Raises:
        ValueError: there is no fold.
    """
    if not columns:
        raise ValueError("an interval needs at least one fold")
    spread = student([float(column[0]) for column in columns])
    low, high = np.nanquantile(np.mean(columns, axis=0)[1:], (0.025, 0.975))
    resampled = Interval(spread.mean, float(low), float(high))
    return spread if spread.high - spread.low > high - low else resampled


def mean_interval(values: Sequence[Sequence[float]], people: Sequence[Sequence[str]], draws: int = DRAWS) -> Interval:
    """Return the mean of figures of pictures with its interval, from the values and the people of every seed."""
    columns = []
    for column, names in zip(values, people, strict=True):
        weights = _weights(names, sorted({name for each in people for name in each}), draws)
        with np.errstate(invalid="ignore"):
            columns.append(weights @ np.asarray(column, np.float64) / weights.sum(1))
    return _combined(columns)


def student(values: Sequence[float]) -> Interval:
    """Return the mean of the seeds' values with Student's t interval; its ends are NaN for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - reach, mean + reach)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN if either sequence is constant."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)


def _classes(scored: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return scored.labels == 0, scored.labels == 1


def _drawn(run: Predictions, score: Score, runs: Sequence[Predictions], draws: int) -> Array:
    """Return the score of a run and its score in every draw of people: (1 + draws,)."""
    everybody = sorted({name for each in runs for name in each.people})
    weights = _weights(run.people, everybody, draws)
    return np.mean([score(run._replace(logits=logits), weights) for logits in np.atleast_2d(run.logits)], axis=0)


def _weights(people: Sequence[str], everybody: list[str], draws: int) -> Array:
    """Return how often each picture is drawn, (1 + draws, N); the first row is all ones."""
    generator = np.random.default_rng(zlib.crc32("\n".join(everybody).encode()))
    counts = generator.multinomial(len(everybody), np.full(len(everybody), 1 / len(everybody)), draws)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])
    place = {name: index for index, name in enumerate(everybody)}
    return counts[:, [place[name] for name in people]].astype(np.float64)


def _combined(columns: Sequence[Array]) -> Interval:
    """Return the wider of the two intervals of the mean over seeds, from every seed's score in every draw of people."""
    drawn, spread = _bootstrapped(columns), student([float(column[0]) for column in columns])
    return spread if spread.high - spread.low > drawn.high - drawn.low else drawn


def _bootstrapped(columns: Sequence[Array]) -> Interval:
    """Return the interval of the mean over seeds from resampling both seeds and people."""
    table = np.stack(columns, 1)
    seeds = table.shape[1]
    counts = np.random.default_rng(seeds).multinomial(seeds, np.full(seeds, 1 / seeds), len(table) - 1)
    drawn = table[1:]
    finite = np.isfinite(drawn)
    weights = counts * finite
    with np.errstate(invalid="ignore"):
        means = (weights * np.where(finite, drawn, 0)).sum(1) / weights.sum(1)
    low, high = np.nanquantile(means, (0.025, 0.975))
    return Interval(float(table[0].mean()), float(low), float(high))
