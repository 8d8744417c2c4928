"""The self-information of :mod:`benchmarks.peers` as a Halide pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import halide as hl
import torch
from torch import Tensor

from sia_layers.kernels.cpu import library
from sia_layers.kernels.options import Options

LANES = {"avx512": 16, "avx2": 8, "baseline": 4}  # floats of a vector
FAR = 1e15  # a value beyond the border: its density is 0


def built(options: Options, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Compile the pipeline for maps of one shape.

    Vectors lie along the rows; the sum of squares of a plane is accumulated in one vector, and the densities of a
    window in registers. Visiting each pair once would store every density, which was slower.
    """
    os.environ["HL_NUM_THREADS"] = str(torch.get_num_threads())
    n, c, h, w = shape
    lanes = min(LANES[library.LEVELS[library.level()]], w)
    radius, s = options.radius, options.neighbours(c)
    x = hl.ImageParam(hl.Float(32), 4, "x")  # (w, h, c, n)
    for axis, extent in enumerate((w, h, c, n)):
        x.dim(axis).set_bounds(0, extent)
    i, j, k, b, lane = (hl.Var(name) for name in ("i", "j", "k", "b", "lane"))
    bounds = [(0, w), (0, h)]
    padded = hl.Func("padded")
    padded[i, j, k, b] = hl.BoundaryConditions.constant_exterior(x, hl.f32(FAR), bounds)[i, j, k, b]
    offsets = [(di, dj) for dj in range(-radius, radius + 1) for di in range(-radius, radius + 1) if (di, dj) != (0, 0)]

    # The later half of the window: the earlier half has the same squares.
    square = hl.Func("square")
    square[i, j, k, b] = _sum(
        hl.select(
            padded[i + di, j + dj, k, b] == hl.f32(FAR), 0.0, _square(padded[i + di, j + dj, k, b] - padded[i, j, k, b])
        )
        for di, dj in offsets[len(offsets) // 2 :]
    )
    beside = hl.Func("beside")
    beside[i, j, k, b] = _sum(_square(x[i, j, (k + step) % c, b] - x[i, j, k, b]) for step in range(1, s + 1))
    totals = [
        _plane_sum(name, of, (w, h, lanes), (lane, k, b)) for name, of in (("within", square), ("across", beside))
    ]
    pairs = sum(max(0, w - abs(di)) * max(0, h - abs(dj)) for di, dj in offsets) // 2
    exponents = hl.Func("exponents")
    exponents[k, b] = (
        _exponent(options, totals[0], pairs, (lanes, k, b)),
        _exponent(options, totals[1], s * h * w, (lanes, k, b)) if s else hl.f32(0.0),
    )

    within = 1.0 + _sum(
        _density(padded[i + di, j + dj, k, b] - padded[i, j, k, b], exponents[k, b][0]) for di, dj in offsets
    )
    rows = hl.min(j + radius, h - 1) - hl.max(j - radius, 0) + 1
    columns = hl.min(i + radius, w - 1) - hl.max(i - radius, 0) + 1
    value = hl.fast_log(hl.f32(rows * columns) / within)
    if s:
        others = _sum(_density(x[i, j, (k + step) % c, b] - x[i, j, k, b], exponents[k, b][1])
                      for step in range(1, s + 1))  # fmt: skip
        value += options.inter_weight * hl.fast_log((s + 1.0) / (1.0 + others))
    info = hl.Func("info")
    info[i, j, k, b] = value
    info.bound(i, 0, w).bound(j, 0, h).bound(k, 0, c).bound(b, 0, n)
    info.vectorize(i, lanes, hl.TailStrategy.ShiftInwards)
    if torch.get_num_threads() > 1:
        info.parallel(k)
    padded.compute_at(info, k).vectorize(i, lanes)
    exponents.compute_at(info, k)
    for total in totals:
        total.compute_at(info, k)
    target = hl.get_host_target().with_feature(hl.TargetFeature.NoAsserts)
    info.compile_jit(target)

    def run(given: Tensor) -> Tensor:
        result = torch.empty(shape)
        x.set(hl.Buffer(given.contiguous().numpy(), name="given"))
        info.realize(hl.Buffer(result.numpy(), name="result"))
        return result

    return run


def _sum(terms: Iterable[Any]) -> Any:
    total: Any = hl.f32(0.0)
    for term in terms:
        total += term
    return total


def _square(d: Any) -> Any:
    return d * d


def _density(d: Any, exponent: Any) -> Any:
    """Return exp(exponent d^2); Halide's exponential is wrong for very negative arguments, where this is nearly 0."""
    return hl.fast_exp(hl.max(_square(d) * exponent, hl.f32(-80.0)))


def _plane_sum(name: str, of: Any, size: tuple[int, int, int], axes: tuple[Any, Any, Any]) -> Any:
    """Sum a function over a plane, with a separate sum per lane; lane 0 also takes the columns left over at the end."""
    w, h, lanes = size
    lane, k, b = axes
    total = hl.Func(name)
    total[lane, k, b] = hl.f32(0.0)
    vectors = hl.RDom([(0, w // lanes), (0, h)])
    total[lane, k, b] += of[vectors.x * lanes + lane, vectors.y, k, b]
    total.vectorize(lane, lanes)
    total.update(0).reorder(lane, vectors.x, vectors.y).vectorize(lane, lanes)
    if w % lanes:
        rest = hl.RDom([(w - w % lanes, w % lanes), (0, h)])
        total[0, k, b] += of[rest.x, rest.y, k, b]
    return total


def _exponent(options: Options, total: Any, count: int, axes: tuple[int, Any, Any]) -> Any:
    """Return minus the scale, from the sum of a plane's squares."""
    lanes, k, b = axes
    if not options.adaptive:
        return hl.f32(-options.fixed_scale())
    square = _sum(total[lane, k, b] for lane in range(lanes))
    return hl.select(square > 0.0, -hl.f32(options.fixed_scale() * count) / square, 0.0)
