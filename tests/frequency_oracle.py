"""The formulas of the frequency domain, written out in float64, and the layers and sizes that its tests use."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from sia_layers import FrequencySIAttention
from sia_layers.frequency import BLOCKS, zigzag

Array = NDArray[np.float64]

CHANNELS = 6
TRANSFORMS = [(transform, block) for transform, sides in BLOCKS.items() for block in sides]
GATES = [(True, "excite"), (True, "mean"), (True, None), (False, "excite"), (False, "mean")]
SIZES = [(2, CHANNELS, 16, 24), (1, CHANNELS, 13, 9), (2, CHANNELS, 3, 1)]
transforms = st.sampled_from(TRANSFORMS)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 37), st.integers(1, 37))


def made(gates: tuple[bool, str | None] = GATES[0], **keywords: Any) -> FrequencySIAttention:
    torch.manual_seed(0)
    spatial, channel = gates
    return FrequencySIAttention(CHANNELS, spatial=spatial, channel=channel, rd_channels=4, **keywords)


def continued(x: Array, block: int) -> Array:
    """Extend the map to whole blocks: index i past the end n - 1 is 2 (n - 1) - i, and 0 where that is negative."""
    for axis in (2, 3):
        size = x.shape[axis]
        index = [i if i < size else max(0, 2 * (size - 1) - i) for i in range(-(-size // block) * block)]
        x = x.take(index, axis)
    return x


def coefficients(x: Array, block: int) -> Array:
    """Return SciPy's DCT of every block: (N, C, b^2, H', W')."""
    dctn = pytest.importorskip("scipy.fft").dctn
    x = continued(x, block)
    n, c, h, w = x.shape
    z = np.zeros((n, c, block * block, h // block, w // block))
    for i, j in np.ndindex(h // block, w // block):
        part = x[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block]
        found = dctn(part, axes=(2, 3), norm="ortho")
        found[np.abs(found) < 1e-13 * np.abs(part).max((2, 3), keepdims=True)] = 0  # 0 except for rounding
        z[..., i, j] = np.stack([found[:, :, u, v] for u, v in zigzag(block)], 2)
    return z


def pixels(z: Array, height: int, width: int, block: int) -> Array:
    """Invert :func:`coefficients`."""
    idctn = pytest.importorskip("scipy.fft").idctn
    n, c, _, rows, columns = z.shape
    x = np.zeros((n, c, rows * block, columns * block))
    for i, j in np.ndindex(rows, columns):
        square = np.zeros((n, c, block, block))
        for k, (u, v) in enumerate(zigzag(block)):
            square[:, :, u, v] = z[:, :, k, i, j]
        x[:, :, i * block : (i + 1) * block, j * block : (j + 1) * block] = idctn(square, axes=(2, 3), norm="ortho")
    return x[:, :, :height, :width]


def information(z: Array, **options: Any) -> Array:
    """Return I of every coefficient: DC separately, AC with the sub-bands of its channel."""
    folded = z.reshape(-1, *z.shape[2:])
    dc, ac = (oracle.self_information(band, **options) for band in (folded[:, :1], folded[:, 1:]))
    return np.concatenate([dc, ac], 1).reshape(z.shape)


def defined(layer: FrequencySIAttention, x: Array, aggregate: Array | None = None) -> Array:
    """Compute the layer by its formulas."""
    source = x if aggregate is None else x + aggregate
    z = coefficients(source, layer.block)
    info = information(z, **layer.options._asdict())
    y = pixels(z * (1 + 1 / (1 + np.exp(-info))), *x.shape[2:], layer.block) if layer.spatial else source
    if layer.channel == "excite":
        hidden = np.maximum(info.mean((2, 3, 4)) @ weights(layer.fc1).T, 0)
        y = y * (1 / (1 + np.exp(-hidden @ weights(layer.fc2).T)))[..., None, None]
    elif layer.channel == "mean":
        y = y * (1 - np.log(np.exp(-info) + 0.1).mean((2, 3, 4)))[..., None, None]
    return y if layer.gain is None else x + layer.gain.item() * (y - x)


def weights(convolution: torch.nn.Conv2d) -> Array:
    return convolution.weight.detach().double().flatten(1).numpy()
