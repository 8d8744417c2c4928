"""The functions of the Triton backend: allocate the results and launch the kernels in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sia_layers.kernels.memory_format import empty_map, is_channels_last
from sia_layers.kernels.options import Options
from sia_layers.kernels.triton import backward, configs, forward, pixelwise
from sia_layers.kernels.triton.configs import ceil_div
from sia_layers.kernels.triton.launch import launch
from sia_layers.kernels.triton.plan import flat_plan, window_plan


def self_information(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Compute :func:`sia_layers.kernels.reference.self_information`."""
    info, scale = empty_map(x), _scale(x, options)
    if x.numel():
        _information(x, scale, options, info, None, "")
    return info, scale


def gate_and_mean(x: Tensor, options: Options, spatial: bool, mean_kind: str) -> tuple[Tensor, Tensor]:
    """Compute :func:`sia_layers.kernels.reference.gate_and_mean`, without writing I to memory."""
    gated = empty_map(x) if spatial else x.new_empty(0)
    if x.numel() and (spatial or mean_kind):
        return gated, _information(x, _scale(x, options), options, None, gated if spatial else None, mean_kind)
    return gated, _floats(x, *x.shape[:2]).fill_(torch.nan) if mean_kind else _floats(x, 0)


def self_information_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.self_information_backward`."""
    out, steps = empty_map(x), options.neighbours(x.shape[1])
    if not x.numel():
        return out
    intra = _share_map(x) if options.radius else None
    inter = _share_map(x) if steps else None
    share = intra if intra is not None else inter
    if share is None:
        return out.zero_()
    distance, scale = options.estimator == "distance", scale.contiguous()
    along = _reduce(x, options, grad) if distance and options.adaptive else None
    constants = {"DISTANCE": distance, "K": options.kernel_size, "S": steps, "PADDING": options.padding_mode}
    plan = window_plan(x, grad, share)
    constants |= {"MASKED": plan.masked(options.padding_mode), "UINT32": plan.uint32}
    launch(
        backward.shares, x.device, plan.programs(plan.tiles), plan.tiling.elements,
        grad=grad, x=x, scales=scale, along=along, intra=intra, inter=inter, weight=options.inter_weight,
        double=2 * options.bandwidth**2, **constants, **plan.arguments(g=grad, x=x, u=share),
    )  # fmt: skip
    plan = window_plan(x, share, out)
    constants |= {"MASKED": plan.masked(options.padding_mode), "UINT32": plan.uint32}
    launch(
        backward.gather, x.device, plan.programs(plan.tiles), plan.tiling.elements,
        x=x, scales=scale, intra=intra, inter=inter, out=out, **constants, **plan.arguments(x=x, u=share, y=out),
    )  # fmt: skip
    return out


def channel_mean(info: Tensor, mean_kind: str) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.channel_mean`."""
    out = _floats(info, *info.shape[:2])
    if not info.numel():
        return out.fill_(torch.nan)
    plan = flat_plan(info)
    sums, size = _by_tile(out, plan.tiles), float(info.shape[2] * info.shape[3])
    launch(
        pixelwise.channel_mean, info.device, plan.programs(plan.tiles), plan.tiling.elements,
        info=info, out=sums, divisor=size, MEAN=mean_kind, WHOLE=plan.tiles == 1, **plan.arguments(k=info),
    )  # fmt: skip
    _finish(sums, None, out, size)
    return out


def channel_mean_backward(grad: Tensor, info: Tensor, mean_kind: str) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.channel_mean_backward`."""
    out = empty_map(info)
    if info.numel():
        plan = flat_plan(info, out)
        launch(
            pixelwise.channel_mean_backward, info.device, plan.programs(plan.tiles), plan.tiling.elements,
            grad=grad.contiguous(), info=info, out=out, divisor=float(info.shape[2] * info.shape[3]), MEAN=mean_kind,
            **plan.arguments(k=info, y=out),
        )  # fmt: skip
    return out


