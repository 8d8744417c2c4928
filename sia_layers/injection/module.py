"""The modules that inject_sia adds to hosts, and the hooks that run them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers._modules import as_one_call
from sia_layers.aggregation import SIAggregation
from sia_layers.attention import SIAttention
from sia_layers.frequency import FrequencySIAttention
from sia_layers.injection.config import Config
from sia_layers.injection.errors import NotInjectedError
from sia_layers.injection.layouts import Grid, Layout, Reading, grids_in
from sia_layers.injection.names import CHILD, EXTRA_STATE, PATCHES, RELAY
from sia_layers.injection.outputs import Item, with_item
from sia_layers.injection.relay import Passed, Relay, relay_of
from sia_layers.kernels import ops

DEFAULTS: Final = {"allow_bypass": False, "domain": "spatial"}  # of inject_sia's own arguments, if not None


class Place(NamedTuple):
    """The place of a site among the sites of its model.

    Attributes:
        layout: layout of the tensor that is gated.
        item: the item of the host's output that is gated; None for the output itself.
        position: index in the order of a forward pass.
        last: whether no site follows this one.
        hands_on: whether a later site uses this one's self-information.
        patches: full name of the module that makes its patches, for tokens.
    """

    layout: Layout
    item: Item = None
    position: int = 0
    last: bool = True
    hands_on: bool = False
    patches: str | None = None


class Injected(SIAttention):
    """A site of a model: an attention layer that works in the host's layout and aggregates the maps of earlier sites.

    It is a mixin for :class:`sia_layers.SIAttention` and its subclasses, which follow it in the list of bases.

    Args:
        channels: channels of the host's output.
        place: the place of the site.
        earlier: channels of the earlier sites whose maps are aggregated here.
        form: form of :class:`sia_layers.SIAggregation`.
        device: of the parameters.
        dtype: of the parameters.
        options: arguments of the attention layer.
    """

    def __init__(
        self,
        channels: int,
        place: Place,
        earlier: Sequence[int] = (),
        *,
        form: str = "published",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(channels, device=device, dtype=dtype, **options)
        self.place = place
        self.aggregation = SIAggregation(earlier, channels, form=form, device=device, dtype=dtype) if earlier else None
        self.capture: Callable[[Tensor], None] | None = None
        self.enabled = True

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles: SIA takes effect in them, and nothing captures its maps."""
        return {**self.__dict__, "capture": None, "enabled": True}

    @property
    def layout(self) -> Layout:
        """The layout of the tensor that is gated."""
        return self.place.layout

    def reset_parameters(self) -> None:
        """Reinitialise the parameters, including those of the aggregation."""
        super().reset_parameters()
        for module in () if self.aggregation is None else self.aggregation.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                module.reset_parameters()

    def forward(self, output: Any, relay: Relay | None = None, grids: Sequence[Grid] = ()) -> Any:  # type: ignore[override]
        """Gate the host's output, or the item of it that belongs to this site.

        Args:
            output: output of the host.
            relay: relay of the host; None if there are no earlier maps.
            grids: grids of the tokens that the host's output and arguments report.
        """
        if not self.enabled:
            return output
        item, relay = self.place.item, Relay() if relay is None else relay
        x = output if item is None else output[item]
        passed = self._passed(relay)
        relay.remember(passed, x)
        order, inverse = self._orders(x.device)
        reading = self.layout.read(x, (*grids, passed.grid_of(self.place.patches)), order)
        aggregate = None if self.aggregation is None else self._aggregated(passed, reading)
        if self.place.hands_on or self.capture is not None:
            gated, info = self.attended(reading.maps, aggregate)
        else:
            gated, info = super().forward(reading.maps, aggregate), None
        gated = self.gated_again(gated)
        if self.capture is not None and info is not None:
            self.capture(info)
        gated = self.layout.write(reading._replace(maps=gated), x, inverse)
        if self.place.last:
            relay.leave(None, gated)
        elif self.place.hands_on and info is not None:
            relay.leave(passed.with_map(info, reading.frames), gated)
        return gated if item is None else with_item(output, item, gated)

    def attended(self, maps: Tensor, aggregate: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gated maps and the self-information to pass on, both (N, C, H, W)."""
        return self.attend(maps, aggregate)

    def gated_again(self, maps: Tensor) -> Tensor:
        """Apply what follows the site's own gates: nothing in this class."""
        return maps

    def _passed(self, relay: Relay) -> Passed:
        """Return what this forward pass has passed on so far; start anew at the first site."""
        if self.place.position > 0:
            return relay.take(0 if self.aggregation is None else self.place.position) or Passed()
        passed = None if self.place.patches is None else relay.take(0)
        return Passed() if passed is None else passed.until(0)

    def _aggregated(self, passed: Passed, reading: Reading) -> Tensor:
        assert self.aggregation is not None
        position = self.place.position
        if len(passed.maps) != position or not (ops.tracing() or _of_one_batch(passed, reading)):
            raise RuntimeError(
                f"site {position} aggregates the maps of {position} earlier sites, but this forward pass has run "
                f"{len(passed.maps)} of them on this batch; run the model from its input on. With checkpointing, pass "
                "use_reentrant=False, and compile the whole model rather than checkpointed parts of it; or inject "
                "with aggregate=False"
            )
        infos = [pooled_in_time(*handed, reading.frames) for handed in zip(passed.maps, passed.frames, strict=True)]
        result: Tensor = self.aggregation(infos, size=reading.maps.shape[2:])
        return result

    def _orders(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return the token of each grid cell and the grid cell of each token; None for tokens in reading order."""
        if self.layout.order is None:
            return None, None
        order = torch.tensor(self.layout.order, device=device)
        return order, order.argsort()


class InjectedSIAttention(Injected, SIAttention):
    """A site that gates pixels by their self-information."""


class InjectedFrequencySIAttention(Injected, FrequencySIAttention):
    """A site that gates the coefficients of a block transform by their self-information."""

    def attended(self, maps: Tensor, aggregate: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gated maps and the self-information of each block, averaged over the sub-bands of a channel."""
        gated, info = self.attend(maps, aggregate)
        blocks = info.reshape(info.shape[0], maps.shape[1], -1, *info.shape[2:])
        return gated, blocks.mean(2)


class InjectedBothSIAttention(InjectedSIAttention):
    """A site that gates pixels, and then the coefficients of the gated map with its child ``frequency``.

    Args:
        channels: channels of the host's output.
        args: further arguments of :class:`InjectedSIAttention`.
        block: block of :class:`sia_layers.FrequencySIAttention`.
        transform: transform of :class:`sia_layers.FrequencySIAttention`.
        options: keyword arguments of :class:`InjectedSIAttention`.
    """

    def __init__(
        self, channels: int, *args: Any, block: int | None = None, transform: str = "dct", **options: Any
    ) -> None:
        super().__init__(channels, *args, **options)
        own = {name: value for name, value in options.items() if name != "form"}
        self.frequency = FrequencySIAttention(channels, block, transform=transform, **own)

    def gated_again(self, maps: Tensor) -> Tensor:
        """Gate the coefficients of the gated maps."""
        result: Tensor = self.frequency(maps)
        return result

    def reset_parameters(self) -> None:
        """Reinitialise the parameters of both domains and of the aggregation."""
        super().reset_parameters()
        self.frequency.reset_parameters()


class Leading(Injected):
    """The first site of a model: its state also carries the configuration of the whole injection.

    Args:
        args: arguments of the site.
        config: configuration of the injection.
        kwargs: keyword arguments of the site.
    """

    def __init__(self, *args: Any, config: Config, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = config

    def get_extra_state(self) -> Tensor:
        """Return the configuration, for the state dict."""
        return self.config.to_tensor()

    def set_extra_state(self, state: Any) -> None:
        """Warn if a state dict is from a model with another configuration."""
        saved = Config.from_tensor(state)
        differences = {} if saved is None else self.config.differences(saved)
        if saved is not None and differences:
            listed = ", ".join(
                f"{name}={_value(saved, name)} for {_value(self.config, name)}" for name in sorted(differences)
            )
            warnings.warn(
                f"sia_layers: the weights are from a model that was injected with {listed}; to get the same model, "
                "call inject_sia(model, **config) with the saved configuration",
                stacklevel=2,
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *rest: list[str],
    ) -> None:
        """Load as any module does, but do not require the configuration, which older state dicts lack."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        key = f"{prefix}{EXTRA_STATE}"
        if key in missing_keys:
            missing_keys.remove(key)


def _value(config: Config, name: str) -> str:
    """Return the value of an argument in a configuration, which leaves out those with their defaults."""
    if name in config.arguments:
        return repr(config.arguments[name])
    parameters = {**inspect.signature(FrequencySIAttention).parameters, **inspect.signature(SIAttention).parameters}
    default = parameters[name].default if name in parameters else DEFAULTS.get(name)
    return repr(default.__name__ if isinstance(default, type) else default)


class LeadingSIAttention(Leading, InjectedSIAttention):
    """The first site of a model that gates pixels."""


class LeadingFrequencySIAttention(Leading, InjectedFrequencySIAttention):
    """The first site of a model that gates coefficients."""


class LeadingBothSIAttention(Leading, InjectedBothSIAttention):
    """The first site of a model that gates pixels and then coefficients."""


# The classes of the first site and of the other sites, by domain.
DOMAINS: Final[dict[str, tuple[type[Leading], type[Injected]]]] = {
    "spatial": (LeadingSIAttention, InjectedSIAttention),
    "frequency": (LeadingFrequencySIAttention, InjectedFrequencySIAttention),
    "both": (LeadingBothSIAttention, InjectedBothSIAttention),
}


class SiteGroup(nn.ModuleDict):
    """The sites of a host that returns several maps, by the item that each site gates."""

    def forward(self, output: Any, relay: Relay | None = None, grids: Sequence[Grid] = ()) -> Any:
        """Gate the items of the host's output, one after the other."""
        for site in self.values():
            output = site(output, relay=relay, grids=grids)
        return output


def _of_one_batch(passed: Passed, reading: Reading) -> bool:
    """Tell whether the first map that was passed on has as many pictures or videos as the reading."""
    return passed.maps[0].shape[0] * reading.frames == reading.maps.shape[0] * passed.frames[0]


def pooled_in_time(info: Tensor, frames: int, wanted: int) -> Tensor:
    """Max-pool the self-information of a video, (N·T, C, H, W), to another number of frames."""
    if frames == wanted:
        return info
    video = info.reshape(info.shape[0] // frames, frames, *info.shape[1:])
    spans = [(index * frames // wanted, -(-(index + 1) * frames // wanted)) for index in range(wanted)]
    return torch.stack([video[:, first:end].amax(1) for first, end in spans], 1).flatten(0, 1)


def is_site(module: nn.Module | None) -> bool:
    """Tell whether a module is an injected site."""
    return isinstance(module, Injected)


def output_hook(host: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
    """Gate the output of a host; registered as its forward hook, with the keyword arguments before the output.

    Raises:
        NotInjectedError: the hook was moved to a module without SIA.
    """
    *keywords, output = rest  # without keywords where torch.ao.quantization.fuse_modules has moved the hook
    return _gated(host, output, grids_in(args, keywords[0] if keywords else {}, output))


def input_hook(host: nn.Module, args: tuple[Any, ...]) -> Any:
    """Gate the input of a host; registered as its forward pre-hook."""
    return (_gated(host, args[0], []), *args[1:])


def _gated(host: nn.Module, value: Any, grids: Sequence[Grid]) -> Any:
    sites = host._modules.get(CHILD)
    if sites is None:
        raise NotInjectedError(
            f"the hook of a site is on a {type(host).__name__} without SIA, to which something has moved it, such as "
            "torch.ao.quantization.fuse_modules; fuse first, and inject afterwards"
        )
    if isinstance(value, torch.fx.Proxy):  # torch.fx: trace as one call, like a layer of torch's own
        path = value.tracer.path_of_module(sites)  # type: ignore[attr-defined]
        relay = value.tracer.create_proxy("get_attr", f"{path.rpartition('.')[0]}.{RELAY}", (), {})
        return as_one_call(sites, value, relay)
    return sites(value, relay=relay_of(host), grids=grids)


def patch_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Leave the grid of patches for the sites; registered as a forward hook of the module that makes the patches."""
    first = output[0] if isinstance(output, (tuple, list)) else output
    grid = patch_grid(module, args, output)
    if not isinstance(first, Tensor) or grid is None:  # under torch.fx
        return
    relay = relay_of(module)
    passed = relay.take(0) or Passed()  # a site may precede the patches
    relay.leave(passed.with_grid(getattr(module, PATCHES), grid), first)


def patch_grid(module: nn.Module, args: tuple[Any, ...], output: Any) -> Grid | None:
    """Return the grid of the patches that a module has just made; None if it cannot be told."""
    for grid in grids_in((), {}, output):
        return grid
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        return None
    if first.dim() == 5:
        return tuple(first.shape[2:])
    if first.dim() == 4:
        nhwc = str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC")
        return tuple(first.shape[1:3]) if nhwc else tuple(first.shape[2:])
    sizes = [value.shape[-2:] for value in args if isinstance(value, Tensor) and value.dim() == 4]
    patch = getattr(module, "patch_size", None)
    if not sizes or patch is None:
        size = getattr(module, "grid_size", None)
        return None if size is None else (size[0], size[1])
    if hasattr(module, "dynamic_feat_size"):
        rows, columns = module.dynamic_feat_size(tuple(sizes[0]))  # type: ignore[operator]
        return rows, columns
    height, width = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    return sizes[0][0] // height, sizes[0][1] // width
