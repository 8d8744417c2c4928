"""Self-information aggregation: pass the self-information of earlier maps on to a later one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers._keywords import refuse_unknown
from sia_layers._modules import Unscriptable, as_one_call, in_autocast, is_proxy, matrix_of, untouched
from sia_layers.attention import as_positive
from sia_layers.kernels import ops
from sia_layers.kernels.options import as_choice, check_map
from sia_layers.kernels.private_torch import exporting
from sia_layers.kernels.reference import wide_dtype

FORMS = ("published", "pooled")


class SIAggregation(Unscriptable):
    r"""Project the self-information of earlier maps to a later map's channels, pool it to its size, and add it up.

    ::

        "published"   a = sum_s pool(relu(bn_s(conv1x1_s(I_s))))
        "pooled"      a = sum_s relu(bn_s(conv1x1_s(pool(I_s))))

    The adaptive max-pool keeps evidence that shows in a single early pixel. The later :class:`sia_layers.SIAttention`
    takes the sum a as its ``aggregate``. The published form is that of Sun et al., ECCV 2022. The pooled form has the
    same parameters under the same names, but projects the small map instead of the large one: a quarter of the work if
    the earlier map has half the stride of the later one, a sixteenth if it has a quarter.

    Args:
        in_channels: channels of each earlier map, in order.
        channels: channels of the later map.
        form: ``"published"`` or ``"pooled"``.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        Maps (N, in_channels[s], H_s, W_s) to (N, channels, H, W).

    Raises:
        TypeError, ValueError: an argument is unknown, has the wrong type or is out of range.

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
            raise TypeError(f"in_channels must be a sequence with an int for each earlier map, got {in_channels!r}")
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
            infos: self-information (N, C_s, H_s, W_s) of each earlier map, with C_s as in ``in_channels``.
            size: height and width of the later map, in pixels.

        Returns:
            The aggregate a, (N, channels, height, width).

        Raises:
            TypeError, ValueError: the number of maps is wrong, or one is not a floating-point map with its channels.
        """
        if len(infos) > 0 and is_proxy(infos[0]):
            return as_one_call(self, infos, size)  # type: ignore[no-any-return]
        if isinstance(size, int) or len(size) != 2:
            raise ValueError(f"size must be the height and the width of the later map, got {size!r}")
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
        """List the channels of the earlier maps and of the later one, and the form unless it is the published one."""
        listed = f"in_channels={self.in_channels}, channels={self.channels}"
        return listed if self.form == "published" else f"{listed}, form={self.form!r}"


class Projection(nn.Sequential):
    """One term of the sum: a 1x1 convolution, batch norm, ReLU, and a max-pool to the size of the later map.

    Args:
        in_channels: channels of the earlier map.
        channels: channels of the later map.
        form: as for :class:`SIAggregation`.
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

        Max-pooling and ReLU commute, so ReLU comes last and works on the small map. In evaluation mode the batch norm
        is folded into the weights, so that the output of the convolution is the only large tensor.
        """
        conv, norm, act = self
        weight = matrix_of(conv)
        if weight is not None and not in_autocast(info.device.type):
            info = info.to(weight.dtype)  # SIA may be kept in float32 in a half-precision model
        if self.form == "pooled":
            return act(norm(conv(max_pool_to(info, size))))  # type: ignore[no-any-return]
        if weight is None:
            return act(max_pool_to(norm(conv(info)), size))  # type: ignore[no-any-return]
        affine = _affine(norm)
        if affine is None:
            return act(max_pool_to(norm(_projected(info, weight)), size))  # type: ignore[no-any-return]
        factor, shift = affine
        pooled = max_pool_to(_projected(info, (weight * factor[:, None]).to(weight.dtype)), size)
        return act((pooled + shift[:, None, None]).to(pooled.dtype))  # type: ignore[no-any-return]


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the factor and shift per channel that a batch norm applies; None if it is training or not untouched."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.training or not untouched(norm, nn.BatchNorm2d):
        return None
    weight, bias, mean, variance = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if weight is None or bias is None or mean is None or variance is None:
        return None
    wide = wide_dtype(weight.dtype)
    factor = weight.to(wide) * torch.rsqrt(variance.to(wide) + norm.eps)
    return factor, bias.to(wide) - mean.to(wide) * factor


def _projected(info: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution; return a channels_last map, which CPUs pool many times as fast."""
    samples, _, height, width = info.shape
    projected = torch.matmul(info.flatten(2).transpose(1, 2), weight.t())
    return projected.reshape(samples, height, width, weight.shape[0]).permute(0, 3, 1, 2)


def max_pool_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Max-pool a map (N, C, H, W) adaptively to a height and a width."""
    (height, width), (rows, columns) = x.shape[2:], size
    if ops.tracing() or exporting():
        known = not torch.compiler.is_dynamo_compiling() and all(type(n) is int for n in (height, width, rows, columns))
        if known and not (height % rows or width % columns):
            return F.max_pool2d(x, (height // rows, width // columns))
        return _pooled_by_index(x, size)
    if 0 in (rows, columns):
        return F.adaptive_max_pool2d(x, (rows, columns))
    divides, traced = not (height % rows or width % columns), torch.compiler.is_compiling() or ops.inlined()
    if divides and (x.device.type != "cpu" or traced):
        # On a GPU, the gradient of torch's own pooling varies from run to run.
        return x.reshape(*x.shape[:2], rows, height // rows, columns, width // columns).amax((3, 5))
    if traced:
        return _pooled_by_index(x, size)
    if divides and x.is_contiguous() and not x.requires_grad:
        return _largest(_largest(x, 2, rows), 3, columns)
    if x.device.type == "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    return F.adaptive_max_pool2d(x, (rows, columns))


def _largest(x: Tensor, axis: int, count: int) -> Tensor:
    """Return the largest of every group of neighbours along an axis, in a tenth of the time of torch's pooling."""
    shape = *x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :]
    first, *others = x.reshape(shape).unbind(axis + 1)
    for other in others:
        first = torch.maximum(first, other)
    return first


def _pooled_by_index(x: Tensor, size: Sequence[int]) -> Tensor:
    """Max-pool adaptively with operations that a graph can hold for every size, whether or not the sizes divide."""
    pooled = x.permute(0, 2, 3, 1)  # selecting rows and columns is fastest if it copies whole runs of channels
    for axis, count in enumerate(size, start=1):
        windows = _windows(pooled.shape[axis], count, x.device)
        shape = *pooled.shape[:axis], *windows.shape, *pooled.shape[axis + 1 :]
        pooled = pooled.index_select(axis, windows.flatten()).reshape(shape).amax(axis + 1)
    return pooled.permute(0, 3, 1, 2)


def _windows(size: int, count: int, device: torch.device) -> Tensor:
    """Return the pixels of each adaptive pooling window along one axis, (count, longest window); some are repeated."""
    index = torch.arange(count, device=device)
    starts = index * size // count
    ends = ((index + 1) * size + count - 1) // count  # positive, because runtimes disagree on dividing negatives
    longest = (size - 1) // count + 2  # written so that torch.export can tell that it is never 1
    return torch.minimum(starts[:, None] + torch.arange(longest, device=device), ends[:, None] - 1)
