"""CPU backend: compiled C for float32, bfloat16 and float16, vectorised and multi-threaded (``csrc/``)."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from sia_layers.kernels.cpu import library
from sia_layers.kernels.cpu.library import MEAN_KINDS, DenseMap, Layer, Map, MapOptions
from sia_layers.kernels.memory_format import empty_map, is_channels_last
from sia_layers.kernels.options import Options


def unavailable() -> str | None:
    """Return why the backend cannot run in this process; None if it can.

    Raises:
        ValueError: ``SIA_LAYERS_CPU_LEVEL`` names no instruction set.
    """
    found = library.load()
    if isinstance(found, str):
        return found
    library.best_level()
    return None


def refuses(x: Tensor) -> str | None:
    """Return why the backend cannot serve this tensor; None if it can."""
    if x.device.type != "cpu":
        return f"it serves CPU tensors, and this one is on {x.device}"
    if x.dtype not in library.DTYPES:
        return f"it serves float32, bfloat16 and float16, and this tensor is {x.dtype}"
    return None


def _forward(
    x: Tensor, options: Options, info: Tensor | None, gated: Tensor | None, mean: Tensor | None, mean_kind: str
) -> Tensor:
    scale = x.new_zeros(options.scale_shape(x), dtype=torch.float32)
    if x.numel():
        maps = [byref(Map.of(map)) for map in (x, info, gated)]
        outputs = (maps[1], maps[2], library.address(mean), MEAN_KINDS.index(mean_kind))
        library.call("sia_forward", byref(MapOptions.of(x, options)), maps[0], scale.data_ptr(), *outputs)
    elif mean is not None:
        mean.fill_(torch.nan)
    return scale


def self_information(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Compute :func:`sia_layers.kernels.reference.self_information`."""
    info = empty_map(x)
    return info, _forward(x, options, info, None, None, "")


def gate_and_mean(x: Tensor, options: Options, spatial: bool, mean_kind: str) -> tuple[Tensor, Tensor]:
    """Compute :func:`sia_layers.kernels.reference.gate_and_mean`, without writing I to memory."""
    gated = empty_map(x) if spatial else None
    mean = x.new_empty(x.shape[:2], dtype=torch.float32) if mean_kind else None
    _forward(x, options, None, gated, mean, mean_kind)
    return (
        x.new_empty(0) if gated is None else gated,
        x.new_empty(0, dtype=torch.float32) if mean is None else mean,
    )


def self_information_backward(grad: Tensor, x: Tensor, scale: Tensor, options: Options) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.self_information_backward`."""
    total = empty_map(x).float()
    if x.numel():
        maps = [byref(Map.of(map)) for map in (grad.to(x.dtype), x, total)]
        scale = scale.contiguous()
        library.call("sia_backward", byref(MapOptions.of(x, options)), *maps[:2], scale.data_ptr(), maps[2])
    return total.to(x.dtype)


def channel_mean(info: Tensor, mean_kind: str) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.channel_mean`."""
    info = _dense(info)
    mean = info.new_full(info.shape[:2], torch.nan, dtype=torch.float32)
    if info.numel():
        index = MEAN_KINDS.index(mean_kind)
        library.call("sia_channel_mean", byref(DenseMap.of(info)), info.data_ptr(), mean.data_ptr(), index)
    return mean


def channel_mean_backward(grad: Tensor, info: Tensor, mean_kind: str) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.channel_mean_backward`."""
    info, grad = _dense(info), grad.to(torch.float32).contiguous()
    total = empty_map(info)
    if info.numel():
        pointers = (grad.data_ptr(), info.data_ptr(), total.data_ptr())
        library.call("sia_channel_mean_backward", byref(DenseMap.of(info)), *pointers, MEAN_KINDS.index(mean_kind))
    return total


def gate(
    x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
) -> Tensor:
    """Compute :func:`sia_layers.kernels.reference.gate`."""
    x = _dense(x)
    y = empty_map(x)
    if x.numel():
        maps = [x, _like(info, x), _planes(channel_gate), _planes(gain), _like(base, x), y]
        library.call("sia_gate", byref(DenseMap.of(x)), *map(library.address, maps))
    return y


def attend(
    x: Tensor,
    base: Tensor,
    options: Options,
    spatial: bool,
    mean_kind: str,
    excite: tuple[Tensor, Tensor] | None,
    gain: Tensor | None,
) -> Tensor:
    """Compute a whole layer in one call; see :func:`sia_layers.kernels.ops.attend`."""
    source = x if spatial else _dense(x)  # without the spatial gate, the last step reads it in the format of y
    base = source if base is x else base
    y = empty_map(source)
    if not x.numel():
        return y
    start = None if gain is None else base if base.stride() == y.stride() else _like(base, y)
    layer = Layer(spatial=spatial, channel=MEAN_KINDS.index(mean_kind), channels_last=is_channels_last(y))
    layer.gain, layer.base = library.address(gain), library.address(start)
    if excite is not None:
        layer.first, layer.second, layer.hidden = excite[0].data_ptr(), excite[1].data_ptr(), excite[0].shape[0]
    library.call("sia_attend", byref(MapOptions.of(x, options)), byref(Map.of(source)), byref(layer), y.data_ptr())
    return y


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
    x = _dense(x)
    dx = empty_map(x)
    dinfo = empty_map(x) if info_grad and info is not None else None
    dgate = None if channel_gate is None else x.new_zeros(x.shape[:2], dtype=torch.float32)
    dgain = None if gain is None else x.new_zeros(x.shape[:2], dtype=torch.float32)
    dbase = None if gain is None or base is None else empty_map(x)
    if x.numel():
        maps = [_like(grad, x), x, _like(info, x), _planes(channel_gate), _planes(gain), _like(base, x)]
        maps += [dx, dinfo, dgate, dgain, dbase]
        library.call("sia_gate_backward", byref(DenseMap.of(x)), *map(library.address, maps))
    if dgate is not None and channel_gate is not None:
        dgate = dgate.to(channel_gate.dtype)
    absent = x.new_empty(0)
    rest = [absent.clone() if result is None else result for result in (dinfo, dgate, dgain, dbase)]
    return dx, rest[0], rest[1], rest[2], rest[3]


def _dense(x: Tensor) -> Tensor:
    """Return a map that is contiguous or channels_last: the map itself if it is, or else a contiguous copy."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


def _like(other: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a map in the dtype and memory format of ``x``."""
    if other is None:
        return None
    memory_format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return other.to(x.dtype).contiguous(memory_format=memory_format)


def _planes(values: Tensor | None) -> Tensor | None:
    """Return one value per plane, or a single value, as contiguous float32."""
    return None if values is None else values.to(torch.float32).contiguous()
