"""Self-information aggregation: hand the self-information of early maps on to a later one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers._keywords import refuse_unknown
from sia_layers._modules import Unscriptable, matrix_of, untouched
from sia_layers.attention import as_positive
from sia_layers.kernels import ops
from sia_layers.kernels.options import as_choice, check_map
from sia_layers.kernels.reference import wide_dtype

FORMS = ("published", "pooled")


class SIAggregation(Unscriptable):
    r"""Sum of the self-information of earlier maps, projected to a later map's channels and pooled to its size.

    ::

        "published"   a = sum_s pool(relu(bn_s(conv1x1_s(I_s))))
        "pooled"      a = sum_s relu(bn_s(conv1x1_s(pool(I_s))))

    with an adaptive max-pool: evidence that shows in one early pixel is not averaged away. The later
    :class:`sia_layers.SIAttention` takes a as its ``aggregate`` (Sun et al., ECCV 2022, in the published form). The
    pooled form has the same parameters under the same names, but projects the small map instead of the large one: a
    quarter of the work for a map of half the later one's stride, a sixteenth for one of a quarter.

    Args:
        in_channels: channels of each earlier map, first to last.
        channels: channels of the later map.
        form: ``"published"`` or ``"pooled"``.
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
        form: str = "published",
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
        self.form = as_choice("form", form, FORMS)
        self.projections = nn.ModuleList(
            Projection(number, self.channels, self.form, device, dtype) for number in self.in_channels
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
        total, *others = (projection(info, size) for projection, info in zip(self.projections, infos, strict=True))
        for other in others:
            total = total + other
        return total  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The channels of the earlier maps and of the later one, and the form if it is not the published one."""
        listed = f"in_channels={self.in_channels}, channels={self.channels}"
        return listed if self.form == "published" else f"{listed}, form={self.form!r}"


class Projection(nn.Sequential):
    """One term of the sum: 1x1 convolution, batch norm and ReLU, with a max-pool to the later map's size.

    Args:
        in_channels: channels of the earlier map.
        channels: channels of the later map.
        form: that of :class:`SIAggregation`.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        form: str,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1, bias=False, device=device, dtype=dtype),
            nn.BatchNorm2d(channels, device=device, dtype=dtype),
            nn.ReLU(),
        )
        self.form = form

    def forward(self, info: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Project a map (N, in_channels, H_s, W_s) to (N, channels, H, W).

        Pooling and ReLU commute, so ReLU comes last and works on the small map. A batch norm in evaluation becomes
        part of the weights: the convolution's output is then all that is ever of the large size.
        """
        conv, norm, act = self
        if self.form == "pooled":
            return act(norm(conv(max_pool_to(info, size))))  # type: ignore[no-any-return]
        weight = matrix_of(conv)
        if weight is None:
            return act(max_pool_to(norm(conv(info)), size))  # type: ignore[no-any-return]
        affine = _affine(norm)
        if affine is None:
            return act(max_pool_to(norm(_projected(info, weight)), size))  # type: ignore[no-any-return]
        factor, shift = affine
        pooled = max_pool_to(_projected(info, (weight * factor[:, None]).to(weight.dtype)), size)
        return act((pooled + shift[:, None, None]).to(pooled.dtype))  # type: ignore[no-any-return]


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of every channel, if that is what a batch norm applies: in evaluation, untouched."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.training or not untouched(norm, nn.BatchNorm2d):
        return None
    weight, bias, mean, variance = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if weight is None or bias is None or mean is None or variance is None:
        return None
    wide = wide_dtype(weight.dtype)
    factor = weight.to(wide) * torch.rsqrt(variance.to(wide) + norm.eps)
    return factor, bias.to(wide) - mean.to(wide) * factor


def _projected(info: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution whose result is channels_last, where pooling is many times as fast on a CPU."""
    samples, _, height, width = info.shape
    projected = torch.matmul(info.flatten(2).transpose(1, 2), weight.t())
    return projected.reshape(samples, height, width, weight.shape[0]).permute(0, 3, 1, 2)


def max_pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive max-pool of a map (N, C, H, W) to a height and a width."""
    (height, width), (rows, columns) = x.shape[2:], size
    if ops.tracing() or torch.compiler.is_exporting():
        known = not torch.compiler.is_dynamo_compiling() and all(type(n) is int for n in (height, width, rows, columns))
        if known and not (height % rows or width % columns):
            return F.max_pool2d(x, (height // rows, width // columns))
        return _pooled_by_index(x, size)
    if 0 in (rows, columns):
        return F.adaptive_max_pool2d(x, (rows, columns))
    divides = not (height % rows or width % columns)
    if divides and (x.device.type != "cpu" or torch.compiler.is_compiling()):
        # The gradient of torch's own pooling is not the same from run to run on a GPU.
        return x.reshape(*x.shape[:2], rows, height // rows, columns, width // columns).amax((3, 5))
    if torch.compiler.is_compiling():
        return _pooled_by_index(x, size)
    if divides and x.is_contiguous() and not x.requires_grad:
        return _largest(_largest(x, 2, rows), 3, columns)
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    return F.adaptive_max_pool2d(x, (rows, columns))


def _largest(x: Tensor, axis: int, count: int) -> Tensor:
    """The largest of every group of neighbours along an axis: a tenth of the time of torch's pooling of such a map."""
    shape = *x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :]
    first, *others = x.reshape(shape).unbind(axis + 1)
    for other in others:
        first = torch.maximum(first, other)
    return first


def _pooled_by_index(x: Tensor, size: Sequence[int]) -> Tensor:
    """Adaptive max-pool in operations that a graph can hold for every size, whether or not the sizes divide."""
    pooled = x.permute(0, 2, 3, 1)  # rows and columns are taken fastest as whole runs of channels
    for axis, count in enumerate(size, start=1):
        windows = _windows(pooled.shape[axis], count, x.device)
        shape = *pooled.shape[:axis], *windows.shape, *pooled.shape[axis + 1 :]
        pooled = pooled.index_select(axis, windows.flatten()).reshape(shape).amax(axis + 1)
    return pooled.permute(0, 3, 1, 2)


def _windows(size: int, count: int, device: torch.device) -> Tensor:
    """The pixels of each window of an adaptive pooling along one axis, (count, longest window); some come twice."""
    index = torch.arange(count, device=device)
    starts = index * size // count
    ends = ((index + 1) * size + count - 1) // count  # of positive numbers, which every runtime divides alike
    longest = (size - 1) // count + 2  # in this form torch.export can tell that it is never 1
    return torch.minimum(starts[:, None] + torch.arange(longest, device=device), ends[:, None] - 1)
