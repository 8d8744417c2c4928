"""Find the host of a stage: the module at which a hook sees the whole output, whatever wraps or skips containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import nn

from sia_layers.injection.errors import AlreadyInjectedError, UnknownStageError, UnsupportedModelError
from sia_layers.injection.module import is_site
from sia_layers.kernels.private_torch import BATCH_NORM, CONVOLUTION

DENSE_BLOCKS: Final = frozenset({"DenseBlock", "_DenseBlock", "DenseStage"})  # their last layer is not their output
CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ITERATORS: Final = frozenset({"children", "named_children", "_modules", "modules", "named_modules"})


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and DataParallel, or the model itself."""
    while True:
        inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_modules", {}).get("_orig_mod")
        if inner is None:
            return model
        model = inner


def check_supported(model: nn.Module) -> None:
    """Check that a model can be changed in place, and has no SIA yet.

    Raises:
        TypeError: it is not a module.
        UnsupportedModelError: it cannot be changed in place.
        AlreadyInjectedError: it has SIA.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{name or 'the model'!r} is a ScriptModule, which takes no hooks; inject before scripting or exporting"
            )
        if is_site(module):
            raise AlreadyInjectedError(f"the model already has SIA at {name!r}; call eject_sia(model) first")
        if getattr(getattr(module, "_hf_hook", None), "offload", False):
            raise UnsupportedModelError(
                f"{name or 'the model'!r} is offloaded by accelerate, whose hooks would not move new parameters; "
                "inject before offloading, or call accelerate.hooks.remove_hook_from_module(model, recurse=True)"
            )
        kind = type(module).__name__
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel") or kind.startswith("FSDP"):
            raise UnsupportedModelError(
                f"the model is wrapped in {kind}, which would not see new parameters; inject before wrapping"
            )


def host_of(model: nn.Module, name: str, runs_children: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """Return the name of the module that ends a stage, and its side.

    The search descends into containers to their last real block, because checkpointing skips a Sequential, and a
    module that runs whatever children it has would also run a new child.

    Args:
        model: the model.
        name: name of the stage.
        runs_children: function that tells whether the module of a name runs whatever children it has; None to judge
            by :func:`may_run_children`.
    """
    module = model.get_submodule(name)
    while True:
        if type(module).__name__ in DENSE_BLOCKS:
            return _transition(model, name), "input"
        runs = may_run_children(module) and (runs_children is None or runs_children(name))
        child = _last_block(module) if runs else _activation(module)
        if child is None:
            return name, "output"
        name, module = f"{name}.{child}", module._modules[child]  # type: ignore[assignment]


def is_container(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's containers, and has children."""
    return isinstance(module, CONTAINERS) and bool(module._modules)


def may_run_children(module: nn.Module) -> bool:
    """Tell whether a module is a container, or mentions an iterator of its children in its forward pass."""
    if isinstance(module, CONTAINERS) or not module._modules:
        return is_container(module)
    waiting, seen = ["forward"], {"forward"}
    while waiting:  # the methods that the forward pass calls, too
        code = getattr(getattr(type(module), waiting.pop(), None), "__code__", None)
        names = frozenset() if code is None else frozenset(code.co_names)
        if not ITERATORS.isdisjoint(names):
            return True
        following = [name for name in names - seen if name not in vars(nn.Module)]
        waiting += following
        seen.update(following)
    return False


def _last_block(module: nn.Module) -> str | None:
    children = [name for name, child in module._modules.items() if child is not None]
    for name in reversed(children):
        if not _is_trimming(module._modules[name]):  # type: ignore[arg-type]
            return name
    return children[-1] if children else None


def _is_trimming(module: nn.Module) -> bool:
    """Tell whether a module merely follows a block: a norm, a dropout, an identity."""
    if isinstance(module, (nn.Identity, nn.Dropout)) or type(module).__name__ == "DropPath":
        return True
    convolves = any(isinstance(child, CONVOLUTION) for child in module.modules())
    return "Norm" in type(module).__name__ and not convolves


def _activation(module: nn.Module) -> str | None:
    """Return the activation of a batch norm that has one, because convert_sync_batchnorm drops hooks of the norm."""
    activation = module._modules.get("act") if isinstance(module, BATCH_NORM) else None
    return None if activation is None or isinstance(activation, nn.Identity) else "act"


def _transition(model: nn.Module, name: str) -> str:
    """Return the first layer after a dense block that is not a batch norm or ReLU: all maps of the block go into it."""
    path = name
    while path:
        parent, _, own = path.rpartition(".")
        siblings = list(model.get_submodule(parent)._modules)
        following = siblings[siblings.index(own) + 1 :]
        if following:
            path = f"{parent}.{following[0]}" if parent else following[0]
            break
        path = parent
    else:
        raise UnknownStageError(f"nothing follows the dense block {name!r}; name the stage before it or its last norm")
    module = model.get_submodule(path)
    while module._modules:
        inner = {
            child: value
            for child, value in module._modules.items()
            if value is not None and not isinstance(value, (BATCH_NORM, nn.ReLU))
        }
        if not inner:
            break
        child, module = next(iter(inner.items()))
        path = f"{path}.{child}"
    return path
