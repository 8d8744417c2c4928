"""Look at the self-information inside of a model: the maps at the injected sites, and averages over any layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sia_layers.functional import average_self_information
from sia_layers.injection.errors import LayoutError, NotInjectedError, UnknownStageError, nearest
from sia_layers.injection.layouts import Layout, declared_prefixes, grid_of, layout_kind, patch_module
from sia_layers.injection.site import InjectedSIAttention, is_size
from sia_layers.injection.sites import choose, host_of, unwrapped
from sia_layers.kernels.options import Options, as_choice


class LayerProfile(NamedTuple):
    """Average self-information of a layer over many pictures, in nats.

    Attributes:
        mean: over the pictures.
        std: standard deviation over the pictures; 0 for one.
        pictures: how many.
    """

    mean: float
    std: float
    pictures: int


@contextlib.contextmanager
def capture_self_information(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Get the self-information that gates each injected site.

    Args:
        model: a model that holds SIA.

    Yields:
        A dict that each forward pass within the block fills anew: maps (N, C, H, W) in nats by the full names of
        the SIA modules, without gradients.

    Raises:
        NotInjectedError: the model holds none.

    Example:
        >>> from torchvision.models import resnet18
        >>> from sia_layers import inject_sia
        >>> model = inject_sia(resnet18()).eval()
        >>> with torch.no_grad(), capture_self_information(model) as maps:
        ...     scores = model(torch.rand(1, 3, 64, 64))
        >>> {name: tuple(map.shape) for name, map in maps.items()}
        {'layer1.1.sia': (1, 64, 16, 16), 'layer2.1.sia': (1, 128, 8, 8), 'layer3.1.sia': (1, 256, 4, 4)}
    """
    modules = unwrapped(model).named_modules()
    found = {name: module for name, module in modules if isinstance(module, InjectedSIAttention)}
    if not found:
        raise NotInjectedError(f"this {type(model).__name__} holds no SIA; inject_sia(model) puts it in")
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
    """Puts a site's map into a dict."""

    def __init__(self, maps: dict[str, Tensor], name: str) -> None:
        self.maps, self.name = maps, name

    def __call__(self, info: Tensor) -> None:
        self.maps[self.name] = info.detach()


def profile_self_information(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | int | Sequence[str | int] | None = None,
    *,
    reduction: str = "mean",
    progress: bool = True,
    **options: Any,
) -> dict[str, LayerProfile]:
    """Average the self-information (Equation 1 of the supplement) of layers of a model over many pictures.

    The model is run in evaluation mode without gradients and left as it was. In a process group of
    torch.distributed the sums of all processes are added up, so that every process gets what one would have got
    from all the batches, each however many it has.

    Args:
        model: any model, injected or not.
        batches: tensors (N, C, H, W), or tuples and lists that begin with one, such as of a DataLoader.
        layers: names of modules, glob patterns or reductions, as for :func:`sia_layers.injection.find_sites`; None
            for the stages that it would take.
        reduction: over the channels, as for :func:`sia_layers.average_self_information`.
        progress: show a bar, where tqdm is installed.
        **options: of :func:`sia_layers.self_information`.

    Returns:
        The profile of every layer by its full name, in the order asked for.

    Raises:
        UnknownStageError, NoStagesError: layers that the model does not have, or does not tell of.
        LayoutError: a layer that gives no feature maps.
        ValueError: no pictures at all.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> profiles = profile_self_information(model, [torch.rand(8, 3, 16, 16)], ["0", "1"], progress=False)
        >>> profiles["0"].pictures
        8
    """
    model = unwrapped(model)
    as_choice("reduction", reduction, ("mean", "sum"))
    _check_options(options)
    names = _layers(model, layers)
    watch = _Watch(model, names, reduction, options)
    try:
        with _evaluating(model), torch.no_grad():
            for batch in _with_progress(batches, progress):
                picture = batch[0] if isinstance(batch, (tuple, list)) else batch
                watch.grids.clear()
                model(picture.to(_device(model)))
    finally:
        watch.remove()
    return {name: _profile(name, sums) for name, sums in _added_up(watch.sums, _device(model)).items()}


def _check_options(options: dict[str, Any]) -> None:
    backend_less = {name: value for name, value in options.items() if name != "backend"}
    unknown = [name for name in backend_less if name not in Options._fields]
    if unknown:
        advice = nearest(unknown[0], Options._fields)
        raise TypeError(f"profile_self_information has no argument {unknown[0]!r}; {advice}")
    Options.checked(**{"kernel_size": 3, **backend_less})


def _layers(model: nn.Module, layers: str | int | Sequence[str | int] | None) -> list[str]:
    if layers is None:
        return [host_of(model, stage.name)[0] for stage in choose(model, None)]
    names = list(dict.fromkeys(stage.name for stage in choose(model, layers)))
    if not names:
        raise UnknownStageError("layers is empty; name at least one, or leave it None for the model's stages")
    return names


class _Watch:
    """Hooks on the layers that add up their self-information: count, sum and sum of squares, in float64."""

    def __init__(self, model: nn.Module, names: list[str], reduction: str, options: dict[str, Any]) -> None:
        self.model, self.reduction, self.options = model, reduction, options
        self.sums = {name: torch.zeros(3, dtype=torch.float64) for name in names}
        self.grids: dict[str, tuple[int, int] | None] = {}
        self.patches = {name: patch_module(model, name) for name in names}
        self.handles = []
        for patches in {patches for patches in self.patches.values() if patches is not None}:
            self.handles.append(model.get_submodule(patches).register_forward_hook(self._grid_hook(patches)))
        for name in names:  # after all other hooks: what the next layer gets
            self.handles.append(model.get_submodule(name).register_forward_hook(self._hook(name)))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _grid_hook(self, patches: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.grids[patches] = grid_of(module, inputs, output)

        return hook

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tokens = output[0] if isinstance(output, tuple) and len(output) == 2 and is_size(output[1]) else output
            if not isinstance(tokens, Tensor):
                raise LayoutError(f"{name!r} gives a {type(output).__name__}; name a module that gives feature maps")
            size = output[1] if tokens is not output else next((value for value in inputs if is_size(value)), None)
            grid = size or self.grids.get(self.patches[name] or "")
            values = (
                average_self_information(self._maps(name, tokens, grid), reduction=self.reduction, **self.options)
                .double()
                .cpu()
            )
            count = torch.tensor(len(values), dtype=torch.float64)
            self.sums[name] += torch.stack([count, values.sum(), values.square().sum()])

        return hook

    def _maps(self, name: str, output: Tensor, grid: tuple[int, int] | None) -> Tensor:
        kind = layout_kind(self.model, name, output)
        if kind != "NLC":
            return Layout(kind).read(output, None)[0]
        prefixes = declared_prefixes(self.model, name)
        for stride in (1, 2, 4, 8):
            if grid is not None and output.shape[1] - -(-grid[0] // stride) * -(-grid[1] // stride) in prefixes:
                return Layout(kind, None, prefixes, stride).read(output, grid)[0]
        raise LayoutError(f"{name!r} gives {output.shape[1]} tokens, whose rows and columns nothing tells")


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
        raise ValueError(f"no picture went through {name!r}: batches was empty, or the model does not run that layer")
    mean = total / count
    return LayerProfile(mean, max(0.0, squares / count - mean * mean) ** 0.5, int(count))


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
