"""The runs of a comparison: each variant with each seed, trained alike, and kept so that a stopped call goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import harness, timing
from benchmarks.compare.models import Classifier, make
from benchmarks.reproduction.data.faces import Faces, Parts
from benchmarks.reproduction.scores import Predictions, accuracy, auc
from benchmarks.reproduction.training import as_input, augmented, sampled

RUNS: Final = "runs.csv"
CURVES: Final = "curves.csv"
LARGE: Final = 8  # pictures of a group, on average
CHECKPOINT: Final = "checkpoint.pt"


@dataclass(frozen=True)
class Config:
    """All that decides a run's figures, but for its variant, its seed and the code.

    Attributes:
        model: name in timm.
        weights: that it starts from: digest of a checkpoint, "pretrained" or "random".
        dataset: name of the data set.
        data: fingerprint of its files.
        quality: of the JPEG step that all pictures pass.
        groups: how many are used at most; None for all.
        size: side of the pictures in pixels.
        epochs: passes over the real pictures.
        batch: pictures a step, at most.
        learning_rate: the highest of the schedule.
        gain_rate: that of SIA's gains over that of all else.
        weight_decay: of weights, not of biases and norms.
        ema: decay of the averaged weights, which are those that are tested; 0 to test the last ones.
        precision: that networks are trained in.
    """

    model: str
    weights: str
    dataset: str
    data: str
    quality: str
    groups: int | None
    size: int
    epochs: int
    batch: int
    learning_rate: float
    gain_rate: float
    weight_decay: float
    ema: float
    precision: str


class Place(NamedTuple):
    """Where networks are trained.

    Attributes:
        device: of the network.
        dtype: of autocast; float32 for none.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision, where it is wanted."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Start(NamedTuple):
    """What a model starts from.

    Attributes:
        checkpoint: file of its weights.
        pretrained: take timm's weights.
    """

    checkpoint: Path | None
    pretrained: bool


