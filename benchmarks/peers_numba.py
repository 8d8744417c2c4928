"""The self-information of :mod:`benchmarks.peers` as loops for Numba.

LLVM turns the innermost loops, along a row, into vectors. It has no vector exponential or logarithm without Intel's
library, so both are polynomials here, and bits go between integers and floats through a buffer that has both views.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

_FAST: Final = {"contract", "nsz", "arcp"}
_LOG2_E: Final = np.float32(1.44269504)


@numba.njit(fastmath=_FAST)
def _densities(here: Any, there: Any, exponent: Any, bits: Any, powers: Any, to: Any) -> None:
    """Set ``to`` to exp2(exponent (here - there)^2), split into 2^n in ``powers`` and a polynomial in the rest."""
    magic = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds
    for j in range(here.size):
        d = here[j] - there[j]
        t = max(d * d * exponent, np.float32(-126.0))
        n = (t + magic) - magic
        f = t - n
        bits[j] = (np.int32(n) + np.int32(127)) << np.int32(23)
        p = np.float32(1.3264727e-3) * f + np.float32(9.6715127e-3)
        p = p * f + np.float32(5.5507337e-2)
        p = p * f + np.float32(2.4022242e-1)
        p = p * f + np.float32(6.9314698e-1)
        to[j] = p * f + np.float32(1.0)
    for j in range(here.size):
        to[j] *= powers[j]


@numba.njit(fastmath=_FAST)
def _logarithms(values: Any, bits: Any, floats: Any) -> None:
    """Replace positive values by their logarithms."""
    for j in range(values.size):
        floats[j] = values[j]
    for j in range(values.size):
        e = (bits[j] - np.int32(0x3F3504F3)) >> np.int32(23)
        bits[j] -= e << np.int32(23)
        values[j] = np.float32(e) * np.float32(0.693147181)
    for j in range(values.size):
        f = floats[j] - np.float32(1.0)
        p = np.float32(-1.00346184e-1) * f + np.float32(1.63356435e-1)
        p = p * f + np.float32(-1.73259942e-1)
        p = p * f + np.float32(1.98882773e-1)
        p = p * f + np.float32(-2.49614652e-1)
        p = p * f + np.float32(3.33352614e-1)
        p = p * f + np.float32(-5.00005844e-1)
        values[j] += f + f * f * p


@numba.njit(fastmath=_FAST)
def _add(to: Any, values: Any) -> None:
    for j in range(values.size):
        to[j] += values[j]


@numba.njit(fastmath={*_FAST, "reassoc"})
def _squares(here: Any, there: Any) -> Any:
    total = np.float32(0.0)
    for j in range(here.size):
        d = here[j] - there[j]
        total += d * d
    return total


@numba.njit
def _exponent(squares: float, count: float, fixed: float, adaptive: bool) -> Any:
    """Return -scale log2(e)."""
    if adaptive:
        fixed = fixed * count / squares if squares > 0.0 else 0.0
    return np.float32(-fixed) * _LOG2_E


@numba.njit
def _within(plane: Any, mass: Any, radius: int, fixed: float, adaptive: bool, bits: Any, floats: Any, row: Any) -> None:
    """Set ``mass`` to the sums of densities in each pixel's window, every pair of pixels visited once."""
    h, w = plane.shape
    squares, count = 0.0, 0.0
    for measure in (True, False):
        exponent = _exponent(squares, count, fixed, adaptive)
        for i in range(h):
            for down in range(min(radius, h - 1 - i) + 1):
                for shift in range(-radius if down else 1, radius + 1):
                    start, end = max(0, -shift), min(w, w - shift)
                    if start >= end:
                        continue
                    here, there = plane[i, start:end], plane[i + down, start + shift : end + shift]
                    if measure:
                        squares += _squares(here, there)
                        count += end - start
                        continue
                    _densities(here, there, exponent, bits, floats, row[: end - start])
                    _add(mass[i, start:end], row[: end - start])
                    _add(mass[i + down, start + shift : end + shift], row[: end - start])


@numba.njit
def _across(x: Any, c: int, s: int, mass: Any, fixed: float, adaptive: bool, bits: Any, floats: Any, row: Any) -> None:
    """Set ``mass`` to the sums of densities over the ``s`` channels that follow channel ``c``."""
    channels, h, _ = x.shape
    squares = 0.0
    if adaptive:
        for step in range(1, s + 1):
            for i in range(h):
                squares += _squares(x[c, i], x[(c + step) % channels, i])
    exponent = _exponent(squares, float(s * mass.size), fixed, adaptive)
    for i in range(h):
        for step in range(1, s + 1):
            _densities(x[c, i], x[(c + step) % channels, i], exponent, bits, floats, row)
            _add(mass[i], row)


@numba.njit
def forward(x: Any, info: Any, sizes: Any, radius: int, s: int, weight: float, fixed: float, adaptive: bool) -> None:
    """Write the self-information of x, (N, C, H, W) in float32, to ``info``; ``sizes``: log of every window's size."""
    n, c, h, w = x.shape
    bits = np.empty(w, np.int32)
    floats = bits.view(np.float32)
    row, mass, other = np.empty(w, np.float32), np.empty((h, w), np.float32), np.empty((h, w), np.float32)
    half, log_count = np.float32(weight), np.float32(np.log(s + 1.0))
    for sample in range(n):
        for channel in range(c):
            mass[:] = 1.0
            _within(x[sample, channel], mass, radius, fixed, adaptive, bits, floats, row)
            if s:
                other[:] = 1.0
                _across(x[sample], channel, s, other, fixed, adaptive, bits, floats, row)
            for i in range(h):
                _logarithms(mass[i], bits, floats)
                to = info[sample, channel, i]
                for j in range(w):
                    to[j] = sizes[i, j] - mass[i, j]
                if s:
                    _logarithms(other[i], bits, floats)
                    for j in range(w):
                        to[j] += half * (log_count - other[i, j])
