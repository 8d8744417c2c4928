r"""Self-Information Attention in the frequency domain: gate the coefficients of a block transform of a map.

An orthonormal transform T turns each block of b x b pixels into b^2 coefficients, as in JPEG. The coefficients of one
frequency, one from each block, form a sub-band: a small map with a self-information I. A coefficient is improbable if
it differs from those of the neighbouring blocks (the intra term of I) or from those of the next frequencies in the
same block and channel (the inter term)::

    z = T x                                  blocks of x to sub-bands, C b^2 of them
    y = T^-1 (z * (1 + sigmoid(I(z))))       the spatial gate, of each coefficient
    y = y * gate(mean I)                     the channel gate, from the mean of I over a channel's blocks and sub-bands

The sub-band of the block means (DC) has an intra term alone, and the inter term runs cyclically over the other
sub-bands (AC) of the channel. So adding a constant to the map does not change I, and channels are never compared with
each other. Sun et al. (ECCV 2022) name the frequency domain as future work in section 6 of their supplement; the form
here is this library's own.
"""

from __future__ import annotations

import contextlib
import functools
import math
from array import array
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from sia_layers._keywords import refuse_unknown
from sia_layers._modules import in_autocast
from sia_layers.attention import SIAttention
from sia_layers.kernels import ops
from sia_layers.kernels.memory_format import is_channels_last
from sia_layers.kernels.options import Options, as_choice, as_int, check_map
from sia_layers.kernels.private_torch import constant_when_compiled, is_functional
from sia_layers.kernels.reference import wide_dtype

BLOCKS: Final = {"dct": (2, 4, 8, 16), "haar": (2,)}  # the block sides of each transform
DEFAULT_BLOCK: Final = {"dct": 8, "haar": 2}
ROWS: Final = 16  # BLAS computes rows in groups of at most this many


