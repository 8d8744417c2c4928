r"""Self-information and its gates in plain PyTorch: the definition that every kernel is tested against.

With x a map (N, C, H, W), :math:`\Omega` the K x K window around a pixel and S following channels::

    I_intra[i]    = -log( 1/|Omega| * sum_{j in Omega} exp(-(x[i] - x[j])^2 * scale) )
    I_inter[n,k]  = -log( 1/(S+1)   * sum_{s=0..S}     exp(-(x[k] - x[k+s])^2 * scale') )
    I             = I_intra + inter_weight * I_inter                         (estimator "kde")

    d             = |sum_{j in Omega} (x[i] - x[j])| + inter_weight * |sum_{s=1..S} (x[k] - x[k+s])|
    I             = d * scale                                                (estimator "distance")

``scale`` makes the differences dimensionless: 1 / 2h^2 a plane for "kde", 1 / (2 b^2 mean d) a sample for
"distance". It is 0 where the map is constant, so that I and its gradient are 0 there and never NaN.
No tensor here has K^2 times the size of the map: every loop adds one shifted map at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sia_layers.kernels.options import LARGEST_SCALE, Options


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: half precision is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def self_information(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Self-information of every pixel in every channel, in nats.

    Args:
        x: floating map (N, C, H, W).
        options: what to compute.

    Returns:
        The self-information, in the shape and dtype of ``x``, and the scale that was used, in the
        arithmetic's dtype and without gradient: (2, N, C) with the intra and the inter row for "kde",
        (1, N, 1) for "distance".
    """
    wide = x.to(wide_dtype(x.dtype))
    if x.numel() == 0:
        return torch.empty_like(x), _empty_scale(wide, options)
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
            near.clamp_(max=largest).mul_(intra).add_(outside).exp_()  # infinity times a scale of 0 would be NaN
        for end in ends:
            total += near[end]
    info = torch.log(_count(wide, options)) - torch.log(total)
    total = torch.ones_like(wide)
    for difference in _channels(wide, options):
        total += difference.square().mul_(inter).exp_()
    count = 1 + options.neighbours(x.shape[1])
    return (info + options.inter_weight * (math.log(count) - torch.log(total))).to(x.dtype), scale


def kde_scale(x: Tensor, options: Options) -> Tensor:
    """1 / 2h^2 of every plane, (2, N, C): the intra-channel row, then the inter-channel row.

    Adaptive: h^2 = b^2 times the mean square difference of neighbours; differences that are not finite
    are left out, so that one bad pixel does not spoil its plane.
    """
    if not options.adaptive:
        return x.new_full((2, x.shape[0], x.shape[1]), options.fixed_scale)
    beyond = options.padding_mode == "exclude"  # pads at infinity: a pair that holds one is not finite
    pairs = ((difference, ends[: 1 if beyond else 2]) for difference, _, ends in _pairs(x, options, torch.inf))
    intra = _mean_square(x, pairs)
    inter = _mean_square(x, ((difference, [...]) for difference in _channels(x, options)))
    return _scale(torch.stack([intra, inter]), options)


def distance_scale(distance: Tensor, options: Options) -> Tensor:
    """1 / (2 b^2 mean d) of every sample, (1, N, 1); 1 / 2b^2 if not adaptive."""
    if not options.adaptive:
        return distance.new_full((1, distance.shape[0], 1), options.fixed_scale)
    finite = torch.isfinite(distance)
    mean = torch.where(finite, distance, 0.0).sum((1, 2, 3)) / finite.sum((1, 2, 3)).clamp(min=1)
    return _scale(mean, options).reshape(1, -1, 1)


def sum_of_distances(x: Tensor, options: Options) -> Tensor:
    """d of the "distance" estimator."""
    intra, inter = torch.zeros_like(x), torch.zeros_like(x)
    for difference, _ in _window(x, options):
        intra = intra + difference
    for difference in _channels(x, options):
        inter = inter + difference
    return intra.abs() + options.inter_weight * inter.abs()


def self_information_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    """Gradient of :func:`self_information` for ``x``, with the scale of its forward.

    "kde": with a_ij = 2 scale (x_i - x_j) e_ij and u = grad / sum(e), dL/dx_i = sum_j a_ij (u_i + u_j), the
    scale a constant. "distance": the sample's mean of d is part of the formula and is differentiated.
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


def channel_mean(info: Tensor, channel: str) -> Tensor:
    """What the channel gate is computed from, (N, C) in the arithmetic's dtype.

    ``"excite"``: the mean of I over the plane; ``"mean"``: the mean of -log(exp(-I) + 0.1).
    """
    wide = info.to(wide_dtype(info.dtype))
    return (wide if channel == "excite" else -torch.log(torch.exp(-wide) + 0.1)).mean((2, 3))


def gate(
    x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
) -> Tensor:
    """Gate a map: m = x (1 + sigmoid(I)) g, and with a gain y = base + gain (m - base), else y = m.

    Args:
        x: map (N, C, H, W).
        info: self-information I of its pixels, like ``x``; None leaves the spatial gate off.
        channel_gate: g (N, C); None leaves the channel gate off.
        gain: one number, of shape (1,) or (); None: y is the gated map itself.
        base: what the gain starts from, like ``x``; None: ``x``. Without a gain it is not used.
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


