"""Put Self-Information Attention into a model, and take it out again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sia_layers.injection import trial
from sia_layers.injection.errors import FiringError, InjectionError, NotInjectedError
from sia_layers.injection.relay import Relay
from sia_layers.injection.site import CHILD, RELAY, InjectedSIAttention, input_hook, output_hook, patch_hook
from sia_layers.injection.sites import Site, StageRequest, as_inputs, find_sites, unwrapped

Model = TypeVar("Model", bound=nn.Module)

FROM_THE_HOST = ("channels", "device", "dtype")


def inject_sia(
    model: Model,
    stages: StageRequest | Sequence[StageRequest] | None = None,
    *,
    aggregate: bool = True,
    identity_init: bool = True,
    example_input: Any = None,
    **sia_kwargs: Any,
) -> Model:
    """Inject Self-Information Attention into a model, in place.

    Each site's host gets a child ``sia`` and a hook that runs it on the host's output; the keys of the model's
    state dict stay as they are, with those of the new modules among them. All is checked before anything is changed.

    Args:
        model: a model of timm or torchvision, or any module with ``stages`` and ``example_input`` given.
        stages: where, as for :func:`find_sites`.
        aggregate: hand the self-information of every site on to all later ones, projected to their channels: little
            work beside an EfficientNet, but half as much again as a ResNet-50, whose maps have many channels.
        identity_init: start from ``gain=0.0``, so that the model computes what it did before and learns from there.
            If False, SIA acts from the start, by its formulas, or by the ``gain`` that is given.
        example_input: as for :func:`find_sites`.
        **sia_kwargs: of every :class:`sia_layers.SIAttention`. Channels, device and dtype are the host's.

    Returns:
        The same model.

    Raises:
        InjectionError: the model cannot take it as asked; it is untouched.
        TypeError, ValueError: an argument that SIAttention does not take.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import eject_sia, inject_sia, sia_modules
        >>> model = inject_sia(resnet18())
        >>> list(sia_modules(model))
        ['layer1.1.sia', 'layer2.1.sia', 'layer3.1.sia']
        >>> model = eject_sia(model)
    """
    target = unwrapped(model)
    options = _options(identity_init, sia_kwargs)
    sites = find_sites(target, stages, example_input=example_input)
    attentions = _made(target, sites, aggregate, options)
    try:
        for site, attention in zip(sites, attentions, strict=True):
            _attach(target, site, attention)
        ran = trial.run(target, as_inputs(target, example_input), [(site.name, "output") for site in sites])
        for (name, _), firings in ran.firings.items():
            if len(firings) != 1:
                raise FiringError(f"{name!r} runs {len(firings)} times in a forward pass, where SIA must run once")
    except BaseException:
        _detach(target)
        raise
    _forget_compiled()
    return model


def eject_sia(model: Model) -> Model:
    """Take Self-Information Attention out of a model, which is then exactly as before :func:`inject_sia`.

    Args:
        model: a model that holds it.

    Returns:
        The same model.

    Raises:
        NotInjectedError: it holds none.
    """
    if not _detach(unwrapped(model)):
        raise NotInjectedError(f"this {type(model).__name__} holds no SIA; inject_sia(model) puts it in")
    _forget_compiled()
    return model


def _options(identity_init: bool, given: dict[str, Any]) -> dict[str, Any]:
    for name in FROM_THE_HOST:
        if name in given:
            raise TypeError(f"{name} is taken from each host; leave it out")
    if not identity_init:
        return given
    if given.get("gain") not in (None, 0.0):
        raise ValueError(
            f"identity_init=True means gain=0.0, got gain={given['gain']!r}; to start from that, identity_init=False"
        )
    return {**given, "gain": 0.0}


def _made(model: nn.Module, sites: list[Site], aggregate: bool, options: dict[str, Any]) -> list[InjectedSIAttention]:
    """A module for each site, as its host: on its device, in its dtype and mode."""
    relay, channels = Relay(), [site.channels for site in sites]
    attentions = []
    for position, site in enumerate(sites):
        host, last = model.get_submodule(site.host), position == len(sites) - 1
        like = _like(host, model)
        attention = InjectedSIAttention(
            site.channels,
            site.layout,
            relay,
            position,
            channels[:position] if aggregate else [],
            hands_on=aggregate and not last,
            last=last,
            device=like.device,
            dtype=like.dtype,
            **options,
        )
        attentions.append(attention.train(host.training))
    return attentions


def _like(host: nn.Module, model: nn.Module) -> Tensor:
    """A floating parameter of the host, or else of the model."""
    for module in (host, model):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
                return tensor
    return torch.empty(0)


def _attach(model: nn.Module, site: Site, attention: InjectedSIAttention) -> None:
    host = model.get_submodule(site.host)
    if CHILD in host._modules or hasattr(host, CHILD):
        raise InjectionError(f"{site.host!r} has something called {CHILD!r} already; name another module")
    host.add_module(CHILD, attention)
    if site.side == "input":
        host.register_forward_pre_hook(input_hook)
    else:
        host.register_forward_hook(output_hook, prepend=True)
    if site.patches is not None:
        patches = model.get_submodule(site.patches)
        if not hasattr(patches, RELAY):
            setattr(patches, RELAY, attention.relay)
            patches.register_forward_hook(patch_hook, prepend=True)


def _detach(model: nn.Module) -> bool:
    """Take out every injected module and hook; whether there was any."""
    found = False
    for module in list(model.modules()):
        for hooks, own in (
            (module._forward_hooks, (output_hook, patch_hook)),
            (module._forward_pre_hooks, (input_hook,)),
        ):
            for key in [key for key, hook in hooks.items() if hook in own]:
                del hooks[key]
        if isinstance(module._modules.get(CHILD), InjectedSIAttention):
            del module._modules[CHILD]
            found = True
        module.__dict__.pop(RELAY, None)
    return found


def _forget_compiled() -> None:
    """Have torch.compile trace anew: it does not notice that hooks come or go."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
