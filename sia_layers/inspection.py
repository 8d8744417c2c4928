"""Inspect the self-information inside a model: the maps at the injected sites, and averages over any layers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sia_layers._keywords import refuse_unknown
from sia_layers.functional import REDUCTIONS, average_self_information, self_information
from sia_layers.injection import proof
from sia_layers.injection.candidates import Candidate, Overrides, Site
from sia_layers.injection.errors import DryRunError
from sia_layers.injection.hosts import host_of, unwrapped
from sia_layers.injection.inputs import inputs_of_batch
from sia_layers.injection.layouts import Grid, grids_in
from sia_layers.injection.module import patch_grid
from sia_layers.injection.sites import StageRequest, as_requests, check_known, choose, complete
from sia_layers.injection.stages import Stage, Stages, stages_of
from sia_layers.injection.state_dict import found_sites
from sia_layers.kernels.options import Options, as_choice
from sia_layers.kernels.private_torch import running_eagerly


class LayerProfile(NamedTuple):
    """The average self-information of a layer over many pictures, in nats.

    Attributes:
        mean: mean over the pictures.
        std: standard deviation over the pictures; 0 for a single one.
        pictures: number of pictures.
    """

    mean: float
    std: float
    pictures: int


@contextlib.contextmanager
def capture_self_information(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Capture the self-information that gates each injected site.

    Only the model itself is captured, not copies and pickles of it that are made inside the block.

    Args:
        model: a model with injected SIA modules.

    Yields:
        A dict that each forward pass inside the block fills anew: maps (N, C, H, W) in nats by the full names of the
        SIA modules, without gradients.

    Raises:
        NotInjectedError: the model has no SIA modules.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import inject_sia
        >>> model = inject_sia(resnet18()).eval()
        >>> with torch.no_grad(), capture_self_information(model) as maps:
        ...     scores = model(torch.rand(1, 3, 64, 64))
        >>> {name: tuple(map.shape) for name, map in maps.items()}
        {'layer1.1.sia': (1, 64, 16, 16), 'layer2.1.sia': (1, 128, 8, 8), 'layer3.1.sia': (1, 256, 4, 4)}
    """
    found = found_sites(unwrapped(model))
    maps: dict[str, Tensor] = {}
    before = {name: module.capture for name, module in found.items()}
    try:
        for name, module in found.items():
            module.capture = _Keep(maps, name)
        yield maps
    finally:
        for name, module in found.items():
            module.capture = before[name]


class _Keep:
    """A callback that stores the map of a site in a dict."""

    def __init__(self, maps: dict[str, Tensor], name: str) -> None:
        self.maps, self.name = maps, name

    def __call__(self, info: Tensor) -> None:
        self.maps[self.name] = info.detach()


@functools.partial(refuse_unknown, also=functools.partial(self_information, torch.empty(0)))  # all but its x
def profile_self_information(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | int | Sequence[str | int] | None = None,
    *,
    key: str | int | None = None,
    layout: str | None = None,
    grid: Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    reduction: str = "mean",
    progress: bool = True,
    **options: Any,
) -> dict[str, LayerProfile]:
    """Average the self-information (Equation 1 of the supplement) of a model's layers over many pictures.

    The model runs in evaluation mode without gradients, and is left as it was. In a process group of
    torch.distributed, the sums of all processes are added up: every process returns the profile over all batches,
    whatever the number of batches in each.

    Args:
        model: any model, with or without SIA.
        batches: pictures (N, C, H, W) or videos (N, C, T, H, W); tuples or lists that begin with them, as a
            DataLoader yields; or dicts, which are passed as keywords if the model takes all their keys, and
            otherwise as one argument or reduced to their only picture.
        layers: names of modules, glob patterns or reductions, as for :func:`sia_layers.injection.find_sites`; None
            for the stages that find_sites would choose. If a layer returns several maps, the first is profiled.
        key: index or key of the picture in a batch, for batches in which it cannot be recognised.
        layout: layout of the layers' outputs; like ``grid`` and ``prefix_tokens``, as for
            :func:`sia_layers.injection.find_sites`.
        grid: rows and columns of tokens.
        prefix_tokens: number of tokens before those of the grid.
        reduction: how to reduce over the channels, as for :func:`sia_layers.average_self_information`.
        progress: whether to show a progress bar, if tqdm is installed.
        **options: of :func:`sia_layers.self_information`.

    Returns:
        The profile of every layer by its full name, in the requested order.

    Raises:
        UnknownStageError: the model does not have such a layer.
        NoStagesError: ``layers`` is None, and the model does not declare its stages.
        LayoutError: a layer returns no feature maps.
        FiringError: a layer does not run.
        DryRunError: the model fails on the first batch.
        ValueError: there are no pictures.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> profiles = profile_self_information(model, [torch.rand(8, 3, 16, 16)], ["0", "1"], progress=False)
        >>> profiles["0"].pictures
        8
    """
    model = unwrapped(model)
    as_choice("reduction", reduction, REDUCTIONS)
    Options.checked(**{"kernel_size": 3, **{name: value for name, value in options.items() if name != "backend"}})
    overrides = Overrides.checked(layout, grid, prefix_tokens, True)
    plan = _Layers(model, as_requests(layers, "layers"), overrides, key)
    watch: _Watch | None = None
    way, device = 0, _device(model)
    try:
        with _evaluating(model), torch.no_grad(), running_eagerly():  # a compiled graph does not run new hooks
            for batch in _with_progress(batches, progress):
                if watch is None:
                    sites, way = plan.read(batch)
                    watch = _Watch(model, sites, reduction, options)
                watch.grids.clear()
                inputs = inputs_of_batch(model, batch, key)[way].mapped(lambda tensor: tensor.to(device))
                model(*inputs.args, **inputs.kwargs)
    finally:
        if watch is not None:
            watch.remove()
    sums = {name: _no_sums() for name in plan.names} if watch is None else watch.sums
    return {name: _profile(name, found) for name, found in _added_up(sums, device).items()}


