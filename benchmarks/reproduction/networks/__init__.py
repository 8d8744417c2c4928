"""The networks of the experiments; all are :class:`Detector`."""

from __future__ import annotations

from typing import Final

from benchmarks.reproduction.networks.dcl import DCL
from benchmarks.reproduction.networks.detector import BackboneDetector, Detector, listed
from benchmarks.reproduction.networks.f3net import F3Net
from benchmarks.reproduction.networks.lite import VARIANTS, Variant, lite, recipe
from benchmarks.reproduction.networks.spsl import SPSL
from benchmarks.reproduction.networks.toy import TOYS, toy

__all__ = ["METHODS", "TOYS", "VARIANTS", "Detector", "Variant", "lite", "method", "recipe", "toy"]

_METHODS: Final[dict[str, type[SPSL] | type[F3Net] | type[DCL]]] = {"SPSL": SPSL, "F3-Net": F3Net, "DCL": DCL}
METHODS: Final = tuple(_METHODS)


def method(name: str, sia: bool, pretrained: bool = True) -> BackboneDetector:
    """A published detector, bare or with SIA in its backbone and unchanged otherwise.

    Args:
        name: one of :data:`METHODS`.
        sia: inject SIA into its backbone, or each of its backbones.
        pretrained: start from the ImageNet weights.

    Raises:
        ValueError: there is none of that name.
        ModuleNotFoundError: the package with the weights is not installed.
    """
    if name not in _METHODS:
        raise listed("method", name, METHODS)
    detector = _METHODS[name](pretrained)
    if sia:
        detector.inject()
    return detector
