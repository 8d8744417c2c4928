"""Self-information aggregation: hand the self-information of early maps on to a later one."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers._keywords import refuse_unknown
from sia_layers.attention import as_positive
from sia_layers.kernels import ops
from sia_layers.kernels.options import check_map


class SIAggregation(nn.Module):
    r"""Sum of the self-information of earlier maps, projected to a later map's channels and pooled to its size.

    ::

        a = sum_s pool(relu(bn_s(conv1x1_s(I_s))))

    with an adaptive max-pool: evidence that shows in one early pixel is not averaged away. The later
    :class:`sia_layers.SIAttention` takes a as its ``aggregate`` (Sun et al., ECCV 2022).

    Args:
        in_channels: channels of each earlier map, first to last.
        channels: channels of the later map.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Maps (N, in_channels[s], H_s, W_s) to (N, channels, H, W).

    Raises:
        TypeError, ValueError: an argument is unknown, of the wrong type or out of its range.

    Example:
        >>> from sia_layers import SIAttention
        >>> early, late = torch.rand(2, 8, 16, 16), torch.rand(2, 32, 4, 4)
        >>> attention, aggregation = [SIAttention(8), SIAttention(32)], SIAggregation([8], 32)
        >>> early, info = attention[0].attend(early)
        >>> attention[1](late, aggregation([info], size=late.shape[2:])).shape
        torch.Size([2, 32, 4, 4])
    """

    @refuse_unknown
    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(in_channels, (int, str)):
            raise TypeError(f"in_channels must be a sequence, an int for each earlier map, got {in_channels!r}")
        if len(in_channels) == 0:
            raise ValueError(f"in_channels must hold an int for each earlier map, got {in_channels!r}")
        self.in_channels = [as_positive(f"in_channels[{i}]", number) for i, number in enumerate(in_channels)]
        self.channels = as_positive("channels", channels)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(number, self.channels, 1, bias=False, device=device, dtype=dtype),
                nn.BatchNorm2d(self.channels, device=device, dtype=dtype),
                nn.ReLU(inplace=True),
            )
            for number in self.in_channels
        )

    def forward(self, infos: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Aggregate the self-information of earlier maps.

        Args:
            infos: self-information of each earlier map, as many as ``in_channels`` and of those channels.
            size: height and width of the later map, in pixels.

        Raises:
            TypeError, ValueError: not as many maps as expected, or one that is no floating map of its channels.
        """
        if len(size) != 2:
            raise ValueError(f"size must be the height and the width of the later map, got {tuple(size)}")
        if len(infos) != len(self.in_channels):
            raise ValueError(f"infos must hold a map for each of in_channels={self.in_channels}, got {len(infos)} maps")
        for i, (info, number) in enumerate(zip(infos, self.in_channels, strict=True)):
            check_map(info, f"infos[{i}]")
            if not ops.tracing() and info.shape[1] != number:
                raise ValueError(f"infos[{i}] must have {number} channels, got shape {tuple(info.shape)}")
        pooled = [max_pool_to(projection(info), size) for projection, info in zip(self.projections, infos, strict=True)]
        return sum(pooled[1:], start=pooled[0])

    def extra_repr(self) -> str:
        """The channels of the earlier maps and of the later one."""
        return f"in_channels={self.in_channels}, channels={self.channels}"


def max_pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive max-pool of a map (N, C, H, W) to a height and a width."""
    (height, width), (rows, columns) = x.shape[2:], size
    if ops.tracing() or 0 in (rows, columns):
        return F.adaptive_max_pool2d(x, (rows, columns))
    if not (height % rows or width % columns) and (x.requires_grad or torch.compiler.is_compiling()):
        # Sizes that divide are the common case. torch's own pooling would make them constants of an exported graph, and
        # its gradient on a GPU is not the same from run to run.
        return x.reshape(*x.shape[:2], rows, height // rows, columns, width // columns).amax((3, 5))
    if x.requires_grad or torch.compiler.is_compiling():
        return F.adaptive_max_pool2d(x, (rows, columns))
    vertical, horizontal = uniform_windows(height, rows), uniform_windows(width, columns)
    if vertical is None or horizontal is None:
        return F.adaptive_max_pool2d(x, (rows, columns))
    return _pooled(_pooled(x, 2, rows, *vertical), 3, columns, *horizontal)  # torch's takes five times as long on a CPU


@functools.lru_cache(maxsize=1024)
def uniform_windows(size: int, count: int) -> tuple[int, int, int] | None:
    """Length, stride and padding of the windows of an adaptive pooling, where one of each serves all; else None."""
    starts = [index * size // count for index in range(count)]
    ends = [-(-(index + 1) * size // count) for index in range(count)]
    stride = -(-size // count)
    padding = max(0, *(index * stride - start for index, start in enumerate(starts)))
    length = padding + ends[0]
    for index, window in enumerate(zip(starts, ends, strict=True)):
        first = index * stride - padding
        if window != (max(0, first), min(size, first + length)):
            return None
    return length, stride, padding


def _pooled(x: Tensor, axis: int, count: int, length: int, stride: int, padding: int) -> Tensor:
    """Max-pool along one axis: the largest of as many shifted maps as the window is long."""
    size = x.shape[axis]
    first = -(-padding // stride)  # of the windows that lie within the map
    last = min(count - 1, (size - length + padding) // stride)
    within = []
    if first <= last:
        span = stride * (last - first) + 1
        shifted = [x.narrow(axis, first * stride - padding + shift, span) for shift in range(length)]
        parts = [part[..., ::stride] if axis == 3 else part[..., ::stride, :] for part in shifted]
        within = [functools.reduce(torch.maximum, parts)]
    cut = {}
    for index in (*range(min(first, count)), *range(max(first, last + 1), count)):
        start, end = max(0, index * stride - padding), min(size, index * stride - padding + length)
        cut[index] = x.narrow(axis, start, end - start).amax(axis, keepdim=True)
    before, after = ([cut[i] for i in cut if (i < first) == early] for early in (True, False))
    return torch.cat([*before, *within, *after], axis) if cut else within[0]
