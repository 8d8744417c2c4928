"""The self-information and its gates, on the backend that is chosen at each call.

They call the operators of :mod:`sia_layers.kernels.registration`. A graph that leaves PyTorch (torch.export, ONNX,
torch.jit.trace) holds the reference's own operations instead, so that whoever loads it needs nothing of this library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from sia_layers.kernels import backends, reference
from sia_layers.kernels.options import Options, check_map
from sia_layers.kernels.reference import wide_dtype
from sia_layers.kernels.registration import OPERATORS, RUN

Result = TypeVar("Result")


def self_information(x: Tensor, options: Options, backend: str | None = None) -> Tensor:
    """Self-information of every pixel; see :func:`sia_layers.kernels.reference.self_information`."""
    _check(x, options)
    chosen = _choose(x, backend)
    if chosen is None:
        return _plainly(reference.self_information, x, options)[0]
    return cast(Tensor, _call("self_information", (x,), x, *options, chosen)[0])


def attend(
    x: Tensor, options: Options, spatial: bool, channel: str, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """What inference needs of the self-information; see :func:`sia_layers.kernels.reference.attend`.

    It has no gradient: where one is needed, take the three functions that it is made of.
    """
    _check(x, options)
    chosen = _choose(x, backend)
    if chosen is None:
        return _plainly(reference.attend, x, options, spatial, channel)
    return cast("tuple[Tensor, Tensor]", _call("attend", (x,), x, *options, spatial, channel, chosen))


def channel_mean(info: Tensor, channel: str, backend: str | None = None) -> Tensor:
    """What the channel gate is computed from; see :func:`sia_layers.kernels.reference.channel_mean`."""
    chosen = _choose(info, backend)
    if chosen is None:
        return _plainly(reference.channel_mean, info, channel)
    return cast(Tensor, _call("channel_mean", (info,), info, channel, chosen))


def gate(
    x: Tensor,
    info: Tensor | None = None,
    channel_gate: Tensor | None = None,
    gain: Tensor | None = None,
    base: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gate a map; see :func:`sia_layers.kernels.reference.gate`.

    Raises:
        ValueError: a tensor of another shape or device than ``x`` asks for.
    """
    wide = wide_dtype(x.dtype)
    tensors = [
        _matched("info", info, x, x.shape, x.dtype),
        _matched("channel_gate", channel_gate, x, x.shape[:2], wide),
        _matched("gain", gain, x, (1,) if gain is not None and gain.dim() else (), wide),
        _matched("base", base, x, x.shape, x.dtype),
    ]
    chosen = _choose(x, backend)
    if chosen is None:
        return _plainly(reference.gate, x, *tensors)
    return cast(Tensor, _call("gate", (x, *tensors), x, *tensors, chosen))


def tracing() -> bool:
    """Whether torch.jit.trace records; the sizes of tensors are no plain numbers then."""
    return cast(bool, torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def spelt_out() -> bool:
    """Whether calls go to the reference, in PyTorch's own operations, whatever the backend.

    For a graph that leaves PyTorch (export, ONNX, trace), and for torch.func and forward-mode differentiation,
    which would take these operators' results for constants.
    """
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or tracing() or torch.compiler.is_exporting()


def _call(operator: str, tensors: Sequence[Tensor | None], *arguments: Any) -> Any:
    """Call an operator, or what it runs, where the dispatcher would add nothing but the time of a small kernel.

    That is for ordinary tensors on a CPU, without gradient, mode, transform, compiler or profiler.
    """
    if torch.compiler.is_compiling():
        return getattr(OPERATORS, operator)(*arguments)
    grad = torch.is_grad_enabled()
    watched = (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
    )
    if watched or not all(tensor is None or _is_plain(tensor, grad) for tensor in tensors):
        return getattr(OPERATORS, operator)(*arguments)
    return RUN[operator](*arguments)


def _is_plain(x: Tensor, grad: bool) -> bool:
    """Whether the dispatcher would take a tensor straight to the CPU: no subclass, nothing lazy, no gradient."""
    if type(x) not in ORDINARY or (grad and x.requires_grad):
        return False
    return torch._C._dispatch_keys(x).raw_repr() in PLAIN_KEYS


def _keys_of_plain_tensors() -> frozenset[int]:
    with torch.inference_mode():
        inferred = torch.empty(0, device="cpu")
    with torch.inference_mode(False):
        plain = torch.empty(0, device="cpu")
    return frozenset(torch._C._dispatch_keys(tensor).raw_repr() for tensor in (inferred, plain))


ORDINARY = (Tensor, torch.nn.Parameter)
PLAIN_KEYS = _keys_of_plain_tensors()


def _check(x: Tensor, options: Options) -> None:
    if tracing():
        check_map(x)
    else:
        options.check_input(x)


def _choose(x: Tensor, backend: str | None) -> str | None:
    """The backend for an operator's call; None to write the reference's own operations into a graph."""
    if spelt_out():
        return None
    chosen = backends.select(x, backend)
    return None if chosen == "reference" and torch.compiler.is_compiling() else chosen


def _plainly(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of the reference outside of the operators."""
    if not tracing():
        return function(*arguments)
    with warnings.catch_warnings():  # whether a map is empty, and its channels, are constants of the graph
        warnings.simplefilter("ignore", TracerWarning)
        return function(*arguments)


def _matched(name: str, tensor: Tensor | None, x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """The tensor in the dtype that kernels expect. They read memory as told, so shape and device must be right."""
    if tensor is None:
        return None
    if not tracing() and (tensor.shape != shape or tensor.device != x.device):
        raise ValueError(
            f"{name} must be of shape {tuple(shape)} on {x.device}, as x is of shape {tuple(x.shape)}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor.to(dtype)