def attend(x: Tensor, options: Options, spatial: bool, channel: str) -> tuple[Tensor, Tensor]:
    """What inference needs of the self-information I, without handing on I itself.

    Args:
        x: map (N, C, H, W).
        options: of the self-information.
        spatial: compute x (1 + sigmoid(I)); otherwise the first result is an empty tensor.
        channel: ``"excite"`` or ``"mean"``: compute :func:`channel_mean`; ``""``: the second result is empty.

    Returns:
        The spatially gated map, like ``x``, and the channel mean (N, C) in the arithmetic's dtype.
    """
    wide = x.to(wide_dtype(x.dtype))
    info, _ = self_information(wide, options)
    gated = gate(wide, info, None, None, None).to(x.dtype) if spatial else x.new_empty(0)
    return gated, channel_mean(info, channel) if channel else wide.new_empty(0)


def channel_mean_backward(grad: Tensor, info: Tensor, channel: str) -> Tensor:
    """Gradient of :func:`channel_mean` for ``info``."""
    wide = info.to(wide_dtype(info.dtype))
    share = grad.to(wide.dtype)[..., None, None] / (info.shape[2] * info.shape[3])
    if channel == "mean":
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
    """Gradients of :func:`gate` for x, info, channel_gate, gain and base; an empty tensor for each not asked for.

    ``info_grad`` asks for that of ``info``; the others come where the argument was given and was used. That of
    the gain comes as its sum over each plane, (N, C) in the arithmetic's dtype: add them up.
    """
    wide = wide_dtype(x.dtype)
    dinfo, dgate, dgain, dbase = (x.new_empty(0) for _ in range(4))
    source = x.to(wide)
    grad = torch.empty_like(source).copy_(grad)  # in the memory format of x, and so are the results
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


def _empty_scale(x: Tensor, options: Options) -> Tensor:
    rows, channels = (1, 1) if options.estimator == "distance" else (2, x.shape[1])
    return x.new_zeros((rows, x.shape[0], channels))


def _scale(spread: Tensor, options: Options) -> Tensor:
    """1 / (2 b^2 spread), and 0 where the spread is 0."""
    usable = spread > torch.finfo(spread.dtype).tiny
    scale = options.fixed_scale / torch.where(usable, spread, 1.0)
    return torch.where(usable, scale.clamp(max=LARGEST_SCALE), 0.0)


def _mean_square(x: Tensor, differences: Iterator[tuple[Tensor, Sequence[Any]]]) -> Tensor:
    """Mean over the given parts of each map of differences of the squares that are finite, (N, C)."""
    total, count = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
    for difference, parts in differences:
        square = difference.square()
        finite = square < torch.inf
        square.nan_to_num_(0.0, 0.0)
        for part in parts:
            total += square[part].sum((2, 3))
            count += finite[part].sum((2, 3))
    return total / count.clamp_(min=1)


def _offsets(options: Options) -> list[tuple[int, int]]:
    """Rows and columns of the window in the padded map, the centre left out."""
    side, radius = range(options.kernel_size), options.radius
    return [(row, column) for row in side for column in side if (row, column) != (radius, radius)]


def _window(x: Tensor, options: Options) -> Iterator[tuple[Tensor, Tensor]]:
    """The difference to every other pixel of the window, like ``x``, and 1 where it counts, (1, 1, H, W), else 0."""
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
    """Every pair of pixels that a window holds, once: x[i] - x[i + o] for one of each two opposite offsets o.

    Besides the map of differences come, for "exclude", 0 where the pair lies inside of ``x`` and minus infinity where
    not, and the two parts of the map that lie as ``x`` does: at a pixel, its pair with what follows it and with what
    goes before it. ``beyond`` is what "exclude" finds outside of ``x``.
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
    """How many pixels each window holds that count, (1, 1, H, W)."""
    if options.padding_mode != "exclude":
        return x.new_full((1, 1, 1, 1), options.kernel_size**2)
    sides = []
    for size in x.shape[2:]:
        index = torch.arange(size, device=x.device)
        sides.append(1 + index.clamp(max=options.radius) + index.flip(0).clamp(max=options.radius))
    return (sides[0][:, None] * sides[1]).to(x.dtype)[None, None]


def _channels(x: Tensor, options: Options) -> Iterator[Tensor]:
    """The difference to the following channels, cyclically: x[k] - x[(k + s) mod C] for s = 1 .. S."""
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
    """As torch.sigmoid, which rounds differently at the end of a tensor: a result would depend on the batch."""
    return 1 / (1 + torch.exp(-x))


def _pad_backward(grad: Tensor, x: Tensor, options: Options) -> Tensor:
    """Adjoint of :func:`_pad`: what lies beyond the border is given to the pixels that it is a copy of."""
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
