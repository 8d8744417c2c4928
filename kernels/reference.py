r"""The self-information and its gates in plain PyTorch: the definition that every kernel is tested against.

For a map x (N, C, H, W), the K x K window :math:`\Omega` around a pixel, and S following channels::

    I_intra[i]    = -log( 1/|Omega| * sum_{j in Omega} exp(-(x[i] - x[j])^2 * scale) )
    I_inter[n,k]  = -log( 1/(S+1)   * sum_{s=0..S}     exp(-(x[k] - x[k+s])^2 * scale') )
    I             = I_intra + inter_weight * I_inter                         (estimator "kde")

    d             = |sum_{j in Omega} (x[i] - x[j])| + inter_weight * |sum_{s=1..S} (x[k] - x[k+s])|
    I             = d * scale                                                (estimator "distance")

``scale`` makes the differences dimensionless: 1 / 2h^2 for each plane for "kde", 1 / (2 b^2 mean d) for each sample
for "distance". It is 0 where the map is constant, so that I and its gradient are 0 there and never NaN. No tensor
is K^2 times the size of the map: every loop adds one shifted map at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sia_layers.kernels.options import LARGEST_SCALE, Options


def unavailable() -> str | None:
    """Return None: the reference runs in every process."""
    return None


def refuses(x: Tensor) -> str | None:
    """Return None: the reference serves every tensor."""
    return None


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def self_information(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Compute the self-information of every pixel in every channel, in nats.

    Args:
        x: floating-point map (N, C, H, W).
        options: of the self-information.

    Returns:
        The self-information, in the shape and dtype of ``x``, and the scale, of :meth:`Options.scale_shape`, in the
        dtype of the arithmetic and without gradient.
    """
    wide = x.to(wide_dtype(x.dtype))
    if x.numel() == 0:
        return torch.empty_like(x), wide.new_zeros(options.scale_shape(x))
    if options.estimator == "distance":
        distance = sum_of_distances(wide, options)
        scale = distance_scale(distance, options)
        return (distance * scale.reshape(-1, 1, 1, 1)).to(x.dtype), scale.detach()
    scale = kde_scale(wide.detach(), options)
    intra, inter = -scale[..., None, None]
    total, largest = torch.ones_like(wide), torch.finfo(wide.dtype).max
    for difference, outside, ends in _pairs(wide, options):
        near = difference.square()
        if outside is None:
            near.mul_(intra).exp_()
        else:
            near = near.clamp(max=largest)  # because infinity times a scale of 0 is NaN
            near.mul_(intra).add_(outside).exp_()
        for end in ends:
            total += near[end]
    info = torch.log(_count(wide, options)) - torch.log(total)
    total = torch.ones_like(wide)
    for difference in _channels(wide, options):
        total += difference.square().mul_(inter).exp_()
    count = 1 + options.neighbours(x.shape[1])
    return (info + options.inter_weight * (math.log(count) - torch.log(total))).to(x.dtype), scale


def kde_scale(x: Tensor, options: Options) -> Tensor:
    """Compute 1 / 2h^2 of every plane, (2, N, C): the intra-channel row, then the inter-channel row.

    If adaptive, h^2 is b^2 times the mean square difference between neighbours. Differences that are not finite are
    left out of the mean, so that one bad pixel does not spoil its plane.
    """
    if not options.adaptive:
        return x.new_full(options.scale_shape(x), options.fixed_scale())
    excludes = options.padding_mode == "exclude"  # then pads are infinite, and pairs with a pad are left out
    pairs = ((difference, ends[: 1 if excludes else 2]) for difference, _, ends in _pairs(x, options, torch.inf))
    intra = _mean_square(x, pairs)
    inter = _mean_square(x, ((difference, [...]) for difference in _channels(x, options)))
    return _scale(torch.stack([intra, inter]), options)


def distance_scale(distance: Tensor, options: Options) -> Tensor:
    """Compute 1 / (2 b^2 mean d) of every sample, (1, N, 1), or 1 / 2b^2 if not adaptive."""
    if not options.adaptive:
        return distance.new_full(options.scale_shape(distance), options.fixed_scale())
    finite = torch.isfinite(distance)
    mean = torch.where(finite, distance, 0.0).sum((1, 2, 3)) / finite.sum((1, 2, 3)).clamp(min=1)
    return _scale(mean, options).reshape(options.scale_shape(distance))


