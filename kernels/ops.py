"""Compute the self-information and its gates on a backend that is chosen at each call.

These functions call the operators of :mod:`sia_layers.kernels.registration`. A graph that leaves PyTorch (torch.export,
ONNX, torch.jit.trace) holds the reference's ATen operations instead, so it can be loaded without this library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from sia_layers.kernels import backends, cpu, reference
from sia_layers.kernels.options import Options, check_map
from sia_layers.kernels.private_torch import any_transform, dispatch_keys, dispatch_observed, exporting
from sia_layers.kernels.reference import wide_dtype
from sia_layers.kernels.registration import OPERATORS, RUN

Result = TypeVar("Result")


def self_information(x: Tensor, options: Options, backend: str | None = None) -> Tensor:
    """Compute the self-information of every pixel; see :func:`sia_layers.kernels.reference.self_information`."""
    _check(x, options)
    chosen = _choose(x, backend)
    if chosen is None:
        return _run_reference(reference.self_information, x, options)[0]
    return cast(Tensor, _call("self_information", (x,), x, *options, chosen)[0])


def gate_and_mean(
    x: Tensor, options: Options, spatial: bool, mean_kind: str, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the spatially gated map and the channel mean; see :func:`sia_layers.kernels.reference.gate_and_mean`.

    This function has no gradient. For training, call :func:`self_information`, :func:`channel_mean` and :func:`gate`.
    """
    _check(x, options)
    chosen = _choose(x, backend)
    if chosen is None:
        return _run_reference(reference.gate_and_mean, x, options, spatial, mean_kind)
    return cast("tuple[Tensor, Tensor]", _call("gate_and_mean", (x,), x, *options, spatial, mean_kind, chosen))


def channel_mean(info: Tensor, mean_kind: str, backend: str | None = None) -> Tensor:
    """Compute what the channel gate is a function of; see :func:`sia_layers.kernels.reference.channel_mean`."""
    chosen = _choose(info, backend)
    if chosen is None:
        return _run_reference(reference.channel_mean, info, mean_kind)
    return cast(Tensor, _call("channel_mean", (info,), info, mean_kind, chosen))


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
        ValueError: the shape or device of a tensor does not match ``x``.
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
        return _run_reference(reference.gate, x, *tensors)
    return cast(Tensor, _call("gate", (x, *tensors), x, *tensors, chosen))


def tracing() -> bool:
    """Tell whether torch.jit.trace is recording; the sizes of tensors are then not plain numbers."""
    return cast(bool, torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def inlined() -> bool:
    """Tell whether calls run the reference's ATen operations, whatever the backend.

    They do in a graph that leaves PyTorch (export, ONNX, trace), and under torch.func and forward-mode
    differentiation, which would treat the results of these operators as constants.
    """
    return any_transform() or tracing() or exporting()


def attend(
    x: Tensor,
    base: Tensor,
    options: Options,
    spatial: bool,
    mean_kind: str,
    excite: tuple[Tensor, Tensor] | None = None,
    gain: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | None:
    """Compute a whole layer at inference in one call of the CPU backend, without the dispatcher.

    The result is that of :func:`gate_and_mean` and :func:`gate`. The caller has checked shapes, devices and
    :func:`inlined`.

    Args:
        x: map to gate, (N, C, H, W).
        base: map (N, C, H, W) that the gain interpolates from.
        options: of the self-information.
        spatial: whether to apply the spatial gate.
        mean_kind: kind of channel gate; "" for none.
        excite: weights (R, C, 1, 1) and (C, R, 1, 1) of the channel gate sigmoid(second relu(first mean)).
        gain: tensor of one element.
        backend: as given to the layer.

    Returns:
        The gated map, like ``x``; None if another backend serves, if operators are needed, or if the weights or the
        gain are not contiguous float32 tensors of these shapes. The operators convert or refuse those.
    """
    tensors = (x, gain, *(excite or ()), None if base is x else base)
    if torch.compiler.is_compiling() or _observed(tensors):
        return None
    if backends.wanted(backend) not in (None, "cpu") or cpu.refuses(x) or cpu.unavailable():
        return None
    # The kernel does not check bounds.
    if not (_is_excite(excite, x.shape[1]) and (gain is None or (gain.dtype == torch.float32 and gain.numel() == 1))):
        return None
    return cpu.attend(x, base, options, spatial, mean_kind, excite, gain)


def _is_excite(weights: tuple[Tensor, Tensor] | None, channels: int) -> bool:
    """Tell whether weights are those of a channel gate, in dense float32; None is too."""
    if weights is None:
        return True
    first, second = weights
    hidden = first.shape[0]
    return (
        first.dtype == second.dtype == torch.float32
        and first.shape == (hidden, channels, 1, 1)
        and second.shape == (channels, hidden, 1, 1)
        and first.is_contiguous()
        and second.is_contiguous()
    )


def _call(operator: str, tensors: Sequence[Tensor | None], *arguments: Any) -> Any:
    """Call an operator, or its implementation directly where the dispatcher would only add overhead."""
    if torch.compiler.is_compiling() or _observed(tensors):
        return getattr(OPERATORS, operator)(*arguments)
    return RUN[operator](*arguments)


def _observed(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether the dispatcher does more than to call a kernel.

    It does for all but ordinary CPU tensors without gradients, and under modes, transforms and a profiler.
    """
    if dispatch_observed():
        return True
    grad = torch.is_grad_enabled()
    for tensor in tensors:  # noqa: SIM110 (any() over a generator takes twice as long)
        if tensor is not None and not _is_plain(tensor, grad):
            return True
    return False


def _is_plain(x: Tensor, grad: bool) -> bool:
    """Tell whether the dispatcher would go straight to the CPU kernel: no subclass, no lazy bit, no gradient."""
    if type(x) not in ORDINARY or (grad and x.requires_grad):
        return False
    return dispatch_keys(x) in PLAIN_KEYS


def _keys_of_plain_tensors() -> frozenset[int]:
    with torch.inference_mode():
        inferred = torch.empty(0, device="cpu")
    with torch.inference_mode(False):
        plain = torch.empty(0, device="cpu")
    return frozenset(dispatch_keys(tensor) for tensor in (inferred, plain))


ORDINARY = (Tensor, torch.nn.Parameter)
PLAIN_KEYS = _keys_of_plain_tensors()


def _check(x: Tensor, options: Options) -> None:
    if tracing():
        check_map(x)
    else:
        options.check_input(x)


def _choose(x: Tensor, backend: str | None) -> str | None:
    """Return the backend for a call; None to run the reference's ATen operations without an operator."""
    if inlined():
        return None
    chosen = backends.select(x, backend)
    return None if chosen == "reference" and torch.compiler.is_compiling() else chosen


def _run_reference(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of the reference without an operator."""
    if not tracing():
        return function(*arguments)
    with warnings.catch_warnings():  # the number of channels, and whether the map is empty, become constants on purpose
        warnings.simplefilter("ignore", TracerWarning)
        return function(*arguments)


def _matched(name: str, tensor: Tensor | None, x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Return the tensor in the dtype that kernels expect.

    Kernels do not check bounds, so shape and device must match.
    """
    if tensor is None:
        return None
    if not tracing() and (tensor.shape != shape or tensor.device != x.device):
        raise ValueError(
            f"{name} must be of shape {tuple(shape)} on {x.device}, to match x of shape {tuple(x.shape)}, "
            f"got {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor.to(dtype)
