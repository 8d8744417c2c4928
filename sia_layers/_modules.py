"""A base class of this library's modules, and shortcuts past the call of torch's own layers."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sia_layers.kernels.private_torch import HOOKS, any_global_hook, constant_when_compiled


class Unscriptable(nn.Module):
    """A module that chooses its backend at each call, which TorchScript cannot express."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, which chooses a backend at each call; "
            "torch.jit.trace(model, example), torch.export.export and torch.compile work"
        )


def is_proxy(value: object) -> bool:
    """Tell whether torch.fx passes a value through a model to trace it."""
    return isinstance(value, torch.fx.Proxy)


def as_one_call(module: nn.Module, *args: Any) -> Any:
    """Record the call of a module in the graph that torch.fx is tracing, like that of a layer of torch's own.

    Args:
        module: the module.
        *args: its arguments, the first of which is a proxy or begins with one.

    Raises:
        TypeError: the module is itself what is traced.
    """
    proxy = args[0] if isinstance(args[0], torch.fx.Proxy) else args[0][0]
    path = proxy.tracer.path_of_module(module)  # type: ignore[union-attr]
    if not path:
        raise TypeError(
            f"torch.fx traces a {type(module).__name__} only within a model; put it into an nn.Sequential first"
        )
    return proxy.tracer.create_proxy("call_module", path, args, {})


def in_autocast(device_type: str) -> bool:
    """Tell whether autocast is on for a type of device."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


@constant_when_compiled  # torch.compile of 2.9 cannot trace it
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether calling a module does what its class does and nothing more.

    Tools that prune, adapt, quantise, shard or watch a model replace a module's class or ``forward``, or register
    hooks. Such a module has to be called.
    """
    return _unchanged(module, kind) and not any_global_hook()


def matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix (out, in) of an untouched 1x1 convolution without bias; None if the module must be called."""
    weight = _pointwise_weight(module)
    return None if weight is None or any_global_hook() else weight.flatten(1)


def excite_weights(
    first: nn.Module, act: nn.Module, second: nn.Module, gate: nn.Module
) -> tuple[Tensor, Tensor] | None:
    """Return the weights of two pointwise convolutions; None if one of the four modules must be called.

    Args:
        first: 1x1 convolution.
        act: its activation, a ReLU.
        second: 1x1 convolution.
        gate: its activation, a sigmoid.
    """
    one, two = _pointwise_weight(first), _pointwise_weight(second)
    if one is None or two is None or any_global_hook():
        return None
    return (one, two) if _unchanged(act, nn.ReLU) and _unchanged(gate, nn.Sigmoid) else None


def _unchanged(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module is exactly of a class, and has no forward and no hooks of its own."""
    attributes = module.__dict__
    if type(module) is not kind or "forward" in attributes:
        return False
    for name in HOOKS:  # noqa: SIM110 (all() over a generator takes twice as long)
        if attributes[name]:
            return False
    return True


def _pointwise_weight(module: nn.Module) -> Tensor | None:
    """Return the weight (out, in, 1, 1) of an unchanged 1x1 convolution without bias and groups; None otherwise."""
    if not _unchanged(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.groups != 1:
        return None
    parameters = module._parameters
    return parameters.get("weight") if parameters.get("bias") is None else None
