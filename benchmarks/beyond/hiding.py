"""Synthetic camouflage: a shape filled with texture from elsewhere in the same photograph.

The shapes are abstract; no real animal is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.beyond.photographs import Random, blob, soft
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode

AREAS: Final = (0.06, 0.25)  # smallest and largest share of the picture that the shape covers
EDGE: Final = (0.8, 2.0)  # sigma of the softened edge in pixels
RIM: Final = 0.08  # width of the surroundings that a shape is matched to, relative to the side of the picture
SPREADS: Final = (0.67, 1.5)  # range of the factor by which the texture's spread may change
QUALITY: Final = 90
PLACES: Final = 4  # number of candidate places for a shape

Layers = NDArray[np.float32]  # (S, S, channels)


def hidden(background: Picture, textures: Sequence[Picture], contrast: float, rng: Random) -> tuple[Picture, Mask]:
    """Hide a shape in a picture.

    Of several shapes and textures, rotated and mirrored, take the pair whose texture is most like the surroundings of
    the shape. Give the texture the mean and spread of the surroundings in each channel of Lab, then make it lighter or
    darker by the contrast. At contrast 0 only the structure gives the shape away, and on an even background nothing
    does.

    Args:
        background: uint8 (S, S, 3).
        textures: uint8 (S, S, 3) each, from other places in the same photograph.
        contrast: difference in lightness from the surroundings, on a scale of 100.
        rng: generator of all random choices.

    Returns:
        The picture, uint8 (S, S, 3), and the mask of the shape, bool (S, S).
    """
    size = len(background)
    host = _layers(_lab(background))
    fillings = [_layers(_turned(_lab(texture), rng)) for texture in textures]
    masks = [blob(size, rng, AREAS) for _ in range(PLACES)]
    # Like an animal, the shape settles where it resembles its surroundings.
    mask, rim, filling = min(
        ((mask, rim, filling) for mask, rim in zip(masks, map(_rim, masks), strict=True) for filling in fillings),
        key=lambda each: float(np.abs(_look(each[2], each[0]) - _look(host, each[1])).sum()),
    )
    around = host[rim][:, :3]
    matched = _matched(filling[..., :3], mask, around)
    matched[..., 0] += contrast if _room_above(around, contrast, rng) else -contrast
    weight = soft(mask, rng.uniform(*EDGE))
    mixed = cv2.cvtColor(host[..., :3] + weight * (matched - host[..., :3]), cv2.COLOR_LAB2RGB)
    return decode(encode(np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8), QUALITY)), mask


def _rim(mask: Mask) -> Mask:
    """Return the surroundings of a shape."""
    width = 2 * round(RIM * len(mask)) + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool) & ~mask


def _lab(picture: Picture) -> Layers:
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _turned(picture: Layers, rng: Random) -> Layers:
    turned = np.rot90(picture, int(rng.integers(4)))
    return turned[:, ::-1] if rng.random() < 0.5 else turned


def _layers(lab: Layers) -> Layers:
    """Return the channels of a picture, and the fine detail of each channel: (S, S, 6)."""
    lab = np.ascontiguousarray(lab)
    return np.concatenate([lab, lab - cv2.GaussianBlur(lab, (0, 0), 2.0)], 2)


def _look(layers: Layers, region: Mask) -> NDArray[np.float32]:
    """Return the mean and the spread of each coarse and fine channel in a region."""
    inside = layers[region]
    return np.concatenate([inside.mean(0), inside.std(0)])


def _matched(filling: NDArray[np.float32], mask: Mask, wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the pixels under the mask the mean and spread of the wanted pixels (N, 3) (Reinhard et al., 2001)."""
    found = filling[mask]
    scale = np.clip(wanted.std(0) / np.maximum(found.std(0), 1e-3), *SPREADS)
    return (filling - found.mean(0)) * scale + wanted.mean(0)


def _room_above(rim: NDArray[np.float32], contrast: float, rng: Random) -> bool:
    """Choose at random whether the shape is lighter or darker, within white and black."""
    mean = float(rim[:, 0].mean())
    if mean + contrast > 95:
        return False
    return mean - contrast < 5 or bool(rng.random() < 0.5)
