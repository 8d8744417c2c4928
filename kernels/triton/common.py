"""Building blocks of the kernels: the tile of each program, the addresses of its pixels, and sums over it.

A tile is a two-dimensional block whose second axis runs along the axis that is contiguous in memory: TH rows
by TW columns of one plane (n, c), or for channels_last TH * TW pixels by TC channels of one sample. The
coordinates n, c, h, w broadcast against each other to that block, so that each kernel is written once.

Coordinates past the border are moved back into the map and are not ``valid``. So every load is in bounds and needs
no mask, which would cost a branch on AMD (on NVIDIA it costs none; see ``window``).

Two constants choose the type of offsets. INT64: strides, and so offsets within a plane, are int64, as large maps
need. UINT32: the window's loads add an unsigned 32-bit byte offset to one pointer that all lanes share.
"""

# mypy: allow-untyped-decorators

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Final

import torch
import triton
import triton.language as tl

from sia_layers.kernels.triton.launch import Arguments, Kernel

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LARGEST = tl.constexpr(1e38)
TINY = tl.constexpr(1.1754943508222875e-38)


def kernel(
    windowed: bool, registers: Callable[[Arguments], int | None] | None = None
) -> Callable[[Callable[..., None]], Kernel]:
    """Decorate a function to make it a kernel, compiled for its constexpr arguments and the dtypes alone.

    Nothing is specialised on the value or the alignment of other arguments: a sample alone and the same sample in
    a batch run the same instructions, and the variants can be listed without a device.

    Args:
        windowed: whether the kernel reads a window of each pixel.
        registers: returns the kernel's ``maxnreg`` on NVIDIA for given arguments, or None for ptxas's own limit.
    """

    def decorate(function: Callable[..., None]) -> Kernel:
        parameters = inspect.signature(function).parameters.items()
        names = [name for name, parameter in parameters if "constexpr" not in str(parameter.annotation)]
        compiled = triton.jit(do_not_specialize=names, do_not_specialize_on_alignment=names)(function)
        return Kernel(function.__name__, compiled, windowed, registers)

    return decorate


DISTANCE_REGISTERS: Final = 255


def register_limit(densities: Mapping[tuple[int, torch.dtype], int]) -> Callable[[Arguments], int | None]:
    """Return the ``registers`` of a kernel that computes either distances or densities.

    By default ptxas limits registers to raise occupancy, and on sm_90 some variants then spill 2 to 4 of them: some
    of those that compute distances, and a few channels_last ones that compute densities. The other variants keep the
    default, because a higher limit would cost them occupancy.

    Args:
        densities: the ``maxnreg`` of channels_last variants that compute densities, by K and dtype.
    """

    def limit(arguments: Arguments) -> int | None:
        if arguments["DISTANCE"]:
            return DISTANCE_REGISTERS
        return densities.get((arguments["K"], arguments["x"].dtype)) if arguments["CHANNELS_LAST"] else None

    return limit


