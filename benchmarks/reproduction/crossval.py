"""Cross-validate networks over eight folds of people, and record the score of each picture.

``python -m benchmarks.reproduction.crossval pilot|study|recipe|chosen|kinds|datasets|toys --data PATH [--budget N]``
runs; ``python -m benchmarks.reproduction.crossval report`` writes docs/reproduction.md from the existing rows.

Each network is trained on six folds and tested on one; every person belongs to exactly one fold. Every run is a row of
a ``_runs.csv`` file in the results, written as soon as the run is complete: an interrupted call, on this machine or
another, resumes with the first run that has no row. ``--budget`` starts no run that is expected to exceed it. Several
processes on one machine may run the same command: each takes runs that no other process is working on.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from filelock import FileLock, Timeout

from benchmarks import harness, timing
from benchmarks.reproduction import data, evidence, plan, training
from benchmarks.reproduction.data.faces import Faces, Parts
from benchmarks.reproduction.experiments.table4 import LAYERS, OPTIONS, self_information
from benchmarks.reproduction.ledger import Ledger
from benchmarks.reproduction.measures import LOCALISED, MEASURED, MEASURED_FOLDS, localisation, robustness
from benchmarks.reproduction.networks.recipes import RECIPES
from benchmarks.reproduction.plan import GROUPS, KEYS, Task
from benchmarks.reproduction.scores import Predictions, accuracy, auc
from benchmarks.reproduction.study import Pictures, Source, facts
from benchmarks.reproduction.training import Run, Settings

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks/results/reproduction/crossval"
SIZE, EPOCHS, BATCH, RATE = 96, 5, 16, 1e-3
TOY_SIZE, TOY_EPOCHS, TOY_BATCH = 64, 4, 8


@dataclass
class Bench:
    """The data, the folders, and the time budget.

    Attributes:
        source: source of the pictures.
        work: folder of weights and checkpoints.
        results: folder of the tables.
        minutes: time limit for all runs; None for no limit.
        pretrained: whether to start from ImageNet weights.
        size: side of the pictures in pixels.
        epochs: epochs per run.
        toy_size: side of the pictures of the toy networks, in pixels.
        toy_epochs: epochs of the toy networks.
    """

    source: Source
    work: Path
    results: Path
    minutes: float | None = None
    pretrained: bool = True
    size: int = SIZE
    epochs: int = EPOCHS
    toy_size: int = TOY_SIZE
    toy_epochs: int = TOY_EPOCHS
    began: float = field(default_factory=time.monotonic)

    def ledger(self, name: str, keys: Sequence[str] = KEYS) -> Ledger:
        """Return a table of the results."""
        return Ledger(self.results / f"{name}.csv", keys)

    def left(self) -> float:
        """Return the seconds left in the budget."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self.began)

    def pictures(self, fold: int, network: str = "") -> Pictures:
        """Return the pictures of a fold, in the size that a network takes."""
        return Pictures(self.toy_size if network.startswith("toy ") else self.size, "HQ", fold)

    def settings(self, task: Task) -> Settings:
        """Return the settings of a run."""
        pictures = self.pictures(task.fold, task.network)
        known = facts(self.source, pictures)
        family, _, name = task.network.partition(" ")
        return Settings(
            network=task.network,
            kinds=task.kinds or tuple(kind for kind in known.kinds if kind not in task.test_kinds),
            source=self.source.name,
            data=known.fingerprint,
            quality=pictures.quality,
            size=pictures.size,
            seed=task.fold,
            epochs=self.toy_epochs if family == "toy" else self.epochs,
            batch=TOY_BATCH if family == "toy" else BATCH,
            learning_rate=RATE,
            pretrained=self.pretrained,
            test_kinds=task.test_kinds,
            repeat=task.repeat,
            gain_rate=RECIPES[name].gain_rate if family == "recipe" else training.GAIN_RATE,
        )

    def train(self, task: Task, select: Callable[[Parts], Parts] = lambda parts: parts, label: str = "") -> Run:
        """Train a network, or load it if this work folder has it.

        Args:
            task: task to train.
            select: function that selects the parts to use from those of the fold.
            label: name of the selection, for the run's folder.
        """
        settings = self.settings(task)
        parts = select(self.source.parts(self.pictures(task.fold, task.network)))
        return training.train(settings, parts, self.work / "runs" / f"{label}{settings.key}")


