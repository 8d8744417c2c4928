"""A training run: seeded, resumable, and recorded with all its settings.

Every network is trained in the same way: AdamW with a one-cycle learning rate, horizontal flips, shifts by up to a
sixteenth of the picture, up to a tenth more or less light, and as many fakes per epoch as there are real pictures,
drawn evenly over the manipulations. The weights of the last epoch are tested; no checkpoint is selected by its score.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import timing
from benchmarks.harness import replace
from benchmarks.reproduction import networks
from benchmarks.reproduction.data.faces import Faces, Parts
from benchmarks.reproduction.networks.recipes import GAIN_RATE, gains_of
from benchmarks.reproduction.scores import Predictions

CHECKPOINT, RESULT, WEIGHTS = "checkpoint.pt", "result.json", "weights.pt"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """All settings that determine the figures of a run; the result also records the commit of the code.

    Attributes:
        network: family and name: ``"toy Norm"``, ``"lite SIA"``, ``"method SPSL"`` or ``"method SPSL+SIA"``.
        kinds: manipulations to train and test on.
        source: name of the data set.
        data: fingerprint of its pictures, after all preparation.
        quality: ``"HQ"`` or ``"LQ"``.
        size: side of the pictures in pixels.
        seed: seed of the split by person, the manipulations, the initial weights and the order of the pictures.
        epochs: passes over the real pictures.
        batch: largest number of pictures per step.
        learning_rate: highest learning rate of the cycle.
        weight_decay: weight decay of convolutions and linear layers.
        pretrained: whether to start from ImageNet weights, if the network has them.
        test_kinds: manipulations to test on; empty for those that it is trained on.
        repeat: number of the repetition; each has other initial weights and another order of the same pictures.
        gain_rate: learning rate of SIA's gains relative to that of the weights.
    """

    network: str
    kinds: tuple[str, ...]
    source: str
    data: str
    quality: str
    size: int
    seed: int
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    pretrained: bool = True
    test_kinds: tuple[str, ...] = ()
    repeat: int = 0
    gain_rate: float = GAIN_RATE

    @property
    def key(self) -> str:
        """Readable name with a hash of all settings, so that no two runs share a folder."""
        kinds = self.kinds[0] if len(self.kinds) == 1 else "all"
        name = f"{self.network} {kinds} {self.quality} {self.size} seed {self.seed}"
        settings = json.dumps(dataclasses.asdict(self), sort_keys=True)
        if self.repeat:
            name += f" again {self.repeat}"
        return re.sub(r"[^\w+=-]+", "-", name) + "-" + hashlib.sha256(settings.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Run:
    """A completed run.

    Attributes:
        settings: settings of the run.
        folder: folder of its weights.
        test: labels and logits of the test part.
        validation: labels and logits of the validation part.
        record: other recorded facts: seconds, parameters, versions, commit, date.
    """

    settings: Settings
    folder: Path
    test: Predictions
    validation: Predictions
    record: dict[str, Any]

    def detector(self) -> nn.Module:
        """Return the trained network, in evaluation mode."""
        detector = create(self.settings)
        detector.load_state_dict(torch.load(self.folder / WEIGHTS, weights_only=True))
        return detector.eval()


def create(settings: Settings) -> networks.Detector:
    """Return an untrained network; the seed determines all weights that are not pretrained.

    Raises:
        ValueError: the network is unknown.
    """
    torch.manual_seed(_mixed(settings))
    family, _, name = settings.network.partition(" ")
    detector: networks.Detector
    if family == "toy":
        detector = networks.toy(name)
    elif family == "lite":
        detector = networks.lite(name, pretrained=settings.pretrained)
    elif family == "recipe":
        detector = networks.recipe(name, pretrained=settings.pretrained)
    elif family == "method":
        method, plus, _ = name.partition("+SIA")
        detector = networks.method(method, sia=bool(plus), pretrained=settings.pretrained)
    else:
        raise ValueError(f"network must begin with 'toy', 'lite', 'recipe' or 'method', got {settings.network!r}")
    return detector.to(memory_format=torch.channels_last)  # twice as fast on CPUs, with the same arithmetic


def train(settings: Settings, parts: Parts, folder: Path) -> Run:
    """Train a network, resume an interrupted run, or load a completed one.

    A checkpoint is written after every epoch. An epoch's random numbers depend only on its number and the seed, so a
    run that was killed and resumed ends with the same bits as an uninterrupted one.

    Args:
        settings: settings of the run.
        parts: pictures of all kinds; those of ``settings.kinds`` are used.
        folder: folder for this run only.

    Raises:
        ValueError: a part lacks real pictures, or pictures of a kind.
        FloatingPointError: the loss or the logits are not finite.
    """
    if (folder / RESULT).exists():
        return load(folder)
    kinds = (settings.kinds, settings.kinds, settings.test_kinds or settings.kinds)
    parts = Parts(*map(_of_kinds, parts, kinds, Parts._fields))
    folder.mkdir(parents=True, exist_ok=True)
    detector = create(settings)
    optimizer = torch.optim.AdamW(groups(detector, settings.learning_rate, settings.weight_decay, settings.gain_rate))
    steps = math.ceil(2 * parts.train.kinds.count("real") / settings.batch)
    highest = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, highest, total_steps=steps * settings.epochs, pct_start=0.2, cycle_momentum=False
    )
    state = {"detector": detector, "optimizer": optimizer, "scheduler": scheduler}
    done, seconds = _resumed(state, folder)
    for epoch in range(done, settings.epochs):
        began = time.process_time()
        _epoch(detector, optimizer, scheduler, parts.train, steps, _random(settings, epoch))
        seconds += time.process_time() - began
        states = {name: part.state_dict() for name, part in state.items()}
        replace(folder / CHECKPOINT, partial(torch.save, {**states, "epochs": epoch + 1, "seconds": seconds}))
    return _finished(settings, detector, parts, folder, seconds)


def load(folder: Path) -> Run:
    """Load a completed run.

    Raises:
        FileNotFoundError: the run is not complete.
    """
    record = json.loads((folder / RESULT).read_text())
    values = record.pop("settings")
    settings = Settings(**{**values, **{name: tuple(values[name]) for name in ("kinds", "test_kinds")}})
    test, validation = (Predictions.from_lists(**record.pop(name)) for name in ("test", "validation"))
    return Run(settings, folder, test, validation, record)


def predict(detector: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Return the logits (N,) of pictures uint8 (N, 3, S, S), in evaluation mode."""
    detector.eval()
    with torch.no_grad():
        return torch.cat([detector(as_input(part)) for part in images.split(batch)])


