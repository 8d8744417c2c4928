"""Table 4: the average self-information of the toy networks' layers, and whether accuracy goes with it.

Equation 1 of the supplement: the mean over the pixels, summed over the channels. The sum makes wide layers larger than
narrow ones; the paper's figures are of the size of a mean over the channels. Both are written.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

import numpy as np

from benchmarks.reproduction.experiments import table3
from benchmarks.reproduction.networks import TOYS
from benchmarks.reproduction.scores import accuracy, auc, mean_interval, rank_correlation
from benchmarks.reproduction.study import Measurement, Pictures, Row, Source, Study
from benchmarks.reproduction.training import Run, Settings, as_input, create
from sia_layers import profile_self_information

LAYERS: Final = {f"Layer{number}": f"layers.{number - 1}" for number in range(2, 6)}
OPTIONS: Final = {"kernel_size": 3, "estimator": "kde", "pictures": "test"}
COLUMNS: Final = {"network": "<10", "state": "<9", **dict.fromkeys(LAYERS, "7.3f"), "AVG": "7.3f", "AVG sum": "9.1f"}
CORRELATION_COLUMNS: Final = {"score": "<6", "over": "<44", "points": "6d", "rho": "7.3f", "p": "7.3f"}


def pictures(study: Study) -> list[Pictures]:
    """The high quality ones, as in the paper."""
    return [each for each in table3.pictures(study) if each.quality == "HQ"]


def settings(study: Study) -> list[Settings]:
    """Table 3's runs in high quality."""
    return [each for each in table3.settings(study) if each.quality == "HQ"]


def measurements(study: Study) -> list[Measurement]:
    """One of every run."""
    return [Measurement("self_information", each, self_information, dict(OPTIONS), 2.0) for each in settings(study)]


def self_information(run: Run, source: Source, options: Row) -> list[Row]:
    """Average self-information in nats of each layer on the run's test pictures, before and after training."""
    test = source.parts(Pictures(run.settings.size, run.settings.quality, run.settings.seed)).test
    images = test.take([index for index, kind in enumerate(test.kinds) if kind in ("real", *run.settings.kinds)]).images
    how = {name: options[name] for name in ("kernel_size", "estimator")}
    rows = []
    for state, detector in (("untrained", create(run.settings)), ("trained", run.detector())):
        for reduction in ("mean", "sum"):
            found = profile_self_information(
                detector,
                map(as_input, images.split(64)),
                list(LAYERS.values()),
                reduction=reduction,
                progress=False,
                **how,
            )
            rows.append({"state": state, "reduction": reduction} | {
                name: found[layer].mean for name, layer in LAYERS.items()})  # fmt: skip
    return rows


def write(study: Study) -> None:
    """table4.csv, table4_runs.csv and table4_correlation.csv."""
    runs = [row for each in measurements(study) for row in _rows(study, each)]
    study.write("table4_runs", runs)
    states = ("untrained", "trained")
    means = [_mean([row for row in runs if (row["network"], row["state"]) == (name, state)])
             for state in states for name in TOYS]  # fmt: skip
    study.write("table4", means, COLUMNS)
    trained = [row for row in runs if row["state"] == "trained"]
    study.write("table4_correlation", correlations(trained), CORRELATION_COLUMNS)


def correlations(rows: list[Row]) -> list[Row]:
    """Rank correlation of AVG with ACC and AUC, over all runs and over the networks alone.

    The first mixes in that some manipulations are harder than others. The second ranks the networks within every
    manipulation and seed and averages; its interval comes from drawing these cells anew, and has no p-value.

    Args:
        rows: with ``network``, ``kinds``, ``seed``, ``ACC``, ``AUC`` and ``AVG``.
    """
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["kinds"], row["seed"]), []).append(row)
    made = []
    for score in ("ACC", "AUC"):
        rho, p = _ranked(rows, score)
        everything = {"over": "all networks, manipulations and seeds", "points": len(rows), "rho": rho, "p": p}
        told = [rho for rho, _ in (_ranked(cell, score) for cell in cells.values()) if np.isfinite(rho)]
        within: Row = {"over": "the networks, within manipulation and seed", "points": len(told)}
        if told:
            within |= mean_interval([told], [[str(index) for index in range(len(told))]]).as_row("rho")
        made += [{"score": score, **everything}, {"score": score, **within}]
    return made


def _ranked(rows: list[Row], score: str) -> tuple[float, float]:
    return rank_correlation([row["AVG"] for row in rows], [row[score] for row in rows])


def _rows(study: Study, measurement: Measurement) -> list[Row]:
    """A run's layers before and after training, with its scores."""
    run = study.run(measurement.settings)
    found = {(row["state"], row["reduction"]): row for row in study.measured(measurement) or []}
    return [
        {
            "network": run.settings.network.partition(" ")[2],
            "kinds": ", ".join(run.settings.kinds),
            "seed": run.settings.seed,
            "state": state,
            **{name: found[state, "mean"][name] for name in LAYERS},
            "AVG": fmean(found[state, "mean"][name] for name in LAYERS),
            "AVG sum": fmean(found[state, "sum"][name] for name in LAYERS),
            "ACC": accuracy(run.test),
            "AUC": auc(run.test),
            **measurement.options,
        }
        for state in ("untrained", "trained")
    ]


def _mean(rows: list[Row]) -> Row:
    held = {name: fmean(row[name] for row in rows) for name in (*LAYERS, "AVG", "AVG sum")}
    return {"network": rows[0]["network"], "state": rows[0]["state"], "runs": len(rows), **held}
