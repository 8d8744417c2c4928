"""The common parts of the tasks: the budget, the material, the training, and the resulting rows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.beyond.photographs import SUFFIXES
from benchmarks.beyond.pictures import Parts, Pictures
from benchmarks.reproduction import training

Row = dict[str, Any]
BATCH: Final = 4
LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.01
GAIN_RATE: Final = 20.0  # relative learning rate: gains must be able to get from 0 to 1, the published formula


@dataclass(frozen=True)
class Plan:
    """The budget of a run.

    Attributes:
        size: side of the pictures in pixels.
        squares: squares cut from each training photograph.
        tested: squares cut from each test photograph.
        people: largest number of people over all parts; None for everybody.
        epochs: passes over the train part.
        pretrained: whether to start from ImageNet weights.
    """

    size: int
    squares: int
    tested: int
    people: int | None
    epochs: int
    pretrained: bool = True


@dataclass(frozen=True)
class Material:
    """The material that pictures are made or read from.

    Attributes:
        photographs: folder of photographs; None for those of scikit-image and scikit-learn.
        faces: folder of a landmarked data set of faces, or None.
        tree: folder of a real data set of the task, instead of synthetic data; or None.
        cache: folder for forged faces.
    """

    photographs: Path | None = None
    faces: Path | None = None
    tree: Path | None = None
    cache: Path = Path(".reproduction/pictures")

    def about(self, task: Task) -> str:
        """Return a key that separates a task's runs: the folders' names and a digest of their files."""
        if self.tree is not None:
            return _described(self.tree)
        shipped = "photographs of scikit-image and scikit-learn"
        photographs = (
            [shipped if self.photographs is None else _described(self.photographs)] if task.of_photographs else []
        )
        faces = [_described(self.faces)] if task.of_faces and self.faces is not None else []
        return "; ".join([*photographs, *faces])


@functools.cache
def _described(folder: Path) -> str:
    """Return a folder's name, its number of pictures, and a digest of their names and sizes."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    listed = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files)
    return f"{folder.name}, {len(files)} files, {hashlib.sha256(listed.encode()).hexdigest()[:8]}"


class Task(ABC):
    """A task: its pictures, its network, its loss and its measures.

    Attributes:
        name: name on the command line and in the result files.
        measures: columns of figures of a run.
        of_photographs: whether its pictures are made from photographs.
        of_faces: whether they are made from faces.
    """

    name: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]
    of_photographs: ClassVar[bool] = True
    of_faces: ClassVar[bool] = True

    def __eq__(self, other: object) -> bool:
        """Tell whether both are the same task; this is for the cache of pictures in a process."""
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @abstractmethod
    def parts(self, material: Material, plan: Plan, seed: int) -> Parts:
        """Make or read the pictures.

        Raises:
            FileNotFoundError, ValueError: the material is not suitable for the task.
        """

    @abstractmethod
    def network(self, variant: str, pretrained: bool) -> nn.Module:
        """Return an untrained network."""

    @abstractmethod
    def loss(self, network: nn.Module, x: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss for pictures (N, 3, S, S), masks bool (N, S, S) and labels (N,)."""

    @abstractmethod
    def measured(self, network: nn.Module, parts: Parts) -> tuple[Row, list[Row]]:
        """Measure the network on the test part; return a row for the run, and rows by photograph or person."""

    @abstractmethod
    def summary(self, runs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
        """Return the table of means and intervals, from the rows of all runs as read from the CSV files."""

    def order(self, train: Pictures, generator: torch.Generator) -> Tensor:
        """Return an epoch's pictures as int64 indices; by default all of them in random order."""
        return torch.randperm(len(train), generator=generator)


def run(task: Task, variant: str, seed: int, plan: Plan, material: Material) -> tuple[Row, list[Row]]:
    """Train a network and measure it.

    Returns:
        The row of the run, with all its settings, and the rows by photograph or person.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    parts = parts_of(task, material, plan, seed)
    torch.manual_seed(seed)
    network = task.network(variant, plan.pretrained).to(memory_format=torch.channels_last)
    began = time.process_time()
    loss = fit(task, network, parts.train, plan.epochs, seed)
    seconds = time.process_time() - began
    figures, rows = task.measured(network.eval(), parts)
    summary = {
        **identity(task, variant, seed, plan, material),
        **figures,
        "last loss": round(loss, 4),
        "train pictures": len(parts.train),
        "test pictures": len(parts.test),
        "fingerprint": parts.fingerprint(),
        "parameters": sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        "gains": " ".join(f"{gain:.3f}" for gain in training.gain_values(network)),
        "core seconds": round(seconds, 1),
        **timing.machine(training.CPU),
    }
    return summary, [{"network": variant, "seed": seed, **row} for row in rows]


def identity(task: Task, variant: str, seed: int, plan: Plan, material: Material) -> Row:
    """Return everything that determines a run except the code, whose commit is recorded separately."""
    settings = {**dataclasses.asdict(plan), "batch": BATCH, "learning rate": LEARNING_RATE, "gain rate": GAIN_RATE}
    return {"network": variant, "seed": seed, "material": material.about(task), **settings}


@functools.lru_cache(maxsize=1)
def parts_of(task: Task, material: Material, plan: Plan, seed: int) -> Parts:
    """Return a task's pictures, cached for the next network with the same seed."""
    return task.parts(material, plan, seed)


def fit(task: Task, network: nn.Module, train: Pictures, epochs: int, seed: int) -> float:
    """Train a network with AdamW and one cycle of the learning rate; return the last epoch's mean loss.

    Pictures are flipped, shifted and made lighter or darker as in the reproduction of the paper. The weights of the
    last epoch are used; no checkpoint is selected by its score.
    """
    labels = train.labels
    optimizer = torch.optim.AdamW(training.groups(network, LEARNING_RATE, WEIGHT_DECAY, GAIN_RATE))
    steps = math.ceil(len(task.order(train, torch.Generator())) / BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps * epochs, pct_start=0.2,
        cycle_momentum=False,
    )  # fmt: skip
    network.train()
    losses: list[float] = []
    for epoch in range(epochs):
        generator, losses = training.random_numbers(seed, epoch), []
        for indices in task.order(train, generator).tensor_split(steps):
            x, masks = training.augmented(training.as_input(train.images[indices]), train.masks[indices], generator)
            loss = task.loss(network, x, masks, labels[indices])
            if not loss.isfinite():
                raise FloatingPointError(f"the loss became {loss.item()}; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return sum(losses) / max(1, len(losses))


def outputs(network: nn.Module, pictures: Pictures, batch: int = 32) -> Iterator[Tensor]:
    """Yield the network's output for each picture, in order."""
    with torch.no_grad():
        for images in pictures.images.split(batch):
            yield from network(training.as_input(images))
