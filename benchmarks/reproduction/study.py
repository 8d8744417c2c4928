"""The parts shared by all experiments: the data, the budget, the seeds and the folders."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import harness, timing
from benchmarks.reproduction import data, jobs, scores, training
from benchmarks.reproduction.data.faces import Parts
from benchmarks.reproduction.training import Run, Settings

Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """The budget of a study.

    Attributes:
        people: number of people over the three parts; None for everybody.
        toy_size: side of the pictures of the toy networks in pixels.
        toy_epochs: epochs of the toy networks.
        size: side of the pictures of all other networks in pixels.
        epochs: epochs of EfficientNet-Lite0 and its variants.
        method_epochs: epochs of the methods of Table 5.
        map_size: side in pixels of the pictures whose own self-information is compared with the masks.
    """

    people: int | None
    toy_size: int
    toy_epochs: int
    size: int
    epochs: int
    method_epochs: int
    map_size: int


# FULL takes about an hour on two cores, and QUICK six minutes.
FULL: Final = Budget(people=None, toy_size=64, toy_epochs=10, size=128, epochs=20, method_epochs=12, map_size=224)
QUICK: Final = Budget(people=30, toy_size=64, toy_epochs=3, size=96, epochs=3, method_epochs=2, map_size=128)

# Seconds per picture and epoch on one core of an AVX2 machine, at 64 pixels for toys and 128 for the others. They are
# used only to estimate the remaining time.
COSTS: Final = {"toy": 0.016, "lite": 0.020, "method": 0.035}
COST_SIZES: Final = {"toy": 64, "lite": 128, "method": 128}
LEARNING_RATES: Final = {"toy": 1e-3, "lite": 1e-3, "method": 1e-3}
BATCHES: Final = {"toy": 8, "lite": 16, "method": 16}


class Pictures(NamedTuple):
    """The parameters of a set of pictures."""

    size: int
    quality: str
    seed: int


class Facts(NamedTuple):
    """Facts about the pictures that training needs."""

    fingerprint: str
    kinds: tuple[str, ...]
    reals: int
    counts: dict[str, int]
    skipped: dict[str, int]
    masks: bool  # whether any fake in the test part has a mask


@dataclass(frozen=True)
class Source:
    """A data set and the number of its people to use.

    Attributes:
        name: one of ``data.SOURCES``.
        root: folder of the data set.
        people: number of people; None for everybody.
        cache: folder for finished pictures.
    """

    name: str
    root: Path
    people: int | None
    cache: Path

    def prepare(self, needed: Iterable[Pictures], processes: int) -> None:
        """Make the pictures that several seeds share, in several processes."""
        for pictures in needed:
            parameters = {**pictures._asdict(), "people": self.people, "cache": self.cache}
            data.prepare(self.name, self.root, **parameters, processes=processes)

    def parts(self, pictures: Pictures) -> Parts:
        """Return the pictures from the cache, and make them first if they are missing."""
        return _parts(self, pictures)


@functools.lru_cache(maxsize=2)
def _parts(source: Source, pictures: Pictures) -> Parts:
    return data.load(source.name, source.root, **pictures._asdict(), people=source.people, cache=source.cache)


def facts(source: Source, pictures: Pictures) -> Facts:
    """Make the pictures unless they are in the cache, and return facts about them."""
    parts = source.parts(pictures)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.images.numpy().tobytes())
        digest.update(json.dumps([part.labels.tolist(), part.people, part.kinds]).encode())
    kinds = tuple(dict.fromkeys(kind for kind in parts.test.kinds if kind != "real"))
    counts = {f"{name} people": len(set(part.people)) for name, part in zip(Parts._fields, parts, strict=True)}
    counts |= {f"{name} pictures": len(part) for name, part in zip(Parts._fields, parts, strict=True)}
    skipped: dict[str, int] = {}
    for _, reason in {skip for part in parts for skip in part.skipped}:
        skipped[reason] = skipped.get(reason, 0) + 1
    reals, masks = parts.train.kinds.count("real"), bool(parts.test.masks.any())
    return Facts(digest.hexdigest()[:16], kinds, reals, counts, skipped, masks)


@dataclass(frozen=True)
class Measurement:
    """A measurement on a trained network.

    Attributes:
        name: name of the result file in the run's folder.
        settings: settings of the run.
        function: module-level function of the run, the source and the options that returns rows.
        options: everything else that determines the rows, as JSON values.
        cost: approximate duration in seconds.
    """

    name: str
    settings: Settings
    function: Callable[[Run, Source, Row], list[Row]]
    options: Row
    cost: float

    @property
    def key(self) -> str:
        """Name in the progress bar and in messages."""
        return f"{self.name} of {self.settings.key}"


@dataclass
class Study:
    """A call of the command line: the data, the budget, the seeds, and the folders.

    Attributes:
        source: the data set.
        budget: budget of the study.
        seeds: seeds of the runs.
        work: folder of weights and checkpoints.
        results: folder of the tables.
        images: folder of the figures.
        pretrained: whether to start from ImageNet weights.
        known: facts about every set of pictures, set by :meth:`prepare`.
    """

    source: Source
    budget: Budget
    seeds: Sequence[int]
    work: Path
    results: Path
    images: Path
    pretrained: bool = True
    known: dict[Pictures, Facts] = field(default_factory=dict)

    def prepare(self, needed: Iterable[Pictures], processes: int) -> jobs.Errors:
        """Make all necessary pictures; return the errors."""
        needed = list(dict.fromkeys(needed))
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # the same error recurs below and is reported
            self.source.prepare(needed, processes)
        todo = [
            jobs.Job(
                f"{pictures.size} px {pictures.quality}, seed {pictures.seed}", 1.0, facts, (self.source, pictures)
            )
            for pictures in needed
        ]
        results, errors = jobs.run(todo, processes, "pictures")
        self.known |= {job.arguments[1]: results[job.name] for job in todo if job.name in results}
        return errors

    def settings(self, network: str, seed: int, kinds: Sequence[str] | None = None, quality: str = "HQ") -> Settings:
        """Return the settings of a run, from the budget.

        Args:
            network: family and name, as :class:`Settings` takes it.
            seed: seed of the run.
            kinds: manipulations; None for all.
            quality: quality of the pictures.
        """
        family = network.partition(" ")[0]
        budget = self.budget
        epochs = {"toy": budget.toy_epochs, "lite": budget.epochs, "method": budget.method_epochs}[family]
        size = budget.toy_size if family == "toy" else budget.size
        known = self.known[Pictures(size, quality, seed)]
        return Settings(
            network=network,
            kinds=tuple(kinds or known.kinds),
            source=self.source.name,
            data=known.fingerprint,
            quality=quality,
            size=size,
            seed=seed,
            epochs=epochs,
            batch=BATCHES[family],
            learning_rate=LEARNING_RATES[family],
            pretrained=self.pretrained,
        )

    def kinds(self, size: int, quality: str = "HQ") -> tuple[str, ...]:
        """Return the available manipulations."""
        return self.known[Pictures(size, quality, self.seeds[0])].kinds

    def train(self, wanted: Iterable[Settings], processes: int) -> jobs.Errors:
        """Train everything that is not trained yet; return the errors."""
        todo = [
            jobs.Job(settings.key, self._cost(settings), train, (settings, self.source, self.folder(settings)))
            for settings in dict.fromkeys(wanted)
            if not (self.folder(settings) / training.RESULT).exists()
        ]
        return jobs.run(todo, processes, "training")[1]

    def measure(self, wanted: Iterable[Measurement], processes: int) -> jobs.Errors:
        """Make all missing measurements; return the errors."""
        todo = [
            jobs.Job(missing.key, missing.cost, measure, (missing, self.source, self.folder(missing.settings)))
            for missing in wanted
            if self.measured(missing) is None
        ]
        return jobs.run(todo, processes, "measuring")[1]

    def run(self, settings: Settings) -> Run:
        """Return a completed run."""
        return training.load(self.folder(settings))

    def runs(self, network: str, kinds: Sequence[str] | None = None, quality: str = "HQ") -> list[Run]:
        """Return the runs of a network, in the order of the seeds."""
        return [self.run(self.settings(network, seed, kinds, quality)) for seed in self.seeds]

    def measured(self, measurement: Measurement) -> list[Row] | None:
        """Return the rows of a measurement; None if it is missing or was made with other options."""
        path = self.folder(measurement.settings) / f"{measurement.name}.json"
        saved = json.loads(path.read_text()) if path.exists() else {}
        return saved["rows"] if saved.get("options") == _as_json(measurement.options) else None

    def folder(self, settings: Settings) -> Path:
        """Return the folder of a run."""
        return self.work / "runs" / settings.key

    def forget(self, wanted: Iterable[Settings]) -> None:
        """Delete runs and all measurements on them."""
        for settings in wanted:
            shutil.rmtree(self.folder(settings), ignore_errors=True)

    def write(self, name: str, rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
        """Write rows as CSV, with the machine and the setting in each.

        Args:
            name: name of the file.
            rows: rows to write, with all their keys.
            columns: columns that are also printed, with their formats; None prints nothing.
        """
        print(f"\n{name}")
        table = harness.Table(training.CPU, columns or {})
        setting = {"data set": self.source.name, "seeds": " ".join(map(str, self.seeds)), "budget": self._spent()}
        for row in rows:
            if columns is None:
                table.rows.append({**row, **setting})
            else:
                table.add(**row, **setting)
        table.write(self.results / f"{name}.csv")

    def about(self, run: Run) -> Row:
        """Return a run's columns in a row: its settings, figures, seconds, versions and commit."""
        reach = {"gains at most about": self.reach(run.settings)} if run.record["gains"] else {}
        return {
            **{key: value for key, value in vars(run.settings).items() if key != "kinds"},
            "kinds": ", ".join(run.settings.kinds),
            "ACC": scores.accuracy(run.test),
            "AUC": scores.auc(run.test),
            "validation AUC": scores.auc(run.validation),
            "run": run.settings.key,
            **{f"run's {key}": value for key, value in run.record.items()},
            **reach,
        }

    def reach(self, settings: Settings) -> float:
        """Return approximately how far SIA's gains can move from 0 in a run's steps.

        Adam moves a parameter by about its learning rate per step, and the rate of a one-cycle schedule averages about
        half of its maximum.
        """
        reals = self.known[Pictures(settings.size, settings.quality, settings.seed)].reals
        steps = settings.epochs * math.ceil(2 * reals / settings.batch)
        return round(steps * training.GAIN_RATE * settings.learning_rate / 2, 2)

    def write_data(self) -> None:
        """Write data.csv: the people and pictures of every part, and how many pictures were unusable and why.

        Pictures that an earlier call recorded for other experiments are kept.
        """
        path, rows = self.results / "data.csv", {}
        for row in harness.read(path) if path.exists() else []:
            if (row["data set"], row["budget"]) == (self.source.name, self._spent()):
                rows[int(row["size"]), row["quality"], int(row["seed"])] = dict(row)
        for pictures, known in self.known.items():
            rows[pictures] = {
                **pictures._asdict(),
                **known.counts,
                "skipped": "; ".join(f"{count}: {reason}" for reason, count in known.skipped.items()) or "0",
                "fingerprint": known.fingerprint,
            }
        self.write("data", [rows[pictures] for pictures in sorted(rows)])

    def _spent(self) -> str:
        """Return a description of the budget."""
        return ", ".join(f"{name.replace('_', ' ')} {value or 'all'}" for name, value in vars(self.budget).items())

    def _cost(self, settings: Settings) -> float:
        family = settings.network.partition(" ")[0]
        reals = self.known[Pictures(settings.size, settings.quality, settings.seed)].reals
        return 2 * reals * settings.epochs * COSTS[family] * (settings.size / COST_SIZES[family]) ** 2


def train(settings: Settings, source: Source, folder: Path) -> None:
    """Train a run in any process."""
    pictures = Pictures(settings.size, settings.quality, settings.seed)
    training.train(settings, source.parts(pictures), folder)


def measure(measurement: Measurement, source: Source, folder: Path) -> None:
    """Make a measurement in any process, and write its rows to the run's folder."""
    rows = measurement.function(training.load(folder), source, measurement.options)
    result = {"options": measurement.options, "rows": rows, **timing.machine(training.CPU)}
    harness.replace(folder / f"{measurement.name}.json", lambda path: path.write_text(json.dumps(result)))


def _as_json(value: Row) -> Row:
    """Return the value as it reads back from JSON, where tuples become lists."""
    read: Row = json.loads(json.dumps(value))
    return read
