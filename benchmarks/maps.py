"""Feature maps of real backbones: those of the sites that inject_sia selects, for the named picture size."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor


class Map(NamedTuple):
    """A feature map: its model, picture size and reduction, and its shape without the batch."""

    model: str
    size: int
    reduction: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.model}@{self.size}/{self.reduction}"


MAPS: Final = tuple(
    Map(model, size, reduction, shape)
    for model, size, shapes in (
        ("efficientnet_b4", 256, {4: (32, 64, 64), 8: (56, 32, 32), 16: (160, 16, 16)}),
        ("efficientnet_b4", 380, {4: (32, 95, 95), 8: (56, 48, 48), 16: (160, 24, 24)}),
        ("xception41", 299, {4: (128, 75, 75), 8: (256, 38, 38), 16: (728, 19, 19)}),
        ("resnet50", 224, {4: (256, 56, 56), 8: (512, 28, 28), 16: (1024, 14, 14)}),
        ("convnext_tiny", 224, {4: (96, 56, 56), 8: (192, 28, 28), 16: (384, 14, 14)}),
    )
    for reduction, shape in shapes.items()
)
# The two maps of the targets: a large one, and a small one of a deep stage.
BARS: Final = tuple(found for found in MAPS if found.model == "efficientnet_b4" and found.size == 256)[::2]


def made(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Return a map of normal values, the same each time."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values