def gate(
    x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.gate`."""
    out, base = empty_map(x), base if gain is not None else None
    if x.numel():
        plan = flat_plan(x, out, *_given(info, base))
        launch(
            pixelwise.gate, x.device, plan.programs(plan.tiles), plan.tiling.elements,
            x=x, info=info, channel_gate=_contiguous(channel_gate), gain=gain, base=base, out=out,
            **plan.arguments(x=x, k=info, b=base, y=out),
        )  # fmt: skip
    return out


def gate_backward(
    grad: Tensor,
    x: Tensor,
    info: Tensor | None,
    channel_gate: Tensor | None,
    gain: Tensor | None,
    base: Tensor | None,
    info_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`sia_layers.kernels.reference.gate_backward`."""
    base = base if gain is not None else None
    grad_x, planes = empty_map(x), x.shape[:2]
    grad_info = empty_map(x) if info_grad and info is not None else None
    grad_base = empty_map(x) if base is not None else None
    grad_gate = channel_gate.new_empty(planes) if channel_gate is not None else None
    grad_gain = _floats(x, *planes) if gain is not None else None
    found = grad_x, grad_info, grad_gate, grad_gain, grad_base
    if x.numel():
        plan = flat_plan(x, grad, grad_x, *_given(info, base, grad_info, grad_base))
        gate_sums = None if grad_gate is None else _by_tile(grad_gate, plan.tiles)
        gain_sums = None if grad_gain is None else _by_tile(grad_gain, plan.tiles)
        launch(
            pixelwise.gate_backward, x.device, plan.programs(plan.tiles), plan.tiling.elements,
            grad=grad, x=x, info=info, channel_gate=_contiguous(channel_gate), gain=gain, base=base,
            grad_x=grad_x, grad_info=grad_info, grad_gate=gate_sums, grad_gain=gain_sums, grad_base=grad_base,
            WHOLE=plan.tiles == 1, **plan.arguments(g=grad, x=x, k=info, b=base, y=grad_x, z=grad_info, o=grad_base),
        )  # fmt: skip
        for sums, out in ((gate_sums, grad_gate), (gain_sums, grad_gain)):
            if sums is not None and out is not None:
                _finish(sums, None, out, 1.0)
    else:
        for out in _given(grad_gate, grad_gain):
            out.zero_()
    return tuple(x.new_empty(0) if tensor is None else tensor for tensor in found)  # type: ignore[return-value]


def _information(
    x: Tensor, scale: Tensor, options: Options, info: Tensor | None, gated: Tensor | None, mean_kind: str
) -> Tensor:
    """Write I to ``info`` and the gated map to ``gated``, whichever exist, and return the channel mean."""
    out = info if info is not None else gated
    plan = window_plan(x, *_given(out))
    mean = _floats(x, *x.shape[:2]) if mean_kind else None
    sums = None if mean is None else _by_tile(mean, plan.tiles)
    launch(
        forward.information, x.device, plan.programs(plan.tiles), plan.tiling.elements,
        x=x, scales=scale, info=info, gated=gated, means=sums, weight=options.inter_weight,
        DISTANCE=options.estimator == "distance", WHOLE=plan.tiles == 1, MEAN=mean_kind, K=options.kernel_size,
        S=options.neighbours(x.shape[1]), PADDING=options.padding_mode, NVIDIA=False,
        MASKED=plan.masked(options.padding_mode), UINT32=plan.uint32, **plan.arguments(x=x, y=out),
    )  # fmt: skip
    if mean is None or sums is None:
        return _floats(x, 0)
    _finish(sums, None, mean, float(x.shape[2] * x.shape[3]))
    return mean


def _scale(x: Tensor, options: Options) -> Tensor:
    """Compute the scale of the self-information, of ``options.scale_shape(x)``."""
    shape = options.scale_shape(x)
    if not x.numel():
        return _floats(x, *shape).zero_()
    if not options.adaptive:
        return _floats(x, *shape).fill_(options.fixed_scale())
    return _reduce(x, options, None).view(shape)


def _reduce(x: Tensor, options: Options, grad: Tensor | None) -> Tensor:
    """Compute the adaptive scale, flat; given ``grad``, compute the mean of grad d over each sample instead."""
    distance, (samples, channels) = options.estimator == "distance", x.shape[:2]
    plan = window_plan(x, *_given(grad))
    parts = ceil_div(plan.tiles, configs.SPREAD_TILES)
    rows, entries = (samples, parts * channels) if distance else (2 * samples * channels, parts)
    whole = parts == 1 and not distance
    out, sums, counts = _floats(x, rows), _floats(x, entries, rows), _floats(x, entries, rows)
    shared: dict[str, Any] = {
        "x": x, "out": out if whole else sums, "counts": None if whole else counts, "parts": parts,
        "K": options.kernel_size, "S": options.neighbours(channels), "PADDING": options.padding_mode,
        "PER": configs.SPREAD_TILES, "UINT32": plan.uint32,
    }  # fmt: skip
    if distance:
        shared |= {"grad": grad, "weight": options.inter_weight} | plan.arguments(x=x, g=grad)
    else:
        # Masks save a fifth with a large window, but only a twentieth with a small one, where they spill registers.
        masked = options.kernel_size > 5 and plan.masked(options.padding_mode)
        shared |= {"fixed": options.fixed_scale(), "WHOLE": whole, "MASKED": masked} | plan.arguments(x=x)
    kernel = forward.distances if distance else forward.spread
    launch(kernel, x.device, plan.programs(parts), plan.tiling.elements, **shared)
    if not whole:
        _finish(sums, counts, out, 1.0, fixed=options.fixed_scale(), scale=grad is None)
    return out


def _finish(
    sums: Tensor, counts: Tensor | None, out: Tensor, divisor: float, fixed: float = 1.0, scale: bool = False
) -> None:
    """Add up sums (entries, ...) in as many rounds as needed, and write the mean or the scale to ``out``.

    The mean is over ``divisor``, or over the sum of ``counts`` if they are given.
    """
    if sums is out:
        return
    rows, (tall, broad) = out.numel(), configs.FINISH_BLOCK
    while True:
        entries = sums.shape[0]
        parts = ceil_div(entries, configs.FINISH_ENTRIES)
        to = out if parts == 1 else _floats(out, parts, rows)
        to_counts = None if parts == 1 or counts is None else _floats(out, parts, rows)
        launch(
            forward.finish, out.device, parts * ceil_div(rows, broad), tall * broad,
            sums=sums, counts=counts, out=to, out_counts=to_counts, entries=entries, rows=rows, divisor=divisor,
            fixed=fixed, COUNTED=counts is not None, SCALE=scale, WHOLE=parts == 1, PER=configs.FINISH_ENTRIES,
            TE=tall, TR=broad,
        )  # fmt: skip
        if parts == 1:
            return
        sums, counts = to, to_counts


def _by_tile(out: Tensor, tiles: int) -> Tensor:
    """Return a tensor for the sums of each tile: ``out`` (N, C) itself if there is only one tile."""
    return out if tiles == 1 else _floats(out, tiles, *out.shape)


def _share_map(x: Tensor) -> Tensor:
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape, dtype=torch.float32, device=x.device, memory_format=memory_format)


def _floats(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]
