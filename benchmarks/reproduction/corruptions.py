"""The corruptions of Figure 1 of the supplement, each at five severities.

The paper names them, with a blur of 3 x 3 pixels, but prints no strengths; the strengths here are our choice.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.util import random_noise
from torch import Tensor

Picture = NDArray[np.uint8]
STRENGTHS: Final[dict[str, tuple[float, ...]]] = {
    "Gaussian blur": (0.4, 0.5, 0.65, 0.85, 1.5),  # sigma in pixels, with a 3 x 3 kernel
    "Gaussian noise": (2, 4, 8, 16, 32),  # standard deviation, on a scale of 255
    "salt and pepper": (0.002, 0.005, 0.01, 0.02, 0.05),  # share of the pixels
    "JPEG": (80, 60, 40, 25, 12),  # quality
}
SEVERITIES: Final = range(1, 6)


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt pictures deterministically.

    Args:
        images: uint8 (N, 3, S, S), RGB.
        name: one of ``STRENGTHS``.
        severity: 1 to 5; 0 leaves the pictures unchanged.
        seed: seed of the noise, which differs between pictures but is the same for all severities.

    Returns:
        uint8 (N, 3, S, S).

    Raises:
        ValueError: another name or severity.
    """
    if name not in STRENGTHS:
        raise ValueError(f"corruption must be one of {', '.join(STRENGTHS)}, got {name!r}")
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity must be 0 to {len(SEVERITIES)}, got {severity}")
    if severity == 0:
        return images
    strength = STRENGTHS[name][severity - 1]
    pictures = [
        _CORRUPT[name](picture, strength, zlib.crc32(f"{name} {seed} {index}".encode()))
        for index, picture in enumerate(images.permute(0, 2, 3, 1).numpy())
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _blur(picture: Picture, sigma: float, seed: int) -> Picture:
    return cv2.GaussianBlur(picture, (3, 3), sigma)


def _noise(picture: Picture, deviation: float, seed: int) -> Picture:
    return _rounded(random_noise(picture, "gaussian", rng=seed, var=(deviation / 255) ** 2))


def _salt_and_pepper(picture: Picture, amount: float, seed: int) -> Picture:
    # Corrupt whole pixels rather than single values: the mask is drawn for a grey picture.
    drawn = random_noise(np.full(picture.shape[:2], 0.5), "s&p", rng=seed, amount=amount)
    return np.where((drawn == 0.5)[..., None], picture, _rounded(drawn)[..., None])


def _jpeg(picture: Picture, quality: float, seed: int) -> Picture:
    _, code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]


def _rounded(values: NDArray[np.float64]) -> Picture:
    return np.rint(values * 255).astype(np.uint8)


_CORRUPT: Final[dict[str, Callable[[Picture, float, int], Picture]]] = {
    "Gaussian blur": _blur,
    "Gaussian noise": _noise,
    "salt and pepper": _salt_and_pepper,
    "JPEG": _jpeg,
}