class FrequencySIAttention(SIAttention):
    """Self-Information Attention on the coefficients of a block transform.

    It works as :class:`sia_layers.SIAttention` does, on sub-bands: ``kernel_size`` counts blocks, and
    ``inter_channels`` counts following sub-bands of the same channel, in the zigzag order of JPEG. The channel gate
    multiplies each of the C channels, and is computed from the mean of I over all blocks and sub-bands of the channel.
    So the parameters are those of SIAttention, whatever the block. The estimator "distance" divides by its mean over
    the DC sub-band, or over the AC sub-bands, of a channel.

    If the block does not divide a side of the map, the map is extended by reflection at its last row or column, and
    the result is cropped. The transform is computed in float32 or float64, also under autocast.

    Args:
        channels: channels C of the feature map.
        block: side b of the blocks: 2, 4, 8 or 16 for ``"dct"``, 2 for ``"haar"``; None for 8 and 2, respectively.
        transform: ``"dct"``, the orthonormal DCT-II as in JPEG, or ``"haar"``, one level of the Haar wavelet (which
            is the DCT of 2 x 2 pixels).
        **options: keyword arguments of :class:`sia_layers.SIAttention`.

    Shape:
        (N, C, H, W) to (N, C, H, W), in the dtype and memory format of the input.

    Raises:
        TypeError, ValueError: an argument is unknown, has the wrong type or is out of range.

    Example:
        >>> layer = FrequencySIAttention(32, gain=0.0)
        >>> x = torch.rand(2, 32, 20, 24)
        >>> torch.equal(layer(x), x)
        True
        >>> y, info = layer.attend(x)
        >>> tuple(info.shape)
        (2, 2048, 3, 3)
    """

    @functools.partial(refuse_unknown, also=SIAttention.__init__)
    def __init__(self, channels: int, block: int | None = None, *, transform: str = "dct", **options: Any) -> None:
        self.block = checked_block(block, transform)
        self.transform = transform
        super().__init__(channels, **options)

    def attend(self, x: Tensor, aggregate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gate a feature map, and also return the self-information of its coefficients.

        Returns:
            The gated map, of the shape, dtype and memory format of ``x``, and I (N, C b^2, H', W') in nats, in the
            dtype of ``x``, as :func:`frequency_self_information` returns it: one pixel per block.
        """
        return super().attend(x, aggregate)

    def _attend(self, source: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        bands = analysed(source, self.block)
        infos = [
            ops.self_information(band.detach() if self.detach else band, self.options, self.backend) for band in bands
        ]
        means = [] if self.channel is None else [ops.channel_mean(info, self.channel, self.backend) for info in infos]
        gated = [ops.gate(band, info, backend=self.backend) for band, info in zip(bands, infos, strict=True)]
        y = self._finished(source, gated if self.spatial else [], means, base)
        return y, side_by_side(infos, source).to(source.dtype)

    def _infer(self, source: Tensor, base: Tensor) -> Tensor:
        found = [
            ops.gate_and_mean(band, self.options, self.spatial, self.channel or "", self.backend)
            for band in analysed(source, self.block)
        ]
        gated, means = ([pair[index] for pair in found] for index in (0, 1))
        return self._finished(source, gated if self.spatial else [], means if self.channel else [], base)

    def _finished(self, source: Tensor, gated: list[Tensor], means: list[Tensor], base: Tensor) -> Tensor:
        """Transform back, then apply the channel gate, which commutes with the transform, and the gain."""
        y = synthesised(gated[0], gated[1], source, self.block) if gated else source.to(wide_dtype(source.dtype))
        mean = torch.cat(means, 1).mean(1).reshape(source.shape[:2]) if means else None
        return self._gated(y, None, mean, base).to(source.dtype)

    def extra_repr(self) -> str:
        """List the transform, the block, and what :class:`sia_layers.SIAttention` lists."""
        return f"{self.transform!r}, block={self.block}, {super().extra_repr()}"


def frequency_self_information(
    x: Tensor,
    kernel_size: int = 3,
    *,
    block: int | None = None,
    transform: str = "dct",
    bandwidth: float = 1.0,
    adaptive: bool = True,
    estimator: str = "kde",
    inter_channels: int = 5,
    inter_weight: float = 0.5,
    padding_mode: str = "exclude",
    backend: str | None = None,
) -> Tensor:
    """Compute the self-information of every coefficient of a block transform of a map, in nats.

    For details on ``bandwidth`` and the arguments after it, see :func:`sia_layers.self_information`; sub-bands take
    the place of channels.

    Args:
        x: map (N, C, H, W) of dtype float64, float32, bfloat16 or float16, with any strides.
        kernel_size: side of the window in blocks, odd.
        block: side b of the blocks in pixels; see :class:`FrequencySIAttention`.
        transform: ``"dct"`` or ``"haar"``.
        bandwidth: factor on the bandwidth.
        adaptive: measure the bandwidth of every sub-band.
        estimator: ``"kde"`` or ``"distance"``.
        inter_channels: number of following sub-bands to compare with.
        inter_weight: weight of the inter term.
        padding_mode: what the window contains beyond the border.
        backend: one of :func:`sia_layers.available_backends`; None for the best that can serve.

    Returns:
        I (N, C b^2, H', W') in the dtype of ``x``, with H' = ceil(H / b) and W' = ceil(W / b): b^2 sub-bands in
        zigzag order for each channel. ``I.unflatten(1, (C, -1)).mean(2)`` is the mean over the sub-bands of each
        channel (N, C, H', W').

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`sia_layers.self_information`; also for an unknown
            ``transform``, or a ``block`` that the transform does not have.

    Example:
        >>> x = torch.rand(1, 3, 32, 40)
        >>> tuple(frequency_self_information(x).shape)
        (1, 192, 4, 5)
    """
    options = Options.checked(
        kernel_size,
        bandwidth=bandwidth,
        adaptive=adaptive,
        estimator=estimator,
        inter_channels=inter_channels,
        inter_weight=inter_weight,
        padding_mode=padding_mode,
    )
    bands = analysed(x, checked_block(block, transform))
    return side_by_side([ops.self_information(band, options, backend) for band in bands], x).to(x.dtype)


def block_transform(x: Tensor, block: int | None = None, *, transform: str = "dct") -> Tensor:
    """Apply an orthonormal block transform to a map.

    Args:
        x: map (N, C, H, W).
        block: side b of the blocks in pixels; None for the default of the transform.
        transform: ``"dct"`` or ``"haar"``.

    Returns:
        Coefficients (N, C b^2, ceil(H / b), ceil(W / b)), float64 if ``x`` is and float32 otherwise: the sub-bands of
        each channel in zigzag order. The first is b times the mean of the block. The others are 0 where they are below
        b^2 / 4 epsilons of the largest difference from the block's first pixel, as rounding errors are.

    Raises:
        TypeError, ValueError: ``x`` is not a floating-point map, or the transform or its block is unknown.

    Example:
        >>> block_transform(torch.ones(1, 1, 8, 8), 2)[0, :, 0, 0]
        tensor([2., 0., 0., 0.])
    """
    return side_by_side(analysed(x, checked_block(block, transform)), x)


def inverse_block_transform(
    coefficients: Tensor, height: int, width: int, block: int | None = None, *, transform: str = "dct"
) -> Tensor:
    """Compute a map (N, C, height, width) from its coefficients: the inverse of :func:`block_transform`.

    Raises:
        TypeError, ValueError: the coefficients are not those of such a map, or the transform or its block is unknown.

    Example:
        >>> x = torch.rand(1, 2, 10, 12)
        >>> torch.allclose(inverse_block_transform(block_transform(x), 10, 12), x, atol=1e-6)
        True
    """
    check_map(coefficients, "coefficients")
    side = checked_block(block, transform)
    bands, size = side * side, tuple(-(-length // side) for length in (height, width))
    n, number = coefficients.shape[:2]
    if number % bands or coefficients.shape[2:] != size:
        raise ValueError(
            f"coefficients of a map of {height}x{width} pixels in blocks of {side} must be of shape (N, C * {bands}, "
            f"{size[0]}, {size[1]}), got {tuple(coefficients.shape)}"
        )
    channels = number // bands
    folded = coefficients.to(wide_dtype(coefficients.dtype)).reshape(n * channels, bands, *size)
    return synthesised(folded[:, :1], folded[:, 1:], folded.new_empty(()).expand(n, channels, height, width), side)


def checked_block(block: int | None, transform: str) -> int:
    """Return the side of the blocks of a transform: ``block``, or the transform's default for None.

    Raises:
        TypeError, ValueError: the transform is unknown, or does not have such blocks.
    """
    sides = BLOCKS[as_choice("transform", transform, tuple(BLOCKS))]
    if block is None:
        return DEFAULT_BLOCK[transform]
    if as_int("block", block) not in sides:
        listed = " or ".join(", ".join(map(str, sides)).rsplit(", ", 1))
        raise ValueError(f"block must be {listed} for transform={transform!r}, got {block}")
    return int(block)


def analysed(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Transform a map; return the DC sub-band (N C, 1, H', W') and the AC sub-bands (N C, b^2 - 1, H', W').

    The coefficients are float64 if the map is, and float32 otherwise. Channels become samples, because the
    self-information of one channel must not depend on another.
    """
    check_map(x)
    n, c = x.shape[:2]
    x = _continued(_continued(x, 2, block), 3, block)
    rows, columns = x.shape[2] // block, x.shape[3] // block
    blocks = x.reshape(n, c, rows, block, columns, block).permute(0, 1, 2, 4, 3, 5)
    blocks = blocks.reshape(n * c * rows * columns, block * block).to(wide_dtype(x.dtype))
    # Coefficients that are 0 up to rounding must be exactly 0, or an adaptive bandwidth would take the rounding errors
    # for the signal. So subtract one pixel of each block, which makes a constant block exactly 0, and set AC
    # coefficients below the floor to 0. The floor is above the rounding errors of a sum of b^2 terms.
    first = blocks[:, :1]
    offsets = blocks - first
    coefficients = _product(offsets, _matrix(block, blocks).t())
    floor = block**2 / 4 * torch.finfo(blocks.dtype).eps * offsets.detach().abs().amax(1, keepdim=True)
    # Do the arithmetic last, because Inductor cannot sort the strides of views whose sizes are quotients of symbols.
    first, floor, coefficients = (
        values.reshape(n * c, rows, columns, values.shape[1]).permute(0, 3, 1, 2)
        for values in (first, floor, coefficients)
    )
    dc, ac = coefficients[:, :1] + block * first, coefficients[:, 1:]
    return dc, torch.where(ac.abs() < floor, 0.0, ac)


def synthesised(dc: Tensor, ac: Tensor, like: Tensor, block: int) -> Tensor:
    """Compute the map with these sub-bands, in their dtype and with the size and memory format of ``like``."""
    (n, c, height, width), (rows, columns) = like.shape, dc.shape[2:]
    blocks = _product(
        ac.permute(0, 2, 3, 1).reshape(n * c * rows * columns, block * block - 1),
        _matrix(block, ac)[1:],
        dc.permute(0, 2, 3, 1).reshape(n * c * rows * columns, 1) / block,
    ).reshape(n, c, rows, columns, block, block)
    if not ops.inlined() and is_channels_last(like):
        y = blocks.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * block, columns * block, c).permute(0, 3, 1, 2)
        return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)
    y = blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, c, rows * block, columns * block)
    return y[:, :, :height, :width].contiguous()


