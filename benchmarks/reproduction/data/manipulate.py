"""Four ways to forge a face from its landmarks; each returns the picture and the mask of manipulated pixels.

A picture is uint8 (H, W, 3) in RGB, at its own resolution; landmarks are (P, 2) in pixels, in one of the layouts of
``landmarks.LAYOUTS``; a mask is bool (H, W). Pixels outside the mask and a narrow seam stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator

from benchmarks.reproduction.data.landmarks import Layout, Points, layout
from benchmarks.reproduction.data.pipeline import Mask, Picture, decode, encode

Random = np.random.Generator
Weight = NDArray[np.float32]  # (H, W), 0 to 1
Result = tuple[Picture, Mask]

SEAM = 0.06  # width over which a region fades out, relative to the size of the face
CHANGED = 0.1  # least weight of a pixel that belongs to the mask
STILL = 0.25  # pixels: a shorter shift counts as none


class Face(NamedTuple):
    """A photograph of one person."""

    person: str
    picture: Picture
    points: Points


def face_swap(target: Picture, points: Points, donor: Picture, donor_points: Points, rng: Random) -> Result:
    """Blend another person's face over the target's, warped triangle by triangle and matched in colour.

    This follows FaceSwap in FaceForensics++, which fits a mesh, matches the colours and blends. Blending is chosen at
    random between feathering and Poisson's equation (Pérez et al., SIGGRAPH 2003).
    """
    face = list(layout(points).face)
    where = _affine_by_triangle(points[face], donor_points[face], target.shape)
    last = np.array([donor.shape[1] - 1, donor.shape[0] - 1])
    region: Mask = np.all((where >= 0) & (where <= last), axis=2)  # only where the donor's picture has pixels
    warped = _remap(donor, np.nan_to_num(where))
    matched = _match_colours(warped, target, region)
    seam = SEAM * _size(points)
    if rng.random() < 0.5:
        return _blend(target, matched, _feather(region, seam))
    inner = _feather(region, seam) > CHANGED
    inner[[0, 1, -2, -1]] = inner[:, [0, 1, -2, -1]] = False  # the equation needs surrounding pixels
    x, y, width, height = cv2.boundingRect(inner.astype(np.uint8))
    filled = np.where(region[..., None], matched, target)
    cloned = cv2.seamlessClone(
        filled, target, inner.astype(np.uint8) * 255, (x + width // 2, y + height // 2), cv2.NORMAL_CLONE
    )
    return np.where(inner[..., None], cloned, target), inner


def mean_colour(picture: Picture, points: Points) -> NDArray[np.float32]:
    """Return the mean colour of a face in Lab: (3,)."""
    return _lab(picture)[_hull(points[list(layout(points).face)], picture.shape)].mean(0)


def self_blending(target: Picture, points: Points, rng: Random) -> Result:
    """Blend a modified copy of the picture into itself (Shiohara and Yamasaki, CVPR 2022).

    The copy is changed in colour and in sharpness, scaled by up to 5 % and shifted by up to 3 %; the mask is the hull
    of the landmarks, deformed elastically and blurred; the ratio of the blend is drawn as there. There either of the
    two copies is changed; here always the inner one, so that the picture outside of the mask stays as it was.
    """
    size = _size(points)
    copy = _other_colours(target, rng)
    copy = _other_sharpness(copy, rng)
    middle = points[list(layout(points).face)].mean(0)
    scale = rng.uniform(0.95, 1.05, 2)
    shift = rng.uniform(-0.03, 0.03, 2) * size
    grid = _grid(target.shape)
    copy = _remap(copy, (grid - middle - shift) / scale + middle)
    region = _hull(points[list(layout(points).face)], target.shape)
    weight = _feather(_elastic(region, 0.06 * size, rng), 2 * SEAM * size)
    ratio = rng.choice([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    picture, _ = _blend(target, copy, weight * np.float32(ratio))
    return picture, weight > CHANGED


def reenactment(target: Picture, points: Points, rng: Random) -> Result:
    """Change the expression: move mouth, eyes and brows by a thin-plate spline that is still everywhere else.

    This has only the geometry of Face2Face (Thies et al., CVPR 2016): no new texture, so the inside of the mouth is
    empty.
    """
    marks = layout(points)
    moves = _expression(points, marks, rng)
    moved = np.array(sorted(moves))
    fixed = np.setdiff1d([*marks.nose, *_outline(points, marks)], moved)
    places = np.concatenate([points[moved] + [moves[index] for index in moved], points[fixed]])
    shifts = np.concatenate([[moves[index] for index in moved], np.zeros((len(fixed), 2))])
    size = _size(points)
    region = np.zeros(target.shape[:2], bool)
    for group in (marks.mouth, *((*eye, *marks.brows) for eye in marks.eyes)):
        region |= _grow(_hull(points[list(group)], target.shape), 0.15 * size)
    spline = RBFInterpolator(places, shifts, kernel="thin_plate_spline", smoothing=1.0)
    rows, columns = np.nonzero(region)
    field = np.zeros((*region.shape, 2))
    field[rows, columns] = spline(np.stack([columns, rows], 1).astype(np.float64))
    field *= _feather(region, 2 * SEAM * size)[..., None]
    length = np.linalg.norm(field, axis=2, keepdims=True)
    field *= np.maximum(length - STILL, 0) / np.maximum(length, STILL)
    return _remap(target, _grid(target.shape) - field), length[..., 0] > STILL


def texture_resynthesis(target: Picture, points: Points, rng: Random) -> Result:
    """Encode the face, or its lower half, at a low rate, and replace the lost detail by synthetic grain.

    This imitates a decoder that renders texture from features (loosely after NeuralTextures: Thies et al., SIGGRAPH
    2019): coarse structure is correct, and fine detail has the right strength but the wrong structure. Without the
    grain the picture would be smoother than before, and the size of its file would give it away.
    """
    marks = layout(points)
    face = points[list(marks.face)]
    if rng.random() < 0.5:
        face = face[face[:, 1] > points[list(marks.nose), 1].mean()]
    coarse = _low_rate(target, rng)
    lost = cv2.cvtColor(target, cv2.COLOR_RGB2GRAY) - cv2.cvtColor(coarse, cv2.COLOR_RGB2GRAY).astype(np.float32)
    strength = cv2.GaussianBlur(lost**2, (0, 0), 0.02 * _size(points)) ** 0.5
    grain = cv2.GaussianBlur(rng.standard_normal(lost.shape).astype(np.float32), (0, 0), rng.uniform(0.6, 1.0))
    made = coarse + 0.85 * (strength * grain / grain.std())[..., None]  # white grain costs more bits than detail
    return _blend(target, made, _feather(_hull(face, target.shape), SEAM * _size(points)))


def is_grey(picture: Picture) -> bool:
    """Tell whether red, green and blue are equal in every pixel."""
    return bool((picture == picture[..., :1]).all())


def without_colour(picture: Picture) -> Picture:
    """Return the picture in grey with three channels; pixels that are already grey stay unchanged."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def forge(kind: str, face: Face, donor: Face | None, rng: Random) -> Result:
    """Forge a face in one of the four ways; the forgery of a grey picture is grey.

    Args:
        kind: one of ``MANIPULATIONS``.
        face: photograph to forge.
        donor: donor of a face swap; the other kinds need none.
        rng: generator of all random choices.
    """
    if kind in ALONE:
        picture, mask = ALONE[kind](face.picture, face.points, rng)
    else:
        assert donor is not None
        picture, mask = face_swap(face.picture, face.points, donor.picture, donor.points, rng)
    return (without_colour(picture) if is_grey(face.picture) else picture), mask


