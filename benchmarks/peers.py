"""Self-information in other libraries that compile array code; each is an optional row of ``benchmarks.op``.

All compute the forward of the "kde" estimator in float32 with ``padding_mode="exclude"``, as
:mod:`sia_layers.kernels.reference` defines it, on contiguous maps. ``pip install sia-layers[peers]`` installs the
libraries; a library that is missing has no row. OpenCV's bilateral filter is the closest operation that a hand-tuned
library offers; it does less (see :func:`opencv`) and is checked against its own definition.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from sia_layers.kernels.options import Options

Provider = Callable[[Tensor], Tensor]


def installed() -> tuple[str, ...]:
    """Return the peers whose library is installed."""
    return tuple(name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module) is not None)


def created(name: str, options: Options, shape: tuple[int, ...]) -> Provider:
    """Return a peer's function for maps of one shape, with torch's current number of threads."""
    return PEERS[name][1](options, shape)


def jax(options: Options, shape: tuple[int, ...]) -> Provider:
    """Return the shift form through ``jax.jit``, with a distant value beyond the border instead of masks.

    XLA fuses the sum over a window into one loop. Visiting each pair once would make it store every density, which took
    at least twice as long; the squares, which need no exponential, are summed that way.
    """
    os.environ["NPROC"] = str(torch.get_num_threads())  # the size of XLA's pool, read when its client is made
    import jax
    from jax import numpy as jnp

    radius, s, (h, w) = options.radius, options.neighbours(shape[1]), shape[2:]
    reach = range(-radius, radius + 1)
    offsets = [(i, j) for i in reach for j in reach if (i, j) != (0, 0)]
    sizes = torch.from_numpy(_window_sizes(options, h, w))
    pairs = float(sizes.exp().sum() - h * w)

    def squares(x: Any, i: int, j: int) -> Any:
        here = x[:, :, : h - i, max(0, -j) : min(w, w - j)]
        return ((here - x[:, :, i:, max(0, j) : min(w, w + j)]) ** 2).sum((2, 3))

    def scale_of(square: Any) -> Any:
        if not options.adaptive:
            return jnp.full_like(square, options.fixed_scale())[..., None, None]
        return jnp.where(square > 0, options.fixed_scale() / square, 0.0)[..., None, None]

    def self_information(x: Any) -> Any:
        scale = scale_of(2 * sum(squares(x, i, j) for i, j in offsets if (i, j) > (0, 0)) / pairs)
        padded = jnp.pad(x, [(0, 0), (0, 0), (radius, radius), (radius, radius)], constant_values=1e15)
        windows = (padded[:, :, radius + i : radius + i + h, radius + j : radius + j + w] for i, j in offsets)
        info = sizes.numpy() - jnp.log(1 + sum(jnp.exp(-((there - x) ** 2) * scale) for there in windows))
        if s:
            others = [jnp.roll(x, -step, 1) for step in range(1, s + 1)]
            scale = scale_of(sum(((there - x) ** 2).mean((2, 3)) for there in others) / s)
            mass = 1 + sum(jnp.exp(-((there - x) ** 2) * scale) for there in others)
            info = info + options.inter_weight * (jnp.log(s + 1.0) - jnp.log(mass))
        return info

    compiled = jax.jit(self_information)

    def run(x: Tensor) -> Tensor:
        return torch.from_dlpack(compiled(jax.dlpack.from_dlpack(x.contiguous())).block_until_ready())

    return run


def numba(options: Options, shape: tuple[int, ...]) -> Provider:
    """Return loops compiled by Numba: each pair of pixels once, vectors along the rows, a polynomial exponential."""
    from benchmarks import peers_numba

    sizes = _window_sizes(options, *shape[2:])

    def run(x: Tensor) -> Tensor:
        x, info = x.contiguous(), torch.empty(shape)
        peers_numba.forward(
            x.numpy(), info.numpy(), sizes, options.radius, options.neighbours(shape[1]), options.inter_weight,
            options.fixed_scale(), options.adaptive,
        )  # fmt: skip
        return info

    return run


def halide(options: Options, shape: tuple[int, ...]) -> Provider:
    """Return a Halide pipeline: vectors along the rows, one plane at a time, Halide's ``fast_exp``."""
    from benchmarks import peers_halide

    return peers_halide.built(options, shape)


def opencv(options: Options, shape: tuple[int, ...]) -> Provider:
    """Return ``cv2.bilateralFilter`` plane by plane: the mean weighted by the densities.

    It does less work than self-information: the window is a disc (4 of 8 neighbours at K = 3, 28 of 48 at K = 7), the
    exponential is read from a table, and there is no bandwidth to measure and no logarithm.
    """
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    diameter, sigma = options.kernel_size, options.bandwidth

    def run(x: Tensor) -> Tensor:
        x, result = x.contiguous(), torch.empty(shape)
        planes, into = x.flatten(0, 1).numpy(), result.flatten(0, 1).numpy()
        for plane, to in zip(planes, into, strict=True):
            cv2.bilateralFilter(plane, diameter, sigma, _SPACE, to, cv2.BORDER_REPLICATE)
        return result

    return run


def bilateral(x: Tensor, options: Options) -> Tensor:
    """Return the result that defines :func:`opencv`, to check it."""
    radius = options.radius
    padded = torch.nn.functional.pad(x.double(), [radius] * 4, "replicate")
    h, w = x.shape[2:]
    total, mass = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            if i * i + j * j > radius * radius:
                continue
            there = padded[:, :, radius + i : radius + i + h, radius + j : radius + j + w]
            weight = torch.exp(-(there - x).square() / (2 * options.bandwidth**2))
            total, mass = total + weight * there, mass + weight
    return total / mass


def _window_sizes(options: Options, h: int, w: int) -> Any:
    """Return the logarithm of the number of pixels in every window of a plane, as an array of float32."""
    reach = [
        (torch.arange(size) + options.radius).clamp(max=size - 1) - (torch.arange(size) - options.radius).clamp(min=0)
        for size in (h, w)
    ]
    return ((reach[0][:, None] + 1) * (reach[1] + 1)).float().log().numpy()


_SPACE: Final = 1e6  # OpenCV's other Gaussian, over distance in the plane: wide enough to be 1 everywhere

PEERS: Final[dict[str, tuple[str, Callable[[Options, tuple[int, ...]], Provider]]]] = {
    "jax": ("jax", jax),
    "halide": ("halide", halide),
    "numba": ("numba", numba),
    "opencv": ("cv2", opencv),
}
