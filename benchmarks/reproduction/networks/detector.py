"""What all detectors share: pictures in, one logit out, and the loss that they learn by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers import inject_sia


class Detector(nn.Module, ABC):
    """A network that tells real from fake pictures.

    Shape:
        float pictures (N, 3, H, W), RGB in [0, 1], to logits (N,); greater than 0 means fake.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The logit of each picture."""

    def loss(self, x: Tensor, labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """What to minimise: here binary cross-entropy.

        Args:
            x: pictures (N, 3, H, W).
            labels: (N,), 0 for real and 1 for fake.
            masks: bool (N, H, W), where each picture was changed, for the detectors that learn from it.

        Returns:
            A scalar.
        """
        return cross_entropy(self(x), labels)


class BackboneDetector(Detector):
    """A detector around one or more backbones of timm that SIA can be injected into."""

    @property
    @abstractmethod
    def backbones(self) -> list[nn.Module]:
        """The backbones that learn."""

    def inject(self) -> None:
        """Inject SIA into every backbone by ``inject_sia`` with its defaults."""
        for backbone in self.backbones:
            stem = backbone.get_submodule("conv_stem")
            assert isinstance(stem, nn.Conv2d)
            inject_sia(backbone, example_input=torch.empty(1, stem.in_channels, 64, 64))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (N,) against labels (N,), averaged."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def normalised(x: Tensor) -> Tensor:
    """Pictures in [0, 1] with mean and deviation 0.5 taken off, so in [-1, 1].

    Raises:
        ValueError: these are no float pictures (N, 3, H, W).
    """
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise ValueError(
            f"x must be float pictures (N, 3, H, W) in [0, 1], got {x.dtype} of shape {tuple(x.shape)}; "
            "divide uint8 pictures by 255"
        )
    return (x - 0.5) / 0.5


def listed(kind: str, name: str, known: Sequence[str]) -> ValueError:
    """The error for a name that is not among those there are."""
    return ValueError(f"unknown {kind} {name!r}; there are {', '.join(map(repr, known))}")
