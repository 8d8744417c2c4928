"""Register the operators ``torch.ops.sia_layers.*``: each with its implementation, fake implementation and gradient.

Every operator takes the name of the backend that runs it. The backward pass runs on the same backend, and second
derivatives on the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sia_layers.kernels import backends, reference
from sia_layers.kernels.memory_format import empty_map
from sia_layers.kernels.options import Options
from sia_layers.kernels.reference import wide_dtype

LIBRARY = torch.library.Library("sia_layers", "DEF")  # type: ignore[no-untyped-call]
OPTIONS = (
    "int kernel_size, float bandwidth, bool adaptive, str estimator, int inter_channels, float inter_weight, "
    "str padding_mode"
)
GATE = "Tensor x, Tensor? info, Tensor? channel_gate, Tensor? gain, Tensor? base"

OptionalTensors = tuple["Tensor | None", ...]

RUN: dict[str, Callable[..., Any]] = {}  # by operator: the function that runs behind PyTorch's dispatcher


def _promised(result: Tensor, x: Tensor, backend: str) -> Tensor:
    """Return ``result`` with the strides that every backend promises.

    Only the reference needs this: its output has whatever strides torch chose and may alias ``x``.
    """
    if backend != "reference":
        return result
    expected = empty_map(x)
    return result if result.stride() == expected.stride() and result is not x else expected.copy_(result)


def _options(settings: Sequence[Any]) -> Options:
    return Options(*settings[: len(Options._fields)])


def _self_information(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    backend = settings[-1]
    info, scale = backends.load(backend).self_information(x, _options(settings))
    return _promised(info, x, backend), scale


def _self_information_fake(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return empty_map(x), x.new_empty(_options(settings).scale_shape(x), dtype=wide_dtype(x.dtype))


def _self_information_save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.settings = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, output[1])


def _self_information_grad(ctx: Any, grad: Tensor | None, _: None) -> OptionalTensors:
    grad_x = None
    if grad is not None:
        grad_x = OPERATORS.self_information_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return grad_x, *_nothing(ctx.settings)


def _self_information_backward(grad: Tensor, x: Tensor, scale: Tensor, *settings: Any) -> Tensor:
    backend = settings[-1]
    found = backends.load(backend).self_information_backward(grad, x, scale, _options(settings))
    return _promised(found, x, backend)


def _self_information_backward_fake(grad: Tensor, x: Tensor, scale: Tensor, *settings: Any) -> Tensor:
    return empty_map(x)


def _self_information_backward_grad(ctx: Any, second: Tensor) -> OptionalTensors:
    options = _options(ctx.settings)
    grads = _second_order(ctx, lambda x: (reference.self_information(x, options)[0], (x,)), second)
    return *grads, None, *_nothing(ctx.settings)


def _gate_and_mean(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, spatial, mean_kind, backend = settings
    gated, mean = backends.load(backend).gate_and_mean(x, _options(settings), spatial, mean_kind)
    return _promised(gated, x, backend) if spatial else gated, mean


def _gate_and_mean_fake(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, spatial, mean_kind, _backend = settings
    gated = empty_map(x) if spatial else x.new_empty(0)
    return gated, x.new_empty(x.shape[:2] if mean_kind else 0, dtype=wide_dtype(x.dtype))


def _gate_and_mean_grad(ctx: Any, *grads: Tensor) -> OptionalTensors:
    raise RuntimeError(
        "sia_layers::gate_and_mean is for inference and has no gradient; call self_information, channel_mean and gate "
        "instead"
    )


def _channel_mean(info: Tensor, mean_kind: str, backend: str) -> Tensor:
    return backends.load(backend).channel_mean(info, mean_kind)


def _channel_mean_fake(info: Tensor, mean_kind: str, backend: str) -> Tensor:
    return info.new_empty(info.shape[:2], dtype=wide_dtype(info.dtype))


def _channel_mean_save(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    info, *ctx.settings = inputs
    ctx.save_for_backward(info)


def _channel_mean_grad(ctx: Any, grad: Tensor) -> OptionalTensors:
    return OPERATORS.channel_mean_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None


def _channel_mean_backward(grad: Tensor, info: Tensor, mean_kind: str, backend: str) -> Tensor:
    return _promised(backends.load(backend).channel_mean_backward(grad, info, mean_kind), info, backend)


def _channel_mean_backward_fake(grad: Tensor, info: Tensor, mean_kind: str, backend: str) -> Tensor:
    return empty_map(info)


def _channel_mean_backward_grad(ctx: Any, second: Tensor) -> OptionalTensors:
    mean_kind = ctx.settings[0]
    return *_second_order(ctx, lambda info: (reference.channel_mean(info, mean_kind), (info,)), second), None, None


def _gate(x: Tensor, *arguments: Any) -> Tensor:
    *tensors, backend = arguments
    return _promised(backends.load(backend).gate(x, *tensors), x, backend)


def _gate_fake(x: Tensor, *arguments: Any) -> Tensor:
    return empty_map(x)


def _gate_save(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gate_grad(ctx: Any, grad: Tensor) -> OptionalTensors:
    tensors = ctx.saved_tensors
    found = OPERATORS.gate_backward(grad, *tensors, ctx.needs_input_grad[1], ctx.backend)
    grads: list[Tensor | None] = [
        gradient if needed else None for gradient, needed in zip(found, ctx.needs_input_grad, strict=False)
    ]
    gain = tensors[3]
    if grads[3] is not None:
        grads[3] = grads[3].sum().to(gain.dtype).reshape(gain.shape)
    if gain is None:
        grads[4] = None  # without a gain the base has no effect
    return *grads, None


def _gate_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x, info, channel_gate, gain, base, info_grad, backend = arguments
    found = backends.load(backend).gate_backward(grad, x, info, channel_gate, gain, base, info_grad)
    return tuple(_promised(tensor, x, backend) if tensor.dim() == 4 else tensor for tensor in found)


def _gate_backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x, info, channel_gate, gain, base, info_grad, _ = arguments
    nothing = x.new_empty(0)
    return (
        empty_map(x),
        empty_map(x) if info is not None and info_grad else nothing.clone(),
        nothing.clone() if channel_gate is None else torch.empty_like(channel_gate),
        nothing.clone() if gain is None else x.new_empty(x.shape[:2], dtype=wide_dtype(x.dtype)),
        nothing.clone() if gain is None or base is None else empty_map(x),
    )


def _gate_backward_save(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.backend = inputs
    ctx.mark_non_differentiable(*(tensor for tensor in output if tensor.dim() == 1))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gate_backward_grad(ctx: Any, *seconds: Tensor | None) -> OptionalTensors:
    return *_second_order(ctx, _gate_by_plane, *seconds), None, None


def _gate_by_plane(
    x: Tensor, info: Tensor | None, channel_gate: Tensor | None, gain: Tensor | None, base: Tensor | None
) -> tuple[Tensor, OptionalTensors]:
    planes = None if gain is None else gain.expand(x.shape[:2])
    spread = None if planes is None else planes[..., None, None]
    return reference.gate(x, info, channel_gate, spread, base), (x, info, channel_gate, planes, base)


def _gradient_and_map_save(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    ctx.settings = [value for value in inputs if not isinstance(value, Tensor)]
    ctx.save_for_backward(*inputs[:2])


def _second_order(
    ctx: Any, function: Callable[..., tuple[Tensor, OptionalTensors]], *seconds: Tensor | None
) -> OptionalTensors:
    """Differentiate the first gradients of a function for its saved tensors: its output's gradient and its inputs.

    Args:
        ctx: of the backward operator, whose inputs are the saved tensors.
        function: takes the inputs; returns its output and the tensors for which the first gradients were taken.
        seconds: the gradients for those first gradients.
    """
    again = torch.is_grad_enabled()  # the caller may want a third derivative

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.view_as(tensor) if again and tensor.requires_grad else tensor.detach().requires_grad_()

    with torch.enable_grad():
        leaves = cast("list[Tensor]", [leaf(tensor) for tensor in ctx.saved_tensors])
        output, sources = function(*leaves[1:])
        pairs = [pair for pair in zip(sources, seconds, strict=True) if pair[0] is not None and pair[1] is not None]
        if not output.requires_grad or not pairs:
            return (None,) * len(leaves)
        taken, given = zip(*pairs, strict=True)
        firsts = torch.autograd.grad(output, taken, leaves[0], create_graph=True)
        wanted = [tensor for tensor, needed in zip(leaves, ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(firsts, wanted, given, create_graph=again, allow_unused=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[: len(leaves)])


def _nothing(arguments: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(arguments)


def _register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., None] | None,
    grad: Callable[..., OptionalTensors],
) -> None:
    operator = schema.partition("(")[0]
    name, RUN[operator] = f"sia_layers::{operator}", run
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    torch.library.impl(name, "CompositeExplicitAutograd", run, lib=LIBRARY)
    torch.library.register_fake(name, fake, lib=LIBRARY)
    torch.library.register_autograd(name, grad, setup_context=save, lib=LIBRARY)


_register(
    f"self_information(Tensor x, {OPTIONS}, str backend) -> (Tensor info, Tensor scale)",
    _self_information,
    _self_information_fake,
    _self_information_save,
    _self_information_grad,
)
_register(
    f"self_information_backward(Tensor grad, Tensor x, Tensor scale, {OPTIONS}, str backend) -> Tensor",
    _self_information_backward,
    _self_information_backward_fake,
    _gradient_and_map_save,
    _self_information_backward_grad,
)
_register(
    f"gate_and_mean(Tensor x, {OPTIONS}, bool spatial, str mean_kind, str backend) -> (Tensor gated, Tensor mean)",
    _gate_and_mean,
    _gate_and_mean_fake,
    None,
    _gate_and_mean_grad,
)
_register(
    "channel_mean(Tensor info, str mean_kind, str backend) -> Tensor",
    _channel_mean,
    _channel_mean_fake,
    _channel_mean_save,
    _channel_mean_grad,
)
_register(
    "channel_mean_backward(Tensor grad, Tensor info, str mean_kind, str backend) -> Tensor",
    _channel_mean_backward,
    _channel_mean_backward_fake,
    _gradient_and_map_save,
    _channel_mean_backward_grad,
)
_register(f"gate({GATE}, str backend) -> Tensor", _gate, _gate_fake, _gate_save, _gate_grad)
_register(
    f"gate_backward(Tensor grad, {GATE}, bool info_grad, str backend) "
    "-> (Tensor grad_x, Tensor grad_info, Tensor grad_channel_gate, Tensor grad_gain, Tensor grad_base)",
    _gate_backward,
    _gate_backward_fake,
    _gate_backward_save,
    _gate_backward_grad,
)

OPERATORS = torch.ops.sia_layers
