"""Prove sites by dry runs: what a stage returns, in which layout, and that the model's output depends on it alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor, nn

from sia_layers.injection import dry_run
from sia_layers.injection.candidates import Candidate, Overrides, Site
from sia_layers.injection.errors import (
    DryRunError,
    FiringError,
    InjectionError,
    LayoutError,
    OffTrunkError,
    OutputTypeError,
)
from sia_layers.injection.families import MAP_ITEMS, UNREADABLE_FAMILIES, family_at, known_kind
from sia_layers.injection.inputs import Inputs
from sia_layers.injection.layouts import KINDS, Layout
from sia_layers.injection.outputs import Item, described, items_of
from sia_layers.injection.tokens import Tokens, patch_module

# The layout that follows from the axes that change with the picture's rows and columns.
CHANGED: Final[dict[tuple[int, ...], str]] = {(2, 3): "NCHW", (1, 2): "NHWC", (1,): "NLC"}
CHANGED_VIDEO: Final[dict[tuple[int, ...], str]] = {(3, 4): "NCTHW", (2, 3): "NTHWC"}


class Proved(NamedTuple):
    """A site, and its place in the order of the forward pass."""

    order: int
    site: Site


def prove(
    model: nn.Module, candidates: Sequence[Candidate], inputs: Inputs, overrides: Overrides, scope: str = ""
) -> list[Site]:
    """Return the sites of all candidates in the order in which they run.

    Raises:
        InjectionError: a candidate is not a site; the error is that of the first such candidate.
    """
    found: list[Proved] = []
    for _, outcome in each(model, candidates, inputs, overrides, scope):
        if isinstance(outcome, InjectionError):
            raise outcome
        found += outcome
    if (overrides.grid, overrides.prefix_tokens) != (None, None) and all(
        site.layout.kind != "NLC" for _, site in found
    ):
        raise LayoutError("grid and prefix_tokens are for tokens, and no stage returns any; leave them out")
    return [site for _, site in sorted(found, key=lambda proved: proved.order)]


def each(
    model: nn.Module, candidates: Sequence[Candidate], inputs: Inputs, overrides: Overrides, scope: str = ""
) -> list[tuple[Candidate, list[Proved] | InjectionError]]:
    """Return each candidate with its sites, or with the error that tells why it has none.

    Raises:
        DryRunError: the model fails on the inputs.
    """
    survey = _Survey(model, candidates, inputs, overrides, scope)
    outcomes: list[tuple[Candidate, list[Proved] | InjectionError]] = []
    for candidate in candidates:
        try:
            outcomes.append((candidate, survey.sites(candidate)))
        except InjectionError as refusal:
            outcomes.append((candidate, refusal))
    return outcomes


def read(model: nn.Module, candidates: Sequence[Candidate], inputs: Inputs, overrides: Overrides) -> list[Site]:
    """Return how to read the first feature map that each candidate returns, on the trunk or not.

    Raises:
        InjectionError: a candidate does not run, or returns nothing that can be read as a map.
    """
    survey = _Survey(model, candidates, inputs, overrides, "")
    return [survey.readable(candidate) for candidate in candidates]


class _Reading(NamedTuple):
    """An item of a host's output that can be read as maps."""

    item: Item
    tensor: Tensor
    node: int  # index of its node among those of the output
    layout: Layout
    patches: str | None