class _Layers:
    """The layers to profile, and how to read their outputs, which the first batch shows."""

    def __init__(
        self, model: nn.Module, requests: list[StageRequest] | None, overrides: Overrides, key: str | int | None
    ) -> None:
        self.model, self.requests, self.overrides, self.key = model, requests, overrides, key
        self.known = stages_of(model)
        check_known(model, requests, self.known, "layers=['layer1', 'layer2']")
        self.names = [] if self.known.features else self._names(self.known)

    def _names(self, known: Stages) -> list[str]:
        chosen = choose(self.model, self.requests, known)
        own = self.requests is None  # a stage that the model declares is read at its last block
        return list(dict.fromkeys(host_of(self.model, stage.name)[0] if own else stage.name for stage in chosen))

    def read(self, batch: Any) -> tuple[dict[str, Site], int]:
        """Return how to read the output of each layer, by its name, and the index of the way to call the model."""
        ways = inputs_of_batch(self.model, batch, self.key)
        for way, inputs in enumerate(ways):
            try:
                known = complete(self.model, self.requests, self.known, inputs, self.overrides)
                self.names = self._names(known)
                candidates = [Candidate(Stage(name, 0), name, "output", True) for name in self.names]
                sites = proof.read(self.model, candidates, inputs, self.overrides)
                return dict(zip(self.names, sites, strict=True)), way
            except DryRunError:
                if way == len(ways) - 1:
                    raise
        raise AssertionError("inputs_of_batch returned nothing")


class _Watch:
    """Hooks on the layers that accumulate their self-information: count, sum and sum of squares, in float64."""

    def __init__(self, model: nn.Module, sites: dict[str, Site], reduction: str, options: dict[str, Any]) -> None:
        self.reduction, self.options = reduction, options
        self.sums = {name: _no_sums() for name in sites}
        self.grids: dict[str, Grid | None] = {}
        self.handles = []
        for patches in {site.patches for site in sites.values() if site.patches is not None}:
            self.handles.append(model.get_submodule(patches).register_forward_hook(self._grid_hook(patches)))
        for name, site in sites.items():  # after all other hooks, to see what the next layer receives
            hook = self._hook(name, site)
            self.handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _grid_hook(self, patches: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.grids[patches] = patch_grid(module, args, output)

        return hook

    def _hook(self, name: str, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = output if site.item is None else output[site.item]
            order = None if site.layout.order is None else torch.tensor(site.layout.order, device=x.device)
            grids = [*grids_in(args, kwargs, output), self.grids.get(site.patches or "")]
            reading = site.layout.read(x, grids, order)
            averages = average_self_information(reading.maps, reduction=self.reduction, **self.options)
            values = averages.double().cpu().reshape(-1, reading.frames).mean(1)  # over the frames of a video
            self.sums[name] += torch.stack([torch.ones_like(values), values, values.square()]).sum(1)

        return hook


def _no_sums() -> Tensor:
    return torch.zeros(3, dtype=torch.float64, device="cpu")  # whatever torch.set_default_device says


def _added_up(sums: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    if not (dist.is_available() and dist.is_initialized()):
        return sums
    together = torch.stack(list(sums.values()))
    if dist.get_backend() == "nccl":
        together = together.to(device)
    dist.all_reduce(together)
    return dict(zip(sums, together.cpu(), strict=True))


def _profile(name: str, sums: Tensor) -> LayerProfile:
    count, total, squares = sums.tolist()
    if not count:
        raise ValueError(f"no picture went through {name!r}: batches is empty, or the model does not run that layer")
    mean = total / count
    variance = max(squares / count - mean * mean, 0.0)  # in this order, NaN stays NaN
    return LayerProfile(mean, variance**0.5, int(count))


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _with_progress(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    if progress:
        with contextlib.suppress(ImportError):
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            shown: Iterable[Any] = tqdm(batches, desc="self-information", unit="batch")
            return shown
    return batches


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
