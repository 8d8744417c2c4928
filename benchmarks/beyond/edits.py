"""What forgers do to ordinary photographs: splice, copy and move, remove.

Each takes a square of the photograph, uint8 (S, S, 3), a square of another photograph, and random numbers, and gives
the edited square and the mask of what it changed, bool (S, S). Outside of the mask and its softened edge no pixel is
touched. Nothing is compressed here but what a forger would find compressed: the donor of a splice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import cv2
import numpy as np

from benchmarks.beyond.photographs import Random, blob, soft
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode

Edited = tuple[Picture, Mask]
AREAS: Final = (0.04, 0.16)  # least and largest share of the picture that is changed
EDGE: Final = 0.7  # sigma of the softened edge in pixels
HISTORY: Final = (70, 95)  # JPEG quality that a picture has had before it is edited
TRIES: Final = 12


def splice(host: Picture, other: Picture, rng: Random) -> Edited:
    """Paste a region of another photograph, which has a JPEG quality and a grid of blocks of its own."""
    mask = blob(len(host), rng, AREAS)
    down, right = rng.integers(1, 8, 2)
    donor = np.roll(compressed(np.roll(other, (down, right), (0, 1)), rng), (-down, -right), (0, 1))
    return blended(host, donor, mask), mask


def copy_move(host: Picture, other: Picture, rng: Random) -> Edited:
    """Paste a region of the same picture, mirrored or not; the liveliest of some that could be taken."""
    mask = blob(len(host), rng, AREAS)
    donors = [np.roll(host, each, (0, 1)) for each in _shifts(mask, rng)]
    donor = max(donors, key=lambda each: float(each[mask].std(0).sum()))
    if rng.random() < 0.5:
        donor = _mirrored(donor, mask)
    return blended(host, donor, mask), mask


def removal(host: Picture, other: Picture, rng: Random) -> Edited:
    """Cover what stands out: inpaint it from the rim (Telea, 2004), or heal a patch in (Pérez et al., 2003)."""
    mask = max((blob(len(host), rng, AREAS) for _ in range(6)), key=lambda each: float(host[each].std(0).sum()))
    as_bytes = mask.astype(np.uint8)
    if rng.random() < 0.5:
        filled = cv2.inpaint(host, as_bytes, 4, cv2.INPAINT_TELEA)
        return blended(host, filled, mask), mask
    donors = [np.roll(host, each, (0, 1)) for each in _shifts(mask, rng)]
    donor = min(donors, key=lambda each: float(each[mask].std(0).sum()))  # the plainest covers best
    x, y, width, height = cv2.boundingRect(as_bytes)
    healed = cv2.seamlessClone(donor, host, as_bytes * 255, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE)
    return np.where(mask[..., None], healed, host), mask


EDITS: Final[dict[str, Callable[[Picture, Picture, Random], Edited]]] = {
    "splice": splice,
    "copy-move": copy_move,
    "removal": removal,
}


def compressed(picture: Picture, rng: Random) -> Picture:
    """Return a picture after JPEG of a random quality, as it is found before it is edited."""
    return decode(encode(picture, int(rng.integers(*HISTORY))))


def blended(host: Picture, donor: Picture, mask: Mask) -> Picture:
    """Return the host with the donor where the mask is, the edge softened by less than a pixel."""
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
    """Return shifts that bring other places of the picture under a mask, without those that overlap it most."""
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
    """Return a picture with the box around a mask mirrored from left to right."""
    bounds = _bounds(mask)
    place = slice(bounds.top, bounds.bottom), slice(bounds.left, bounds.right)
    turned = picture.copy()
    turned[place] = picture[place][:, ::-1]
    return turned
