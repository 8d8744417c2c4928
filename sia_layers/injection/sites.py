"""Find the sites of a model for Self-Information Attention, and prove them by a dry run."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from sia_layers.injection import dry_run, proof
from sia_layers.injection.candidates import Candidate, Overrides, Site
from sia_layers.injection.config import plain
from sia_layers.injection.errors import DryRunError, InjectionError, NoStagesError, UnknownStageError, nearest
from sia_layers.injection.hosts import check_supported, host_of, is_container, unwrapped
from sia_layers.injection.inputs import Inputs, inputs_for
from sia_layers.injection.names import CHILD, child_of
from sia_layers.injection.stages import Stage, Stages, default_stages, stages_of

StageRequest = str | int  # a name, a pattern, or a reduction


def find_sites(
    model: nn.Module,
    stages: StageRequest | Sequence[StageRequest] | None = None,
    *,
    example_input: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    layout: str | None = None,
    grid: Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    allow_bypass: bool = False,
) -> list[Site]:
    """Find the sites at which :func:`inject_sia` would inject, without changing the model.

    Args:
        model: a model of timm, torchvision, transformers, segmentation_models_pytorch, ultralytics or open_clip, or
            any module, given ``stages`` and an example.
        stages: names of modules, glob patterns, or reductions (4 for the last stage whose map has a quarter of the
            picture's rows). None for the reductions 4, 8 and 16, whichever exist; for a plain vision transformer, the
            blocks at a quarter, a half and three quarters of its depth.
        example_input: what the model takes as input: a tensor (N, C, H, W), video (N, C, T, H, W), a batch dict or a
            list of pictures; a tuple holds several arguments. The first floating-point tensor of four or five axes is
            the picture. Only shapes, dtypes and devices matter. None for what the model declares.
        example_kwargs: what the model takes by keyword, such as ``{"pixel_values": pictures}``.
        layout: layout of the stages' outputs: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens), ``"NCTHW"`` or ``"NTHWC"``
            (video). None to know it from the model's family, or else prove it by a dry run at another resolution.
        grid: rows and columns of tokens, or frames, rows and columns for video, if the model does not tell.
        prefix_tokens: number of (class, register) tokens before those of the grid, if the model does not tell.
        allow_bypass: accept stages that some path from input to output bypasses, such as a skip connection.

    Returns:
        The sites in the order of a forward pass.

    Raises:
        InjectionError: SIA cannot be injected as requested. Each reason has its own subclass; the message names the
            value and says what to do.
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> from torchvision.models import resnet18
        >>> [(site.host, site.channels, site.reduction) for site in find_sites(resnet18())]
        [('layer1.1', 64, 4), ('layer2.1', 128, 8), ('layer3.1', 256, 16)]
    """
    model = unwrapped(model)
    check_supported(model)
    overrides = Overrides.checked(layout, grid, prefix_tokens, allow_bypass)
    requests = as_requests(stages)
    known = stages_of(model)
    check_known(model, requests, known)
    inputs = inputs_for(model, example_input, example_kwargs)
    known = complete(model, requests, known, inputs, overrides)
    chosen = choose(model, requests, known)
    candidates = _candidates(model, chosen, known, inputs)
    _check_distinct(model, candidates)
    return proof.prove(model, candidates, inputs, overrides, known.scope)


def check_known(
    model: nn.Module,
    requests: list[StageRequest] | None,
    known: Stages,
    advice: str = "stages=['layer1', 'layer2'], and pass an example_input",
) -> None:
    """Check that stages are named or that the model declares some.

    Args:
        model: the model.
        requests: the requested stages; None for the model's own.
        known: the stages that it declares.
        advice: how the user names stages, for the error.

    Raises:
        NoStagesError: neither is the case.
    """
    if requests is None and not known.stages and not known.features:
        raise NoStagesError(
            f"{type(model).__name__} does not declare its stages (it has no feature_info and is not from a known "
            f"library); name modules, as in {advice}"
        )


def complete(
    model: nn.Module, requests: list[StageRequest] | None, known: Stages, inputs: Inputs, overrides: Overrides
) -> Stages:
    """Return the stages, completed by dry runs as far as the requests need it."""
    if known.features:
        known = _traced(model, inputs, known)
    by_reduction = requests is None or any(isinstance(request, int) for request in requests)
    return _measured(model, inputs, known, overrides) if by_reduction else known


def as_requests(
    stages: StageRequest | Sequence[StageRequest] | None, name: str = "stages"
) -> list[StageRequest] | None:
    """Return the requests, an argument called ``name``, as a list; None for the model's own stages.

    Raises:
        TypeError: a request is not a name, pattern or reduction.
        UnknownStageError: the list is empty.
    """
    stages = plain(stages)
    if stages is None:
        return None
    if not isinstance(stages, (str, int, Iterable)):
        raise TypeError(f"{name} must hold names of modules, glob patterns or reductions, got {stages!r}")
    requests = [stages] if isinstance(stages, (str, int)) else list(map(plain, stages))
    for request in requests:
        if isinstance(request, bool) or not isinstance(request, (str, int)):
            raise TypeError(f"{name} must hold names of modules, glob patterns or reductions, got {request!r}")
    if not requests:
        raise UnknownStageError(f"{name} is empty; name at least one, or pass None for the reductions 4, 8 and 16")
    return requests


def choose(model: nn.Module, requests: list[StageRequest] | None, known: Stages) -> list[Stage]:
    """Return the requested stages.

    Raises:
        UnknownStageError: the model has no such name, pattern or reduction.
    """
    if requests is None:
        return default_stages([stage for stage in known.stages if _has_host(model, stage)] or list(known.stages))
    return [stage for request in requests for stage in _matching(model, request, list(known.stages))]


def _has_host(model: nn.Module, stage: Stage) -> bool:
    """Tell whether a stage has a host, which the last dense block of an encoder lacks."""
    try:
        host_of(model, stage.name)
    except UnknownStageError:
        return False
    return True


def _matching(model: nn.Module, request: StageRequest, known: list[Stage]) -> list[Stage]:
    if isinstance(request, int):
        matching = [stage for stage in known if stage.reduction == request]
        if not matching:
            reductions = sorted({stage.reduction for stage in known})
            raise UnknownStageError(f"no stage has the reduction {request}; the model has {reductions or 'none'}")
        return matching[-1:]
    by_name = {stage.name: stage for stage in known}
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    if request in names:
        return [by_name.get(request, Stage(request, 0))]
    if not any(character in request for character in "*?["):
        raise UnknownStageError(f"the model has no module {request!r}; {nearest(request, [*by_name, *names])}")
    matching = [by_name.get(name, Stage(name, 0)) for name in names if fnmatch.fnmatchcase(name, request)]
    # A pattern that matches a module may match its children too, because "*" matches dots: keep the outermost modules.
    matching = [stage for stage in matching if not any(stage.name.startswith(f"{other.name}.") for other in matching)]
    if not matching:
        raise UnknownStageError(f"no module matches the pattern {request!r}; {nearest(request, [*by_name, *names])}")
    return matching


def _candidates(model: nn.Module, chosen: Sequence[Stage], known: Stages, inputs: Inputs) -> list[Candidate]:
    declared = {stage.name for stage in known.stages}
    runs_children = functools.cache(functools.partial(_runs_children, model, inputs))
    hosts = [host_of(model, stage.name, runs_children) for stage in chosen]
    found = [Candidate(stage, *host, stage.name in declared) for stage, host in zip(chosen, hosts, strict=True)]
    return list({(candidate.host, candidate.side): candidate for candidate in found}.values())


def _runs_children(model: nn.Module, inputs: Inputs, name: str) -> bool:
    """Tell whether a module runs whatever children it has: give it one more, and see whether a dry run runs that."""
    module = model.get_submodule(name)
    if is_container(module) or hasattr(module, CHILD):
        return is_container(module)
    module.add_module(CHILD, nn.Identity())
    key = (child_of(name), "output")
    try:
        return bool(dry_run.run(model, inputs, [key]).firings[key])
    except DryRunError:  # perhaps because the child was run; if not, the next dry run says why
        return True
    finally:
        del module._modules[CHILD]


def _check_distinct(model: nn.Module, candidates: Sequence[Candidate]) -> None:
    """Check that no host is requested under two of its names."""
    first: dict[nn.Module, Candidate] = {}
    for candidate in candidates:
        other = first.setdefault(model.get_submodule(candidate.host), candidate)
        if other.host != candidate.host:
            raise InjectionError(
                f"the stages {other.stage.name!r} and {candidate.stage.name!r} end in one module that has two names, "
                f"{other.host!r} and {candidate.host!r}, and takes one site; name only one of the two"
            )


def _traced(model: nn.Module, inputs: Inputs, known: Stages) -> Stages:
    """Return the stages of an encoder that returns its features: the modules that produced them."""
    found = dry_run.run(model, inputs, [], parts=[known.scope], features=[known.scope]).makers[known.scope]
    if not found:
        raise NoStagesError(
            f"the features of {known.scope or type(model).__name__!r} are not the outputs of modules; name modules in "
            "stages"
        )
    return known._replace(stages=tuple(Stage(name, 0) for name in dict.fromkeys(found)), features=False)


def _measured(model: nn.Module, inputs: Inputs, known: Stages, overrides: Overrides) -> Stages:
    """Return the stages with their reductions, which a dry run measures if the model does not declare them."""
    if all(stage.reduction for stage in known.stages):
        return known
    measured = []
    candidates = _candidates(model, known.stages, known, inputs)
    for candidate, outcome in proof.each(model, candidates, inputs, overrides, known.scope):
        if not isinstance(outcome, InjectionError):
            measured.append((outcome[0].order, candidate.stage._replace(reduction=outcome[0].site.reduction)))
        else:
            refusal = outcome
    if not measured:
        raise refusal
    return known._replace(stages=tuple(stage for _, stage in sorted(measured, key=lambda pair: pair[0])))
