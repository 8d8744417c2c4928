"""Choose the tiles of the kernels, by a table: autotuning needs a device and is not repeatable.

A configuration depends on the C, H and W, the dtype and the layout of the map, and never on the batch, because it
determines the order in which sums are added up.

The sizes follow from counts per output for K = 3: 13 exponentials at 16 per cycle and multiprocessor, 15 loads at
32, and about 200 instructions at 128. Four outputs per thread hide latency at 40 to 80 registers. NCHW: one column
per lane keeps the shifted loads coalesced (wider loads would be unaligned and be split); 32 columns fill a 128-byte
line, and 16 rows share their halo. channels_last: a 128-byte line of channels, of which each lane loads 16 bytes at
once whatever the shift, and a square of pixels.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ELEMENTS: Final = 512  # outputs of a program that reads a window
FLAT_ELEMENTS: Final = 1024  # outputs of a program that works pixel by pixel
COLUMNS: Final = (32, 16)  # most and fewest columns of a tile of NCHW
LINE_BYTES: Final = 128  # bytes of float32 that a warp loads at once
VECTOR: Final = 4  # channels that a lane loads at once if the map is aligned
# Outputs per thread, for warps of 32 threads. Twice as many would save a tenth to a sixth of the instructions of
# kernels with a window, but use so many registers that ptxas spills. Threads of AMD's warps of 64 get half as many,
# because AMD's compiler moves every load to the front, at one register each.
OUTPUTS_PER_THREAD: Final = 4
FLAT_OUTPUTS_PER_THREAD: Final = 8
LARGEST_WARPS: Final = 8
SPREAD_TILES: Final = 4  # tiles that one program adds up to measure the bandwidth
FINISH_ENTRIES: Final = 1024  # partial sums that one program adds up
FINISH_BLOCK: Final = (64, 16)  # partial sums and rows of a tile of partial sums


class Tiling(NamedTuple):
    """The tile of one program.

    Attributes:
        channels_last: whether the second axis of the tile runs along channels.
        rows: of pixels.
        columns: of pixels.
        channels: 1 for NCHW.
        vector: elements that a lane loads at once; 0 for any strides.
    """

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
        """Return the number of tiles that cover a plane."""
        return ceil_div(height, self.rows) * ceil_div(width, self.columns)


def window_tiling(shape: tuple[int, ...], itemsize: int, channels_last: bool, vector: int) -> Tiling:
    """Return the tile of kernels that read a window, for maps (N, C, H, W)."""
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
    """Return the tile of kernels that work pixel by pixel, for maps (N, C, H, W), or (N, C, 1, HW) for flat planes."""
    _, channels, height, width = shape
    lanes = fit(channels, LINE_BYTES // itemsize, 16) if channels_last else 1
    columns = min(FLAT_ELEMENTS // lanes, power_of_two(width))
    return Tiling(channels_last, min(FLAT_ELEMENTS // lanes // columns, power_of_two(height)), columns, lanes, vector)


def warps(elements: int, windowed: bool) -> int:
    """Return the number of warps of a program with ``elements`` outputs."""
    outputs = OUTPUTS_PER_THREAD if windowed else FLAT_OUTPUTS_PER_THREAD
    return max(1, min(LARGEST_WARPS, elements // (32 * outputs)))


def fit(size: int, largest: int, smallest: int) -> int:
    """Return the power of two, within bounds and no larger than needed, whose multiples cover ``size`` most tightly."""
    candidate = best = min(largest, power_of_two(size))
    while candidate > smallest:
        candidate //= 2
        if ceil_div(size, candidate) * candidate < ceil_div(size, best) * best:
            best = candidate
    return best


def ceil_div(size: int, part: int) -> int:
    """Return size / part, rounded up."""
    return -(-size // part)


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()