class _Survey:
    """Dry runs of a model, and what they tell about its candidates."""

    def __init__(
        self, model: nn.Module, candidates: Sequence[Candidate], inputs: Inputs, overrides: Overrides, scope: str
    ) -> None:
        self.model, self.candidates, self.inputs = model, candidates, inputs
        self.overrides, self.scope = overrides, scope
        patches = {patch_module(model, candidate.host) for candidate in candidates} - {None}
        self.watched = {candidate.key for candidate in candidates} | {(str(name), "output") for name in patches}
        self.convs = [
            name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Conv3d)) and name
        ]
        self.first = dry_run.run(model, inputs, self.watched, parts=[scope], shapes=self.convs)
        self.others: dict[tuple[int, ...], dry_run.DryRun | None] = {}
        self.tokens = Tokens(model, self.first, inputs.picture, overrides.grid, overrides.prefix_tokens, self.at)

    def at(self, *size: int) -> dry_run.DryRun | None:
        """Return a dry run at another (frames,) height and width; None if the model fails at that size."""
        if size not in self.others:
            try:
                inputs = self.inputs.resized(*size)
                self.others[size] = dry_run.run(self.model, inputs, self.watched)
            except DryRunError:
                self.others[size] = None
        return self.others[size]

    def sites(self, candidate: Candidate) -> list[Proved]:
        """Return the sites of a candidate.

        Raises:
            InjectionError: it has none.
        """
        self._check_firings(candidate)
        firing = self.first.firings[candidate.key][0]
        readings, bypassed = self._gated(candidate, self._readings(candidate, firing))
        alone = len(readings) == 1
        return [Proved(firing.order, self._site(candidate, reading, alone, bypassed)) for reading in readings]

    def readable(self, candidate: Candidate) -> Site:
        """Return how to read the first feature map that a candidate returns, on the trunk or not.

        Raises:
            InjectionError: it does not run, or returns none.
        """
        firings = self.first.firings[candidate.key]
        if not firings:
            raise FiringError(f"{candidate.host!r} does not run in a forward pass; name a module that does")
        return self._site(candidate, self._readings(candidate, firings[0])[0], True, False)

    def _site(self, candidate: Candidate, reading: _Reading, alone: bool, bypassed: bool) -> Site:
        channels, expected = reading.layout.channels(reading.tensor), candidate.stage.channels
        tried = reading.layout._replace(stride=1)  # because its grid is that of the tokens, not of the patches
        maps = tried.read(reading.tensor, [tried.grid]).maps
        reduction = max(1, round(self.inputs.picture.shape[-2] / max(1, maps.shape[-2])))
        declares = expected is not None and candidate.side == "output" and reading.item is None
        if declares and channels != expected and not self._was_pruned(candidate, reading, reduction):
            raise LayoutError(
                f"{candidate.host!r} returns {tuple(reading.tensor.shape)}, with {channels} channels as "
                f"{reading.layout.kind}, but the model declares {expected}; name the module that returns them"
            )
        return Site(
            host=candidate.host,
            side=candidate.side,
            stage=candidate.stage.name,
            channels=channels,
            reduction=reduction,
            layout=reading.layout,
            patches=reading.patches,
            item=reading.item,
            alone=alone,
            bypassed=bypassed,
        )

    def _was_pruned(self, candidate: Candidate, reading: _Reading, reduction: int) -> bool:
        """Tell whether a stage differs from its declaration only in the number of channels, as after pruning."""
        try:
            kind = self._proved_kind(candidate, reading.item, reading.tensor)
        except LayoutError:
            return False
        return kind == reading.layout.kind and reduction == candidate.stage.reduction

    def _check_firings(self, candidate: Candidate) -> None:
        counts = {other.host: len(self.first.firings[other.key]) for other in self.candidates}
        count = counts[candidate.host]
        what = f"{candidate.host!r}, which ends the stage {candidate.stage.name!r},"
        if not count:
            raise FiringError(f"{what} does not run in a forward pass; name a module that does")
        ran = {host: number for host, number in counts.items() if number}
        other = next((host for host, number in ran.items() if number != count), None)
        if other is not None:
            raise FiringError(
                f"{what} runs {count} times in a forward pass and {other!r} {ran[other]} times; all sites must run "
                "equally often, so leave one of them out of stages, or inject into the parts of the model separately"
            )
        firings = [(firing.order, key) for key in self.watched for firing in self.first.firings[key]
                   if key in {other.key for other in self.candidates}]  # fmt: skip
        in_order = [key for _, key in sorted(firings)]
        if in_order != in_order[: len(ran)] * count:
            raise FiringError(
                f"{what} runs {count} times in a forward pass, not in turn with the other sites; SIA passes maps from "
                "the first site to the last, so finish one run of the backbone before the next, or inject at one stage"
            )

    def _readings(self, candidate: Candidate, firing: dry_run.Firing) -> list[_Reading]:
        """Return the items of a host's output that can be read as maps.

        Raises:
            OutputTypeError, LayoutError: there is none.
        """
        wanted = MAP_ITEMS.get(family_at(self.model, candidate.host).name)
        items = [entry for entry in items_of(firing.value) if wanted is None or entry[0] in (None, wanted)]
        if not items:
            raise OutputTypeError(
                f"{candidate.host!r} returns {described(firing.value)}, where SIA needs a feature map; name a module "
                "that returns a tensor"
            )
        found: list[_Reading] = []
        refusals: list[LayoutError] = []
        for item, tensor, node in items:
            try:
                kind = self._kind(candidate, item, tensor)
                layout, patches = Layout(kind), None
                if kind == "NLC":
                    layout, patches = self.tokens.layout(candidate.host, candidate.stage, tensor, firing)
                found.append(_Reading(item, tensor, node, layout, patches))
            except LayoutError as refusal:
                refusals.append(refusal)
        if not found:
            raise refusals[0]
        return found

    def _kind(self, candidate: Candidate, item: Item, tensor: Tensor) -> str:
        """Return the kind of layout: from the caller, from the family, or proved at another resolution."""
        host, shape = candidate.host, tuple(tensor.shape)
        family = family_at(self.model, host)
        if self.overrides.layout is not None:
            if tensor.dim() != KINDS[self.overrides.layout]:
                raise LayoutError(
                    f"layout={self.overrides.layout!r} was given, but {host!r} returns a tensor of shape {shape}"
                )
            return self.overrides.layout
        whole_level = type(self.model.get_submodule(host)).__name__ == "NestLevel"
        unreadable = UNREADABLE_FAMILIES.get(family[:2])
        if unreadable is not None and not whole_level:
            raise LayoutError(f"{host!r} cannot be read as maps: {unreadable}")
        known = known_kind(self.model, host, tensor)
        return known if known is not None else self._proved_kind(candidate, item, tensor)

    def _proved_kind(self, candidate: Candidate, item: Item, tensor: Tensor) -> str:
        """Return the kind of layout in which the channels are the axis that does not change with the resolution."""
        host, shape, axes = candidate.host, tuple(tensor.shape), range(1, tensor.dim())
        height, width = self.inputs.picture.shape[-2:]
        for size in ((2 * height, 2 * width), (height // 2, width // 2), (height + height // 2, width + width // 2)):
            other = self._again(candidate, item, size)
            if other is None or len(other) != len(shape):
                continue
            changed = tuple(axis for axis in axes if other[axis] != shape[axis])
            if len(shape) == 5:
                return self._proved_video(candidate, item, shape, changed)
            kind = CHANGED.get(changed)
            if kind is not None and KINDS[kind] == len(shape):
                return kind
            break
        fitting = " or ".join(repr(kind) for kind in CHANGED.values() if KINDS[kind] == len(shape))
        raise LayoutError(
            f"{host!r} returns a tensor of shape {shape}, and nothing proves which axis has the channels (the model "
            "takes no other resolution, or the shape does not depend on it); "
            + (f"pass layout={fitting}, or " if fitting else "")
            + "name a module that returns feature maps"
        )

    def _proved_video(self, candidate: Candidate, item: Item, shape: tuple[int, ...], changed: tuple[int, ...]) -> str:
        picture = self.inputs.picture
        kind = CHANGED_VIDEO.get(changed)
        if kind is not None and picture.dim() == 5:
            size = (2 * picture.shape[-3], *picture.shape[-2:])
            longer = self._again(candidate, item, size)
            time = [axis for axis in range(1, 5) if longer is not None and longer[axis] != shape[axis]]
            if longer is None or time == [2 if kind == "NCTHW" else 1]:
                return kind
        raise LayoutError(
            f"{candidate.host!r} returns a tensor of shape {shape}, and nothing proves which axis is time; pass "
            "layout='NCTHW' or 'NTHWC'"
        )

    def _again(self, candidate: Candidate, item: Item, size: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape of an item at another size of the picture; None if the model fails at that size."""
        other = self.at(*size)
        firings = other.firings[candidate.key] if other is not None else []
        found = [tensor for key, tensor, _ in items_of(firings[0].value) if key == item] if firings else []
        return tuple(found[0].shape) if found else None

    def _gated(self, candidate: Candidate, readings: list[_Reading]) -> tuple[list[_Reading], bool]:
        """Choose items to gate such that the output depends on them alone; also return whether some path bypasses them.

        Raises:
            OffTrunkError: there are no such items, and the stage is not declared nor bypasses allowed.
        """
        judges = [self.first.parts[""], *([self.first.parts[self.scope]] if self.scope else [])]
        firings = self.first.firings[candidate.key]

        def nodes(chosen: Iterable[_Reading]) -> list[Any]:
            found = [firing.nodes[reading.node] for reading in chosen for firing in firings]
            return [node for node in found if node is not None]

        used = [one for one in readings if any(judge.depends_on(nodes([one])) for judge in judges)]
        for chosen in [*([reading] for reading in used), used]:
            if any(judge.decided_by(nodes(chosen)) for judge in judges):
                return chosen, False
        if candidate.declared or self.overrides.allow_bypass:
            of_channels = [one for one in used if one.layout.channels(one.tensor) == candidate.stage.channels]
            if used:
                return (of_channels or used)[:1], True
        raise OffTrunkError(self._why_off_trunk(candidate, nodes(readings)))

    def _why_off_trunk(self, candidate: Candidate, nodes: list[Any]) -> str:
        host = candidate.host
        if not any(part.ends for part in self.first.parts.values()):
            return (
                "no tensor was found in the model's output; it must be a tensor, or a tuple, list, set, mapping or "
                "dataclass of tensors"
            )
        if not any(part.depends_on(nodes) for part in self.first.parts.values()):
            return f"the model's output does not depend on the output of {host!r}; name a module that it depends on"
        parents = [host.rsplit(".", depth)[0] for depth in range(host.count("."), 0, -1)]
        around = dry_run.run(self.model, self.inputs, [candidate.key], parts=parents)
        again = [node for firing in around.firings[candidate.key] for node in firing.nodes if node is not None]
        advice = "name a module that the whole signal passes through, such as a whole block or stage"
        if self.scope and not f"{host}.".startswith(f"{self.scope}."):
            advice = f"name a stage of {self.scope!r}, or leave stages out to have them chosen there"
        for parent in parents:
            if around.parts[parent].decided_by(again):
                advice = (
                    f"it decides the output of {parent!r}, so inject into that part: inject_sia(model.{parent}, ...)"
                )
                break
        return (
            f"the output of {host!r} does not decide the model's output: a path bypasses it; {advice}, or inject "
            "anyway with allow_bypass=True"
        )
