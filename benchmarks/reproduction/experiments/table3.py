"""Table 3: the toy networks of Table 2, each trained on every manipulation separately, in high and low quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmarks.reproduction.networks import TOYS
from benchmarks.reproduction.networks.toy import PRINTED_PARAMETERS, convolution_weights
from benchmarks.reproduction.scores import (
    accuracy,
    auc,
    interval,
    mean_difference,
    weighted_accuracy,
    weighted_auc,
)
from benchmarks.reproduction.study import Measurement, Pictures, Row, Study
from benchmarks.reproduction.training import Run, Settings, create

QUALITIES: Final = ("HQ", "LQ")
COLUMNS: Final = {
    "network": "<10", "kinds": "<20", "quality": "<7", "ACC": "6.3f", "ACC low": "8.3f", "ACC high": "8.3f",
    "AUC": "6.3f", "AUC low": "8.3f", "AUC high": "8.3f",
}  # fmt: skip
DIFFERENCE_COLUMNS: Final = {
    "network": "<10", "quality": "<9", "AUC - Norm": "10.3f", "AUC - Norm low": "14.3f", "AUC - Norm high": "15.3f",
}  # fmt: skip


def pictures(study: Study) -> list[Pictures]:
    """Return both qualities of every seed."""
    return [Pictures(study.budget.toy_size, quality, seed) for seed in study.seeds for quality in QUALITIES]


def settings(study: Study, qualities: Sequence[str] = QUALITIES) -> list[Settings]:
    """Return every network on every manipulation and quality, with every seed."""
    return [
        study.settings(f"toy {name}", seed, (kind,), quality)
        for seed in study.seeds
        for kind in study.kinds(study.budget.toy_size)
        for quality in qualities
        for name in TOYS
    ]


def measurements(study: Study) -> list[Measurement]:
    """Return no measurements: the test scores suffice."""
    return []


def write(study: Study) -> None:
    """Write table3.csv, table3_differences.csv and table3_runs.csv."""
    runs = {
        (name, kind, quality): study.runs(f"toy {name}", (kind,), quality)
        for name in TOYS
        for kind in study.kinds(study.budget.toy_size)
        for quality in QUALITIES
    }
    study.write("table3", [_row(*case, each) for case, each in runs.items()], COLUMNS)
    choices = (QUALITIES, *((quality,) for quality in QUALITIES))
    differences = [_difference(name, qualities, runs) for name in TOYS[1:] for qualities in choices]
    study.write("table3_differences", differences, DIFFERENCE_COLUMNS)
    study.write("table3_runs", [study.about(run) for each in runs.values() for run in each])


def _row(name: str, kind: str, quality: str, runs: list[Run]) -> Row:
    scored = [run.test for run in runs]
    return {
        "network": name,
        "kinds": kind,
        "quality": quality,
        "convolution weights": convolution_weights(create(runs[0].settings)),
        "printed parameters": int(PRINTED_PARAMETERS[name]),
        **interval(scored, weighted_accuracy).as_row("ACC"),
        "ACC deviation": deviation([accuracy(each) for each in scored]),
        **interval(scored, weighted_auc).as_row("AUC"),
        "AUC deviation": deviation([auc(each) for each in scored]),
    }


def _difference(name: str, qualities: Sequence[str], runs: dict[tuple[str, str, str], list[Run]]) -> Row:
    """Return the difference of a network from Norm, in the mean over all manipulations."""
    scored, norm = (
        [[run.test for run in tasks] for tasks in zip(*(
            runs[case] for case in runs if case[0] == each and case[2] in qualities), strict=True)]
        for each in (name, "Norm")
    )  # fmt: skip
    return {
        "network": name,
        "quality": ", ".join(qualities),
        **mean_difference(scored, norm, weighted_accuracy).as_row("ACC - Norm"),
        **mean_difference(scored, norm, weighted_auc).as_row("AUC - Norm"),
    }


def deviation(values: Sequence[float]) -> float | str:
    """Return the standard deviation over the seeds; empty for a single seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else ""
