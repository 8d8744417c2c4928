"""The injected parts of a model: its modules, parameters and state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sia_layers.attention import SIAttention
from sia_layers.injection.errors import NotInjectedError, StateDictError, nearest
from sia_layers.injection.module import Injected, Leading
from sia_layers.injection.names import EXTRA_STATE


def sia_modules(model: nn.Module) -> dict[str, SIAttention]:
    """The injected modules of a model by their full names, in the order of the model's modules; empty without any.

    Of sites that another tool has copied, such as PEFT for its ``modules_to_save``, only the copy that is in use.
    """
    return dict(_in_use("", model))


def sia_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the injected modules, those of their aggregation included; for an optimizer's own group.

    Raises:
        NotInjectedError: the model holds no SIA.
    """
    for module in found_sites(model).values():
        yield from module.parameters()


def sia_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The part of a model's state dict that the injected modules hold, under full names, the configuration included.

    Raises:
        NotInjectedError: the model holds no SIA.
    """
    prefixes = tuple(f"{name}." for name in found_sites(model))
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def load_sia_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load what :func:`sia_state_dict` gave, whole or not at all.

    Args:
        model: injected at the same sites.
        state_dict: tensors by full names; those of other modules are not allowed.

    Raises:
        NotInjectedError: the model holds no SIA.
        StateDictError: names or shapes that do not fit, or values that are not finite.
    """
    own = sia_state_dict(model)
    unknown = [name for name in state_dict if name not in own]
    missing = [name for name in own if name not in state_dict and not name.endswith(EXTRA_STATE)]
    if unknown:
        raise StateDictError(f"the model's SIA has no {unknown[0]!r}; {nearest(unknown[0], own)}")
    if missing:
        raise StateDictError(f"the state dict lacks {missing[0]!r} ({len(missing)} in all); inject at the same sites")
    for name, value in state_dict.items():
        scalar = value.numel() == own[name].numel() == 1  # a gain of old was of shape ()
        if value.shape != own[name].shape and not scalar and not name.endswith(EXTRA_STATE):
            raise StateDictError(f"{name!r} must be of shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise StateDictError(
                f"{name!r} is not finite, as a parameter that was never initialised; call reset_sia_parameters(model) "
                "on the model that it is from, or inject after loading, and save again"
            )
    model.load_state_dict(dict(state_dict), strict=False)


def reset_sia_parameters(model: nn.Module, missing: Iterable[str] | None = None) -> None:
    """Initialise the parameters of the injected modules, the gain to its start and the rest as torch does.

    For loaders that build a model without initialising it and fill in what a checkpoint holds, as Hugging Face's
    ``from_pretrained`` does: what the checkpoint lacks is then whatever lay in memory.

    Args:
        model: a model that holds SIA.
        missing: full names of the parameters and buffers to initialise, others are kept; names of other modules are
            passed over, so that a loader's whole list may be given. None for all of them.

    Raises:
        NotInjectedError: the model holds no SIA.
    """
    wanted = None if missing is None else set(missing)
    for prefix, module in found_sites(model).items():
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        kept = {} if wanted is None else {key: value.detach().clone() for key, value in named.items()
                                          if f"{prefix}.{key}" not in wanted}  # fmt: skip
        if len(kept) == len(named) and named:
            continue
        module.reset_parameters()
        with torch.no_grad():
            for key, value in kept.items():
                named[key].copy_(value)


def sia_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model's injection, such that ``inject_sia(model, **config)`` gives the same sites.

    It is JSON-able and travels in the model's state dict. Activations are named by their classes in ``torch.nn``;
    for any other, ``inject_sia`` asks for the class.

    Raises:
        NotInjectedError: the model holds no SIA.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import inject_sia
        >>> config = sia_config(inject_sia(resnet18(), kernel_size=5))
        >>> config["stages"], config["kernel_size"]
        (['layer1', 'layer2', 'layer3'], 5)
        >>> model = inject_sia(resnet18(), **config)
    """
    for module in found_sites(model).values():
        if isinstance(module, Leading):
            return dict(module.config.arguments)
    raise not_injected(model)


@contextlib.contextmanager
def disable_sia(model: nn.Module) -> Iterator[None]:
    """Run the model as if it held no SIA, for a while.

    Raises:
        NotInjectedError: the model holds none.
    """
    found_sites(model)
    before = [(module, module.enabled) for module in model.modules() if isinstance(module, Injected)]
    try:
        for module, _ in before:
            module.enabled = False
        yield
    finally:
        for module, enabled in before:
            module.enabled = enabled


def found_sites(model: nn.Module) -> dict[str, Injected]:
    """The injected modules of a model by their full names.

    Raises:
        NotInjectedError: it holds none.
    """
    found = dict(_in_use("", model))
    if not found:
        raise not_injected(model)
    return found


def not_injected(model: nn.Module) -> NotInjectedError:
    """The error for a model without SIA."""
    return NotInjectedError(f"this {type(model).__name__} holds no SIA; inject_sia(model) puts it in")


def _in_use(name: str, module: nn.Module) -> Iterator[tuple[str, Injected]]:
    if isinstance(module, Injected):
        yield name, module
        return
    children = dict(module._modules)
    copies = children.get("modules_to_save")
    if isinstance(copies, nn.ModuleDict) and "original_module" in children:  # PEFT's wrapper of a module it trains
        active = [key for key in getattr(module, "active_adapters", ()) if key in copies]
        bare = bool(getattr(module, "disable_adapters", False)) or not active
        children = {"original_module": children["original_module"]} if bare else {"modules_to_save": copies}
        if not bare:
            yield from _in_use(f"{name}.modules_to_save.{active[0]}".lstrip("."), copies[active[0]])
            return
    for key, child in children.items():
        if child is not None:
            yield from _in_use(f"{name}.{key}" if name else key, child)
