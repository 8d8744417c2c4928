"""The runs of a comparison: train each variant with each seed in the same way, and save enough to resume."""

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
LARGE: Final = 8  # average number of pictures per group from which groups count as large
CHECKPOINT: Final = "checkpoint.pt"


@dataclass(frozen=True)
class Config:
    """All settings that determine a run's figures, except its variant, its seed and the code.

    Attributes:
        model: name in timm.
        weights: initial weights: digest of a checkpoint, "pretrained" or "random".
        dataset: name of the data set.
        data: fingerprint of its files.
        quality: JPEG quality applied to all pictures.
        groups: largest number of groups used; None for all.
        size: side of the pictures in pixels.
        epochs: passes over the real pictures.
        batch: most pictures per step.
        learning_rate: highest learning rate of the schedule.
        gain_rate: learning rate of SIA's gains relative to that of all other parameters.
        weight_decay: weight decay, not for biases and norms.
        ema: decay of the averaged weights, which are tested; 0 to test the last weights.
        precision: precision of training.
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
    """The place where networks are trained.

    Attributes:
        device: device of the network.
        dtype: dtype of autocast; float32 for none.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context of mixed precision, or one without effect for float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Start(NamedTuple):
    """The initial weights of a model.

    Attributes:
        checkpoint: file with its weights, or None.
        pretrained: whether to use timm's weights.
    """

    checkpoint: Path | None
    pretrained: bool


class Store:
    """The completed runs in a folder: one row each in ``runs.csv``, and their predictions for the test pictures.

    Args:
        folder: folder of one comparison.
        config: configuration that its runs must have.

    Raises:
        ValueError: if it contains runs with another configuration.
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
                    f"{folder / RUNS} has runs of another configuration: {'; '.join(other)}. "
                    "Choose another --out, or discard them with --fresh"
                )

    def has(self, variant: str, seed: int) -> bool:
        """Tell whether a run is complete."""
        known = any((row["variant"], row["seed"]) == (variant, str(seed)) for row in self.rows)
        return known and self._predictions(variant, seed).exists()

    def add(
        self, variant: str, seed: int, row: dict[str, Any], curve: list[dict[str, Any]], predicted: Predictions
    ) -> None:
        """Record a completed run; write its row last, since it marks the run as complete."""
        names = {"variant": variant, "seed": seed}
        rows = [
            {"label": label, "logit": logit, "group": group, "kind": kind}
            for label, logit, group, kind in zip(*predicted.to_lists().values(), strict=True)
        ]
        harness.write(self._predictions(variant, seed), rows)
        self.curves = [*self._others(self.curves, variant, seed), *({**names, **each} for each in curve)]
        harness.write(self.folder / CURVES, self.curves)
        self.rows = [*self._others(self.rows, variant, seed), {**names, **row, **dataclasses.asdict(self.config)}]
        harness.write(self.folder / RUNS, self.rows)
        self.rows = harness.read(self.folder / RUNS)
        self.curves = harness.read(self.folder / CURVES)

    def load_predictions(self, variant: str, seed: int) -> Predictions:
        """Return a run's predictions for its test pictures."""
        rows = harness.read(self._predictions(variant, seed))
        labels, logits = [int(row["label"]) for row in rows], [float(row["logit"]) for row in rows]
        return Predictions.from_lists(labels, logits, [row["group"] for row in rows], [row["kind"] for row in rows])

    def _predictions(self, variant: str, seed: int) -> Path:
        return self.folder / "predictions" / f"{variant}-{seed}.csv"

    @staticmethod
    def _others(rows: Sequence[dict[str, str]], variant: str, seed: int) -> list[dict[str, Any]]:
        return [row for row in rows if (row["variant"], row["seed"]) != (variant, str(seed))]


