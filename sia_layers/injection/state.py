"""The injected parts of a model: its modules, parameters and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sia_layers.attention import SIAttention
from sia_layers.injection.errors import NotInjectedError, StateDictError, nearest
from sia_layers.injection.site import InjectedSIAttention


def sia_modules(model: nn.Module) -> dict[str, SIAttention]:
    """The injected modules of a model by their full names, in the order of the model's modules; empty without any."""
    return {name: module for name, module in model.named_modules() if isinstance(module, InjectedSIAttention)}


def sia_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the injected modules, those of their aggregation included; for an optimizer's own group.

    Raises:
        NotInjectedError: the model holds no SIA.
    """
    for module in _modules(model).values():
        yield from module.parameters()


def sia_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of a model's state dict that the injected modules hold, under full names.

    Raises:
        NotInjectedError: the model holds no SIA.
    """
    prefixes = tuple(f"{name}." for name in _modules(model))
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def load_sia_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load what :func:`sia_state_dict` gave, whole or not at all.

    Args:
        model: injected at the same sites.
        state_dict: tensors by full names; those of other modules are not allowed.

    Raises:
        NotInjectedError: the model holds no SIA.
        StateDictError: names or shapes that do not fit.
    """
    own = sia_state_dict(model)
    unknown, missing = (
        [name for name in state_dict if name not in own],
        [name for name in own if name not in state_dict],
    )
    if unknown:
        raise StateDictError(f"the model's SIA has no {unknown[0]!r}; {nearest(unknown[0], own)}")
    if missing:
        raise StateDictError(f"the state dict lacks {missing[0]!r} ({len(missing)} in all); inject at the same sites")
    for name, value in state_dict.items():
        if value.shape != own[name].shape:
            raise StateDictError(f"{name!r} must be of shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
    model.load_state_dict(dict(state_dict), strict=False)


def _modules(model: nn.Module) -> dict[str, SIAttention]:
    found = sia_modules(model)
    if not found:
        raise NotInjectedError(f"this {type(model).__name__} holds no SIA; inject_sia(model) puts it in")
    return found
