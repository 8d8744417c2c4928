"""What is put into a bare network: SIA in several forms, and other attention at the same sites."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from timm.layers.create_attn import create_attn
from torch import Tensor, nn

from sia_layers import Site, find_sites, inject_sia

Attach = Callable[[nn.Module, Tensor], object]


class Variant(NamedTuple):
    """What is put into the bare network.

    Attributes:
        about: what it is, for tables.
        attach: changes a model in place; it is given an example of the model's input as well.
    """

    about: str
    attach: Attach


class Append:
    """A hook that runs an attention layer on a module's feature maps, output or input.

    An object and no closure, so that a deep copy of the model runs its own copy of the layer.

    Args:
        site: of the module.
        attention: takes maps (N, C, H, W).
    """

    def __init__(self, site: Site, attention: nn.Module) -> None:
        self.site, self.attention = site, attention

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> Any:
        """Return what the module gives or is given, attended to."""
        given = inputs[0] if self.site.side == "input" else output
        layout = self.site.layout
        reading = layout.read(given, (layout.grid,))
        attended = layout.write(reading._replace(maps=self.attention(reading.maps)), given)
        return (attended, *inputs[1:]) if self.site.side == "input" else attended


def append(model: nn.Module, example: Tensor, kind: str) -> None:
    """Put one of timm's attention layers where :func:`sia_layers.inject_sia` puts SIA by default, in place.

    The layers are in ``model.attentions``.

    Args:
        model: of timm.
        example: of its input.
        kind: name of the layer, as ``timm.layers.create_attn`` knows it.

    Raises:
        InjectionError: if there are no such sites.
        ValueError: if a site gives several tensors, or tokens out of reading order.
    """
    sites = find_sites(model, example_input=example)
    for site in sites:
        if site.item is not None or site.layout.order is not None:
            raise ValueError(f"{kind} can't be put behind {site.host}, which gives no maps in reading order")
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
    """Leave the model as it is."""


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
    """Return the variants that are named, with commas between them, and "bare" first.

    Raises:
        ValueError: if there is none of a name.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in VARIANTS]:
        raise ValueError(f"unknown variants {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    return list(dict.fromkeys(["bare", *asked]))