def side_by_side(bands: tuple[Tensor, Tensor] | list[Tensor], like: Tensor) -> Tensor:
    """Concatenate the sub-bands of all channels of a map, (N, C b^2, H', W')."""
    folded = torch.cat(list(bands), 1)
    n, c = like.shape[:2]
    return folded.reshape(n, c * folded.shape[1], *folded.shape[2:])


def _continued(x: Tensor, axis: int, block: int) -> Tensor:
    """Extend a map to whole blocks: reflect it at its end and, where that runs out, repeat its start."""
    size = x.shape[axis]
    if not ops.tracing() and size % block == 0:
        return x
    index = torch.arange(((size - 1) // block + 1) * block, device=x.device)
    return x.index_select(axis, torch.minimum(index, 2 * (size - 1) - index).clamp(min=0))


def _product(rows: Tensor, matrix: Tensor, start: Tensor | None = None) -> Tensor:
    """Multiply rows by a matrix and add ``start``, such that the result of a row does not depend on its position.

    For this the rows are padded to whole groups, because BLAS computes and rounds the remaining rows differently.
    Compiled and exported graphs have no padding: compilers choose their own order of summation, and symbolic sizes
    would keep them busy for minutes.
    """
    count = rows.shape[0]
    if not (ops.inlined() or torch.compiler.is_compiling()) and count % ROWS:
        rows = F.pad(rows, (0, 0, 0, -count % ROWS))
        start = None if start is None else F.pad(start, (0, 0, 0, -count % ROWS))
    with _without_autocast(rows):
        return (torch.mm(rows, matrix) if start is None else torch.addmm(start, rows, matrix))[:count]


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if in_autocast(kind) else contextlib.nullcontext()


def _matrix(block: int, like: Tensor) -> Tensor:
    """Return the matrix (b^2, b^2) from the pixels of a block, row by row, to its coefficients in zigzag order."""
    if type(like) is Tensor:
        row = _kept_row(like.dtype, like.device)
    else:  # never cache a fake tensor
        row = torch.tensor(_row(), dtype=like.dtype, device=like.device)
    size, start = block * block, 2 * sum(side * side for side in BLOCKS["dct"] if side < block)
    waves, order = row[start : start + size], row[start + size : start + 2 * size].to(torch.int64)
    products = waves.view(block, 1, block, 1) * waves.view(1, block, 1, block)
    return products.view(size, size).index_select(0, order)


@constant_when_compiled
def _kept_row(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the constants of all blocks, because a compiled graph can hold only one result of this function."""
    values = _kept_values(dtype, device)
    if is_functional(values):  # made within torch.func.functionalize, and of no use outside
        _kept_values.cache_clear()
    return values


@functools.cache
def _kept_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the tensor without a call that torch.jit.trace warns of or records."""
    values = array("d" if dtype == torch.float64 else "f", _row())
    with torch.inference_mode(False):
        row = torch.frombuffer(values, dtype=dtype)
        return row if device.type == "cpu" else row.to(device)


@functools.cache
def _row() -> tuple[float, ...]:
    """Return, for each block, its orthonormal one-dimensional DCT-II, frequency by frequency, and its zigzag order."""
    values: list[float] = []
    for block in BLOCKS["dct"]:
        for u in range(block):
            values += [math.sqrt((2 if u else 1) / block) * _cosine((2 * i + 1) * u, block) for i in range(block)]
        values += [u * block + v for u, v in zigzag(block)]
    return tuple(values)


def _cosine(step: int, block: int) -> float:
    """Compute cos(pi step / 2b), folded to the first quadrant so that opposite terms of a sum cancel exactly."""
    step %= 4 * block
    step = min(step, 4 * block - step)
    return math.cos(math.pi * step / (2 * block)) if step <= block else -_cosine(2 * block - step, block)


def zigzag(block: int) -> list[tuple[int, int]]:
    """List the vertical and horizontal frequency of every coefficient in JPEG's order, low frequencies first."""
    pairs = [(u, v) for u in range(block) for v in range(block)]
    return sorted(pairs, key=lambda pair: (sum(pair), pair[0] if sum(pair) % 2 else pair[1]))
