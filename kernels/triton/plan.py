"""Plan a launch: its tiles and the integer types of its offsets, as arguments of the kernel."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from torch import Tensor

from sia_layers.kernels.triton.configs import VECTOR, Tiling, ceil_div, flat_tiling, window_tiling

ALIGNMENT: Final = 16  # bytes
LARGEST_UINT32_PLANE: Final = 2**30  # elements; the byte offsets of larger planes (4-byte elements) overflow uint32
LONGEST_ROW: Final = 2**31 - 2**16  # pixels; the end of a row's last tile still fits in int32


class Plan(NamedTuple):
    """The shape that the kernels see, and how they address it.

    Attributes:
        samples: N.
        channels: C.
        height: H.
        width: W.
        tiling: the tile of one program.
        int64: compute offsets within a plane in int64.
        unit_columns: every map has unit column stride and W > 1.
    """

    samples: int
    channels: int
    height: int
    width: int
    tiling: Tiling
    int64: bool
    unit_columns: bool = False

    @property
    def tiles(self) -> int:
        """Number of tiles in one plane."""
        return self.tiling.tiles(self.height, self.width)

    def masked(self, padding_mode: str) -> bool:
        """Tell whether the window's loads may mask pads out instead of reading the nearest pixel."""
        return self.unit_columns and padding_mode == "exclude"

    @property
    def uint32(self) -> bool:
        """Whether the window's loads may add uint32 byte offsets to one pointer, as the plane of an NCHW map has."""
        return not (self.tiling.channels_last or self.int64)

    def programs(self, parts: int) -> int:
        """Return how many programs cover all planes, each plane split into ``parts``."""
        return self.samples * ceil_div(self.channels, self.tiling.channels) * parts

    def arguments(self, **maps: Tensor | None) -> dict[str, Any]:
        """Return the plan as kernel arguments, with the strides of each map under the letter that the kernel uses."""
        tiling = self.tiling
        found = {
            "N": self.samples, "C": self.channels, "H": self.height, "W": self.width,
            "CHANNELS_LAST": tiling.channels_last, "TH": tiling.rows, "TW": tiling.columns, "TC": tiling.channels,
            "VECTOR": tiling.vector, "INT64": self.int64,
        }  # fmt: skip
        for letter, tensor in maps.items():
            strides = (0, 0, 0, 0) if tensor is None else tensor.stride()
            found.update({letter + axis: step for axis, step in zip("nchw", strides, strict=True)})
        return found


def window_plan(x: Tensor, *maps: Tensor) -> Plan:
    """Plan a kernel that reads a window of x, with lanes along the contiguous axis of x."""
    tensors, (samples, channels, height, width) = (x, *maps), x.shape
    channels_last = _channels_innermost(x)
    # A window's loads along the columns are never aligned, so NCHW has one column per lane.
    vector = VECTOR if channels_last and _aligned(tensors, 1, channels, (0, 2, 3)) else 0
    tiling = window_tiling((samples, channels, height, width), x.element_size(), channels_last, vector)
    int64 = _needs_int64(tensors, (1, 2, 3) if channels_last else (2, 3))
    unit_columns = not channels_last and width > 1 and all(t.stride(3) == 1 for t in tensors)
    return Plan(samples, channels, height, width, tiling, int64, unit_columns)


def flat_plan(x: Tensor, *maps: Tensor) -> Plan:
    """Plan a kernel that works pixel by pixel, and treat each plane as one row where every map's strides allow it."""
    tensors, (samples, channels, height, width) = (x, *maps), x.shape
    flat = all(t.stride(2) == width * t.stride(3) for t in tensors) and height * width <= LONGEST_ROW
    if flat:
        height, width = 1, height * width
    channels_last = _channels_innermost(x)
    lane, lanes = (1, channels) if channels_last else (3, width)
    axes = tuple(axis for axis in range(4) if axis != lane and not (flat and axis == 2))
    vector = VECTOR if _aligned(tensors, lane, lanes, axes) else 0
    tiling = flat_tiling((samples, channels, height, width), x.element_size(), channels_last, vector)
    return Plan(samples, channels, height, width, tiling, _needs_int64(tensors, (2, 3)))


def _channels_innermost(x: Tensor) -> bool:
    """Tell whether neighbours in memory are channels, whatever the strides of the batch and the rows."""
    return x.shape[1] > 1 and x.stride(1) == 1 and (x.stride(3) != 1 or x.shape[3] == 1)


def _aligned(tensors: tuple[Tensor, ...], lane: int, lanes: int, axes: tuple[int, ...]) -> bool:
    """Tell whether aligned vectors of VECTOR elements along one axis cover the maps, at any position on the others."""
    return lanes % VECTOR == 0 and all(
        t.stride(lane) == 1
        and t.data_ptr() % ALIGNMENT == 0
        and all(t.stride(axis) * t.element_size() % ALIGNMENT == 0 for axis in axes)
        for t in tensors
    )


def _needs_int64(tensors: tuple[Tensor, ...], axes: tuple[int, ...]) -> bool:
    """Tell whether byte offsets along these axes exceed 32 bits; offsets along the other axes are always int64."""
    return any(sum((t.shape[axis] - 1) * t.stride(axis) for axis in axes) >= LARGEST_UINT32_PLANE for t in tensors)
