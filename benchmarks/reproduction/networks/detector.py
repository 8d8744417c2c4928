"""The common interface of all detectors: pictures to one logit, and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers import inject_sia


class Detector(nn.Module, ABC):
    """A network that classifies pictures as real or fake.

    Shape:
        float pictures (N, 3, H, W), RGB in [0, 1], to logits (N,); a logit above 0 means fake.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""

    def loss(self, x: Tensor, labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return the loss to minimise, by default binary cross-entropy.

        Args:
            x: pictures (N, 3, H, W).
            labels: (N,), 0 for real and 1 for fake.
            masks: bool (N, H, W), True where each picture was manipulated, for detectors that learn from it.

        Returns:
            A scalar.
        """
        return cross_entropy(self(x), labels)


class BackboneDetector(Detector):
    """A detector with one or more timm backbones into which SIA can be injected."""

    @property
    @abstractmethod
    def backbones(self) -> list[nn.Module]:
        """Return the backbones that are trained."""

    def inject(self) -> None:
        """Inject SIA into every backbone with the defaults of ``inject_sia``."""
        for backbone in self.backbones:
            stem = backbone.get_submodule("conv_stem")
            assert isinstance(stem, nn.Conv2d)
            inject_sia(backbone, example_input=torch.empty(1, stem.in_channels, 64, 64))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of logits (N,) against labels (N,)."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def normalised(x: Tensor) -> Tensor:
    """Map pictures from [0, 1] to [-1, 1], that is, normalise with mean and standard deviation 0.5.

    Raises:
        ValueError: the input is not float pictures (N, 3, H, W).
    """
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise ValueError(
            f"x must be float pictures (N, 3, H, W) in [0, 1], got {x.dtype} of shape {tuple(x.shape)}; "
            "divide uint8 pictures by 255"
        )
    return (x - 0.5) / 0.5


def listed(kind: str, name: str, known: Sequence[str]) -> ValueError:
    """Return the error for an unknown name."""
    return ValueError(f"unknown {kind} {name!r}; there are {', '.join(map(repr, known))}")
