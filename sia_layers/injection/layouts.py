"""Read the output of a host as feature maps (N, C, H, W), and write gated maps back in the same layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sia_layers.injection.errors import LayoutError

KINDS: Final = {"NCHW": 4, "NHWC": 4, "NLC": 3, "NCTHW": 5, "NTHWC": 5}  # by name: the number of axes
Grid = tuple[int, ...]  # rows and columns of tokens; for video, frames, rows and columns


class Reading(NamedTuple):
    """The output of a host, read as maps.

    Attributes:
        maps: (N, C, H, W); each frame of a video is a sample: (N·T, C, H, W).
        frames: T of a video; 1 for pictures.
        prefix: the tokens before those of the grid, (N, P, C); None if there are none.
    """

    maps: Tensor
    frames: int = 1
    prefix: Tensor | None = None


class Layout(NamedTuple):
    """The layout of feature maps in the output of a host.

    Attributes:
        kind: ``"NCHW"`` and ``"NHWC"`` for maps, ``"NCTHW"`` and ``"NTHWC"`` for video, ``"NLC"`` for tokens.
        grid: grid of the tokens in the dry run: rows and columns, or frames, rows and columns for video; None for
            maps.
        prefixes: possible numbers of prefix (class, register) tokens.
        stride: number of rows of patches for each row of tokens.
        fixed: whether the model takes no picture that results in as many tokens in another grid, so that ``grid`` can
            be relied on if a forward pass does not tell its own.
        order: position of the token of each grid cell, row by row, if tokens are not in reading order.
    """

    kind: str
    grid: Grid | None = None
    prefixes: tuple[int, ...] = (0,)
    stride: int = 1
    fixed: bool = False
    order: tuple[int, ...] | None = None

    @property
    def channel_axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.kind in ("NCHW", "NCTHW") else -1

    def channels(self, output: Tensor) -> int:
        """Return the number of channels."""
        return output.shape[self.channel_axis]

    def read(self, output: Tensor, grids: Iterable[Grid | None] = (), order: Tensor | None = None) -> Reading:
        """Read an output as maps, without a copy unless it is a video.

        Args:
            output: output of the host, in this layout.
            grids: grids of the tokens that this forward pass reports, most specific first.
            order: ``self.order`` as a tensor on the device of the output.

        Raises:
            LayoutError: the output does not have the axes of the layout, or the tokens fit no grid.
        """
        if output.dim() != KINDS[self.kind]:
            raise LayoutError(
                f"a site of layout {self.kind} got a tensor of shape {tuple(output.shape)}; run the model as it was "
                "when SIA was injected, or inject again"
            )
        if self.kind == "NCHW":
            return Reading(output)
        if self.kind == "NHWC":
            return Reading(output.permute(0, 3, 1, 2))
        if self.kind == "NCTHW":
            return Reading(output.transpose(1, 2).flatten(0, 1), output.shape[2])
        if self.kind == "NTHWC":
            return Reading(output.flatten(0, 1).permute(0, 3, 1, 2), output.shape[1])
        return self._tokens(output, grids, order)

    def write(self, reading: Reading, output: Tensor, inverse: Tensor | None = None) -> Tensor:
        """Write gated maps in the layout of the output.

        Args:
            reading: the result of :meth:`read`, with the gated maps.
            output: the output that was read.
            inverse: the inverse of ``self.order`` as a tensor on the device of the output.
        """
        maps, frames, prefix = reading
        if self.kind == "NCHW":
            return maps
        if self.kind == "NHWC":
            return maps.permute(0, 2, 3, 1)
        if self.kind == "NCTHW":
            video = maps.reshape(output.shape[0], frames, *maps.shape[1:]).transpose(1, 2)
            return video.contiguous() if output.is_contiguous() else video
        if self.kind == "NTHWC":
            return maps.permute(0, 2, 3, 1).reshape(output.shape)
        cells = frames * maps.shape[2] * maps.shape[3]
        tokens = maps.permute(0, 2, 3, 1).reshape(output.shape[0], cells, output.shape[2])
        if inverse is not None:
            tokens = tokens.index_select(1, inverse)
        return tokens if prefix is None else torch.cat([prefix, tokens], 1)

    def _tokens(self, output: Tensor, grids: Iterable[Grid | None], order: Tensor | None) -> Reading:
        *before, rows, columns = self.fitting(output.shape[1], grids)
        frames = before[0] if before else 1
        prefix = output.shape[1] - frames * rows * columns
        tokens = output[:, prefix:] if prefix else output
        if order is not None:
            tokens = tokens.index_select(1, order)
        maps = tokens.reshape(output.shape[0] * frames, rows, columns, output.shape[2]).permute(0, 3, 1, 2)
        return Reading(maps, frames, output[:, :prefix] if prefix else None)

    def fitting(self, length: int, grids: Iterable[Grid | None]) -> Grid:
        """Return the grid of ``length`` tokens: one that this forward pass reports, or the only possible one.

        Raises:
            LayoutError: no known grid fits; a grid is never guessed.
        """
        told = [strided(grid, self.stride) for grid in grids if grid is not None]
        for grid in [*told, *([self.grid] if self.fixed and self.grid is not None else [])]:
            if self.fits(length, grid):
                return grid
        expected = f"a grid of {' x '.join(map(str, told[0]))}" if told else "a grid that this forward pass reports"
        raise LayoutError(
            f"{length} tokens are not {expected} with {' or '.join(map(str, self.prefixes))} prefix tokens; run the "
            "model as a whole, from its patches on, or inject with grid=(rows, columns) if the grid never changes"
        )

    def fits(self, length: int, grid: Grid) -> bool:
        """Tell whether ``length`` tokens are this grid after a possible number of prefix tokens."""
        return length - cell_count(grid) in self.prefixes


def cell_count(grid: Grid) -> int:
    """Return the number of cells of a grid; its sides may be symbols while a compiler traces."""
    count = 1
    for side in grid:
        count *= side
    return count


def strided(grid: Grid, stride: int) -> Grid:
    """Return the grid of every ``stride``-th row and column; keep all frames of a video."""
    *frames, rows, columns = grid
    return *frames, -(-rows // stride), -(-columns // stride)


def is_grid(value: object) -> bool:
    """Tell whether a value is (rows, columns) or (frames, rows, columns), which some blocks take or return."""
    return isinstance(value, (tuple, list)) and len(value) in (2, 3) and all(_is_count(number) for number in value)


def _is_count(value: object) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def grids_in(arguments: tuple[object, ...], keywords: dict[str, object], output: object) -> list[Grid]:
    """List the possible grids in a block's output and arguments: tuples, or rows and columns one after the other."""
    found: list[Grid] = []
    for values in (output if isinstance(output, (tuple, list)) else (), arguments, tuple(keywords.values())):
        for value in values:
            several = value if isinstance(value, (tuple, list)) and not is_grid(value) else (value,)
            found += [tuple(grid) for grid in several if is_grid(grid)]
        found += [
            (one, next_one) for one, next_one in itertools.pairwise(values) if _is_count(one) and _is_count(next_one)
        ]
    return found
