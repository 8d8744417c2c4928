"""Try SIA on tasks beyond face forgery, and write docs/beyond-faces.md from the result files.

``python -m benchmarks.beyond localisation|camouflage|spoofing|all [--data PATH] [--quick] [--budget MINUTES]``. Runs
that are already in the result files are skipped, so repeating an interrupted call resumes it. ``--budget`` starts no
run that would end after this many minutes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch

EXTRA: Final = "pip install 'sia-layers[reproduction]'"

try:
    from benchmarks.beyond import report, task
    from benchmarks.beyond.camouflage import Camouflage
    from benchmarks.beyond.localisation import Localisation
    from benchmarks.beyond.networks import VARIANTS
    from benchmarks.beyond.results import Results
    from benchmarks.beyond.spoofing import Spoofing
    from benchmarks.beyond.task import Material, Plan, Task
    from benchmarks.reproduction import jobs
except ModuleNotFoundError as error:
    raise SystemExit(f"the package {error.name} is missing; {EXTRA}") from None

ROOT: Final = Path(__file__).parents[2]
TASKS: Final[dict[str, Task]] = {each.name: each for each in (Localisation(), Camouflage(), Spoofing())}
SEEDS, QUICK_SEEDS = 5, 2
FULL: Final = {
    "localisation": Plan(size=96, squares=6, tested=3, people=60, epochs=5),
    "camouflage": Plan(size=96, squares=16, tested=6, people=None, epochs=5),
    "spoofing": Plan(size=96, squares=0, tested=0, people=None, epochs=4),
}
QUICK: Final = {
    "localisation": Plan(size=64, squares=4, tested=2, people=12, epochs=1),
    "camouflage": Plan(size=64, squares=4, tested=2, people=None, epochs=2),
    "spoofing": Plan(size=64, squares=0, tested=0, people=20, epochs=2),
}
FIRST_GUESS: Final = 120.0  # expected seconds per run until the first one has ended


class Wanted(NamedTuple):
    """A requested run."""

    task: Task
    variant: str
    seed: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is requested; return 0 if all runs are there, 1 if one failed, 3 if the budget ran out before."""
    parser = _parser()
    given = parser.parse_args(arguments)
    chosen = [each for name, each in TASKS.items() if "all" in given.tasks or name in given.tasks]
    if given.tree is not None and (len(chosen) != 1 or chosen[0].name == "localisation"):
        parser.error("--tree needs a single task, camouflage or spoofing")
    for name in ("data", "photographs", "tree"):
        if (folder := getattr(given, name)) is not None and not folder.is_dir():
            parser.error(f"--{name} {folder} is not a folder")
    if given.jobs < 1 or given.seeds < 0 or given.budget <= 0:
        parser.error("--jobs must be 1 or more, --seeds 1 or more, and --budget above 0")
    torch.set_num_threads(1)
    plans = QUICK if given.quick else FULL
    material = Material(given.photographs, given.data, given.tree, given.work / "pictures")
    folder = given.results or ROOT / "benchmarks/results/beyond" / _setting(given)
    seeds = range(given.seeds or (QUICK_SEEDS if given.quick else SEEDS))
    wanted = [Wanted(each, variant, seed) for each in chosen for seed in seeds for variant in given.networks]
    # Go seed by seed over all tasks, so that after an interruption each task has equally many seeds.
    wanted.sort(key=lambda each: each.seed)
    results = {each.name: Results(folder, each) for each in chosen}
    try:
        for each in wanted:
            results[each.task.name].check(_identity(each, plans, material))
    except ValueError as error:
        parser.error(str(error))
    missing = [
        each for each in wanted if given.fresh or not results[each.task.name].holds(_identity(each, plans, material))
    ]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs already exist: {folder}")
    try:
        failed, left = _run_missing(missing, plans, material, results, given)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    for each in results.values():
        each.write_table()
    page = given.page or (ROOT / "docs/beyond-faces.md" if folder == ROOT / "benchmarks/results/beyond/full" else None)
    if page is not None:
        page.write_text(report.filled(page.read_text(), folder))
        print(f"tables written: {page}")
    if left and not failed:
        print(f"{left} runs are left; the same command resumes with them")
    return 1 if failed else 3 if left else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beyond", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("tasks", nargs="+", choices=("all", *TASKS), metavar="TASK", help=f"all, {', '.join(TASKS)}")
    add("--data", type=Path, metavar="PATH", help="folder of landmarked faces; optional for localisation")
    add(
        "--photographs",
        type=Path,
        metavar="PATH",
        help="folder of photographs (those of scikit-image and scikit-learn)",
    )
    add(
        "--tree",
        type=Path,
        metavar="PATH",
        help="real data set of the task instead of synthetic data: COD10K, OULU-NPU, ...",
    )
    add("--quick", action="store_true", help="a small budget, to check that everything runs")
    add("--budget", type=float, default=float("inf"), metavar="MINUTES", help="start no run that would end after this")
    add("--seeds", type=int, default=0, metavar="N", help=f"runs per network ({SEEDS}; {QUICK_SEEDS} with --quick)")
    add("--networks", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), metavar="NAME",
        help=", ".join(VARIANTS))  # fmt: skip
    add("--jobs", type=int, default=1, metavar="N", help="processes, with one thread each (%(default)s)")
    add(
        "--work", type=Path, default=Path(".reproduction"), metavar="FOLDER", help="cache of forged faces (%(default)s)"
    )
    add("--results", type=Path, metavar="FOLDER", help="folder for the CSV files (benchmarks/results/beyond/...)")
    add("--page", type=Path, metavar="FILE", help="page to write tables to (docs/beyond-faces.md with the full budget)")
    add("--fresh", action="store_true", help="train and measure again even if results exist")
    return parser


