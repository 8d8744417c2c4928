"""Figure 1: test the networks of Table 1, which were trained on clean pictures, on corrupted ones."""

from __future__ import annotations

from typing import Final

import numpy as np

from benchmarks.reproduction.corruptions import SEVERITIES, STRENGTHS, corrupted
from benchmarks.reproduction.experiments import table1
from benchmarks.reproduction.scores import Predictions, difference, interval, weighted_auc
from benchmarks.reproduction.study import Measurement, Pictures, Row, Source, Study
from benchmarks.reproduction.training import Run, Settings, predict

AVERAGE: Final = "all five"
COLUMNS: Final = {
    "network": "<8", "corruption": "<16", "severity": "<8", "strength": "<8", "AUC": "6.3f", "AUC low": "8.3f",
    "AUC high": "8.3f", "AUC - bare": "10.3f", "AUC - bare low": "14.3f", "AUC - bare high": "15.3f",
}  # fmt: skip


def pictures(study: Study) -> list[Pictures]:
    """Return the pictures of Table 1."""
    return table1.pictures(study)


def settings(study: Study) -> list[Settings]:
    """Return the runs of Table 1 that the paper compares."""
    return [study.settings(f"lite {name}", seed) for seed in study.seeds for name in table1.COMPARED]


def measurements(study: Study) -> list[Measurement]:
    """Return one measurement per run."""
    options = {"strengths": STRENGTHS, "seed": 0}
    return [Measurement("robustness", each, robustness, options, 20.0) for each in settings(study)]


def robustness(run: Run, source: Source, options: Row) -> list[Row]:
    """Return the logits of the run's test pictures under every corruption."""
    test = source.parts(Pictures(run.settings.size, run.settings.quality, run.settings.seed)).test
    test = test.take([index for index, kind in enumerate(test.kinds) if kind in ("real", *run.settings.kinds)])
    detector = run.detector()
    return [
        {
            "corruption": name,
            "severity": severity,
            "logits": predict(detector, corrupted(test.images, name, severity, options["seed"])).tolist(),
        }
        for name in STRENGTHS
        for severity in SEVERITIES
    ]


def write(study: Study) -> None:
    """Write fig1.csv and fig1_runs.csv: AUC per severity, with 0 for clean pictures, and the mean of the five."""
    found: dict[tuple[str, str, str], list[Predictions]] = {}
    rows: list[Row] = []
    for measurement in measurements(study):
        run = study.run(measurement.settings)
        name = run.settings.network.partition(" ")[2]
        logits = {(row["corruption"], row["severity"]): row["logits"] for row in study.measured(measurement) or []}
        for corruption in STRENGTHS:
            corrupt = np.asarray([logits[corruption, severity] for severity in SEVERITIES], np.float32)
            versions = {"0": run.test.logits, **dict(zip(map(str, SEVERITIES), corrupt, strict=True)), AVERAGE: corrupt}
            for severity, scored in versions.items():
                predicted = run.test._replace(logits=scored)
                found.setdefault((name, corruption, severity), []).append(predicted)
                score = interval([predicted], weighted_auc, draws=1).mean
                case = {"corruption": corruption, "severity": severity, "AUC corrupted": score}
                rows.append({**case, **study.about(run)})
    study.write("fig1", [_row(*case, found) for case in found], COLUMNS)
    study.write("fig1_runs", rows)


def _row(name: str, corruption: str, severity: str, found: dict[tuple[str, str, str], list[Predictions]]) -> Row:
    runs, bare = found[name, corruption, severity], found["bare", corruption, severity]
    strength = STRENGTHS[corruption][int(severity) - 1] if severity not in ("0", AVERAGE) else ""
    row = {"network": name, "corruption": corruption, "severity": severity, "strength": str(strength)}
    row |= interval(runs, weighted_auc).as_row("AUC")
    return row if name == "bare" else row | difference(runs, bare, weighted_auc).as_row("AUC - bare")