ALONE: dict[str, Callable[[Picture, Points, Random], Result]] = {
    "self-blending": self_blending,
    "reenactment": reenactment,
    "texture resynthesis": texture_resynthesis,
}
MANIPULATIONS = ("face swap", *ALONE)


def _grid(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the position (x, y) of each pixel: (H, W, 2)."""
    rows, columns = np.indices(shape[:2], dtype=np.float64)
    return np.stack([columns, rows], axis=2)


def _remap(picture: Picture, where: NDArray[np.float64]) -> Picture:
    """Return the picture's colour at each position (x, y)."""
    places = where.astype(np.float32)
    return cv2.remap(picture, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def _affine_by_triangle(points: Points, others: Points, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Map each pixel to the other points, affinely within each Delaunay triangle; NaN outside all triangles."""
    return LinearNDInterpolator(points, others)(_grid(shape))


def _hull(points: Points, shape: tuple[int, ...]) -> Mask:
    """Return the convex hull of points."""
    filled = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    return filled.astype(bool)


def _outline(points: Points, marks: Layout) -> list[int]:
    """Return the landmarks on the hull of the face."""
    face = np.array(marks.face)
    return face[cv2.convexHull(points[face].astype(np.float32), returnPoints=False).ravel()].tolist()


def _size(points: Points) -> float:
    """Return the larger of height and width of the face in pixels."""
    return float(np.ptp(points[list(layout(points).face)], axis=0).max())


def _grow(region: Mask, width: float) -> Mask:
    """Return all pixels within a distance of a region."""
    return cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= width


def _feather(region: Mask, width: float) -> Weight:
    """Return a weight of 0 outside a region and 1 inside, with a smooth seam of this width inside its border."""
    depth = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(depth / width, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _blend(target: Picture, other: NDArray[np.generic], weight: Weight) -> Result:
    mixed = target + weight[..., None] * (other.astype(np.float32) - target)
    return np.round(np.clip(mixed, 0, 255)).astype(np.uint8), weight > CHANGED


def _match_colours(picture: Picture, target: Picture, region: Mask) -> Picture:
    """Give a region the mean and spread of the target's in Lab (Reinhard et al., 2001)."""
    source = _lab(picture)
    inside, wanted = source[region], _lab(target)[region]
    scale = wanted.std(0) / np.maximum(inside.std(0), 1e-3)
    matched = (source - inside.mean(0)) * np.clip(scale, 0.5, 2) + wanted.mean(0)
    return _to_uint8(cv2.cvtColor(matched.astype(np.float32), cv2.COLOR_LAB2RGB))


def _lab(picture: Picture) -> NDArray[np.float32]:
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _to_uint8(picture: NDArray[np.float32]) -> Picture:
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _other_colours(picture: Picture, rng: Random) -> Picture:
    """Change hue, saturation and value, each channel, brightness and contrast slightly."""
    hsv = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-6, 6)) % 360
    hsv[..., 1:] = np.clip(hsv[..., 1:] * rng.uniform(0.85, 1.15, 2), 0, 1)
    changed = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) + rng.uniform(-0.04, 0.04, 3)
    middle = changed.mean()
    return _to_uint8((changed - middle) * rng.uniform(0.9, 1.1) + middle + rng.uniform(-0.04, 0.04))


