"""Table 5: three published detectors, each unchanged and with SIA injected into its backbone."""

from __future__ import annotations

from typing import Final

from benchmarks.reproduction.networks import METHODS
from benchmarks.reproduction.scores import difference, interval, weighted_accuracy, weighted_auc
from benchmarks.reproduction.study import Measurement, Pictures, Row, Study
from benchmarks.reproduction.training import Settings

NAMES: Final = tuple(f"{name}{plus}" for name in METHODS for plus in ("", "+SIA"))
COLUMNS: Final = {
    "network": "<12", "ACC": "6.3f", "ACC low": "8.3f", "ACC high": "8.3f", "AUC": "6.3f", "AUC low": "8.3f",
    "AUC high": "8.3f", "AUC - bare": "10.3f", "AUC - bare low": "14.3f", "AUC - bare high": "15.3f",
}  # fmt: skip


def pictures(study: Study) -> list[Pictures]:
    """Return the pictures of Table 1."""
    return [Pictures(study.budget.size, "HQ", seed) for seed in study.seeds]


def settings(study: Study) -> list[Settings]:
    """Return every method with and without SIA, with every seed, on all manipulations together."""
    return [study.settings(f"method {name}", seed) for seed in study.seeds for name in NAMES]


def measurements(study: Study) -> list[Measurement]:
    """Return no measurements: the test scores suffice."""
    return []


def write(study: Study) -> None:
    """Write table5.csv and table5_runs.csv."""
    runs = {name: study.runs(f"method {name}") for name in NAMES}
    rows: list[Row] = []
    for name, each in runs.items():
        scored = [run.test for run in each]
        bare = [run.test for run in runs[name.removesuffix("+SIA")]]
        row = {
            "network": name,
            "parameters": each[0].record["parameters"],
            **interval(scored, weighted_accuracy).as_row("ACC"),
            **interval(scored, weighted_auc).as_row("AUC"),
        }
        if name.endswith("+SIA"):
            row |= difference(scored, bare, weighted_accuracy).as_row("ACC - bare")
            row |= difference(scored, bare, weighted_auc).as_row("AUC - bare")
        rows.append(row)
    study.write("table5", rows, COLUMNS)
    study.write("table5_runs", [study.about(run) for each in runs.values() for run in each])