def sum_of_distances(x: Tensor, options: Options) -> Tensor:
    """Compute d of the "distance" estimator."""
    intra, inter = torch.zeros_like(x), torch.zeros_like(x)
    for difference, _ in _window(x, options):
        intra = intra + difference
    for difference in _channels(x, options):
        inter = inter + difference
    return intra.abs() + options.inter_weight * inter.abs()


def self_information_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    """Compute the gradient of :func:`self_information` for ``x``, given the scale that it returned.

    "kde": dL/dx_i = sum_j a_ij (u_i + u_j), with a_ij = 2 scale (x_i - x_j) e_ij and u = grad / sum(e); the scale is
    a constant. "distance": the mean of d over the sample is part of the formula and is differentiated.
    """
    wide, grad = x.to(wide_dtype(x.dtype)), grad.to(wide_dtype(x.dtype))
    if x.numel() == 0:
        return torch.empty_like(x)
    if options.estimator == "distance":
        total = _distance_backward(grad, wide, scale, options)
    else:
        total = _kde_backward(grad, wide, scale, options)
    return total.to(x.dtype)


def _kde_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    intra, inter = scale[..., None, None]
    mass = torch.ones_like(x)
    for difference, inside in _window(x, options):
        mass += inside * torch.exp(-(difference.square() * intra))
    total, spread, share = torch.zeros_like(x), torch.zeros_like(_pad(x, options)), grad / mass
    for shift, (difference, inside) in zip(_offsets(options), _window(x, options), strict=True):
        pull = share * inside * 2 * intra * difference * torch.exp(-(difference.square() * intra))
        total += pull
        _at(spread, shift, x).sub_(pull)
    total += _pad_backward(spread, x, options)
    mass = torch.ones_like(x)
    for difference in _channels(x, options):
        mass += torch.exp(-(difference.square() * inter))
    share = options.inter_weight * grad / mass
    for step, difference in enumerate(_channels(x, options), start=1):
        pull = share * 2 * inter * difference * torch.exp(-(difference.square() * inter))
        total += pull - pull.roll(step, 1)
    return total


def _distance_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    scale = scale.reshape(-1, 1, 1, 1)
    if options.adaptive:
        distance = sum_of_distances(x, options)
        finite = torch.isfinite(distance)
        along = torch.where(finite, grad * distance, 0.0).sum((1, 2, 3), keepdim=True)
        count = finite.sum((1, 2, 3), keepdim=True).clamp(min=1)
        grad = grad - 2 * options.bandwidth**2 * scale * along / count
    grad = grad * scale
    total, spread, window = torch.zeros_like(x), torch.zeros_like(_pad(x, options)), torch.zeros_like(x)
    for difference, _ in _window(x, options):
        window += difference
    share = grad * window.sign()
    for shift, (_, inside) in zip(_offsets(options), _window(x, options), strict=True):
        total += share * inside
        _at(spread, shift, x).sub_(share * inside)
    total += _pad_backward(spread, x, options)
    across = torch.zeros_like(x)
    for difference in _channels(x, options):
        across += difference
    share = options.inter_weight * grad * across.sign()
    for step in range(1, options.neighbours(x.shape[1]) + 1):
        total += share - share.roll(step, 1)
    return total


def channel_mean(info: Tensor, mean_kind: str) -> Tensor:
    """Average over each plane what the channel gate is computed from, (N, C) in the dtype of the arithmetic.

    ``"excite"`` averages I, ``"mean"`` averages -log(exp(-I) + 0.1).
    """
    wide = info.to(wide_dtype(info.dtype))
    return (wide if mean_kind == "excite" else -torch.log(torch.exp(-wide) + 0.1)).mean((2, 3))


def gate(
    x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
) -> Tensor:
    """Gate a map: m = x (1 + sigmoid(I)) g, and with a gain y = base + gain (m - base), else y = m.

    Args:
        x: map (N, C, H, W).
        info: self-information I of its pixels, like ``x``; None turns the spatial gate off.
        channel_gate: g (N, C); None turns the channel gate off.
        gain: one number, of shape (1,) or (); None makes y the gated map itself.
        base: the map that a gain of 0 returns, like ``x``; None for ``x``. It has no effect without a gain.
    """
    wide = x.to(wide_dtype(x.dtype))
    gated = wide
    if info is not None:
        gated = gated * (1 + _sigmoid(info.to(wide.dtype)))
    if channel_gate is not None:
        gated = gated * channel_gate.to(wide.dtype)[..., None, None]
    if gain is not None:
        start = wide if base is None else base.to(wide.dtype)
        gated = start + gain.to(wide.dtype) * (gated - start)
    return gated.to(x.dtype)