def train(store: Store, variant: str, seed: int, parts: Parts, start: Start, place: Place, bar: tqdm[Any]) -> None:
    """Train a variant with a seed, or resume its training, test it, and record the run.

    Args:
        store: store that records the run.
        variant: a key of ``variants.VARIANTS``.
        seed: seed of the new weights, the order of the pictures and their augmentation.
        parts: the pictures.
        start: initial weights.
        place: device and precision of training.
        bar: progress bar, which advances with every picture.

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
    predicted = predictions(training.tested, parts.test, place, config.batch)
    row = {
        "AUC": auc(predicted),
        "ACC": accuracy(predicted),
        "validation AUC": training.curve[-1]["validation AUC"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gains": " ".join(f"{gain.item():.3f}" for gain in model.gains()),
        "seconds": round(spent, 1),
        "pictures a second": round(pictures_of(faces, config) / max(spent, 1e-9), 1),
        **{f"{name} pictures": len(part) for name, part in parts._asdict().items()},
        **{f"{name} groups": len(set(part.people)) for name, part in parts._asdict().items()},
        **timing.machine(place.device),
    }
    store.add(variant, seed, row, training.curve, predicted)
    (store.folder / CHECKPOINT).unlink(missing_ok=True)


def pictures_of(faces: Faces, config: Config) -> int:
    """Return the number of training pictures that a run processes over all epochs."""
    return config.epochs * sum(map(len, _batches(faces, torch.Generator().manual_seed(0), config.batch)))


def predictions(model: nn.Module, faces: Faces, place: Place, batch: int) -> Predictions:
    """Return a network's predictions for pictures, in evaluation mode.

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
    """A network during training, with everything that must be saved to resume.

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
        """The network to test: that of the averaged weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def epoch(self, faces: Faces, generator: torch.Generator, bar: tqdm[Any]) -> float:
        """Train on every real picture once and on as many fakes; return the mean loss."""
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
        """Save everything that is needed to resume after some epochs."""
        saved = {key: part.state_dict() for key, part in self._parts().items()}
        about = {"name": name, "epochs": epochs, "updates": self.updates, "spent": spent, "curve": self.curve}
        harness.replace(path, partial(torch.save, {**saved, **about}))

    def resumed(self, path: Path, name: str, bar: tqdm[Any], faces: Faces) -> tuple[int, float]:
        """Resume an interrupted run if the file belongs to it; return its completed epochs and seconds."""
        saved = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else {}
        if saved.get("name") != name:
            return 0, 0.0
        for key, part in self._parts().items():
            part.load_state_dict(saved[key])
        self.updates, self.curve = saved["updates"], saved["curve"]
        bar.update(saved["epochs"] * pictures_of(faces, self.config) // self.config.epochs)
        return saved["epochs"], saved["spent"]

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        return parts if self.ema is None else {**parts, "ema": self.ema.module}


def _batches(faces: Faces, generator: torch.Generator, batch: int) -> Iterator[Tensor]:
    """Yield an epoch's pictures in steps of nearly equal size.

    Pictures of a group come together, real beside fake, unless groups are so large that one would fill a step.
    """
    together = len(faces) <= LARGE * len(set(faces.people))
    names = faces.people if together else [str(index) for index in range(len(faces))]
    drawn = sampled(faces.kinds, names, generator)
    yield from drawn.tensor_split(math.ceil(len(drawn) / batch))


def _steps(faces: Faces, batch: int) -> int:
    return len(list(_batches(faces, torch.Generator().manual_seed(0), batch)))


def _random(seed: int, epoch: int) -> torch.Generator:
    """Return an epoch's generator, the same for every variant, and seed torch's own, which dropout uses, alike."""
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def _groups(model: Classifier, config: Config) -> list[dict[str, Any]]:
    """Group parameters as timm does, but give SIA's gains a group with their own learning rate."""
    gains = set(model.gains())
    groups = param_groups_weight_decay(model, config.weight_decay)
    made: list[dict[str, Any]] = [
        {**group, "params": [each for each in group["params"] if each not in gains]} for group in groups
    ]
    rate = config.gain_rate * config.learning_rate
    made.append({"params": model.gains(), "weight_decay": 0.0, "lr": rate})
    return [group for group in made if group["params"]]
