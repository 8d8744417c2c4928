"""Configurations of the kernels: a table in place of autotuning, which needs a device and would not repeat itself.

What a configuration depends on is what the order of a reduction depends on: the map's C, H and W, its dtype and
layout, never the batch.

The figures are chosen by count, per output of K = 3: 13 exponentials at 16 a cycle and multiprocessor, 15 loads
at 32, about 200 instructions at 128. Four outputs a thread hide latency at 40 to 80 registers. NCHW: one column a
lane, so that the shifted loads stay coalesced (wider ones would be unaligned and fall apart), 32 columns for
one 128-byte line, 16 rows to share their halo. channels_last: a 128-byte line of channels, of which a lane loads
16 bytes at once whatever the shift, and a square of pixels.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch

ELEMENTS: Final = 512  # outputs of a program whose tile has a window
FLAT_ELEMENTS: Final = 1024  # outputs of a program that works pixel by pixel
COLUMNS: Final = (32, 16)  # of a tile of NCHW, at most and at least
LINE_BYTES: Final = 128  # what a warp loads at once, of float32
VECTOR: Final = 4  # channels that a lane loads at once, where the map is aligned
# Outputs of a thread, of 32 a warp. Twice as many save a tenth to a sixth of the instructions with a window, and take
# the registers to where ptxas spills. AMD's warps of 64 threads get half as many each: its compiler moves every
# load to the front, at a register apiece.
OUTPUTS_PER_THREAD: Final = 4
FLAT_OUTPUTS_PER_THREAD: Final = 8
LARGEST_WARPS: Final = 8
# Registers that ptxas may take. Left to itself it stops early, for the sake of more warps, and spills two or four: on
# sm_90 of two kernels of densities in channels_last, by name, K and dtype, and of those of distances here and there. To
# tell it so everywhere would cost the others warps.
MOST_REGISTERS: Final = {("information", 5, torch.float32): 96, ("gather", 5, torch.bfloat16): 128}
DISTANCE_REGISTERS: Final = 255
SPREAD_TILES: Final = 4  # tiles that a program of the bandwidth's reduction adds up
FINISH_ENTRIES: Final = 1024  # partial sums that a program adds up
FINISH_BLOCK: Final = (64, 16)  # partial sums, rows: of a tile of them


class Tiling(NamedTuple):
    """Tile of one program: rows, columns and channels (1 for NCHW), and channels loaded at once (0: any strides)."""

    channels_last: bool
    rows: int
    columns: int
    channels: int
    vector: int

    @property
    def elements(self) -> int:
        """Outputs of one program."""
        return self.rows * self.columns * self.channels

    def tiles(self, height: int, width: int) -> int:
        """Tiles of one plane."""
        return ceil_div(height, self.rows) * ceil_div(width, self.columns)


def window_tiling(shape: tuple[int, ...], itemsize: int, channels_last: bool, vector: int) -> Tiling:
    """Tile of the kernels that look at a window, for maps (N, C, H, W)."""
    _, channels, height, width = shape
    if channels_last:
        lanes = fit(channels, LINE_BYTES // itemsize, 16)
        columns = min(4, power_of_two(width))
        rows = min(ELEMENTS // lanes // columns, power_of_two(height))
        return Tiling(True, rows, columns, lanes, vector)
    columns = fit(width, *COLUMNS)
    rows = fit(height, ELEMENTS // columns, ELEMENTS // columns // 4)
    return Tiling(False, rows, columns, 1, vector)


def flat_tiling(shape: tuple[int, ...], itemsize: int, channels_last: bool, vector: int) -> Tiling:
    """Tile of the kernels that work pixel by pixel, for maps (N, C, H, W); 1 x HW where rows are of no account."""
    _, channels, height, width = shape
    lanes = fit(channels, LINE_BYTES // itemsize, 16) if channels_last else 1
    columns = min(FLAT_ELEMENTS // lanes, power_of_two(width))
    return Tiling(channels_last, min(FLAT_ELEMENTS // lanes // columns, power_of_two(height)), columns, lanes, vector)


def warps(elements: int, windowed: bool) -> int:
    """Warps of a program with so many outputs, of a kernel that looks at a window or not."""
    outputs = OUTPUTS_PER_THREAD if windowed else FLAT_OUTPUTS_PER_THREAD
    return max(1, min(LARGEST_WARPS, elements // (32 * outputs)))


def fit(size: int, largest: int, smallest: int) -> int:
    """The power of two, within bounds and no larger than needed, that covers ``size`` with the least waste."""
    candidate = best = min(largest, power_of_two(size))
    while candidate > smallest:
        candidate //= 2
        if ceil_div(size, candidate) * candidate < ceil_div(size, best) * best:
            best = candidate
    return best


def ceil_div(size: int, part: int) -> int:
    """size / part, rounded up."""
    return -(-size // part)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()