def row(task: Task, run: Run, scored: Predictions, **more: Any) -> dict[str, Any]:
    """Return the row that records a run.

    Args:
        task: task of the run.
        run: completed run.
        scored: predictions to score.
        **more: further columns.
    """
    record, settings = run.record, run.settings
    pictures = settings.epochs * 2 * record["train_reals"]
    return {
        **dict(zip(KEYS, task.key, strict=True)),
        "seed": settings.seed,
        "ACC": round(accuracy(scored), 5),
        "AUC": round(auc(scored), 5),
        **{f"AUC {kind}": round(auc(scored.of(kind)), 5) for kind in dict.fromkeys(scored.kinds) if kind != "real"},
        **more,
        "test people": len(set(scored.people)),
        **{name: getattr(settings, name) for name in ("data", "quality", "size", "epochs", "batch", "learning_rate")},
        "trained on": ", ".join(settings.kinds),
        **{key: record[key] for key in ("parameters", "gains", "train_people", "core seconds")},
        "pictures a second": round(pictures / max(record["core seconds"], 1e-9), 1),
        **{key: record[key] for key in ("machine", "threads", "versions", "commit", "date")},
    }


def run_missing(bench: Bench, ledger: Ledger, tasks: Sequence[Task], do: Callable[[Task], None]) -> bool:
    """Do the tasks that have no row yet, in order, within the budget.

    Returns:
        Whether all tasks are done; not so if another process is still at one of them.
    """
    todo = [task for task in tasks if task.key not in ledger]
    print(f"{ledger.path.name}: {len(tasks) - len(todo)} of {len(tasks)} runs are done", flush=True)
    longest = 0.0
    for count, task in enumerate(todo):
        if bench.left() < longest or bench.left() <= 0:
            print(f"budget used up; {len(todo) - count} runs are left; repeat the command to resume", flush=True)
            return False
        began = time.monotonic()
        with claimed(bench, ledger, task) as free:
            if not free:
                continue
            do(task)
        longest = max(longest, time.monotonic() - began)
        key = tuple(map(str, task.key))
        done = next(row for row in reversed(ledger.rows) if tuple(row[name] for name in KEYS) == key)
        print(
            f"[{count + 1} of {len(todo)}] {task.network}, fold {task.fold}, repeat {task.repeat}"
            f"{' '.join(('', *task.test_kinds))}: AUC {100 * float(done['AUC']):.1f}, "
            f"{done['pictures a second']} pictures/s, {time.monotonic() - began:.0f} s; at most about "
            f"{longest * (len(todo) - count - 1) / 60:.0f} minutes left",
            flush=True,
        )
    ledger.refresh()
    elsewhere = sum(task.key not in ledger for task in todo)
    if elsewhere:
        print(f"{ledger.path.name}: runs left to other processes: {elsewhere}; repeat the command later", flush=True)
    return not elsewhere


@contextlib.contextmanager
def claimed(bench: Bench, ledger: Ledger, task: Task) -> Iterator[bool]:
    """Claim a task for this process; yield whether it still has to be done, and no other process is at it."""
    name = re.sub(r"[^\w-]+", "-", " ".join([ledger.path.stem, *map(str, task.key)]))
    claims = bench.work / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(claims / f"{name}.lock", timeout=0))
        except Timeout:
            free = False
        else:
            ledger.refresh()
            free = task.key not in ledger
        yield free


# ---- the study


