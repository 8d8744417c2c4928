"""Measures of maps against masks, for manipulation localisation and camouflaged objects.

Maps are float (H, W) in [0, 1] and masks bool (H, W), for one picture. The four camouflage measures follow their
papers and the conventions of that field's toolboxes: a map is first stretched to the range from 0 to 1 and, for the
E-measure, rounded to 256 levels; the E-measure's mean divides by the number of pixels minus one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.reproduction.data.pipeline import Mask

Map = NDArray[np.float64]
EPSILON = float(np.spacing(1))


def f1(found: Map, mask: Mask, threshold: float = 0.5) -> float:
    """Return the F1 score of the pixels above a threshold."""
    above = found > threshold
    return float(2 * (above & mask).sum() / (above.sum() + mask.sum()))


def iou(found: Map, mask: Mask, threshold: float = 0.5) -> float:
    """Return the intersection over union of the mask and the pixels above a threshold."""
    above = found > threshold
    return float((above & mask).sum() / (above | mask).sum())


def pixel_auc(found: Map, mask: Mask) -> float:
    """Return the probability that a pixel in the mask has a higher value than a pixel outside."""
    inside, outside = np.sort(found[mask]), np.sort(found[~mask])
    below, upto = (np.searchsorted(outside, inside, side).mean() for side in ("left", "right"))
    return float((below + upto) / 2 / outside.size)


def flagged(found: Map, threshold: float = 0.5) -> float:
    """Return the share of pixels above a threshold; in an unchanged picture, these are false alarms."""
    return float((found > threshold).mean())


def camouflage(found: Map, mask: Mask) -> dict[str, float]:
    """Return S-measure, mean E-measure, weighted F-measure and mean absolute error of a map.

    Raises:
        ValueError: the mask is empty or full, for which these measures are undefined.
    """
    if not 0 < mask.sum() < mask.size:
        raise ValueError(f"a mask must contain some pixels but not all, got {int(mask.sum())} of {mask.size}")
    stretched = _stretched(found.astype(np.float64))
    return {
        "S": s_measure(stretched, mask),
        "E": e_measure(stretched, mask),
        "weighted F": weighted_f(stretched, mask),
        "MAE": float(np.abs(stretched - mask).mean()),
    }


def s_measure(found: Map, mask: Mask) -> float:
    """Return the structure measure (Fan et al., ICCV 2017) with alpha = 0.5.

    Half of it measures whether the map is bright and even on the object and dark and even elsewhere, and half how
    similar map and mask are in the four rectangles around the object's centre.
    """
    share = float(mask.mean())
    objects = share * _evenness(found[mask]) + (1 - share) * _evenness(1 - found[~mask])
    row, column = np.argwhere(mask).mean(0).round().astype(int) + 1
    regions = 0.0
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            part = mask[rows, columns]
            regions += part.size / mask.size * _likeness(found[rows, columns], part) if part.size else 0.0
    return max(0.0, (objects + regions) / 2)


def e_measure(found: Map, mask: Mask) -> float:
    """Return the enhanced-alignment measure (Fan et al., IJCAI 2018), as the mean over 256 thresholds."""
    levels = (found * 255).astype(np.uint8)
    hits, alarms = (np.bincount(levels[of], minlength=256)[::-1].cumsum() for of in (mask, ~mask))
    size, objects = mask.size, int(mask.sum())
    predicted, present = (hits + alarms) / size, objects / size
    total = np.zeros(256)
    for count, map_value, mask_value in (
        (hits, 1 - predicted, 1 - present),
        (alarms, 1 - predicted, -present),
        (objects - hits, -predicted, 1 - present),
        (size - objects - alarms, -predicted, -present),
    ):
        alignment = 2 * map_value * mask_value / (map_value**2 + mask_value**2 + EPSILON)
        total += count * (alignment + 1) ** 2 / 4
    return float((total / (size - 1 + EPSILON)).mean())


def weighted_f(found: Map, mask: Mask) -> float:
    """Return the weighted F-measure (Margolin et al., CVPR 2014) with beta = 1.

    An error inside the object counts less if its neighbours are correct, and one outside less if it is near the object.
    """
    distance, (rows, columns) = ndimage.distance_transform_edt(~mask, return_indices=True)
    error = np.abs(found - mask)
    at_object = np.where(mask, error, error[rows, columns])
    line = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 5**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    smooth = ndimage.convolve(at_object, kernel, mode="constant")
    weighed = np.where(mask & (smooth < error), smooth, error)
    weighed *= np.where(mask, 1.0, 2 - np.exp(np.log(0.5) / 5 * distance))
    hits = mask.sum() - weighed[mask].sum()
    recall = 1 - weighed[mask].mean()
    precision = hits / (hits + weighed[~mask].sum() + EPSILON)
    return float(2 * recall * precision / (recall + precision + EPSILON))


def _stretched(found: Map) -> Map:
    low, high = found.min(), found.max()
    return found if low == high else (found - low) / (high - low)


def _evenness(values: Map) -> float:
    mean = values.mean()
    spread = values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + spread + EPSILON))


def _likeness(found: Map, mask: Mask) -> float:
    """Return the structural similarity of a rectangle, without the constants that prevent division by 0."""
    truth = mask.astype(np.float64)
    x, y, count = found.mean(), truth.mean(), found.size - 1 + EPSILON
    spreads = ((found - x) ** 2).sum() / count + ((truth - y) ** 2).sum() / count
    above = 4 * x * y * ((found - x) * (truth - y)).sum() / count
    below = (x**2 + y**2) * spreads
    if above != 0:
        return float(above / (below + EPSILON))
    return 1.0 if below == 0 else 0.0
