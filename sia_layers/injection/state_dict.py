"""Access the injected modules of a model, their parameters, their state and their configuration."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sia_layers.attention import SIAttention
from sia_layers.injection.errors import ConfigError, NotInjectedError, StateDictError, nearest
from sia_layers.injection.module import Injected, Leading
from sia_layers.injection.names import EXTRA_STATE


def sia_modules(model: nn.Module) -> dict[str, SIAttention]:
    """Return the injected modules of a model by their full names, in the order of the model's modules.

    The result is empty if there are none. A module with several names, as in a backbone that is used under two, is
    returned once, under the first. If another tool has copied sites, as PEFT does for ``modules_to_save``, only the
    copies in use are returned.
    """
    return {names[0]: module for names, module in _named_sites(model)}


def sia_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the injected modules, including their aggregations, for an optimizer's parameter group.

    Each is yielded once, whatever the number of its names.

    Raises:
        NotInjectedError: the model has no SIA.
    """
    seen: set[nn.Parameter] = set()
    for module in found_sites(model).values():
        for parameter in module.parameters():
            if parameter not in seen:
                seen.add(parameter)
                yield parameter


def sia_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of a model's state dict that belong to the injected modules, including the configuration.

    Like the state dict, it lists a module with several names under each.

    Raises:
        NotInjectedError: the model has no SIA.
    """
    found_sites(model)
    prefixes = tuple(f"{name}." for names, _ in _named_sites(model) for name in names)
    return {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}


def load_sia_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load the result of :func:`sia_state_dict`, completely or not at all.

    Args:
        model: a model with SIA at the same sites.
        state_dict: tensors of the injected modules by full names.

    Raises:
        NotInjectedError: the model has no SIA.
        StateDictError: a name or shape does not match, or a value is not finite.
        TypeError: a value is not a tensor.
    """
    own = sia_state_dict(model)
    unknown = [name for name in state_dict if name not in own]
    missing = [name for name in own if name not in state_dict and not name.endswith(EXTRA_STATE)]
    if unknown:
        raise StateDictError(f"the model's SIA has no {unknown[0]!r}; {nearest(unknown[0], own)}")
    if missing:
        raise StateDictError(f"the state dict lacks {missing[0]!r} ({len(missing)} in all); inject at the same sites")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name!r} must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor"
            )
        scalar = value.numel() == own[name].numel() == 1  # in older state dicts the gain has shape ()
        if value.shape != own[name].shape and not scalar and not name.endswith(EXTRA_STATE):
            raise StateDictError(f"{name!r} must be of shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise StateDictError(
                f"{name!r} is not finite, probably because it was never initialised; call reset_sia_parameters(model) "
                "on the original model, or inject after loading, and save again"
            )
    model.load_state_dict(dict(state_dict), strict=False)


def reset_sia_parameters(model: nn.Module, missing: Iterable[str] | None = None) -> None:
    """Reinitialise the parameters of the injected modules: set gains to their initial value, the rest as torch does.

    This is for loaders that build a model without initialising it and then fill in the values of a checkpoint, as
    Hugging Face's ``from_pretrained`` does. Parameters that the checkpoint lacks then hold arbitrary memory.

    Args:
        model: a model with SIA.
        missing: full names of the parameters and buffers to reinitialise; all others are kept. Names of other modules
            are ignored, so a loader's complete list may be passed. What has several names is kept if one of them is
            not listed, because the loader has filled it in under that name. None for all parameters and buffers.

    Raises:
        NotInjectedError: the model has no SIA.
    """
    wanted = None if missing is None else set(missing)
    found_sites(model)
    for names, module in _named_sites(model):
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        kept = {} if wanted is None else {key: value.detach().clone() for key, value in named.items()
                                          if any(f"{name}.{key}" not in wanted for name in names)}  # fmt: skip
        if len(kept) == len(named) and named:
            continue
        module.reset_parameters()
        with torch.no_grad():
            for key, value in kept.items():
                named[key].copy_(value)


def sia_config(model: nn.Module) -> dict[str, Any]:
    """Return the configuration of a model's injection; ``inject_sia(model, **config)`` injects at the same sites.

    It is a copy that can be serialised as JSON, and travels in the model's state dict. Activations are stored by the
    names of their classes in ``torch.nn``; for any other class, ``inject_sia`` raises and asks for the class itself.
    If only a part of the model was injected, the configuration is that of the part and names the stages as the part
    knows them: ``inject_sia(model.backbone, **config)``.

    Raises:
        NotInjectedError: the model has no SIA.
        ConfigError: several parts of the model were injected, and each has a configuration.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import inject_sia
        >>> config = sia_config(inject_sia(resnet18(), kernel_size=5))
        >>> config["stages"], config["kernel_size"]
        (['layer1', 'layer2', 'layer3'], 5)
        >>> model = inject_sia(resnet18(), **config)
    """
    found = {name: site for name, site in found_sites(model).items() if isinstance(site, Leading)}
    if len(found) > 1:
        first = " and ".join(repr(name.rpartition(".")[0]) for name in found)
        raise ConfigError(
            f"this {type(model).__name__} has {len(found)} injections, each with a configuration of its own; their "
            f"first sites are at {first}; call sia_config on each part that was injected"
        )
    for site in found.values():
        return copy.deepcopy(site.config.arguments)
    raise not_injected(model)


@contextlib.contextmanager
def disable_sia(model: nn.Module) -> Iterator[None]:
    """Run the model as if it had no SIA, inside a ``with`` block.

    SIA takes effect in copies and pickles of the model, even in those that are made inside the block.

    Raises:
        NotInjectedError: the model has no SIA.
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
    """Return the injected modules of a model by their first full names, at least one.

    Raises:
        NotInjectedError: the model has no SIA.
    """
    if not (named := _named_sites(model)):
        raise not_injected(model)
    return {names[0]: module for names, module in named}


def not_injected(model: nn.Module) -> NotInjectedError:
    """Return the error for a model without SIA."""
    return NotInjectedError(f"this {type(model).__name__} has no SIA; call inject_sia(model) first")


def _named_sites(model: nn.Module) -> list[tuple[list[str], Injected]]:
    """Return each injected module in use with all of its full names."""
    found: dict[Injected, list[str]] = {}
    for name, module in _in_use("", model):
        found.setdefault(module, []).append(name)
    return [(names, module) for module, names in found.items()]


def _in_use(name: str, module: nn.Module) -> Iterator[tuple[str, Injected]]:
    if isinstance(module, Injected):
        yield name, module
        return
    children = dict(module._modules)
    copies = children.get("modules_to_save")
    if isinstance(copies, nn.ModuleDict) and "original_module" in children:  # PEFT's wrapper of a module that it trains
        active = [key for key in getattr(module, "active_adapters", ()) if key in copies]
        bare = bool(getattr(module, "disable_adapters", False)) or not active
        children = {"original_module": children["original_module"]} if bare else {"modules_to_save": copies}
        if not bare:
            yield from _in_use(f"{name}.modules_to_save.{active[0]}".lstrip("."), copies[active[0]])
            return
    for key, child in children.items():
        if child is not None:
            yield from _in_use(f"{name}.{key}" if name else key, child)
