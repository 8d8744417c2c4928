"""Candidates, which may become sites of a model, the sites themselves, and what the caller says about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sia_layers.injection import dry_run
from sia_layers.injection.config import plain
from sia_layers.injection.layouts import KINDS, Grid, Layout
from sia_layers.injection.names import child_of
from sia_layers.injection.outputs import Item
from sia_layers.injection.stages import Stage
from sia_layers.kernels.options import as_bool, as_choice, as_int


class Site(NamedTuple):
    """A place in a model for Self-Information Attention.

    Attributes:
        host: full name of the module whose output is gated.
        side: ``"output"``, or ``"input"`` if the input of the host is gated instead.
        stage: full name of the stage that the host ends.
        channels: channels of the feature map.
        reduction: number of rows of the picture for each row of the map, as measured.
        layout: layout of the tensor that is gated.
        patches: full name of the module that makes the patches, for tokens.
        item: index or key of the item of the host's output that is gated; None if the output is one tensor.
        alone: whether it is the only item of the host's output that is gated.
        bypassed: whether some path from input to output bypasses the site.
    """

    host: str
    side: str
    stage: str
    channels: int
    reduction: int
    layout: Layout
    patches: str | None = None
    item: Item = None
    alone: bool = True
    bypassed: bool = False

    @property
    def name(self) -> str:
        """Full name of the SIA module at this site."""
        own = child_of(self.host)
        return own if self.alone else f"{own}.{self.item}"


class Candidate(NamedTuple):
    """A stage and its host, not proved yet; ``declared`` tells whether the model itself declares the stage."""

    stage: Stage
    host: str
    side: str
    declared: bool

    @property
    def key(self) -> dry_run.Key:
        """What a dry run watches: the host and its side."""
        return self.host, self.side


class Overrides(NamedTuple):
    """What the caller says about the sites, which then needs no proof."""

    layout: str | None = None
    grid: Grid | None = None
    prefix_tokens: int | None = None
    allow_bypass: bool = False

    @classmethod
    def checked(
        cls, layout: str | None, grid: Sequence[int] | None, prefix_tokens: int | None, allow_bypass: bool
    ) -> Overrides:
        """Check the arguments of a caller.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range.
        """
        if layout is not None:
            as_choice("layout", layout, tuple(KINDS))
        if grid is not None:
            if not isinstance(grid, Iterable):
                raise TypeError(f"grid must be (rows, columns) or (frames, rows, columns), got {grid!r}")
            grid = tuple(as_int("grid", plain(side)) for side in grid)
            if len(grid) not in (2, 3) or min(grid) < 1:
                raise ValueError(f"grid must be (rows, columns) or (frames, rows, columns), each 1 or more, got {grid}")
        if prefix_tokens is not None:
            prefix_tokens = as_int("prefix_tokens", plain(prefix_tokens))
            if prefix_tokens < 0:
                raise ValueError(f"prefix_tokens must be 0 or more, got {prefix_tokens}")
        if layout not in (None, "NLC") and (grid is not None or prefix_tokens is not None):
            raise ValueError(f"grid and prefix_tokens are for tokens, layout='NLC'; got layout={layout!r}")
        return cls(layout, grid, prefix_tokens, as_bool("allow_bypass", plain(allow_bypass)))
