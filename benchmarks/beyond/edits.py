"""Forge ordinary photographs: splice, copy-move and removal.

Each function takes a square of the photograph, uint8 (S, S, 3), a square of another photograph, and a random number
generator. It returns the edited square and the mask of the changed pixels, bool (S, S). Pixels outside the mask and its
softened edge stay unchanged. Only the donor of a splice is compressed here, since a forger would find it compressed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import cv2
import numpy as np

from benchmarks.beyond.photographs import Random, blob, soft
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode

Edited = tuple[Picture, Mask]
AREAS: Final = (0.04, 0.16)  # smallest and largest share of the picture that is changed
EDGE: Final = 0.7  # sigma of the softened edge in pixels
HISTORY: Final = (70, 95)  # range of the JPEG quality of a picture before editing
TRIES: Final = 12


def splice(host: Picture, other: Picture, rng: Random) -> Edited:
    """Paste a region of another photograph, which has its own JPEG quality and block grid."""
    mask = blob(len(host), rng, AREAS)
    down, right = rng.integers(1, 8, 2)
    donor = np.roll(compressed(np.roll(other, (down, right), (0, 1)), rng), (-down, -right), (0, 1))
    return blended(host, donor, mask), mask


def copy_move(host: Picture, other: Picture, rng: Random) -> Edited:
    """Paste a region of the same picture, possibly mirrored; of several candidates, take the one with most detail."""
    mask = blob(len(host), rng, AREAS)
    donors = [np.roll(host, each, (0, 1)) for each in _shifts(mask, rng)]
    donor = max(donors, key=lambda each: float(each[mask].std(0).sum()))
    if rng.random() < 0.5:
        donor = _mirrored(donor, mask)
    return blended(host, donor, mask), mask


def removal(host: Picture, other: Picture, rng: Random) -> Edited:
    """Cover salient content: inpaint it from the rim (Telea, 2004), or clone a patch over it (Pérez et al., 2003)."""
    mask = max((blob(len(host), rng, AREAS) for _ in range(6)), key=lambda each: float(host[each].std(0).sum()))
    as_bytes = mask.astype(np.uint8)
    if rng.random() < 0.5:
        filled = cv2.inpaint(host, as_bytes, 4, cv2.INPAINT_TELEA)
        return blended(host, filled, mask), mask
    donors = [np.roll(host, each, (0, 1)) for each in _shifts(mask, rng)]
    donor = min(donors, key=lambda each: float(each[mask].std(0).sum()))  # the plainest donor covers best
    x, y, width, height = cv2.boundingRect(as_bytes)
    healed = cv2.seamlessClone(donor, host, as_bytes * 255, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE)
    return np.where(mask[..., None], healed, host), mask


EDITS: Final[dict[str, Callable[[Picture, Picture, Random], Edited]]] = {
    "splice": splice,
    "copy-move": copy_move,
    "removal": removal,
}


def compressed(picture: Picture, rng: Random) -> Picture:
    """Compress a picture as JPEG at a random quality, as it would be before editing."""
    return decode(encode(picture, int(rng.integers(*HISTORY))))


def blended(host: Picture, donor: Picture, mask: Mask) -> Picture:
    """Blend the donor into the host where the mask is set; the edge is softened by less than a pixel."""
    weight = soft(mask, EDGE)
    return np.round(host + weight * (donor.astype(np.float32) - host)).astype(np.uint8)


class _Bounds(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int


def _bounds(mask: Mask) -> _Bounds:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return _Bounds(y, y + height, x, x + width)


def _shifts(mask: Mask, rng: Random) -> list[tuple[int, int]]:
    """Return shifts that bring other places of the picture under a mask, except those that overlap it most."""
    size, bounds = len(mask), _bounds(mask)
    drawn = [
        (
            int(rng.integers(bounds.bottom - size, bounds.top + 1)),
            int(rng.integers(bounds.right - size, bounds.left + 1)),
        )
        for _ in range(TRIES)
    ]
    return sorted(drawn, key=lambda each: int((mask & np.roll(mask, each, (0, 1))).sum()))[: TRIES // 3]


def _mirrored(picture: Picture, mask: Mask) -> Picture:
    """Mirror the box around a mask from left to right."""
    bounds = _bounds(mask)
    place = slice(bounds.top, bounds.bottom), slice(bounds.left, bounds.right)
    turned = picture.copy()
    turned[place] = picture[place][:, ::-1]
    return turned
