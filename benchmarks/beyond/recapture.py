"""Simulated recapture: a face on paper or on a screen in front of a camera. Nothing was really printed or displayed.

A picture is uint8 (S, S, 3) in RGB, several times larger than the finished one: halftone dots and screen pixels are
drawn at that resolution, and the camera samples them down, which causes moiré. Real faces pass through the same camera,
so that its blur, noise and compression do not give the class away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.beyond.photographs import Random
from benchmarks.reproduction.data.pipeline import Picture, decode, encode, resize

Light = NDArray[np.float32]  # (S, S, 3), 0 to 1

ENLARGED: Final = 3  # working size relative to the size of the finished picture
ANGLES: Final = (15.0, 75.0, 0.0)  # angles of the cyan, magenta and yellow halftone screens, in degrees
INK: Final = 0.92  # share of light that full ink absorbs
QUALITY: Final = 90  # JPEG quality of the camera


def printed(picture: Picture, rng: Random) -> Light:
    """Return a picture as light from paper: halftone dots of three inks, dot gain, and the fibres of the paper."""
    light = _as_light(picture) ** np.float32(rng.uniform(0.85, 1.15))
    period = rng.uniform(4.0, 7.0)
    dots = np.stack(
        [light[..., ink] > _halftone(len(light), period, angle, rng) for ink, angle in enumerate(ANGLES)], 2
    )
    reflected = _blurred(1 - np.float32(INK) * (1 - dots.astype(np.float32)), rng.uniform(0.9, 1.6))
    mixed = rng.uniform(0.1, 0.5)  # some printers scatter dots so finely that the continuous tone also shows
    reflected = mixed * reflected + (1 - mixed) * (1 - np.float32(INK) * (1 - light))
    fibres = _blurred(rng.standard_normal(light.shape[:2]).astype(np.float32), rng.uniform(0.8, 2.0))
    paper = 1 + np.float32(rng.uniform(0.005, 0.02)) * fibres[..., None] / fibres.std()
    white = np.array([0.96, rng.uniform(0.9, 0.95), rng.uniform(0.82, 0.9)], np.float32)
    return reflected * paper * white * _uneven(len(light), rng, 0.25)


def shown(picture: Picture, rng: Random) -> Light:
    """Return a picture as light from a screen: gamma, subpixel stripes, cold light and glare."""
    light = _as_light(picture) ** np.float32(rng.uniform(0.75, 1.3))
    period, turn = rng.uniform(2.2, 4.5), np.deg2rad(rng.uniform(-8, 8))
    across, down = _turned(len(light), turn)
    grid = np.empty_like(light)
    for colour in range(3):
        stripes = 0.5 + 0.5 * np.cos(2 * np.pi * (across / period - colour / 3))
        rows = 0.5 + 0.5 * np.cos(2 * np.pi * down / period)
        grid[..., colour] = stripes * (0.7 + 0.3 * rows)
    depth = np.float32(rng.uniform(0.1, 0.5))
    emitted = (
        light * (1 - depth + depth * grid / grid.mean()) * np.array([0.94, 1.0, rng.uniform(1.03, 1.12)], np.float32)
    )
    emitted = _blurred(emitted, rng.uniform(0.4, 1.0))
    return emitted + _glare(len(light), rng)


def before_camera(light: Light, size: int, rng: Random) -> Picture:
    """Return a camera's picture of light: ``size`` pixels, blurred, exposed, noisy, and JPEG-compressed."""
    sampled = _blurred(light, rng.uniform(0.5, 1.2))
    # Sample every third pixel of a nearly sharp picture, not the mean of nine: small sensor elements alias.
    sampled = 0.5 * resize(sampled, size) + 0.5 * cv2.resize(sampled, (size, size), interpolation=cv2.INTER_LINEAR)
    exposed = sampled * np.float32(rng.uniform(0.9, 1.1)) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    noisy = exposed + np.float32(rng.uniform(0.004, 0.016)) * rng.standard_normal(exposed.shape).astype(np.float32)
    return decode(encode(np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8), QUALITY))


def live(picture: Picture, rng: Random) -> Light:
    """Return a picture directly as light."""
    return _as_light(picture) * _uneven(len(picture), rng, 0.25)


ATTACKS: Final[dict[str, Callable[[Picture, Random], Light]]] = {"print": printed, "screen": shown}


def _as_light(picture: Picture) -> Light:
    return picture.astype(np.float32) / 255


def _turned(size: int, angle: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return each pixel's coordinates along two axes that are rotated by an angle in radians."""
    rows, columns = np.indices((size, size), dtype=np.float32)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return cosine * columns + sine * rows, cosine * rows - sine * columns


def _halftone(size: int, period: float, degrees: float, rng: Random) -> NDArray[np.float32]:
    """Return the thresholds of a screen of round dots, evenly distributed over 0 to 1."""
    across, down = _turned(size, np.deg2rad(degrees + rng.uniform(-3, 3)))
    waves = np.cos(2 * np.pi * across / period) + np.cos(2 * np.pi * down / period)
    return np.clip(0.5 + 0.27 * waves + 0.02 * rng.standard_normal(waves.shape), 0.02, 0.98).astype(np.float32)


def _uneven(size: int, rng: Random, most: float) -> Light:
    """Return a lamp's light, brighter on one side by at most ``most``."""
    across, _ = _turned(size, rng.uniform(0, 2 * np.pi))
    ramp = (across - across.min()) / np.ptp(across)
    return (1 - np.float32(rng.uniform(0, most)) * ramp)[..., None]


def _glare(size: int, rng: Random) -> Light:
    """Return a soft bright spot, stretched and rotated."""
    across, down = _turned(size, rng.uniform(0, np.pi))
    x, y = rng.uniform(across.min(), across.max()), rng.uniform(down.min(), down.max())
    long, short = rng.uniform(0.2, 0.5) * size, rng.uniform(0.06, 0.15) * size
    spot = np.exp(-(((across - x) / long) ** 2) - ((down - y) / short) ** 2)
    return (np.float32(rng.uniform(0.0, 0.35)) * spot)[..., None].astype(np.float32)


def _blurred(values: NDArray[Any], sigma: float) -> NDArray[np.float32]:
    return cv2.GaussianBlur(values.astype(np.float32, copy=False), (0, 0), sigma)