@triton.jit
def locate(C, parts, CHANNELS_LAST: tl.constexpr, TC: tl.constexpr, VECTOR: tl.constexpr):
    """Return the sample, channels and part of the plane that this program works on, and which channels exist."""
    # The grid has two axes, because on one a large map could exceed AMD's limit of 2^32 threads.
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    if CHANNELS_LAST:
        blocks = tl.cdiv(C, TC)
        c = program % blocks * TC + tl.arange(0, TC)[None, :]
        present = c < (C // VECTOR * VECTOR if VECTOR else C)
        if VECTOR:
            c = tl.where(present, c, c % VECTOR)
            c = tl.max_contiguous(tl.multiple_of(c, (1, VECTOR)), (1, VECTOR))
        else:
            c = tl.where(present, c, 0)
        program = program // blocks
        return program // parts, c, program % parts, present
    else:
        plane = program // parts
        c = plane % C
        return plane // C, c, program % parts, c < C


@triton.jit
def pixels(
    tile, H, W, present, CHANNELS_LAST: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """Return the rows and columns of a tile of the plane, and which of its elements exist."""
    across = tl.cdiv(W, TW)
    top, left = tile // across * TH, tile % across * TW
    if CHANNELS_LAST:
        pixel = tl.arange(0, TH * TW)[:, None]
        h, w = top + pixel // TW, left + pixel % TW
    else:
        h, w = top + tl.arange(0, TH)[:, None], left + tl.arange(0, TW)[None, :]
    if VECTOR and not CHANNELS_LAST:
        W = W // VECTOR * VECTOR
    valid = (h < H) & (w < W) & present
    if VECTOR and not CHANNELS_LAST:
        w = tl.where(w < W, w, w % VECTOR)
        w = tl.max_contiguous(tl.multiple_of(w, (1, VECTOR)), (1, VECTOR))
    return tl.minimum(h, H - 1), w if VECTOR and not CHANNELS_LAST else tl.minimum(w, W - 1), valid


@triton.jit
def sample(base, n, sn, VECTOR: tl.constexpr):
    """Return the address of sample n."""
    base += tl.cast(n, tl.int64) * sn
    if VECTOR:
        base = tl.multiple_of(base, 16)
    return base


@triton.jit
def plane(base, n, c, sn, sc, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr):
    """Return the addresses of the planes (n, c)."""
    base = sample(base, n, sn, VECTOR)
    if VECTOR and CHANNELS_LAST:
        base += c
    else:
        base += tl.cast(c, tl.int64) * sc
        if VECTOR:
            base = tl.multiple_of(base, 16)
    return base


@triton.jit
def pixel_at(base, offset, UINT32: tl.constexpr):
    """Return the address ``offset`` elements into a plane; UINT32 needs a single ``base`` and an int32 ``offset``."""
    if UINT32:
        # AMD's loads add an unsigned byte offset to a pointer that all lanes share at no cost.
        element: tl.constexpr = base.dtype.element_ty
        size: tl.constexpr = element.primitive_bitwidth // 8
        place = tl.cast(base, tl.pointer_type(tl.int8), bitcast=True) + (offset * size).to(tl.uint32, bitcast=True)
        return tl.cast(place, tl.pointer_type(element), bitcast=True)
    else:
        return base + offset


@triton.jit
def cyclic(c, C):
    """Return c mod C, for c < 2C."""
    return tl.where(c >= C, c - C, c)


@triton.jit
def channel_at(base, c, C, sc, spot, CHANNELS_LAST: tl.constexpr):
    """Return the addresses of the pixels at offset ``spot`` in the channels c mod C of one sample, for c < 2C."""
    if CHANNELS_LAST:
        return base + (spot + cyclic(c, C) * tl.cast(sc, spot.dtype))
    else:
        return base + tl.cast(cyclic(c, C), tl.int64) * sc + spot


@triton.jit
def stride(value, VECTOR: tl.constexpr, INT64: tl.constexpr):
    """Return a stride in the integer type of offsets within a plane; let the compiler see that VECTOR divides it."""
    value = tl.cast(value, tl.int64 if INT64 else tl.int32)
    if VECTOR:
        value = value // VECTOR * VECTOR
    return value


@triton.jit
def place(h, w, sh, sw, CHANNELS_LAST: tl.constexpr, VECTOR: tl.constexpr, INT64: tl.constexpr):
    """Return the offsets of the pixels (h, w) within a plane."""
    if VECTOR and not CHANNELS_LAST:
        return h * stride(sh, VECTOR, INT64) + w
    else:
        return h * stride(sh, VECTOR, INT64) + w * stride(sw, VECTOR, INT64)


@triton.jit
def reach(index, shift, size, CENTRE: tl.constexpr, PADDING: tl.constexpr):
    """Return the position that a window reads ``shift`` away along one axis, and 0.0 for a pad or 1.0 otherwise.

    CENTRE means that the shift is 0.
    """
    if CENTRE:
        position, inside = index, tl.full(index.shape, 1.0, tl.float32)
    else:
        position = index + shift
        inside = tl.where((position >= 0) & (position < size), 1.0, 0.0)
        if PADDING == "reflect":
            position = size - 1 - tl.abs(size - 1 - tl.abs(position))
        position = tl.minimum(tl.maximum(position, 0), size - 1)
    return position, inside


@triton.jit
def extent(index, size, RADIUS: tl.constexpr):
    """Return how many positions inside the map the window spans along one axis."""
    return (tl.minimum(index + RADIUS, size - 1) - tl.maximum(index - RADIUS, 0) + 1).to(tl.float32)


@triton.jit
def sight(seen, viewer, size, RADIUS: tl.constexpr, PADDING: tl.constexpr):
    """Return how often the window of ``viewer`` contains the pixel ``seen``, itself and as pads, along one axis.

    The two are at most RADIUS apart.
    """
    times = tl.full(seen.shape, 1.0, tl.float32)
    if PADDING == "replicate":
        times += tl.where(seen == 0, tl.maximum(RADIUS - viewer, 0), 0)
        times += tl.where(seen == size - 1, tl.maximum(RADIUS - (size - 1 - viewer), 0), 0)
    elif PADDING == "reflect":
        times += tl.where((seen > 0) & (seen + viewer <= RADIUS), 1.0, 0.0)
        times += tl.where((seen < size - 1) & (2 * (size - 1) - seen - viewer <= RADIUS), 1.0, 0.0)
    return times


@triton.jit
def finished(total, count, divisor, fixed, COUNTED: tl.constexpr, SCALE: tl.constexpr):
    """Divide a sum by ``count`` if COUNTED, else by ``divisor``, and turn the mean into a scale if SCALE."""
    mean = total / (tl.maximum(count, 1.0) if COUNTED else divisor)
    if SCALE:
        usable = mean > TINY
        mean = tl.where(usable, tl.minimum(fixed / tl.where(usable, mean, 1.0), LARGEST), 0.0)
    return mean


@triton.jit
def tile_sum(value, CHANNELS_LAST: tl.constexpr):
    """Sum over the pixels of each plane in the tile: a scalar, or (1, TC) for channels_last."""
    if CHANNELS_LAST:
        return tl.sum(value, 0, keep_dims=True)
    else:
        return tl.sum(tl.sum(value, 1), 0)