def _setting(given: argparse.Namespace) -> str:
    """Return the name of the results folder: "full" for what the page shows, and another for everything else."""
    other = given.tree or given.photographs
    return f"{'' if other is None else f'{other.resolve().name}-'}{'quick' if given.quick else 'full'}"


def _identity(wanted: Wanted, plans: dict[str, Plan], material: Material) -> task.Row:
    return task.identity(wanted.task, wanted.variant, wanted.seed, plans[wanted.task.name], material)


def _run_missing(
    missing: Sequence[Wanted], plans: dict[str, Plan], material: Material, results: dict[str, Results],
    given: argparse.Namespace,
) -> tuple[list[str], int]:  # fmt: skip
    """Make the missing runs while the budget lasts; return the names of those that failed, and the number left."""
    began, failed, done = time.monotonic(), [], 0
    for chunk in _chunks(missing, given.jobs):
        gone = time.monotonic() - began
        each = gone / done * len(chunk) if done else FIRST_GUESS
        if gone + each > 60 * given.budget:
            break
        todo = {_name(one): one for one in chunk}
        made = [
            jobs.Job(name, 1.0, task.run, (one.task, one.variant, one.seed, plans[one.task.name], material))
            for name, one in todo.items()
        ]
        found, errors = jobs.run(made, given.jobs, f"run {done + 1} to {done + len(chunk)} of {len(missing)}")
        for name, (run, rows) in found.items():
            results[todo[name].task.name].add(run, rows)
            print(
                f"{name}: " + ", ".join(f"{key} {run[key]}" for key in todo[name].task.measures if key in run),
                flush=True,
            )
        failed += list(errors)
        done += len(chunk)
    return failed, len(missing) - done


def _name(wanted: Wanted) -> str:
    return f"{wanted.task.name}, {wanted.variant}, seed {wanted.seed}"


def _chunks(missing: Sequence[Wanted], processes: int) -> Iterator[list[Wanted]]:
    """Yield runs one by one or, for several processes, those of one task and seed together, which share pictures."""
    if processes == 1:
        yield from ([one] for one in missing)
    else:
        for _, chunk in itertools.groupby(missing, lambda one: (one.task.name, one.seed)):
            yield list(chunk)


if __name__ == "__main__":
    sys.exit(main())
