"""What a dry run must not change: buffers, modes and caches of a model, and what lies outside it."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import sys
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from sia_layers.kernels.private_torch import DROPOUT, NORM, FakeTensor, forget_compiled_call

# Layers that stay in evaluation mode, because in training mode they would change statistics or drop activations.
STATEFUL: Final = (NORM, DROPOUT)
CACHE: Final = functools._lru_cache_wrapper


@contextlib.contextmanager
def unchanged(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the mode of all modules; afterwards restore them, their modes and caches, and Python's random state.

    The forward pass gets copies of the buffers, because it may change them in place, and what involves no fake tensor
    is computed.
    """
    before = [(module, _contents(module.__dict__)) for module in model.modules()]
    state = random.getstate()
    copies: dict[int, Tensor] = {}
    try:
        for module, _ in before:
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            module.training = training and not isinstance(module, STATEFUL)
            forget_compiled_call(module)
        yield
    finally:
        for module, contents in before:
            _restore(module.__dict__, contents)
        random.setstate(state)


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, each with a copy if it is a container that a forward pass may fill."""
    kinds = (dict, list, set)
    return {name: (value, value.copy() if isinstance(value, kinds) else None) for name, value in attributes.items()}


def _restore(attributes: dict[str, Any], contents: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in attributes if name not in contents]:
        del attributes[name]
    for name, (value, held) in contents.items():
        if isinstance(value, list):
            value[:] = held
        elif held is not None:
            value.clear()
            value.update(held)
        attributes[name] = value


def forget_fakes(model: nn.Module) -> None:
    """Clear the caches of ``functools`` that hold fake tensors, which a later forward pass would get.

    These are the caches of functions of modules and of methods of the model.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    spaces = [vars(found) for found in (*list(sys.modules.values()), *kinds) if hasattr(found, "__dict__")]
    for cached in {value for space in spaces for value in list(space.values()) if type(value) is CACHE}:
        if cached.cache_info().currsize and _holds_fakes(cached):
            cached.cache_clear()


def _holds_fakes(cached: Any) -> bool:
    """Tell whether the results in a cache are or contain fake tensors."""
    waiting: list[Any] = gc.get_referents(cached)
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, FakeTensor):
            return True
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False


def fake_parameters(model: nn.Module) -> None:
    """Replace the parameters of a model by fake tensors; :func:`unchanged` puts them back.

    A dry run would otherwise convert each of them at every use, which takes as long as all the rest, and could not use
    any that are on the meta device beside others that are not (offloading). The statistics of norms are replaced too.
    Parameters that bear attributes stay, because the library that set these may compare each parameter with its own.
    """
    device = next((tensor.device for tensor in model.parameters() if not tensor.is_meta), torch.device("cpu"))
    fakes: dict[int, Tensor] = {}

    def replace(held: dict[str, Any], name: str, value: Tensor) -> None:
        if id(value) not in fakes:
            where = device if value.is_meta else value.device
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)
            fakes[id(value)] = nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake
        held[name] = fakes[id(value)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            plain = type(parameter) is nn.Parameter and parameter.layout == torch.strided and not parameter.__dict__
            if parameter is not None and (plain or parameter.is_meta):
                replace(module._parameters, name, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and (buffer.is_meta or (isinstance(module, NORM) and buffer.is_floating_point())):
                replace(module._buffers, name, buffer)
