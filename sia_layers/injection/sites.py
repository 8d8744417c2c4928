"""Where Self-Information Attention goes: the sites of a model, found and proved on a dry run."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sia_layers.injection import dry_run, proof
from sia_layers.injection.errors import InjectionError, NoStagesError, UnknownStageError, nearest
from sia_layers.injection.hosts import check_supported, host_of, unwrapped
from sia_layers.injection.inputs import Inputs, inputs_for
from sia_layers.injection.proof import Candidate, Said, Site
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
    """Find the sites that :func:`inject_sia` would take, and change nothing.

    Args:
        model: a model of timm, torchvision, transformers, segmentation_models_pytorch, ultralytics or open_clip, or
            any module with ``stages`` and an example given.
        stages: names of modules, glob patterns, or reductions (4 for the last stage whose map has a quarter of the
            picture's rows); None for the reductions 4, 8 and 16, whichever exist, and for a plain vision transformer
            the blocks at a quarter, a half and three quarters of its depth.
        example_input: what the model takes: a tensor (N, C, H, W), video (N, C, T, H, W), a batch dict or a list of
            pictures; a tuple holds several arguments. The first floating tensor of four or five axes is the picture.
            Only shapes, dtypes and devices count. None for what the model declares.
        example_kwargs: what the model takes by keyword, such as ``{"pixel_values": pictures}``.
        layout: of the stages' outputs: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens), ``"NCTHW"`` or ``"NTHWC"``
            (video). None: known from the model's family, or proved by a second dry run at another resolution.
        grid: rows and columns of tokens (frames before them, of video), where the model does not tell.
        prefix_tokens: number of tokens before those of the grid (class, registers), where the model does not tell.
        allow_bypass: take stages that a path from input to output leads around, such as a skip connection.

    Returns:
        The sites in the order in which a forward pass goes through them.

    Raises:
        InjectionError: of the class for the reason; the message names what it is about and what to do.
        TypeError, ValueError: an argument of the wrong kind.

    Example:
        >>> from torchvision.models import resnet18
        >>> [(site.host, site.channels, site.reduction) for site in find_sites(resnet18())]
        [('layer1.1', 64, 4), ('layer2.1', 128, 8), ('layer3.1', 256, 16)]
    """
    model = unwrapped(model)
    check_supported(model)
    said = Said.checked(layout, grid, prefix_tokens, allow_bypass)
    requests = as_requests(stages)
    known = stages_of(model)
    check_known(model, requests, known)
    inputs = inputs_for(model, example_input, example_kwargs)
    known = complete(model, requests, known, inputs, said)
    chosen = choose(model, requests, known)
    return proof.prove(model, _candidates(model, chosen, known), inputs, said, known.scope)


def check_known(model: nn.Module, requests: list[StageRequest] | None, known: Stages) -> None:
    """Refuse to go on where no stages are named and the model tells of none.

    Raises:
        NoStagesError: so it is.
    """
    if requests is None and not known.stages and not known.features:
        raise NoStagesError(
            f"{type(model).__name__} does not tell where its stages are (no feature_info, and no model of a library "
            "that is known); name modules, as in stages=['layer1', 'layer2'], and give an example_input"
        )


def complete(
    model: nn.Module, requests: list[StageRequest] | None, known: Stages, inputs: Inputs, said: Said
) -> Stages:
    """Return the stages with what only a dry run can tell, as far as the requests need it."""
    if known.features:
        known = _traced(model, inputs, known)
    by_reduction = requests is None or any(isinstance(request, int) for request in requests)
    return _measured(model, inputs, known, said) if by_reduction else known


def as_requests(stages: StageRequest | Sequence[StageRequest] | None) -> list[StageRequest] | None:
    """Return the requests as a list, None for the model's own stages.

    Raises:
        TypeError: a request that is no name, pattern or reduction.
        UnknownStageError: an empty list.
    """
    if stages is None:
        return None
    requests = [stages] if isinstance(stages, (str, int)) else list(stages)
    for request in requests:
        if isinstance(request, bool) or not isinstance(request, (str, int)):
            raise TypeError(f"stages must hold names of modules, glob patterns or reductions, got {request!r}")
    if not requests:
        raise UnknownStageError("stages is empty; name at least one, or leave it None for the reductions 4, 8 and 16")
    return requests


def choose(model: nn.Module, requests: list[StageRequest] | None, known: Stages) -> list[Stage]:
    """Return the stages that are asked for.

    Raises:
        UnknownStageError: a name, pattern or reduction that is not there.
    """
    if requests is None:
        return default_stages(list(known.stages))
    return [stage for request in requests for stage in _matching(model, request, list(known.stages))]


def _matching(model: nn.Module, request: StageRequest, known: list[Stage]) -> list[Stage]:
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


def _candidates(model: nn.Module, chosen: Sequence[Stage], known: Stages) -> list[Candidate]:
    declared = {stage.name for stage in known.stages}
    found = [Candidate(stage, *host_of(model, stage.name), stage.name in declared) for stage in chosen]
    return list({(candidate.host, candidate.side): candidate for candidate in found}.values())


def _traced(model: nn.Module, inputs: Inputs, known: Stages) -> Stages:
    """The stages of an encoder that returns its features: the modules that gave them."""
    found = dry_run.run(model, inputs, [], parts=[known.scope], features=[known.scope]).makers[known.scope]
    if not found:
        raise NoStagesError(
            f"the features of {known.scope or type(model).__name__!r} are no module's own outputs; name modules in "
            "stages"
        )
    return known._replace(stages=tuple(Stage(name, 0) for name in dict.fromkeys(found)), features=False)


def _measured(model: nn.Module, inputs: Inputs, known: Stages, said: Said) -> Stages:
    """The stages with the reductions that a dry run measures, where the model does not declare them."""
    if all(stage.reduction for stage in known.stages):
        return known
    measured = []
    candidates = _candidates(model, known.stages, known)
    for candidate, outcome in proof.each(model, candidates, inputs, said, known.scope):
        if not isinstance(outcome, InjectionError):
            measured.append((outcome[0].order, candidate.stage._replace(reduction=outcome[0].site.reduction)))
        else:
            refusal = outcome
    if not measured:
        raise refusal
    return known._replace(stages=tuple(stage for _, stage in sorted(measured, key=lambda pair: pair[0])))
