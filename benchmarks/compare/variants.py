"""The variants of a network: SIA in several forms, and other attention layers at the same sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from timm.layers.create_attn import create_attn
from torch import Tensor, nn

from sia_layers import Site, find_sites, inject_sia

Attach = Callable[[nn.Module, Tensor], object]


class Variant(NamedTuple):
    """An addition to the bare network.

    Attributes:
        about: description for tables.
        attach: function of a model and an example of its input, which changes the model in place.
    """

    about: str
    attach: Attach


class Append:
    """A hook that runs an attention layer on a module's output or input feature maps.

    This is an object rather than a closure, so that a deep copy of the model runs its own copy of the layer.

    Args:
        site: site of the module.
        attention: layer that takes maps (N, C, H, W).
    """

    def __init__(self, site: Site, attention: nn.Module) -> None:
        self.site, self.attention = site, attention

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> Any:
        """Return the module's output or input with attention applied."""
        given = inputs[0] if self.site.side == "input" else output
        layout = self.site.layout
        reading = layout.read(given, (layout.grid,))
        attended = layout.write(reading._replace(maps=self.attention(reading.maps)), given)
        return (attended, *inputs[1:]) if self.site.side == "input" else attended


def append(model: nn.Module, example: Tensor, kind: str) -> None:
    """Add one of timm's attention layers, in place, where :func:`sia_layers.inject_sia` puts SIA by default.

    The layers are in ``model.attentions``.

    Args:
        model: a timm model.
        example: example of its input.
        kind: name of the layer, as ``timm.layers.create_attn`` knows it.

    Raises:
        InjectionError: if the model has no such sites.
        ValueError: if a site returns several tensors, or tokens out of reading order.
    """
    sites = find_sites(model, example_input=example)
    for site in sites:
        if site.item is not None or site.layout.order is not None:
            raise ValueError(f"{kind} can't follow {site.host}, which returns no maps in reading order")
    layers = [create_attn(kind, site.channels) for site in sites]
    model.add_module("attentions", nn.ModuleList(layer for layer in layers if layer is not None))
    for site, layer in zip(sites, layers, strict=True):
        host = model.get_submodule(site.host)
        hook: Any = Append(site, layer)
        if site.side == "input":
            host.register_forward_pre_hook(hook, prepend=True)
        else:
            host.register_forward_hook(hook, prepend=True)


def _bare(model: nn.Module, example: Tensor) -> None:
    """Leave the model unchanged."""


def _appended(about: str, kind: str) -> Variant:
    return Variant(f"{about} at SIA's sites", partial(append, kind=kind))


def _sia(about: str, **options: Any) -> Variant:
    return Variant(about, lambda model, example: inject_sia(model, example_input=example, **options))


VARIANTS: Final[dict[str, Variant]] = {
    "bare": Variant("the model alone", _bare),
    "se": _appended("timm's SE (Hu et al., CVPR 2018)", "se"),
    "cbam": _appended("timm's CBAM (Woo et al., ECCV 2018)", "cbam"),
    "eca": _appended("timm's ECA (Wang et al., CVPR 2020)", "eca"),
    "sia": _sia("inject_sia(model)"),
    "sia-from-start": _sia("inject_sia(model, identity_init=False)", identity_init=False),
    "sia-pooled": _sia('inject_sia(model, aggregate="pooled")', aggregate="pooled"),
    "sia-no-aggregate": _sia("inject_sia(model, aggregate=False)", aggregate=False),
    "sia-frequency": _sia('inject_sia(model, domain="frequency")', domain="frequency"),
    "sia-both": _sia('inject_sia(model, domain="both")', domain="both"),
}


def chosen(names: str) -> list[str]:
    """Return the variants in a comma-separated list, with "bare" first.

    Raises:
        ValueError: if a name is unknown.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in VARIANTS]:
        raise ValueError(f"unknown variants {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    return list(dict.fromkeys(["bare", *asked]))
