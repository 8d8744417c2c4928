"""The networks of the experiments; each is a :class:`Detector`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks.reproduction.networks.addnet import AddNet
from benchmarks.reproduction.networks.dcl import DCL
from benchmarks.reproduction.networks.detector import BackboneDetector, Detector, listed
from benchmarks.reproduction.networks.f3net import F3Net
from benchmarks.reproduction.networks.lite import VARIANTS, Variant, lite, recipe
from benchmarks.reproduction.networks.mat import MAT
from benchmarks.reproduction.networks.rfm import RFM
from benchmarks.reproduction.networks.spsl import SPSL
from benchmarks.reproduction.networks.toy import TOYS, toy

__all__ = ["METHODS", "RIVALS", "TOYS", "VARIANTS", "Detector", "Variant", "lite", "method", "recipe", "toy"]

METHODS: Final = ("SPSL", "F3-Net", "DCL")  # Table 5 of the paper
RIVALS: Final = ("MAT", "RFM", "Add-Net")  # Table 1 of the paper
_BUILDERS: Final[dict[str, Callable[[bool], BackboneDetector]]] = {
    "SPSL": SPSL, "F3-Net": F3Net, "DCL": DCL, "MAT": MAT, "RFM": RFM, "Add-Net": AddNet,
}  # fmt: skip


def method(name: str, sia: bool, pretrained: bool = True) -> BackboneDetector:
    """Return a published detector, bare or with SIA in its backbone and otherwise unchanged.

    Args:
        name: one of :data:`METHODS` or :data:`RIVALS`.
        sia: whether to inject SIA into its backbone, or into each of its backbones.
        pretrained: whether to start from the ImageNet weights.

    Raises:
        ValueError: there is no method of that name.
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if name not in _BUILDERS:
        raise listed("method", name, tuple(_BUILDERS))
    detector = _BUILDERS[name](pretrained)
    if sia:
        detector.inject()
    return detector