def as_input(images: Tensor) -> Tensor:
    """Convert pictures uint8 (N, 3, S, S) to network input: float32 from 0 to 1."""
    return images.float().div(255).contiguous(memory_format=torch.channels_last)


def sampled(kinds: Sequence[str], people: Sequence[str], generator: torch.Generator) -> Tensor:
    """Draw an epoch's pictures: every real one, and as many fakes, evenly over the manipulations.

    People come in random order, and all pictures of a person are adjacent. The real and fake pictures in a batch then
    show mostly the same people; otherwise small networks learn nothing from few people. If some people have pictures of
    only one class, which could fill whole batches, the pictures are in random order instead.

    Args:
        kinds: kind of every picture, "real" or its manipulation.
        people: person of each picture.
        generator: random number generator.

    Returns:
        Indices int64 (2 R,) for R real pictures. A kind with fewer pictures than its share repeats some of them.
    """
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    reals = torch.tensor(places.pop("real"))
    # If the shares are not whole, also draw which kinds contribute one more.
    turns = torch.randperm(len(places), generator=generator).tolist()
    shares = [len(reals) // len(places) + (turn < len(reals) % len(places)) for turn in turns]
    chosen = [reals]
    for fakes, share in zip(places.values(), shares, strict=True):
        rounds = [torch.randperm(len(fakes), generator=generator) for _ in range(math.ceil(share / len(fakes)))]
        chosen.append(torch.tensor(fakes)[torch.cat(rounds)[:share]] if share else reals[:0])
    drawn = torch.cat(chosen)
    classes: dict[str, set[bool]] = {}
    for kind, person in zip(kinds, people, strict=True):
        classes.setdefault(person, set()).add(kind == "real")
    if any(len(seen) == 1 for seen in classes.values()):
        return drawn[torch.randperm(len(drawn), generator=generator)]
    names = sorted(set(people))
    rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
    return drawn[torch.tensor([rank[people[index]] for index in drawn.tolist()]).argsort(stable=True)]


def augmented(x: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip and shift pictures (N, 3, S, S) in [0, 1] and masks (N, S, S); make the pictures brighter or darker."""
    count, size = len(x), x.shape[-1]
    both = torch.cat([x, masks.to(x.dtype).unsqueeze(1)], 1)
    flip = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    reach = size // 16
    padded = F.pad(torch.where(flip, both.flip(-1), both), (reach,) * 4, mode="reflect")
    shifts = torch.randint(2 * reach + 1, (count, 2), generator=generator).tolist()
    moved = torch.stack([one[:, i : i + size, j : j + size] for one, (i, j) in zip(padded, shifts, strict=True)])
    gain = 1 + 0.1 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    pictures = (moved[:, :3] * gain).clamp(0, 1)
    return pictures.contiguous(memory_format=torch.channels_last), moved[:, 3] > 0


def _epoch(
    detector: networks.Detector, optimizer: torch.optim.Optimizer, scheduler: Any, faces: Faces, steps: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    detector.train()
    has_masks = bool(faces.masks.any())
    for indices in sampled(faces.kinds, faces.people, generator).tensor_split(steps):
        pictures, masks = augmented(as_input(faces.images[indices]), faces.masks[indices], generator)
        loss = detector.loss(pictures, faces.labels[indices], masks if has_masks else None)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss became {loss.item()}; try a lower learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def _mixed(settings: Settings, *numbers: int) -> int:
    """Mix other numbers and the repetition into the run's seed; return the seed unchanged if there are none."""
    seeds = (settings.seed, *numbers, *([settings.repeat] if settings.repeat else []))
    return settings.seed if len(seeds) == 1 else int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _random(settings: Settings, epoch: int) -> torch.Generator:
    """Return an epoch's random number generator."""
    return random_numbers(settings.seed, epoch, *([settings.repeat] if settings.repeat else []))


def random_numbers(*seeds: int) -> torch.Generator:
    """Return a generator seeded from some numbers; seed torch's global one, which dropout uses, in the same way."""
    mixed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def groups(model: nn.Module, rate: float, decay: float, gain_rate: float = GAIN_RATE) -> list[dict[str, Any]]:
    """Return parameter groups: weights with decay, biases and norms without decay, and gains with their own rate."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    all_gains = set(gains_of(model))
    gains = [parameter for parameter in learned if parameter in all_gains]
    others = [parameter for parameter in learned if parameter not in all_gains]
    weights = [parameter for parameter in others if parameter.ndim > 1]
    vectors = [parameter for parameter in others if parameter.ndim <= 1]
    candidates = [
        {"params": weights, "lr": rate, "weight_decay": decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
        {"params": gains, "lr": gain_rate * rate, "weight_decay": 0.0},
    ]
    return [group for group in candidates if group["params"]]


def gain_values(model: nn.Module) -> list[float]:
    """Return the gain of each SIA module, averaged over channels: 0 is the identity, 1 the published formula."""
    return [gain.mean().item() for gain in gains_of(model)]


def _of_kinds(faces: Faces, kinds: Sequence[str], part: str) -> Faces:
    for kind in ("real", *kinds):
        if kind not in faces.kinds:
            raise ValueError(
                f"the {part} part contains no picture of {kind!r}, only {sorted(set(faces.kinds))}; use more people"
            )
    return faces.take([index for index, kind in enumerate(faces.kinds) if kind == "real" or kind in kinds])


def _resumed(state: dict[str, Any], folder: Path) -> tuple[int, float]:
    """Load the checkpoint, if it exists, into the training state; return the completed epochs and seconds."""
    if not (folder / CHECKPOINT).exists():
        return 0, 0.0
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(checkpoint[name])
    return checkpoint["epochs"], checkpoint["seconds"]


def _finished(settings: Settings, detector: networks.Detector, parts: Parts, folder: Path, seconds: float) -> Run:
    """Test the network and record everything; write the result last, since it marks the run as complete."""
    scored: dict[str, Any] = {}
    for name, part in (("test", parts.test), ("validation", parts.validation)):
        logits = predict(detector, part.images)
        if not logits.isfinite().all():
            raise FloatingPointError(
                f"{int((~logits.isfinite()).sum())} logits are not finite; try a lower learning rate"
            )
        scored[name] = Predictions(part.labels.numpy(), logits.numpy(), part.people, part.kinds).to_lists()
    machine = timing.machine(CPU)
    record = {
        "settings": dataclasses.asdict(settings),
        "parameters": sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad),
        "gains": " ".join(f"{gain:.3f}" for gain in gain_values(detector)),
        "core seconds": round(seconds, 2),
        "train_pictures": len(parts.train),
        "train_reals": parts.train.kinds.count("real"),
        "train_people": len(set(parts.train.people)),
        **machine,
        **scored,
    }
    replace(folder / WEIGHTS, partial(torch.save, detector.state_dict()))
    replace(folder / RESULT, lambda path: path.write_text(json.dumps(record)))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return load(folder)
