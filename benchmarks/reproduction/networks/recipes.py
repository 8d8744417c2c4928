"""The recipes for adding SIA to the backbone that the search compares; each varies one choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers import SIAttention, inject_sia, sia_modules

# A gain is a scalar that starts at 0, and AdamW moves a parameter by about its learning rate per step. At the learning
# rate of the weights, gains would hardly leave 0 in a few hundred steps.
GAIN_RATE: Final = 10.0


class Recipe(NamedTuple):
    """A way to inject SIA.

    Attributes:
        about: description for tables.
        options: options of ``inject_sia``; None injects nothing.
        gain_rate: learning rate of the gains relative to that of the weights.
        by_channel: initial value of a learnable gain per channel, as in LayerScale (Touvron et al., ICCV 2021); None to
            use what ``options`` say.
    """

    about: str
    options: Mapping[str, Any] | None
    gain_rate: float = GAIN_RATE
    by_channel: float | None = None


def _acting(about: str, gain: float = 1.0, rate: float = GAIN_RATE, **options: Any) -> Recipe:
    """Return a recipe that does not start as the identity."""
    return Recipe(about, {"identity_init": False, "gain": gain, **options}, rate)


RECIPES: Final[dict[str, Recipe]] = {
    "bare": Recipe("no SIA", None),
    "default": Recipe("inject_sia(model): the gain starts at 0", {}),
    "gain 0, rate 100": Recipe("the gain has ten times its default learning rate", {}, 100.0),
    "gain 0.1": _acting("the gain starts at 0.1", 0.1),
    "gain 1": _acting("the gain starts at 1"),
    "gain 1, rate 1": _acting("the gain starts at 1 and has the learning rate of the weights", 1.0, 1.0),
    "no gain": Recipe("the published formula, without a gain", {"identity_init": False}),
    "a gain a channel": Recipe("a gain per channel, which starts at 0", {}, by_channel=0.0),
    "not detached": _acting("gain 1, with the gradient through the self-information", detach=False),
    "K=5": _acting("gain 1, window 5x5", kernel_size=5),
    "K=7": _acting("gain 1, window 7x7", kernel_size=7),
    "bandwidth 0.5": _acting("gain 1, half the bandwidth", bandwidth=0.5),
    "bandwidth 2": _acting("gain 1, twice the bandwidth", bandwidth=2.0),
    "one site": _acting("gain 1, only the stage at a quarter of the picture's size", stages=4),
    "spatial only": _acting("gain 1, without the channel gate", channel=None),
    "channel only": _acting("gain 1, without the spatial gate", spatial=False),
    "distance": _acting("gain 1, density from distances, as in the public code", estimator="distance"),
}


def attach(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Inject SIA into a model by a recipe, in place, and return the model."""
    if recipe.options is None:
        return model
    if recipe.by_channel is None:
        return inject_sia(model, **recipe.options)
    inject_sia(model, identity_init=False, **recipe.options)
    for module in sia_modules(model).values():
        module.register_parameter("channel_gain", nn.Parameter(torch.full((module.channels, 1, 1), recipe.by_channel)))
        module.register_forward_hook(_scaled)
    return model


def _scaled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Interpolate from a map (N, C, H, W) towards the gated one, with a separate gain per channel."""
    x, gain = inputs[0], module.get_parameter("channel_gain")
    return x + gain * (output - x)


def gains_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the gains of a model's SIA modules, one per site or one per channel of each site."""
    gains = []
    for module in model.modules():
        if isinstance(module, SIAttention):
            gain = getattr(module, "channel_gain", module.gain)
            gains += [gain] if gain is not None else []
    return gains