def gate_and_mean(x: Tensor, options: Options, spatial: bool, mean_kind: str) -> tuple[Tensor, Tensor]:
    """Gate a map spatially and compute the channel mean, without returning the self-information I itself.

    Args:
        x: map (N, C, H, W).
        options: of the self-information.
        spatial: whether to compute x (1 + sigmoid(I)); if False, the first result is an empty tensor.
        mean_kind: ``"excite"`` or ``"mean"``, of :func:`channel_mean`; for ``""`` the second result is empty.

    Returns:
        The spatially gated map, like ``x``, and the channel mean (N, C) in the dtype of the arithmetic.
    """
    wide = x.to(wide_dtype(x.dtype))
    info, _ = self_information(wide, options)
    gated = gate(wide, info, None, None, None).to(x.dtype) if spatial else x.new_empty(0)
    return gated, channel_mean(info, mean_kind) if mean_kind else wide.new_empty(0)


def channel_mean_backward(grad: Tensor, info: Tensor, mean_kind: str) -> Tensor:
    """Compute the gradient of :func:`channel_mean` for ``info``."""
    wide = info.to(wide_dtype(info.dtype))
    share = grad.to(wide.dtype)[..., None, None] / (info.shape[2] * info.shape[3])
    if mean_kind == "mean":
        share = share / (1 + 0.1 * torch.exp(wide))
    return torch.empty_like(info).copy_(share)


