"""Table 4: the average self-information of the toy networks' layers, and its correlation with accuracy.

Equation 1 of the supplement takes the mean over pixels and the sum over channels. The sum makes wide layers larger than
narrow ones, but the paper's figures have the magnitude of a mean over channels. Both are written. A layer is measured
at its end, as in the paper, and also after its BatchNorm: where ReLU follows, its zeros equal each other and so carry
little information, and not all layers of the three networks end with ReLU.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

import numpy as np
from torch import nn

from benchmarks.reproduction.experiments import table3
from benchmarks.reproduction.networks import TOYS
from benchmarks.reproduction.scores import rank_correlation, student
from benchmarks.reproduction.study import Measurement, Pictures, Row, Source, Study
from benchmarks.reproduction.training import Run, Settings, as_input, create
from sia_layers import profile_self_information

LAYERS: Final = {f"Layer{number}": f"layers.{number - 1}" for number in range(2, 6)}
PLACES: Final = ("layer", "BatchNorm")  # measure after these
OPTIONS: Final = {"kernel_size": 3, "estimator": "kde", "pictures": "test", "places": PLACES}
STATES: Final = ("untrained", "trained")
COLUMNS: Final = {
    "network": "<10", "state": "<9", "behind": "<9", **dict.fromkeys(LAYERS, "7.3f"), "AVG": "7.3f",
    "AVG deviation": "13.3f", "AVG sum": "9.1f",
}  # fmt: skip
CORRELATION_COLUMNS: Final = {
    "behind": "<9", "score": "<6", "over": "<44", "points": "6d", "rho": "7.3f", "rho low": "8.3f", "rho high": "8.3f",
}  # fmt: skip


def pictures(study: Study) -> list[Pictures]:
    """Return the high-quality pictures, as in the paper."""
    return [each for each in table3.pictures(study) if each.quality == "HQ"]


def settings(study: Study) -> list[Settings]:
    """Return Table 3's runs in high quality."""
    return table3.settings(study, ("HQ",))


def measurements(study: Study) -> list[Measurement]:
    """Return one measurement per run."""
    return [Measurement("self_information", each, self_information, dict(OPTIONS), 4.0) for each in settings(study)]


def self_information(run: Run, source: Source, options: Row) -> list[Row]:
    """Return the average self-information of each layer in nats on the test pictures, before and after training.

    Args:
        run: run of a toy network.
        source: source of its pictures.
        options: ``kernel_size`` and ``estimator``, and the ``places`` in each layer, from :data:`PLACES`.
    """
    test = source.parts(Pictures(run.settings.size, run.settings.quality, run.settings.seed)).test
    images = test.take([index for index, kind in enumerate(test.kinds) if kind in ("real", *run.settings.kinds)]).images
    how = {name: options[name] for name in ("kernel_size", "estimator")}
    rows = []
    for state, detector in zip(STATES, (create(run.settings), run.detector()), strict=True):
        sites = {(place, name): _site(detector, LAYERS[name], place) for place in options["places"] for name in LAYERS}
        for reduction in ("mean", "sum"):
            profile = profile_self_information(
                detector,
                map(as_input, images.split(64)),
                list(dict.fromkeys(sites.values())),
                reduction=reduction,
                progress=False,
                **how,
            )
            rows += [
                {"state": state, "behind": place, "reduction": reduction}
                | {name: profile[sites[place, name]].mean for name in LAYERS}
                for place in options["places"]
            ]
    return rows


def _site(detector: nn.Module, layer: str, place: str) -> str:
    """Return the name of the module: the layer itself, or its BatchNorm."""
    if place == "layer":
        return layer
    children = detector.get_submodule(layer).named_children()
    return next(f"{layer}.{name}" for name, child in children if isinstance(child, nn.BatchNorm2d))


def write(study: Study) -> None:
    """Write table4.csv, table4_runs.csv and table4_correlation.csv."""
    runs = [row for each in measurements(study) for row in _rows(study, each)]
    study.write("table4_runs", runs)
    means = [_mean([row for row in runs if (row["network"], row["state"], row["behind"]) == (name, state, place)])
             for place in PLACES for state in STATES for name in TOYS]  # fmt: skip
    study.write("table4", means, COLUMNS)
    ranked = [
        {"behind": place, **row}
        for place in PLACES
        for row in correlations([row for row in runs if (row["state"], row["behind"]) == ("trained", place)])
    ]
    study.write("table4_correlation", ranked, CORRELATION_COLUMNS)


def correlations(rows: list[Row]) -> list[Row]:
    """Return rank correlations of AVG with ACC and AUC, over all runs and over the networks alone.

    The first also reflects that some manipulations are harder than others, and only describes these runs, which share
    networks, people and seeds. The second ranks the networks within every manipulation and seed, and averages. The
    cells of a seed share their people, so its interval is Student's t over the means of the seeds.

    Args:
        rows: rows with ``network``, ``kinds``, ``seed``, ``ACC``, ``AUC`` and ``AVG``.
    """
    cells: dict[int, dict[str, list[Row]]] = {}
    for row in rows:
        cells.setdefault(row["seed"], {}).setdefault(row["kinds"], []).append(row)
    correlations: list[Row] = []
    for score in ("ACC", "AUC"):
        everything = {"over": "all networks, manipulations and seeds", "points": len(rows), "rho": _ranked(rows, score)}
        ranks = [[_ranked(cell, score) for cell in of_seed.values()] for of_seed in cells.values()]
        by_seed = [defined for defined in ([rho for rho in each if np.isfinite(rho)] for each in ranks) if defined]
        within: Row = {"over": "the networks, within manipulation and seed", "points": sum(map(len, by_seed))}
        if by_seed:
            within |= student([fmean(each) for each in by_seed]).clipped(-1, 1).as_row("rho")
        correlations += [{"score": score, **everything}, {"score": score, **within}]
    return correlations


def _ranked(rows: list[Row], score: str) -> float:
    return rank_correlation([row["AVG"] for row in rows], [row[score] for row in rows])


def _rows(study: Study, measurement: Measurement) -> list[Row]:
    """Return a run's layers before and after training, with its scores."""
    run = study.run(measurement.settings)
    measured = {(row["state"], row["behind"], row["reduction"]): row for row in study.measured(measurement) or []}
    return [
        {
            **study.about(run),
            "network": run.settings.network.partition(" ")[2],
            "state": state,
            "behind": place,
            **{name: measured[state, place, "mean"][name] for name in LAYERS},
            "AVG": fmean(measured[state, place, "mean"][name] for name in LAYERS),
            "AVG sum": fmean(measured[state, place, "sum"][name] for name in LAYERS),
            **{name: measurement.options[name] for name in ("kernel_size", "estimator")},
        }
        for state in STATES
        for place in PLACES
    ]


def _mean(rows: list[Row]) -> Row:
    """Return the mean over the runs of a network, and the spread of the seeds' means."""
    means = {name: fmean(row[name] for row in rows) for name in (*LAYERS, "AVG", "AVG sum")}
    by_seed = [fmean(row["AVG"] for row in rows if row["seed"] == seed) for seed in {row["seed"] for row in rows}]
    what = {name: rows[0][name] for name in ("network", "state", "behind")}
    return {**what, "runs": len(rows), **means, "AVG deviation": table3.deviation(by_seed)}
