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

from sia_layers.kernels.private_torch import DROPOUT, NORM, FakeTensor, forget_compiled_call, pytree

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
    for cached in [value for space in spaces for value in list(space.values()) if type(value) is CACHE]:
        if cached.cache_info().currsize and _holds_fakes(cached):
            cached.cache_clear()


def _holds_fakes(cached: Any) -> bool:
    """Tell whether a cache holds a fake tensor: it refers to its results or, if unbounded, to a dictionary of them."""
    held = gc.get_referents(cached)
    results = [value for found in held for value in (found.values() if type(found) is dict else (found,))]
    return any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(results))


@contextlib.contextmanager
def materialized(model: nn.Module) -> Iterator[None]:
    """Replace parameters on the meta device by fake tensors, for models with only some of them there (offloading)."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        kept += [
            (held, name, value) for held in own for name, value in held.items() if value is not None and value.is_meta
        ]
    device = next((tensor.device for tensor in model.parameters() if not tensor.is_meta), torch.device("cpu"))
    try:
        for held, name, tensor in kept:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            held[name] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        yield
    finally:
        for held, name, tensor in kept:
            held[name] = tensor
