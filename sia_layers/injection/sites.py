"""Where Self-Information Attention goes: the sites of a model, found and proved on a dry run."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers.injection import trial
from sia_layers.injection.errors import (
    AlreadyInjectedError,
    FiringError,
    LayoutError,
    NoStagesError,
    OffTrunkError,
    OutputTypeError,
    UnknownStageError,
    UnsupportedModelError,
    nearest,
)
from sia_layers.injection.layouts import Layout, declared_prefixes, family_of, grid_of, layout_kind, patch_module
from sia_layers.injection.site import InjectedSIAttention, is_size
from sia_layers.injection.stages import Stage, default_stages, stages_of

DENSE_BLOCKS: Final = frozenset({"DenseBlock", "_DenseBlock", "DenseStage"})  # their last layer is not their output
CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ITERATORS: Final = frozenset({"children", "named_children", "_modules", "modules"})

StageRequest = str | int  # a name, a pattern, or a reduction


class Site(NamedTuple):
    """A place in a model for Self-Information Attention.

    Attributes:
        host: full name of the module whose output is gated.
        side: ``"output"``, or ``"input"`` if what the host is given is gated instead.
        stage: full name of the stage that the site ends.
        channels: of the feature map.
        reduction: rows of the picture to a row of the map, as measured.
        layout: of the host's output.
        patches: full name of the module that makes the patches, for tokens.
    """

    host: str
    side: str
    stage: str
    channels: int
    reduction: int
    layout: Layout
    patches: str | None = None

    @property
    def name(self) -> str:
        """Full name of the SIA module there."""
        return f"{self.host}.sia"


class Candidate(NamedTuple):
    """A stage and the module that ends it, not yet proved."""

    stage: Stage
    host: str
    side: str


def find_sites(
    model: nn.Module,
    stages: StageRequest | Sequence[StageRequest] | None = None,
    *,
    example_input: Any = None,
) -> list[Site]:
    """Find the sites that :func:`inject_sia` would take, and change nothing.

    Args:
        model: a model of timm or torchvision, or any module with ``stages`` and ``example_input`` given.
        stages: names of modules, glob patterns, or reductions (4 for the last stage whose map has a quarter of the
            picture's rows); None for the reductions 4, 8 and 16, whichever there are, and for a plain vision
            transformer the blocks at a quarter, a half and three quarters of its depth.
        example_input: a tensor (N, C, H, W) that the model takes, or a tuple of its arguments; only shape, dtype
            and device count. None for what the model declares.

    Returns:
        The sites in the order in which a forward pass goes through them.

    Raises:
        InjectionError: of the class for the reason; the message names what it is about and what to do.
    """
    model = unwrapped(model)
    check_supported(model)
    candidates = [Candidate(stage, *host_of(model, stage.name)) for stage in choose(model, stages)]
    candidates = list({(candidate.host, candidate.side): candidate for candidate in candidates}.values())
    inputs = as_inputs(model, example_input)
    patches = {candidate.host: patch_module(model, candidate.host) for candidate in candidates}
    watched = {(candidate.host, candidate.side) for candidate in candidates}
    watched |= {(name, "output") for name in patches.values() if name is not None}
    found = trial.run(model, inputs, sorted(watched))
    picture = next(value for value in inputs if isinstance(value, Tensor))
    proved = []
    for candidate in candidates:
        firing = _only(candidate, found)
        proved.append((firing.order, _proved(model, candidate, firing, found, patches[candidate.host], picture)))
    return [site for _, site in sorted(proved, key=lambda pair: pair[0])]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of what torch.compile or DataParallel put around it, or the model itself."""
    while True:
        inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_modules", {}).get("_orig_mod")
        if inner is None:
            return model
        model = inner


def check_supported(model: nn.Module) -> None:
    """Refuse what cannot be changed in place, or has been.

    Raises:
        UnsupportedModelError, AlreadyInjectedError: it is so.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{name or 'the model'!r} is a ScriptModule, which takes no hooks; inject first, script or export after"
            )
        if isinstance(module, InjectedSIAttention):
            raise AlreadyInjectedError(f"the model holds SIA at {name!r} already; call eject_sia(model) first")
        kind = type(module).__name__
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel") or kind.startswith("FSDP"):
            raise UnsupportedModelError(
                f"the model is wrapped in {kind}, which would not see new parameters; inject first and wrap after"
            )


def choose(model: nn.Module, stages: StageRequest | Sequence[StageRequest] | None) -> list[Stage]:
    """The stages that are asked for.

    Raises:
        NoStagesError: None are named and the model tells of none.
        UnknownStageError: a name, pattern or reduction that is not there.
    """
    if family_of(model) == ("torchvision", "video"):
        raise UnsupportedModelError(
            f"{type(model).__name__} works on video: its maps have a time axis, and self-information is of pictures; "
            "inject into a model of pictures and run it on every frame"
        )
    known = stages_of(model)
    if stages is None:
        if not known:
            raise NoStagesError(
                f"{type(model).__name__} does not tell where its stages are (no feature_info, and no known model of "
                "torchvision); name modules, as in stages=['layer1', 'layer2'], and give an example_input"
            )
        return default_stages(known)
    requests = [stages] if isinstance(stages, (str, int)) else list(stages)
    if not requests:
        raise UnknownStageError("stages is empty; name at least one, or leave it None for the reductions 4, 8 and 16")
    return [stage for request in requests for stage in _matching(model, request, known)]


def _matching(model: nn.Module, request: StageRequest, known: list[Stage]) -> list[Stage]:
    if isinstance(request, bool) or not isinstance(request, (str, int)):
        raise TypeError(f"stages must hold names of modules, glob patterns or reductions, got {request!r}")
    if isinstance(request, int):
        matching = [stage for stage in known if stage.reduction == request]
        if not matching:
            reductions = sorted({stage.reduction for stage in known})
            raise UnknownStageError(f"no stage has the reduction {request}; the model tells of {reductions or 'none'}")
        return matching[-1:]
    by_name = {stage.name: stage for stage in known}
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if request in names:
        return [by_name.get(request, Stage(request, 0))]
    if not any(character in request for character in "*?["):
        raise UnknownStageError(f"the model has no module {request!r}; {nearest(request, [*by_name, *names])}")
    matching = [by_name.get(name, Stage(name, 0)) for name in names if fnmatch.fnmatchcase(name, request)]
    # A pattern that matches a module matches those inside of it too ("*" takes dots): keep the outermost.
    matching = [stage for stage in matching if not any(stage.name.startswith(f"{other.name}.") for other in matching)]
    if not matching:
        raise UnknownStageError(f"no module matches the pattern {request!r}; {nearest(request, [*by_name, *names])}")
    return matching


def host_of(model: nn.Module, name: str) -> tuple[str, str]:
    """The module that ends a stage, and its side.

    Containers are descended to their last real block: checkpointing passes over a Sequential, and a container that
    goes through its children would run one more.
    """
    module = model.get_submodule(name)
    while True:
        if type(module).__name__ in DENSE_BLOCKS:
            return _transition(model, name), "input"
        child = _last_block(module) if iterates(module) else _activation(module)
        if child is None:
            return name, "output"
        name, module = f"{name}.{child}", module._modules[child]  # type: ignore[assignment]


def iterates(module: nn.Module) -> bool:
    """Whether the module runs, or is, a list of its children, so that one more would be run as well."""
    if isinstance(module, CONTAINERS):
        return bool(module._modules)
    code = getattr(type(module).forward, "__code__", None)
    return bool(module._modules) and code is not None and not ITERATORS.isdisjoint(code.co_names)


def _last_block(module: nn.Module) -> str | None:
    children = [name for name, child in module._modules.items() if child is not None]
    for name in reversed(children):
        if not _is_trimming(module._modules[name]):  # type: ignore[arg-type]
            return name
    return children[-1] if children else None


def _is_trimming(module: nn.Module) -> bool:
    """Whether it is a layer that merely follows a block: a norm, a dropout, nothing."""
    if isinstance(module, (nn.Identity, nn.Dropout)) or type(module).__name__ == "DropPath":
        return True
    convolves = any(isinstance(child, nn.modules.conv._ConvNd) for child in module.modules())
    return "Norm" in type(module).__name__ and not convolves


def _activation(module: nn.Module) -> str | None:
    """The activation in a batch norm that has one: converting to synchronised batch norms drops the norm's hooks."""
    activation = module._modules.get("act") if isinstance(module, nn.modules.batchnorm._BatchNorm) else None
    return None if activation is None or isinstance(activation, nn.Identity) else "act"


def _transition(model: nn.Module, name: str) -> str:
    """The first convolution or norm, but no batch norm, of what follows a dense block: all of its maps go in there."""
    path = name
    while path:
        parent, _, own = path.rpartition(".")
        siblings = list(model.get_submodule(parent)._modules)
        following = siblings[siblings.index(own) + 1 :]
        if following:
            path = f"{parent}.{following[0]}" if parent else following[0]
            break
        path = parent
    else:
        raise UnknownStageError(f"nothing follows the dense block {name!r}; name the stage before it, or its last norm")
    module = model.get_submodule(path)
    while module._modules:
        inner = {
            child: value
            for child, value in module._modules.items()
            if value is not None and not isinstance(value, (nn.modules.batchnorm._BatchNorm, nn.ReLU))
        }
        if not inner:
            break
        child, module = next(iter(inner.items()))
        path = f"{path}.{child}"
    return path


def as_inputs(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    """The arguments of the dry run.

    Raises:
        NoStagesError: none are given and the model does not declare its input.
    """
    if isinstance(example_input, tuple):
        return example_input
    if example_input is not None:
        return (example_input,)
    size = _input_size(model)
    if size is None:
        raise NoStagesError(
            f"{type(model).__name__} does not declare its input; give example_input, a tensor such as "
            "torch.empty(1, 3, 224, 224)"
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return (torch.empty(1, *size, dtype=parameter.dtype, device="meta" if parameter.is_meta else parameter.device),)


def _input_size(model: nn.Module) -> tuple[int, ...] | None:
    for module in model.modules():
        config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
        size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if size is not None:
            height, width = _image_size(module) or size[-2:]
            return _picture_channels(module) or size[0], height, width
    if type(model).__module__.startswith("torchvision.models"):
        fixed = getattr(getattr(model, "transform", None), "fixed_size", None)  # of a detector, width first
        if fixed is not None:
            return 3, int(fixed[1]), int(fixed[0])
        side = 299 if type(model).__name__ == "Inception3" else int(getattr(model, "image_size", 224))
        return 3, side, side
    return None


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    """What the patches are cut for, where the model was made for another size than its configuration says."""
    for patches in ("patch_embed", "stem"):
        size = getattr(getattr(module, patches, None), "img_size", None)
        if isinstance(size, (tuple, list)) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


def _picture_channels(module: nn.Module) -> int | None:
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels <= 4 else None


def _only(candidate: Candidate, found: trial.Trial) -> trial.Firing:
    firings = found.firings[candidate.host, candidate.side]
    if len(firings) != 1:
        how = "does not run in a forward pass" if not firings else f"runs {len(firings)} times in a forward pass"
        raise FiringError(
            f"{candidate.host!r}, which ends the stage {candidate.stage.name!r}, {how}; SIA needs a module that runs "
            "once: name another one"
        )
    return firings[0]


def _proved(
    model: nn.Module,
    candidate: Candidate,
    firing: trial.Firing,
    found: trial.Trial,
    patches: str | None,
    picture: Tensor,
) -> Site:
    """The site, if its output is one feature map on the trunk."""
    host, output, size = candidate.host, firing.output, None
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor) and is_size(output[1]):
        output, size = output
    if not isinstance(output, Tensor):
        raise OutputTypeError(
            f"{host!r} gives {_described(output)}, where SIA needs one feature map; name a module that gives a tensor"
        )
    if firing.node is None or not found.decides(firing.node):
        raise OffTrunkError(
            f"the output of {host!r} does not decide the model's output: a path leads around it; name a module that "
            "the whole signal goes through, such as a whole block or stage"
        )
    size = size or next((value for value in firing.inputs if is_size(value)), None)
    layout = Layout(layout_kind(model, host, output))
    if layout.kind == "NLC":
        layout, by_patches = _token_layout(model, candidate, output, size, patches, found, picture)
        patches = patches if by_patches else None
    else:
        patches = None
    channels = layout.channels(output)
    expected = candidate.stage.channels
    if expected is not None and channels != expected and candidate.side == "output":
        raise LayoutError(
            f"{host!r} gives {tuple(output.shape)}, with {channels} channels as {layout.kind}, but the model declares "
            f"{expected}; name the module that gives them"
        )
    maps, _ = layout.read(output, layout.grid)
    reduction = max(1, round(picture.shape[-2] / max(1, maps.shape[-2])))
    return Site(host, candidate.side, candidate.stage.name, channels, reduction, layout, patches)


def _token_layout(
    model: nn.Module,
    candidate: Candidate,
    output: Tensor,
    size: Any,
    patches: str | None,
    found: trial.Trial,
    picture: Tensor,
) -> tuple[Layout, bool]:
    """The layout of tokens, and whether their grid is that of the patches."""
    host, prefixes = candidate.host, declared_prefixes(model, candidate.host)
    if size is not None:
        return Layout("NLC", (int(size[0]), int(size[1])), prefixes), False
    grid = None
    if patches is not None and len(found.firings[patches, "output"]) == 1:
        patch = found.firings[patches, "output"][0]
        grid = grid_of(model.get_submodule(patches), patch.inputs, patch.output)
    if grid is None:
        raise LayoutError(
            f"{host!r} gives {output.shape[1]} tokens, and nothing tells their rows and columns; SIA needs a grid"
        )
    base = max(1, round(picture.shape[-2] / grid[0]))
    declared = candidate.stage.reduction // base if candidate.stage.reduction else 0
    for stride in dict.fromkeys([max(1, declared), 1, 2, 4, 8]):
        rows, columns = -(-grid[0] // stride), -(-grid[1] // stride)
        if output.shape[1] - rows * columns in prefixes:
            return Layout("NLC", (rows, columns), prefixes, stride), True
    raise LayoutError(
        f"{host!r} gives {output.shape[1]} tokens, which a grid of {grid[0]} by {grid[1]} patches with "
        f"{' or '.join(map(str, prefixes))} tokens before it does not make"
    )


def _described(output: Any) -> str:
    if isinstance(output, (list, tuple)):
        inner: Iterable[str] = (_described(value) for value in output)
        return f"a {type(output).__name__} of {len(output)} ({', '.join(inner)})"
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