class Store:
    """The runs that are done, in a folder: a row each in ``runs.csv``, and what they said of the test pictures.

    Args:
        folder: of one comparison.
        config: that its runs must have.

    Raises:
        ValueError: if it holds runs of another configuration.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.rows = harness.read(folder / RUNS) if (folder / RUNS).exists() else []
        self.curves = harness.read(folder / CURVES) if (folder / CURVES).exists() else []
        wanted = {name: "" if value is None else str(value) for name, value in dataclasses.asdict(config).items()}
        for row in self.rows:
            other = [f"{name} {row.get(name)}, not {value}" for name, value in wanted.items() if row.get(name) != value]
            if other:
                raise ValueError(
                    f"{folder / RUNS} holds runs of another configuration: {'; '.join(other)}. "
                    "Give another --out, or --fresh to throw them away"
                )

    def has(self, variant: str, seed: int) -> bool:
        """Tell whether a run is done."""
        known = any((row["variant"], row["seed"]) == (variant, str(seed)) for row in self.rows)
        return known and self._predictions(variant, seed).exists()

    def add(self, variant: str, seed: int, row: dict[str, Any], curve: list[dict[str, Any]], said: Predictions) -> None:
        """Write a run that is done, the row that says so last."""
        names = {"variant": variant, "seed": seed}
        told = [
            {"label": label, "logit": logit, "group": group, "kind": kind}
            for label, logit, group, kind in zip(*said.to_lists().values(), strict=True)
        ]
        harness.write(self._predictions(variant, seed), told)
        self.curves = [*self._others(self.curves, variant, seed), *({**names, **each} for each in curve)]
        harness.write(self.folder / CURVES, self.curves)
        self.rows = [*self._others(self.rows, variant, seed), {**names, **row, **dataclasses.asdict(self.config)}]
        harness.write(self.folder / RUNS, self.rows)
        self.rows = harness.read(self.folder / RUNS)
        self.curves = harness.read(self.folder / CURVES)

    def said(self, variant: str, seed: int) -> Predictions:
        """Return what a run said of its test pictures."""
        rows = harness.read(self._predictions(variant, seed))
        labels, logits = [int(row["label"]) for row in rows], [float(row["logit"]) for row in rows]
        return Predictions.from_lists(labels, logits, [row["group"] for row in rows], [row["kind"] for row in rows])

    def _predictions(self, variant: str, seed: int) -> Path:
        return self.folder / "predictions" / f"{variant}-{seed}.csv"

    @staticmethod
    def _others(rows: Sequence[dict[str, str]], variant: str, seed: int) -> list[dict[str, Any]]:
        return [row for row in rows if (row["variant"], row["seed"]) != (variant, str(seed))]


def train(store: Store, variant: str, seed: int, parts: Parts, start: Start, place: Place, bar: tqdm[Any]) -> None:
    """Train a variant with a seed, or go on with it where it was stopped, test it, and write it down.

    Args:
        store: where it is kept.
        variant: a key of ``variants.VARIANTS``.
        seed: of the new weights, of the order of the pictures and of how they are changed.
        parts: the pictures.
        start: the weights before training.
        place: where to train.
        bar: to be moved on by every picture.

    Raises:
        FloatingPointError: the loss or the logits are not finite.
    """
    config, faces = store.config, parts.train
    model = make(config.model, variant, config.size, seed, *start)
    model = model.to(place.device, memory_format=torch.channels_last)
    training = _Training(model, config, place, _steps(faces, config.batch))
    began, spent = training.resumed(store.folder / CHECKPOINT, f"{variant} {seed} {config}", bar, faces)
    for epoch in range(began, config.epochs):
        started = time.monotonic()
        loss = training.epoch(faces, _random(seed, epoch), bar)
        spent += time.monotonic() - started
        found = predictions(training.tested, parts.validation, place, config.batch)
        training.curve.append({"epoch": epoch + 1, "loss": loss, "validation AUC": auc(found)})
        training.keep(store.folder / CHECKPOINT, f"{variant} {seed} {config}", epoch + 1, spent)
    said = predictions(training.tested, parts.test, place, config.batch)
    row = {
        "AUC": auc(said),
        "ACC": accuracy(said),
        "validation AUC": training.curve[-1]["validation AUC"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gains": " ".join(f"{gain.item():.3f}" for gain in model.gains()),
        "seconds": round(spent, 1),
        "pictures a second": round(pictures_of(faces, config) / max(spent, 1e-9), 1),
        **{f"{name} pictures": len(part) for name, part in parts._asdict().items()},
        **{f"{name} groups": len(set(part.people)) for name, part in parts._asdict().items()},
        **timing.machine(place.device),
    }
    store.add(variant, seed, row, training.curve, said)
    (store.folder / CHECKPOINT).unlink(missing_ok=True)


def pictures_of(faces: Faces, config: Config) -> int:
    """Return how many pictures a run takes of a train part, over all epochs."""
    return config.epochs * sum(map(len, _batches(faces, torch.Generator().manual_seed(0), config.batch)))


def predictions(model: nn.Module, faces: Faces, place: Place, batch: int) -> Predictions:
    """Return what a network says of pictures, in evaluation mode.

    Raises:
        FloatingPointError: a logit is not finite.
    """
    model.eval()
    found = []
    with torch.no_grad(), place.autocast():
        for part in faces.images.split(2 * batch):
            found.append(model(as_input(part).to(place.device)).float().cpu())
    logits = torch.cat(found)
    if not logits.isfinite().all():
        raise FloatingPointError(f"{int((~logits.isfinite()).sum())} logits are not finite; lower --lr")
    return Predictions(faces.labels.numpy(), logits.numpy(), faces.people, faces.kinds)


class _Training:
    """A network being trained, with all that is to be kept of it.

    Attributes:
        curve: loss and validation score after each epoch.
    """

    def __init__(self, model: Classifier, config: Config, place: Place, steps: int) -> None:
        self.model, self.config, self.place = model, config, place
        self.optimizer = create_optimizer_v2(_groups(model, config), opt="adamw", lr=config.learning_rate)
        warm = math.ceil(config.epochs / 10) % config.epochs
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=config.epochs, warmup_epochs=warm, warmup_lr=0.0,
            step_on_epochs=False, updates_per_epoch=steps,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.dtype == torch.float16)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.updates = 0
        self.curve: list[dict[str, Any]] = []
        self.scheduler.step_update(0)

    @property
    def tested(self) -> nn.Module:
        """The network whose scores count: that of the averaged weights, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def epoch(self, faces: Faces, generator: torch.Generator, bar: tqdm[Any]) -> float:
        """Take every real picture once, and as many fakes; the mean loss."""
        self.model.train()
        losses = []
        for indices in _batches(faces, generator, self.config.batch):
            pictures, _ = augmented(as_input(faces.images[indices]), faces.masks[indices], generator)
            labels = faces.labels[indices].float().to(self.place.device)
            with self.place.autocast():
                logits = self.model(pictures.to(self.place.device))
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
            losses.append(loss.detach())
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.updates += 1
            self.scheduler.step_update(self.updates)
            if self.ema is not None:
                self.ema.update(self.model, step=self.updates)
            bar.update(len(indices))
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss became {mean}; lower --lr")
        return mean

    def keep(self, path: Path, name: str, epochs: int, spent: float) -> None:
        """Write all that going on needs, after some epochs."""
        held = {key: part.state_dict() for key, part in self._parts().items()}
        about = {"name": name, "epochs": epochs, "updates": self.updates, "spent": spent, "curve": self.curve}
        harness.replace(path, partial(torch.save, {**held, **about}))

    def resumed(self, path: Path, name: str, bar: tqdm[Any], faces: Faces) -> tuple[int, float]:
        """Take up a run that was stopped, if this is the one that was kept; epochs done and seconds taken."""
        held = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {}
        if held.get("name") != name:
            return 0, 0.0
        for key, part in self._parts().items():
            part.load_state_dict(held[key])
        self.updates, self.curve = held["updates"], held["curve"]
        bar.update(held["epochs"] * pictures_of(faces, self.config) // self.config.epochs)
        return held["epochs"], held["spent"]

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return parts if self.ema is None else {**parts, "ema": self.ema.module}


def _batches(faces: Faces, generator: torch.Generator, batch: int) -> Iterator[Tensor]:
    """An epoch's pictures, in steps of as even a size as can be.

    Those of a group come together, real beside fake, unless groups are so large that one would fill a step.
    """
    together = len(faces) <= LARGE * len(set(faces.people))
    names = faces.people if together else [str(index) for index in range(len(faces))]
    drawn = sampled(faces.kinds, names, generator)
    yield from drawn.tensor_split(math.ceil(len(drawn) / batch))


def _steps(faces: Faces, batch: int) -> int:
    return len(list(_batches(faces, torch.Generator().manual_seed(0), batch)))


def _random(seed: int, epoch: int) -> torch.Generator:
    """An epoch's random numbers, the same for every variant; dropout draws from torch's own, seeded alike."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def _groups(model: Classifier, config: Config) -> list[dict[str, Any]]:
    """Parameters as timm groups them, but for SIA's gains, which have a rate of their own."""
    gains = set(model.gains())
    groups = param_groups_weight_decay(model, config.weight_decay)
    made: list[dict[str, Any]] = [
        {**group, "params": [each for each in group["params"] if each not in gains]} for group in groups
    ]
    rate = config.gain_rate * config.learning_rate
    made.append({"params": model.gains(), "weight_decay": 0.0, "lr": rate})
    return [group for group in made if group["params"]]
