"""The meaning of landmarks, by their number.

Left and right refer to the picture. The groups are those that the manipulations use. To support another numbering, add
an entry to ``LAYOUTS``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (P, 2): x to the right and y down, in pixels


class Layout(NamedTuple):
    """Indices into the landmarks of a face.

    Args:
        face: all points of the face itself, without ears, hair and neck; their hull is the face region.
        brows: points of both eyebrows.
        eyes: rims of the left and of the right eye, corners included.
        nose: ridge, wings and nostrils.
        mouth_corners: left and right corner.
        upper_lip: upper edge, without the corners.
        lower_lip: lower edge, without the corners.
    """

    face: tuple[int, ...]
    brows: tuple[int, ...]
    eyes: tuple[tuple[int, ...], tuple[int, ...]]
    nose: tuple[int, ...]
    mouth_corners: tuple[int, int]
    upper_lip: tuple[int, ...]
    lower_lip: tuple[int, ...]

    @property
    def mouth(self) -> tuple[int, ...]:
        """Return the outline of the lips."""
        return (*self.mouth_corners, *self.upper_lip, *self.lower_lip)


# 189 points, as in WebMorph's FRL template. 0-1 pupils, 2-17 irises, 18-22 and 23-27 upper lids with both
# corners, 28-30 and 31-33 lower lids, 34-43 folds above the lids and 44-49 below, 50-70 nose, 71-76 and 77-82 upper
# edges of the brows, 83-86 their lower edges, 87 and 93 corners of the mouth, 88-92 upper edge of the lips, 94-98 and
# 99-103 where the lips meet (the same places while the mouth is shut), 104-108 lower edge of the lips, 109-114 sides of
# the face, 115-124 ears, 125-133 jaw, 134-144 hairline, 145-157 hair and neck, 158-169 cheeks, 170-173 philtrum,
# 174-178 chin, 179-182 nostrils, 183-184 neck, 185-188 sides of the face.
_FRL = Layout(
    face=(*range(115), *range(125, 134), *range(158, 183), *range(185, 189)),
    brows=tuple(range(71, 87)),
    eyes=((*range(18, 23), *range(28, 31)), (*range(23, 28), *range(31, 34))),
    nose=(*range(50, 71), *range(179, 183)),
    mouth_corners=(87, 93),
    upper_lip=tuple(range(88, 93)),
    lower_lip=tuple(range(104, 109)),
)

# 68 points, numbered as in iBUG 300-W (Sagonas et al., ICCV Workshops 2013): 0-16 jaw, 17-26 brows, 27-35 nose,
# 36-41 and 42-47 eyes, 48-59 outer and 60-67 inner edge of the lips.
_IBUG = Layout(
    face=tuple(range(68)),
    brows=tuple(range(17, 27)),
    eyes=(tuple(range(36, 42)), tuple(range(42, 48))),
    nose=tuple(range(27, 36)),
    mouth_corners=(48, 54),
    upper_lip=tuple(range(49, 54)),
    lower_lip=tuple(range(55, 60)),
)

LAYOUTS = {189: _FRL, 68: _IBUG}


def layout(points: Points) -> Layout:
    """Return the layout of the points.

    Raises:
        ValueError: if there is no layout for this number of landmarks.
    """
    if len(points) not in LAYOUTS:
        raise ValueError(f"landmarks must be {' or '.join(map(str, LAYOUTS))} a face, got {len(points)}; add a Layout")
    return LAYOUTS[len(points)]
