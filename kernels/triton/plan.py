"""How the tensors of one launch are tiled, as arguments of the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from sia_layers.kernels.triton.configs import VECTOR, Tiling, flat_tiling, window_tiling

ALIGNMENT = 16  # bytes
INT32 = 2**31
UINT32 = 2**30  # elements of a plane whose bytes, 4 each, 32 bits number without a sign
LONGEST_ROW = INT32 - 2**16  # that 32 bits number the end of its last tile as well


class Plan(NamedTuple):
    """The shape that the kernels see, the tile of a program, and whether offsets in a plane need 64 bits."""

    samples: int
    channels: int
    height: int
    width: int
    tiling: Tiling
    wide: bool
    unit: bool = False  # whether the columns of every map lie side by side, and are more than one: see ``window_plan``

    @property
    def tiles(self) -> int:
        """Tiles of one plane."""
        return self.tiling.tiles(self.height, self.width)

    def masked(self, padding_mode: str) -> bool:
        """Whether the window's loads may leave pads out by a mask, rather than read the nearest pixel."""
        return self.unit and padding_mode == "exclude"

    @property
    def narrow(self) -> bool:
        """Whether the window's loads may add offsets of 32 bits to one pointer, which a plane of NCHW has."""
        return not (self.tiling.channels_last or self.wide)

    def programs(self, parts: int) -> int:
        """Programs that it takes to work on every plane in so many parts."""
        return self.samples * -(-self.channels // self.tiling.channels) * parts

    def arguments(self, **maps: Tensor | None) -> dict[str, Any]:
        """The plan as kernel arguments, with the strides of maps by the letter that the kernel has for each."""
        tiling = self.tiling
        found = {
            "N": self.samples, "C": self.channels, "H": self.height, "W": self.width,
            "CHANNELS_LAST": tiling.channels_last, "TH": tiling.rows, "TW": tiling.columns, "TC": tiling.channels,
            "VECTOR": tiling.vector, "WIDE": self.wide,
        }  # fmt: skip
        for letter, tensor in maps.items():
            strides = (0, 0, 0, 0) if tensor is None else tensor.stride()
            found.update({letter + axis: step for axis, step in zip("nchw", strides, strict=True)})
        return found


def window_plan(x: Tensor, *maps: Tensor) -> Plan:
    """For kernels that look at a window of x: lanes along the axis of x that is contiguous."""
    tensors, (samples, channels, height, width) = (x, *maps), x.shape
    channels_last = _is_channels_last(x)
    # Along the columns the window's loads are unaligned whatever the map is: NCHW has one column a lane.
    vector = VECTOR if channels_last and _aligned(tensors, 1, channels, (0, 2, 3)) else 0
    tiling = window_tiling((samples, channels, height, width), x.element_size(), channels_last, vector)
    wide = _wide(tensors, (1, 2, 3) if channels_last else (2, 3))
    unit = not channels_last and width > 1 and all(t.stride(3) == 1 for t in tensors)
    return Plan(samples, channels, height, width, tiling, wide, unit)


def flat_plan(x: Tensor, *maps: Tensor) -> Plan:
    """For kernels that work pixel by pixel: the pixels of a plane as one row, where every map lies like that."""
    tensors, (samples, channels, height, width) = (x, *maps), x.shape
    flat = all(t.stride(2) == width * t.stride(3) for t in tensors) and height * width <= LONGEST_ROW
    if flat:
        height, width = 1, height * width
    channels_last = _is_channels_last(x)
    lane, lanes = (1, channels) if channels_last else (3, width)
    axes = tuple(axis for axis in range(4) if axis != lane and not (flat and axis == 2))
    vector = VECTOR if _aligned(tensors, lane, lanes, axes) else 0
    tiling = flat_tiling((samples, channels, height, width), x.element_size(), channels_last, vector)
    return Plan(samples, channels, height, width, tiling, _wide(tensors, (2, 3)))


def _is_channels_last(x: Tensor) -> bool:
    """Whether neighbours in memory are channels. The batch, and how it lies, is of no account."""
    return x.shape[1] > 1 and x.stride(1) == 1 and (x.stride(3) != 1 or x.shape[3] == 1)


def _aligned(tensors: tuple[Tensor, ...], lane: int, lanes: int, axes: tuple[int, ...]) -> bool:
    """Whether VECTOR at a time of the elements along one axis can be loaded, wherever along the others."""
    return lanes % VECTOR == 0 and all(
        t.stride(lane) == 1
        and t.data_ptr() % ALIGNMENT == 0
        and all(t.stride(axis) * t.element_size() % ALIGNMENT == 0 for axis in axes)
        for t in tensors
    )


def _wide(tensors: tuple[Tensor, ...], axes: tuple[int, ...]) -> bool:
    """Whether byte offsets along these axes exceed 32 bits; those along the others are always 64 bits wide."""
    return any(sum((t.shape[axis] - 1) * t.stride(axis) for axis in axes) >= UINT32 for t in tensors)
