"""The self-information computed pixel by pixel in float64: slow, obvious, and sharing no code with the library.

Every function takes a NumPy array (N, C, H, W) and returns one. The closed forms below need no loop over windows;
``assert_near`` defines how close a tensor must be.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def self_information(
    x: Array,
    kernel_size: int = 3,
    *,
    bandwidth: float = 1.0,
    adaptive: bool = True,
    estimator: str = "kde",
    inter_channels: int = 5,
    inter_weight: float = 0.5,
    padding_mode: str = "exclude",
) -> Array:
    """Return I of every pixel, in nats for the density form."""
    x = np.asarray(x, dtype=np.float64)
    form = _density if estimator == "kde" else _distance
    return form(x, kernel_size // 2, bandwidth, adaptive, inter_channels, inter_weight, padding_mode)


def _density(
    x: Array, radius: int, bandwidth: float, adaptive: bool, inter_channels: int, weight: float, padding_mode: str
) -> Array:
    info = np.zeros_like(x)
    batch, channels, height, width = x.shape
    for n in range(batch):
        for k in range(channels):
            others = {(i, j): window(x[n, k], i, j, radius, padding_mode) for i in range(height) for j in range(width)}
            following = {
                (i, j): following_channels(x[n], k, i, j, inter_channels) for i in range(height) for j in range(width)
            }
            intra_variance = variance(x[n, k], others, bandwidth, adaptive)
            inter_variance = variance(x[n, k], following, bandwidth, adaptive)
            for i in range(height):
                for j in range(width):
                    intra = surprise(x[n, k, i, j], others[i, j], intra_variance)
                    inter = surprise(x[n, k, i, j], following[i, j], inter_variance)
                    info[n, k, i, j] = intra + weight * inter
    return info


def _distance(
    x: Array, radius: int, bandwidth: float, adaptive: bool, inter_channels: int, weight: float, padding_mode: str
) -> Array:
    distance = np.zeros_like(x)
    batch, channels, height, width = x.shape
    for n in range(batch):
        for k in range(channels):
            for i in range(height):
                for j in range(width):
                    centre = x[n, k, i, j]
                    others = window(x[n, k], i, j, radius, padding_mode)
                    following = following_channels(x[n], k, i, j, inter_channels)
                    # |K^2 x - sum x|, term by term: a constant window gives exactly 0.
                    intra = abs(math.fsum(centre - other for other in others))
                    inter = abs(math.fsum(centre - other for other in following))
                    distance[n, k, i, j] = intra + weight * inter
    if not adaptive:
        return distance / (2 * bandwidth**2)
    info = np.zeros_like(x)
    for n in range(batch):
        mean = distance[n].mean()
        if mean > 0:
            info[n] = distance[n] / (2 * bandwidth**2 * mean)
    return info


def window(plane: Array, i: int, j: int, radius: int, padding_mode: str) -> list[float]:
    """Return the values in the window around (i, j) without the centre, including padded ones."""
    height, width = plane.shape
    values = []
    for p in range(-radius, radius + 1):
        for q in range(-radius, radius + 1):
            row, column = i + p, j + q
            inside = 0 <= row < height and 0 <= column < width
            if p == 0 and q == 0:
                continue
            if inside:
                values.append(plane[row, column])
            elif padding_mode == "zeros":
                values.append(0.0)
            elif padding_mode == "replicate":
                values.append(plane[min(max(row, 0), height - 1), min(max(column, 0), width - 1)])
            elif padding_mode == "reflect":
                values.append(plane[mirror(row, height), mirror(column, width)])
            else:
                assert padding_mode == "exclude"
    return [float(value) for value in values]


def mirror(index: int, size: int) -> int:
    """Return the index reflected at the border pixel, which is not repeated."""
    if index < 0:
        return -index
    return 2 * (size - 1) - index if index >= size else index


def following_channels(sample: Array, k: int, i: int, j: int, inter_channels: int) -> list[float]:
    """Return the pixel (i, j) in the S channels after k, cyclically."""
    channels = sample.shape[0]
    return [float(sample[(k + s) % channels, i, j]) for s in range(1, min(inter_channels, channels - 1) + 1)]


def variance(plane: Array, others: dict[tuple[int, int], list[float]], bandwidth: float, adaptive: bool) -> float:
    """Return h squared: b squared, times the mean square difference to the others if adaptive."""
    if not adaptive:
        return bandwidth**2
    squares = [(plane[pixel] - value) ** 2 for pixel, values in others.items() for value in values]
    return bandwidth**2 * math.fsum(squares) / len(squares) if squares else 0.0


def surprise(centre: float, others: list[float], variance: float) -> float:
    """Return -log of the mean kernel between the centre and both itself and the others."""
    if variance == 0:
        return 0.0
    kernels = [1.0] + [math.exp(-((centre - other) ** 2) / (2 * variance)) for other in others]
    return -math.log(math.fsum(kernels) / len(kernels))


def window_counts(height: int, width: int, radius: int) -> NDArray[np.int64]:
    """Return the number of the map's pixels in each pixel's window, including the centre: (H, W)."""
    rows = [min(i + radius, height - 1) - max(i - radius, 0) + 1 for i in range(height)]
    columns = [min(j + radius, width - 1) - max(j - radius, 0) + 1 for j in range(width)]
    return np.outer(rows, columns)


def two_valued(mask: NDArray[np.bool_], step: float, bandwidth: float, radius: int) -> Array:
    """Return I_intra of a map that is ``step`` in the mask and 0 elsewhere, without padding, at fixed bandwidth.

    With m of the |window| pixels unlike the centre: I = log |window| - log(|window| - m + m exp(-step^2 / 2b^2)).
    """
    height, width = mask.shape
    count = window_counts(height, width, radius)
    unlike = np.zeros_like(count)
    for i, j in np.ndindex(height, width):
        seen = mask[max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]
        unlike[i, j] = (seen != mask[i, j]).sum()
    kernel = math.exp(-(step**2) / (2 * bandwidth**2))
    return np.log(count) - np.log(count - unlike + unlike * kernel)


def checkerboard(height: int, width: int, bandwidth: float) -> Array:
    """Return I_intra of a checkerboard for K = 3, without padding, at adaptive bandwidth, in closed form.

    The side neighbours differ and the diagonal ones do not, so h^2 is b^2 step^2 times the share of side pairs.
    """
    sides = height * (width - 1) + (height - 1) * width
    diagonals = 2 * (height - 1) * (width - 1)
    kernel = math.exp(-(sides + diagonals) / (2 * bandwidth**2 * sides))
    rows = np.array([(i > 0) + (i < height - 1) for i in range(height)])[:, None]
    columns = np.array([(j > 0) + (j < width - 1) for j in range(width)])[None, :]
    alike, unlike = 1 + rows * columns, rows + columns
    info: Array = np.log(alike + unlike) - np.log(alike + unlike * kernel)
    return info


def assert_near(actual: Tensor, expected: Tensor | Array, tolerance: float | Tensor) -> None:
    """Assert that values are within ``tolerance`` (absolute) of the float64 truth, plus half an ulp of a half dtype.

    NaN and infinities must be where the truth has them; values beyond the range of the dtype may overflow.
    """
    truth = torch.as_tensor(expected).detach().double().cpu()
    found = actual.detach().double().cpu()
    assert found.shape == truth.shape, f"shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    limits = torch.finfo(actual.dtype)
    overflow = truth.isfinite() & (truth.abs() > limits.max)
    truth = torch.where(overflow, truth.sign() * limits.max, truth)
    found = torch.where(found.isinf() & truth.isfinite(), found.sign() * limits.max, found)
    half = actual.dtype in (torch.float16, torch.bfloat16)
    allowed = tolerance + (limits.eps / 2 * truth.abs().clamp(min=limits.tiny) if half else 0.0)
    same = (found == truth) | (found.isnan() & truth.isnan())
    wrong = ~same & ~((found - truth).abs() <= allowed)
    if wrong.any():
        where = tuple(int(index) for index in wrong.nonzero()[0])
        excess = (found - truth).abs()[wrong].max().item()
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} values are off, by {excess:.3g} at most; the first at {where}: "
            f"{found[where].item():.9g}, expected {truth[where].item():.9g}"
        )
