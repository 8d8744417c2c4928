"""Baselines for the kernels: the formulas as one would write them in eager PyTorch.

Both compute the "kde" estimator with ``padding_mode="exclude"``, as :mod:`sia_layers.kernels.reference` defines it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sia_layers.kernels import ops
from sia_layers.kernels.backends import BACKENDS
from sia_layers.kernels.options import Options


def unfold(x: Tensor, options: Options) -> Tensor:
    """Compute the self-information with ``F.unfold``: K^2 copies of the map, then plain tensor arithmetic."""
    dtype, x = x.dtype, x.float()
    n, c, h, w = x.shape
    k, pixels = options.kernel_size, h * w
    windows = F.unfold(x.contiguous().view(n * c, 1, h, w), k, padding=options.radius).view(n, c, k * k, pixels)
    inside = F.unfold(torch.ones_like(x[:1, :1]), k, padding=options.radius).view(1, 1, k * k, pixels)
    square = (windows - x.reshape(n, c, 1, pixels)).square() * inside
    scale = _scale(square.sum((2, 3)) / (inside.sum() - pixels), options)[..., None, None]
    count = inside.sum(2)
    info = torch.log(count) - torch.log((torch.exp(-square * scale) * inside).sum(2))
    s = options.neighbours(c)
    if s:
        others = torch.stack([x.roll(-step, 1) for step in range(1, s + 1)], 2).reshape(n, c, s, pixels)
        square = (others - x.reshape(n, c, 1, pixels)).square()
        scale = _scale(square.mean((2, 3)), options)[..., None, None]
        mass = 1 + torch.exp(-square * scale).sum(2)
        info = info + options.inter_weight * (torch.log(torch.full_like(mass, s + 1)) - torch.log(mass))
    return info.view(n, c, h, w).to(dtype)


def shift_and_add(x: Tensor, options: Options) -> Tensor:
    """Compute the self-information by adding up shifts of the padded map, without K^2 copies; compilers can fuse it."""
    dtype, x = x.dtype, x.float()
    h, w = x.shape[2:]
    r, k = options.radius, options.kernel_size
    padded, inside = F.pad(x, [r] * 4), F.pad(torch.ones_like(x[:1, :1]), [r] * 4)
    offsets = [(i, j) for i in range(k) for j in range(k) if (i, j) != (r, r)]
    windows = [(padded[:, :, i : i + h, j : j + w], inside[:, :, i : i + h, j : j + w]) for i, j in offsets]
    square = sum(((there - x).square() * here).sum((2, 3)) for there, here in windows)
    count = sum(here for _, here in windows)
    scale = _scale(square / count.sum(), options)[..., None, None]
    mass = 1 + sum(torch.exp(-(there - x).square() * scale) * here for there, here in windows)
    info = torch.log(count + 1) - torch.log(mass)
    s = options.neighbours(x.shape[1])
    if s:
        others = [x.roll(-step, 1) for step in range(1, s + 1)]
        square = sum((there - x).square().mean((2, 3)) for there in others) / s
        scale = _scale(square, options)[..., None, None]
        mass = 1 + sum(torch.exp(-(there - x).square() * scale) for there in others)
        info = info + options.inter_weight * (torch.log(torch.full_like(mass, s + 1)) - torch.log(mass))
    return info.to(dtype)


def _scale(mean_square: Tensor, options: Options) -> Tensor:
    """Return the scale, which is a constant in the backward pass, as it is for the kernels."""
    if not options.adaptive:
        return torch.full_like(mean_square, options.fixed_scale())
    return torch.where(mean_square > 0, options.fixed_scale() / mean_square, 0.0).detach()


def created(name: str, options: Options) -> Callable[[Tensor], Tensor]:
    """Return a provider by name: a backend, ``"unfold"`` or ``"shift"``, or either of these with ``" compiled"``."""
    form, _, compiled = name.partition(" ")
    if form in BACKENDS:
        return lambda x: ops.self_information(x, options, form)
    function = functools.partial({"unfold": unfold, "shift": shift_and_add}[form], options=options)
    return torch.compile(function, dynamic=False) if compiled else function