def study(bench: Bench, tasks: Sequence[Task]) -> bool:
    """Run tasks of the study; this extends study_runs.csv, study_scores.csv, fig1_runs.csv and localise_runs.csv."""
    runs = bench.ledger("study_runs")

    def do(task: Task) -> None:
        run = bench.train(task)
        scores = evidence.score_rows(evidence.label(task.network, task.repeat), run.test, fold=task.fold)
        bench.ledger("study_scores", evidence.SCORE_KEYS).add(scores)
        if task.network in MEASURED and task.fold in MEASURED_FOLDS and not task.repeat:
            test = bench.source.parts(bench.pictures(task.fold)).test
            what = {"network": task.network, "fold": task.fold, "commit": run.record["commit"]}
            rows = [{**what, **measured} for measured in robustness(run, test)]
            bench.ledger("fig1_runs", ("network", "fold", "corruption", "severity")).add(rows)
            if task.network in LOCALISED:
                rows = [{**what, **measured} for measured in localisation(run, test)]
                bench.ledger("localise_runs", ("network", "fold", "map", "kinds")).add(rows)
        runs.add([row(task, run, run.test, **{"validation AUC": round(auc(run.validation), 5)})])

    return run_missing(bench, runs, tasks, do)


# ---- the recipe


def recipe(bench: Bench) -> bool:
    """Search for the recipe on validation people alone; this extends recipe_runs.csv with their scores."""
    ledger = bench.ledger("recipe_runs")

    def do(task: Task) -> None:
        run = bench.train(task)
        ledger.add([row(task, run, run.validation)])

    return all(run_missing(bench, ledger, plan.recipe_tasks(ledger), do) for _ in range(2))


# ---- manipulations and pictures that differ from those in training


def across_kinds(bench: Bench) -> bool:
    """Test on a manipulation that was not trained on; this extends kinds_runs.csv and kinds_scores.csv."""
    ledger = bench.ledger("kinds_runs")
    kinds = facts(bench.source, bench.pictures(0)).kinds

    def do(task: Task) -> None:
        run = bench.train(task)
        (held_out,) = task.test_kinds
        scores = evidence.score_rows(evidence.label(task.network), run.test, fold=task.fold, **{"held out": held_out})
        bench.ledger("kinds_scores", (*evidence.SCORE_KEYS, "held out")).add(scores)
        ledger.add([row(task, run, run.test)])

    return run_missing(bench, ledger, plan.kind_tasks(kinds), do)


def joined(faces: Sequence[Faces]) -> Faces:
    """Combine the pictures of several sets."""
    return Faces(
        *(torch.cat([getattr(part, name) for part in faces]) for name in ("images", "labels", "masks")),
        *(tuple(value for part in faces for value in getattr(part, name)) for name in ("people", "kinds")),
    )


def from_to(parts: Parts, train: str, test: str) -> Parts:
    """Combine the training and validation people of one folder with all people of another as test people."""

    def of(faces: Faces, folder: str) -> Faces:
        return faces.among({person for person in faces.people if person.startswith(f"{folder}/")})

    return Parts(of(parts.train, train), of(parts.validation, train), joined([of(part, test) for part in parts]))


def across_data_sets(bench: Bench) -> bool:
    """Train on portraits, test on all London faces; this extends datasets_runs.csv and datasets_scores.csv."""
    ledger = bench.ledger("datasets_runs")
    select = partial(from_to, train="portraits", test="london_faces")

    def do(task: Task) -> None:
        run = bench.train(task, select, "portraits-to-london-")
        scores = evidence.score_rows(evidence.label(task.network), run.test, fold=task.fold)
        bench.ledger("datasets_scores", evidence.SCORE_KEYS).add(scores)
        ledger.add([row(task, run, run.test)])

    return run_missing(bench, ledger, plan.study_tasks(plan.TRANSFERRED, range(plan.DATA_SET_FOLDS)), do)


# ---- the toy networks of Tables 2 to 4


