"""A base class of this library's modules, and shortcuts past the call of torch's own layers."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor, nn

from sia_layers.kernels.private_torch import HOOKS, any_global_hook


class Unscriptable(nn.Module):
    """A module that chooses its backend at each call, which TorchScript cannot express."""

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, which chooses a backend at each call; "
            "torch.jit.trace(model, example), torch.export.export and torch.compile work"
        )


def untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether calling a module does what its class does and nothing more.

    Tools that prune, adapt, quantise, shard or watch a model replace a module's class or ``forward``, or register
    hooks. Such a module has to be called.
    """
    attributes = module.__dict__
    if type(module) is not kind or "forward" in attributes or any(attributes[name] for name in HOOKS):
        return False
    return not any_global_hook()


def matrix_of(module: nn.Module) -> Tensor | None:
    """Return the matrix (out, in) of an untouched 1x1 convolution without bias; None if the module must be called."""
    if not untouched(module, nn.Conv2d):
        return None
    weight = module._parameters.get("weight")
    if (
        weight is None
        or module._parameters.get("bias") is not None
        or module.kernel_size != (1, 1)
        or module.groups != 1
    ):
        return None
    return weight.flatten(1)
