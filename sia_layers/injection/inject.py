"""Inject Self-Information Attention into a model, and eject it again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from sia_layers.injection import dry_run
from sia_layers.injection.candidates import Overrides, Site
from sia_layers.injection.config import AGGREGATE_FORMS, Config, plain, resolved
from sia_layers.injection.errors import FiringError, InjectionError, UnsupportedModelError
from sia_layers.injection.hosts import unwrapped
from sia_layers.injection.inputs import inputs_for
from sia_layers.injection.module import (
    DOMAINS,
    Injected,
    Leading,
    Place,
    SiteGroup,
    input_hook,
    output_hook,
    patch_hook,
)
from sia_layers.injection.names import CHILD, PATCHES, RELAY
from sia_layers.injection.relay import Relay
from sia_layers.injection.sites import StageRequest, find_sites
from sia_layers.injection.state_dict import not_injected, sia_modules
from sia_layers.kernels.options import as_bool, as_choice
from sia_layers.kernels.private_torch import forget_compiled_code, hook_tables

Model = TypeVar("Model", bound=nn.Module)

FUSE: Final = "reparameterize"  # a method of timm's blocks that freezes all parameters it does not fuse
FROM_THE_HOST: Final = ("channels", "device", "dtype")
OWN_HOOKS: Final = (output_hook, input_hook, patch_hook)


def inject_sia(
    model: Model,
    stages: StageRequest | Sequence[StageRequest] | None = None,
    *,
    aggregate: bool | str = True,
    identity_init: bool = True,
    example_input: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    grid: Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    allow_bypass: bool = False,
    domain: str = "spatial",
    version: int | None = None,
    **sia_kwargs: Any,
) -> Model:
    """Inject Self-Information Attention into a model, in place.

    The host of each site gets a child ``sia`` and a hook that runs it on the host's output. The existing keys of the
    model's state dict do not change; those of the new modules are added. If any check fails, the model is left as it
    was.

    For details on ``model``, ``stages``, the examples, ``layout``, ``grid``, ``prefix_tokens`` and ``allow_bypass``,
    see :func:`find_sites`.

    Args:
        model: the model.
        stages: where to inject; None for the reductions 4, 8 and 16.
        aggregate: whether to pass the self-information of every site on to all later ones, projected to their
            channels, as published. This costs little in an EfficientNet, but increases the time of a ResNet-50 by
            half, because its maps have many channels. ``"pooled"`` is a cheaper form with the same parameters; see
            :class:`sia_layers.SIAggregation`.
        identity_init: whether to start with ``gain=0.0``, so that the model computes what it did before and learns
            from there. If False, SIA takes effect from the start, without a gain or with the ``gain`` that is given.
        example_input: what the model takes as input; None for what it declares.
        example_kwargs: what the model takes by keyword.
        layout: layout of the stages' outputs; None to infer it.
        grid: rows and columns of tokens, if the model does not tell.
        prefix_tokens: number of tokens before those of the grid, if the model does not tell.
        allow_bypass: accept stages that some path from input to output bypasses.
        domain: ``"spatial"`` gates pixels, ``"frequency"`` gates the coefficients of a block transform
            (:class:`sia_layers.FrequencySIAttention`, whose ``block`` and ``transform`` are then options as well), and
            ``"both"`` gates pixels and then coefficients, each with a gain of its own.
        version: version of a configuration, as :func:`sia_config` returns it.
        **sia_kwargs: arguments of every :class:`sia_layers.SIAttention`, except for the channels, device and dtype,
            which the host determines.

    Returns:
        The same model.

    Raises:
        InjectionError: SIA cannot be injected as requested; the model is unchanged.
        TypeError, ValueError: an argument is not one of SIAttention, has the wrong type or is out of range.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import eject_sia, inject_sia, sia_modules
        >>> model = inject_sia(resnet18())
        >>> list(sia_modules(model))
        ['layer1.1.sia', 'layer2.1.sia', 'layer3.1.sia']
        >>> model = eject_sia(model)
    """
    target = unwrapped(model)
    identity_init, aggregate = as_bool("identity_init", plain(identity_init)), plain(aggregate)
    options = _options(identity_init, sia_kwargs)
    if not isinstance(aggregate, (bool, str)) or aggregate not in AGGREGATE_FORMS:
        raise ValueError(f"aggregate must be True, False or 'pooled', got {aggregate!r}")
    as_choice("domain", domain, tuple(DOMAINS))
    where = Overrides.checked(layout, grid, prefix_tokens, allow_bypass)._asdict()
    Config.check_version(version)
    sites = find_sites(target, stages, example_input=example_input, example_kwargs=example_kwargs, **where)
    config = Config.of(
        (site.stage for site in sites), aggregate, identity_init, {**where, "domain": domain}, sia_kwargs
    )
    with torch.inference_mode(False):  # or the new parameters could never be trained
        attentions = _made(target, sites, AGGREGATE_FORMS[aggregate], options, config, DOMAINS[domain])
    relay = Relay()
    try:
        for site, attention in zip(sites, attentions, strict=True):
            _attach(target, site, attention, relay)
        _check_firings(target, sites, example_input, example_kwargs)
    except BaseException:
        _detach(target)
        raise
    forget_compiled_code()
    return model


def eject_sia(model: Model) -> Model:
    """Eject Self-Information Attention from a model, and leave it exactly as it was before :func:`inject_sia`.

    Args:
        model: a model with SIA.

    Returns:
        The same model.

    Raises:
        NotInjectedError: the model has no SIA.
        InjectionError: it is a part of the model that was injected, and others of its sites lie outside.
        UnsupportedModelError: it is a graph by torch.fx, which calls the sites itself.
    """
    target = unwrapped(model)
    if not _holds_hooks(target):
        if isinstance(target, torch.fx.GraphModule) and sia_modules(target):
            raise UnsupportedModelError(
                f"this {type(model).__name__} was traced by torch.fx, and its graph calls the sites; eject SIA from "
                "the original model, and trace that again"
            )
        raise not_injected(model)
    places = [module.place for module in target.modules() if isinstance(module, Injected)]
    if places and not (any(place.position == 0 for place in places) and any(place.last for place in places)):
        raise InjectionError(
            f"this {type(model).__name__} holds some of the sites of a model, which would not run without these; call "
            "eject_sia on the model that was injected, or, to remove layers with sites, before they are removed"
        )
    _detach(target)
    forget_compiled_code()
    return model


def _options(identity_init: bool, given: dict[str, Any]) -> dict[str, Any]:
    for name in FROM_THE_HOST:
        if name in given:
            raise TypeError(f"{name} is determined by each host; leave it out")
    given = {name: plain(resolved(name, value)) for name, value in given.items()}
    if not identity_init:
        return given
    if given.get("gain") not in (None, 0.0):
        raise ValueError(
            f"identity_init=True means gain=0.0, got gain={given['gain']!r}; set identity_init=False to start from it"
        )
    return {**given, "gain": 0.0}


def _made(
    model: nn.Module,
    sites: list[Site],
    form: str | None,
    options: dict[str, Any],
    config: Config,
    kinds: tuple[type[Leading], type[Injected]],
) -> list[Injected]:
    """Create the module of each site, with the device, dtype and mode of its host."""
    channels = [site.channels for site in sites]
    attentions: list[Injected] = []
    for position, site in enumerate(sites):
        host, last = model.get_submodule(site.host), position == len(sites) - 1
        like = _like(host, model)
        place = Place(site.layout, site.item, position, last, form is not None and not last, site.patches)
        earlier = channels[:position] if form is not None else []
        made = {"form": form or "published", "device": like.device, "dtype": like.dtype, **options}
        attention = (
            kinds[1](site.channels, place, earlier, **made)
            if position
            else kinds[0](site.channels, place, earlier, config=config, **made)
        )
        attentions.append(attention.train(host.training))
    return attentions


def _like(host: nn.Module, model: nn.Module) -> Tensor:
    """Return a floating-point parameter of the host, or else of the model."""
    for module in (host, model):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
                return tensor
    return torch.empty(0)


def _attach(model: nn.Module, site: Site, attention: Injected, relay: Relay) -> None:
    host = model.get_submodule(site.host)
    if site.patches is not None:
        _watch_patches(model.get_submodule(site.patches), site.patches, relay)
    group = host._modules.get(CHILD)
    if not site.alone and isinstance(group, SiteGroup):
        group[str(site.item)] = attention
        return
    if hasattr(host, CHILD):
        raise InjectionError(f"{site.host!r} already has an attribute {CHILD!r}; name another module")
    host.add_module(CHILD, attention if site.alone else SiteGroup({str(site.item): attention}))
    setattr(host, RELAY, relay)
    if hasattr(host, FUSE):
        setattr(host, FUSE, functools.partial(_fused, host))
    if site.side == "input":
        host.register_forward_pre_hook(input_hook)
    else:
        host.register_forward_hook(output_hook, prepend=True, with_kwargs=True)


def _fused(host: nn.Module) -> None:
    """Replace a block's own method, which would freeze the parameters of SIA."""
    injected = host._modules[CHILD]
    assert injected is not None
    flags = [(parameter, parameter.requires_grad) for parameter in injected.parameters()]
    getattr(type(host), FUSE)(host)
    for parameter, learns in flags:
        parameter.requires_grad_(learns)