def gate_backward(
    grad: Tensor,
    x: Tensor,
    info: Tensor | None,
    channel_gate: Tensor | None,
    gain: Tensor | None,
    base: Tensor | None,
    info_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`gate` for x, info, channel_gate, gain and base.

    A gradient is an empty tensor if its argument is None or has no effect, and that of ``info`` also unless
    ``info_grad`` is set. The gradient of the gain is returned as sums over the planes, (N, C) in the dtype of the
    arithmetic, for the caller to add up.
    """
    wide = wide_dtype(x.dtype)
    dinfo, dgate, dgain, dbase = (x.new_empty(0) for _ in range(4))
    source = x.to(wide)
    grad = torch.empty_like(source).copy_(grad)  # in the memory format of x, which all results inherit
    bell = torch.zeros_like(source) if info is None else _sigmoid(info.to(wide))
    spatial = torch.ones_like(source) if info is None else 1 + bell
    across = torch.ones_like(source[..., :1, :1]) if channel_gate is None else channel_gate.to(wide)[..., None, None]
    weight = grad.new_ones(()) if gain is None else gain.to(wide)
    grad_gated = weight * grad
    dx = grad_gated * spatial * across
    if gain is not None:
        start = source if base is None else base.to(wide)
        dgain = (grad * (source * spatial * across - start)).sum((2, 3))
        if base is None:
            dx = dx + (1 - weight) * grad
        else:
            dbase = ((1 - weight) * grad).to(base.dtype)
    if info is not None and info_grad:
        dinfo = (grad_gated * source * across * bell * (1 - bell)).to(info.dtype)
    if channel_gate is not None:
        dgate = (grad_gated * source * spatial).sum((2, 3)).to(channel_gate.dtype)
    return dx.to(x.dtype), dinfo, dgate, dgain, dbase


def _scale(spread: Tensor, options: Options) -> Tensor:
    """Compute 1 / (2 b^2 spread), and 0 where the spread is 0."""
    usable = spread > torch.finfo(spread.dtype).tiny
    scale = options.fixed_scale() / torch.where(usable, spread, 1.0)
    return torch.where(usable, scale.clamp(max=LARGEST_SCALE), 0.0)


def _mean_square(x: Tensor, differences: Iterator[tuple[Tensor, Sequence[Any]]]) -> Tensor:
    """Average the finite squares of differences over the given parts of each map of differences, (N, C)."""
    total, count = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
    for difference, parts in differences:
        square = difference.square()
        finite = square < torch.inf
        square.nan_to_num_(0.0, 0.0)
        for part in parts:
            total += square[part].sum((2, 3))
            count += finite[part].sum((2, 3))
    return total / count.clamp(min=1)


def _offsets(options: Options) -> list[tuple[int, int]]:
    """List the row and column of each pixel of the first window in the padded map, except for the centre."""
    side, radius = range(options.kernel_size), options.radius
    return [(row, column) for row in side for column in side if (row, column) != (radius, radius)]


def _window(x: Tensor, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for every other pixel of the window, the difference (like ``x``) and whether it counts (1, 1, H, W)."""
    padded, everywhere = _pad(x, options), torch.ones_like(x[:1, :1])
    inside = _pad(everywhere, options._replace(padding_mode="zeros"))
    for shift in _offsets(options):
        if options.padding_mode == "exclude":
            counts = _at(inside, shift, x)
            yield torch.where(counts > 0, x - _at(padded, shift, x), 0.0), counts
        else:
            yield x - _at(padded, shift, x), everywhere


def _pairs(
    x: Tensor, options: Options, beyond: float = 0.0
) -> Iterator[tuple[Tensor, Tensor | None, tuple[tuple[Any, ...], tuple[Any, ...]]]]:
    """Yield every pair of pixels in a window once: x[i] - x[i + o] for one of each two opposite offsets o.

    Args:
        x: map (N, C, H, W).
        options: of the self-information.
        beyond: value of the pads for "exclude".

    Yields:
        The map of differences; for "exclude", 0 where both pixels are inside of ``x`` and minus infinity elsewhere,
        and None otherwise; and two crops of the map of differences to the size of ``x``, which hold at each pixel its
        pair with the pixel that follows it and with the one that precedes it.
    """
    (height, width), radius = x.shape[2:], options.radius
    padded, excludes = _pad(x, options, beyond), options.padding_mode == "exclude"
    inside = _pad(torch.zeros_like(x[:1, :1]), options, -torch.inf) if excludes else None
    for down in range(radius + 1):
        for across in range(-radius if down else 1, radius + 1):
            side = abs(across)
            top, left = radius - down, radius - max(across, 0)
            first = (..., slice(top, radius + height), slice(left, left + width + side))
            second = (..., slice(radius, radius + height + down), slice(left + across, left + across + width + side))
            outside = None if inside is None else inside[first] + inside[second]
            forwards = slice(side, side + width), slice(0, width)
            following, preceding = forwards if across > 0 else forwards[::-1]
            ends = (..., slice(down, down + height), following), (..., slice(0, height), preceding)
            yield padded[first] - padded[second], outside, ends


def _count(x: Tensor, options: Options) -> Tensor:
    """Count the pixels of each window that are not excluded, (1, 1, H, W)."""
    if options.padding_mode != "exclude":
        return x.new_full((1, 1, 1, 1), options.kernel_size**2)
    sides = []
    for size in x.shape[2:]:
        index = torch.arange(size, device=x.device)
        sides.append(1 + index.clamp(max=options.radius) + index.flip(0).clamp(max=options.radius))
    return (sides[0][:, None] * sides[1]).to(x.dtype)[None, None]


def _channels(x: Tensor, options: Options) -> Iterator[Tensor]:
    """Yield the difference to each following channel, cyclically: x[k] - x[(k + s) mod C] for s = 1 .. S."""
    neighbours = options.neighbours(x.shape[1])
    following = torch.cat([x, x[:, :neighbours]], 1)
    for step in range(1, neighbours + 1):
        yield x - following[:, step : step + x.shape[1]]


def _at(padded: Tensor, shift: tuple[int, int], x: Tensor) -> Tensor:
    row, column = shift
    return padded[:, :, row : row + x.shape[2], column : column + x.shape[3]]


def _pad(x: Tensor, options: Options, beyond: float = 0.0) -> Tensor:
    if not options.radius:
        return x
    around = [options.radius] * 4
    if options.padding_mode == "exclude":
        return F.pad(x, around, value=beyond)
    return F.pad(x, around, mode="constant" if options.padding_mode == "zeros" else options.padding_mode)


def _sigmoid(x: Tensor) -> Tensor:
    """Compute the sigmoid; torch.sigmoid rounds differently at the end of a tensor, so results would depend on N."""
    return 1 / (1 + torch.exp(-x))


def _pad_backward(grad: Tensor, x: Tensor, options: Options) -> Tensor:
    """Apply the adjoint of :func:`_pad`: add the gradient of each pad to that of the pixel that it copies."""
    radius, copies = options.radius, options.padding_mode in ("replicate", "reflect")
    for axis in (2, 3):
        size = x.shape[axis]
        inner = grad.narrow(axis, radius, size).clone()
        for step in range(1, radius + 1 if copies else 1):
            reach = step if options.padding_mode == "reflect" else 0
            inner.select(axis, reach).add_(grad.select(axis, radius - step))
            inner.select(axis, size - 1 - reach).add_(grad.select(axis, radius + size - 1 + step))
        grad = inner
    return grad