def _other_sharpness(picture: Picture, rng: Random) -> Picture:
    """Sharpen the picture, or reduce and enlarge it again."""
    if rng.random() < 0.5:
        soft = cv2.GaussianBlur(picture, (0, 0), 1.5)
        return cv2.addWeighted(picture, 1 + (amount := rng.uniform(0.5, 1.2)), soft, -amount, 0)
    return _smaller(picture, rng.uniform(1.2, 2))


def _smaller(picture: Picture, factor: float) -> Picture:
    """Reduce the picture by a factor and enlarge it again."""
    height, width = picture.shape[:2]
    small = cv2.resize(picture, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _low_rate(picture: Picture, rng: Random) -> Picture:
    """Reduce the quality of the picture by a low resolution or a low JPEG quality."""
    if rng.random() < 0.5:
        return _smaller(picture, rng.uniform(2, 4))
    return decode(encode(picture, int(rng.integers(12, 30))))


def _elastic(region: Mask, reach: float, rng: Random) -> Mask:
    """Deform a region by a smooth random shift of at most ``reach`` pixels in each direction (Simard et al., 2003)."""
    noise = rng.uniform(-1, 1, (*region.shape, 2)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 2 * reach)
    field *= reach / np.abs(field).max()
    return _remap(region.astype(np.uint8) * 255, _grid(region.shape) + field) > 127


def _expression(points: Points, marks: Layout, rng: Random) -> dict[int, Points]:
    """Return the shift of each landmark of mouth, eyes and brows, in pixels."""
    left, right = points[marks.mouth_corners[0]], points[marks.mouth_corners[1]]
    width = float(np.linalg.norm(right - left))
    smile, aside = _either(rng, 0.04, 0.1) * width, rng.uniform(-0.06, 0.06) * width
    opening = rng.choice([rng.uniform(-0.07, -0.04), rng.uniform(0.05, 0.12)]) * width
    moves = {marks.mouth_corners[0]: np.array([aside - smile / 2, -smile]),
             marks.mouth_corners[1]: np.array([aside + smile / 2, -smile])}  # fmt: skip
    moves |= {index: np.array([aside, -opening / 3]) for index in marks.upper_lip}
    moves |= {index: np.array([aside, opening]) for index in marks.lower_lip}
    wider, gaze = _either(rng, 0.15, 0.35), rng.uniform(-0.03, 0.03) * width
    for eye in marks.eyes:
        middle = points[list(eye)].mean(0)
        moves |= {index: np.array([gaze, wider * (points[index] - middle)[1]]) for index in eye}
    lift = _either(rng, 0.03, 0.1) * width
    return moves | {index: np.array([0.0, -lift]) for index in marks.brows}


def _either(rng: Random, low: float, high: float) -> float:
    """Return a random number whose magnitude is between two bounds, with either sign."""
    return float(rng.uniform(low, high) * rng.choice([-1, 1]))