def _watch_patches(patches: nn.Module, name: str, relay: Relay) -> None:
    if not hasattr(patches, PATCHES):
        setattr(patches, RELAY, relay)
        setattr(patches, PATCHES, name)
        patches.register_forward_hook(patch_hook, prepend=True)


def _check_firings(
    model: nn.Module, sites: list[Site], example_input: Any, example_kwargs: Mapping[str, Any] | None
) -> None:
    inputs = inputs_for(model, example_input, example_kwargs)
    hosts = [(site.host, site.side) for site in sites]
    ran = dry_run.run(model, inputs, [*hosts, *((site.name, "output") for site in sites)])
    counts = {site.name: len(ran.firings[site.name, "output"]) for site in sites}
    for site, host in zip(sites, hosts, strict=True):
        if counts[site.name] != len(ran.firings[host]):
            raise FiringError(
                f"{site.host!r} runs {len(ran.firings[host])} times in a forward pass, and its new module {CHILD!r} "
                f"{counts[site.name]} times: a function that it calls also runs its children; name the last of these"
            )
    if len(set(counts.values())) != 1 or 0 in counts.values():
        uneven = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
        raise FiringError(
            f"{uneven[0]!r} runs {counts[uneven[0]]} times in a forward pass and {uneven[1]!r} {counts[uneven[1]]} "
            "times, but all sites must run equally often; leave one of the two out of stages"
        )


def _holds_hooks(model: nn.Module) -> bool:
    tables = [hooks for module in model.modules() for hooks, _ in hook_tables(module)]
    return any(hook in OWN_HOOKS and hook is not patch_hook for hooks in tables for hook in hooks.values())


def _detach(model: nn.Module) -> None:
    """Remove every injected module and hook."""
    for module in list(model.modules()):
        for hooks, with_kwargs in hook_tables(module):
            for key in [key for key, hook in hooks.items() if hook in OWN_HOOKS]:
                if hooks[key] is not patch_hook:
                    module._modules.pop(CHILD, None)
                    module.__dict__.pop(FUSE, None)
                del hooks[key]
                with_kwargs.pop(key, None)
        for attribute in (RELAY, PATCHES):
            module.__dict__.pop(attribute, None)
