"""``python -m sia_layers profile``: average self-information of a model's layers over photographs."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sia_layers.cli import models
from sia_layers.cli.common import Parser, add_information, information, refusing
from sia_layers.cli.folders import Photos
from sia_layers.injection import InjectionError
from sia_layers.inspection import profile_self_information

KERNEL_SIZE = 3


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command."""
    about = (
        "Print the average self-information (Equation 1 of the paper's supplement) of a model's layers over "
        "photographs: its mean and its standard deviation from photograph to photograph."
    )
    command = commands.add_parser("profile", help="self-information of a model's layers", description=about)
    option = command.add_argument
    option("photos", nargs="+", type=Path, metavar="PHOTO", help="photographs, or folders, with their subfolders")
    models.add(command, required=True)
    option("--layers", nargs="+", metavar="LAYER",
        help="names of modules, patterns or reductions (the stages at which inject_sia would inject)")  # fmt: skip
    option("--batch-size", type=int, default=8, metavar="N", help="photographs per batch (%(default)s)")
    add_information(command, str(KERNEL_SIZE))
    command.set_defaults(run=run, prog=command.prog)


def run(given: argparse.Namespace) -> None:
    """Profile the layers and print a table."""
    options = information(given, KERNEL_SIZE)
    with refusing(ValueError):
        if given.batch_size < 1:
            raise ValueError(f"batch-size must be 1 or more, got {given.batch_size}")
    photos = Photos(given.photos)
    backbone = models.make(given)
    layers = models.stages(given.layers)
    with refusing(InjectionError, RuntimeError, AssertionError, ValueError):
        model = backbone.model.to(given.device)
        profiles = profile_self_information(
            model, _Batches(backbone, photos, given.batch_size), layers, **options._asdict(), backend=given.backend
        )
    print(f"model     {backbone.name}, {backbone.weights}")
    photos.report()
    print()
    width = max(len(name) for name in [*profiles, "layer"])
    print(f"{'layer':{width}}  I_avg (nats)  deviation")
    for name, profile in profiles.items():
        print(f"{name:{width}}{profile.mean:14.4f}{profile.std:11.4f}")


class _Batches:
    """Batches of photographs as inputs of the model, read as they are needed."""

    def __init__(self, backbone: models.Backbone, photos: Photos, size: int) -> None:
        self.backbone, self.photos, self.size = backbone, photos, size

    def __len__(self) -> int:
        return -(-len(self.photos.paths) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        inputs = (self.backbone.normalized(self.backbone.seen(photo)) for _, photo in self.photos.read())
        while batch := list(itertools.islice(inputs, self.size)):
            yield torch.cat(batch)