def toys(bench: Bench) -> bool:
    """Train the toy networks and measure their self-information; this extends toys_runs.csv."""
    ledger = bench.ledger("toys_runs")

    def do(task: Task) -> None:
        run = bench.train(task)
        information = {
            f"{measured['state']}, behind the {measured['behind']}": round(fmean(measured[at] for at in LAYERS), 5)
            for measured in self_information(run, bench.source, OPTIONS)
            if measured["reduction"] == "mean"
        }
        ledger.add([row(task, run, run.test, **information)])

    bench.source.prepare([bench.pictures(0, "toy ")], 1)
    return run_missing(bench, ledger, plan.toy_tasks(), do)


# ---- the command line


def write_people(bench: Bench) -> None:
    """Write people.csv: the subset of each person, by running number."""
    people = data.people_of(bench.source.name, bench.source.root).values()
    named = {name: inside for name, inside in data.SUBSETS.items() if name != "all"}
    harness.write(
        bench.results / "people.csv",
        [
            {"person": person.name, "subset": next((name for name, inside in named.items() if inside(person)), "other")}
            for person in people
        ],
    )


def keep_memory() -> None:
    """Let glibc keep freed memory: returning it to the system bit by bit takes a tenth of the time on a CPU."""
    trim_threshold, mmap_threshold = -1, -3  # parameters of glibc's mallopt
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # other C libraries lack it
            for option in (trim_threshold, mmap_threshold):
                ctypes.CDLL(None).mallopt(option, 1 << 30)


def _report(results: Path) -> int:
    from benchmarks.reproduction import crossval_report, report

    page = ROOT / "docs/reproduction.md"
    page.write_text(report.put(page.read_text(), crossval_report.sections(results, results.parent / "full")))
    print(f"written: {page}")
    return 0


def _pilot(bench: Bench, options: argparse.Namespace) -> bool:
    done = study(bench, plan.pilot_tasks())
    if done:
        evidence.write_power(bench.results)
    return done


def _study(bench: Bench, options: argparse.Namespace) -> bool:
    tasks = [task for group in options.groups or GROUPS for task in plan.group_tasks(group)]
    return study(bench, tasks)


def _chosen(bench: Bench, options: argparse.Namespace) -> bool:
    search = bench.ledger("recipe_runs")
    if plan.chosen_recipe(search) is None:
        print("the search for a recipe is not finished; run the command recipe first")
        return False
    return study(bench, plan.chosen_tasks(search))


COMMANDS: Final[dict[str, Callable[[Bench, argparse.Namespace], bool]]] = {
    "pilot": _pilot,
    "study": _study,
    "recipe": lambda bench, options: recipe(bench),
    "chosen": _chosen,
    "kinds": lambda bench, options: across_kinds(bench),
    "datasets": lambda bench, options: across_data_sets(bench),
    "toys": lambda bench, options: toys(bench),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the requested command; the exit code is 0 if all is done, 3 if runs are left, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction.crossval", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("what", choices=(*COMMANDS, "report"), help="command to run")
    add("--data", type=Path, metavar="PATH", help="folder that contains portraits and london_faces")
    add("--budget", type=float, metavar="MINUTES", help="start no run that is expected to exceed this time")
    add("--groups", nargs="+", choices=GROUPS, metavar="GROUP",
        help=f"groups of networks in the study: {', '.join(GROUPS)} (default: all)")  # fmt: skip
    add("--work", type=Path, default=Path(".reproduction"), metavar="FOLDER", help="pictures, weights (%(default)s)")
    add("--results", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the CSV files")
    options = parser.parse_args(arguments)
    if options.what == "report":
        return _report(options.results)
    if options.data is None or not options.data.is_dir():
        parser.error(f"--data {options.data} is not a folder; give the one that contains portraits and london_faces")
    torch.set_num_threads(1)
    keep_memory()
    timing.machine(training.CPU)  # record the current commit, which is the one that runs
    source = Source("portraits", options.data, None, options.work / "pictures")
    bench = Bench(source, options.work, options.results, options.budget)
    source.prepare([bench.pictures(0)], 1)
    write_people(bench)
    try:
        done = COMMANDS[options.what](bench, options)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
