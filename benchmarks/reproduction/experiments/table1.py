"""Table 1: one backbone, bare and with attention, on all manipulations together; and ablations of SIA."""

from __future__ import annotations

from typing import Final

from benchmarks.reproduction.networks import VARIANTS
from benchmarks.reproduction.scores import difference, interval, weighted_accuracy, weighted_auc
from benchmarks.reproduction.study import Measurement, Pictures, Row, Study
from benchmarks.reproduction.training import Run, Settings

COMPARED: Final = ("bare", "SE", "CBAM", "SIA")
ABLATIONS: Final = (
    "spatial only", "channel only", "no aggregation", "K=5", "K=7", "distance estimator", "not detached",
    "not identity at first", "one site", "two sites",
)  # fmt: skip
NAMES: Final = (*COMPARED, *ABLATIONS)
COLUMNS: Final = {
    "network": "<24", "kinds": "<20", "ACC": "6.3f", "AUC": "6.3f", "AUC low": "8.3f", "AUC high": "8.3f",
    "AUC - bare": "10.3f", "AUC - bare low": "14.3f", "AUC - bare high": "15.3f",
}  # fmt: skip


def pictures(study: Study) -> list[Pictures]:
    """Return one set of pictures per seed."""
    return [Pictures(study.budget.size, "HQ", seed) for seed in study.seeds]


def settings(study: Study) -> list[Settings]:
    """Return every variant with every seed, seed by seed, starting with those that the paper compares."""
    return [
        study.settings(f"lite {name}", seed)
        for names in (COMPARED, ABLATIONS)
        for seed in study.seeds
        for name in names
    ]


def measurements(study: Study) -> list[Measurement]:
    """Return no measurements: the test scores suffice."""
    return []


def write(study: Study) -> None:
    """Write table1.csv, for all manipulations together and for each, and table1_runs.csv."""
    runs = {name: study.runs(f"lite {name}") for name in NAMES}
    rows = [_row(name, kind, runs) for name in NAMES for kind in (None, *study.kinds(study.budget.size))]
    study.write("table1", rows, COLUMNS)
    study.write("table1_runs", [study.about(run) for each in runs.values() for run in each])


def _row(name: str, kind: str | None, runs: dict[str, list[Run]]) -> Row:
    scored, bare, sia = (
        [run.test if kind is None else run.test.of(kind) for run in runs[each]] for each in (name, "bare", "SIA")
    )
    row = {
        "network": name,
        "about": VARIANTS[name].about,
        "kinds": kind or "all",
        "parameters": runs[name][0].record["parameters"],
        **interval(scored, weighted_accuracy).as_row("ACC"),
        **interval(scored, weighted_auc).as_row("AUC"),
    }
    if name != "bare":
        row |= difference(scored, bare, weighted_accuracy).as_row("ACC - bare")
        row |= difference(scored, bare, weighted_auc).as_row("AUC - bare")
    if name not in COMPARED:
        row |= difference(scored, sia, weighted_auc).as_row("AUC - SIA")
    return row
