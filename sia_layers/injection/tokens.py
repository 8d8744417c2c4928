"""Find the grid of tokens: rows, columns, prefix tokens, and the module whose patches determine them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

from sia_layers.injection import dry_run
from sia_layers.injection.errors import LayoutError
from sia_layers.injection.families import PREFIX_FIRST, ancestors, declared_prefixes, family_at, token_order
from sia_layers.injection.layouts import Grid, Layout, cell_count, grids_in, strided
from sia_layers.injection.module import patch_grid
from sia_layers.injection.stages import Stage
from sia_layers.kernels.private_torch import concatenation

# Attributes that hold the module that makes the patches; the grid of the patches is that of the tokens.
PATCH_MODULES: Final = ("patch_embed", "patch_embed1", "embeds", "stem", "conv_proj", "pixel_embed")
MOST_PREFIXES: Final = 16
SPECIAL_TOKENS: Final = ("cls_token", "class_token", "class_embedding", "register", "dist_token", "distillation_token",
                         "storage_tokens")  # fmt: skip


class Tokens:
    """What a dry run tells about a model's tokens.

    Args:
        model: the model.
        found: the dry run, with the shapes of all convolutions.
        picture: the input of the dry run.
        grid: the grid that the caller gives, if any.
        prefix_tokens: the number of prefix tokens that the caller gives, if any.
        at: runs the model at another height and width; returns None if the model fails.
    """

    def __init__(
        self,
        model: nn.Module,
        found: dry_run.DryRun,
        picture: Tensor,
        grid: Grid | None,
        prefix_tokens: int | None,
        at: Callable[[int, int], dry_run.DryRun | None],
    ) -> None:
        self.model, self.found, self.picture, self.at = model, found, picture, at
        self.grid, self.prefix_tokens = grid, prefix_tokens

    def layout(self, host: str, stage: Stage, tokens: Tensor, firing: dry_run.Firing) -> tuple[Layout, str | None]:
        """Return the layout of a host's tokens, and the module whose patches determine their grid in a forward pass.

        Raises:
            LayoutError: the grid or the number of prefix tokens cannot be determined.
        """
        length = tokens.shape[1]
        ordered = token_order(self.model, host, length)
        if ordered is not None:
            return Layout("NLC", ordered[1], (0,), fixed=True, order=ordered[0]), None
        self._check_order(host, length, firing)
        prefixes = self._prefixes(host)
        if self.grid is not None:
            return self._as_said(host, length, self.grid, prefixes), None
        for grid in grids_in(firing.args, firing.kwargs, firing.value):
            layout = Layout("NLC", grid, self._with_measured(host, prefixes, length, grid))
            if layout.fits(length, grid):
                return layout, None
        return self._by_patch_module(host, stage, length, prefixes) or self._by_convolution(
            host, length, prefixes, firing
        )

    def _check_order(self, host: str, length: int, firing: dry_run.Firing) -> None:
        """Check that no tokens follow those of the patches, in models whose family does not tell.

        Raises:
            LayoutError: the model concatenates them so.
        """
        if family_at(self.model, host).library:
            return
        starts = self.found.parts[""].starts
        for node in {each for end in firing.nodes for each in dry_run.reachable(end, frozenset())}:
            joined = concatenation(node)
            if joined is None or joined[0] != 1 or len(joined[1]) != 3 or joined[1][1] != length:
                continue
            seen = [bool(starts & dry_run.reachable(part, frozenset())) for part, _ in node.next_functions]
            if any(seen) and not seen[-1]:
                raise LayoutError(
                    f"{host!r} returns {length} tokens, the last of which do not come from the picture; SIA supports "
                    "class and register tokens only before those of the patches"
                )

    def _as_said(self, host: str, length: int, grid: Grid, prefixes: tuple[int, ...]) -> Layout:
        left = length - cell_count(grid)
        if left not in prefixes and not (self.prefix_tokens is None and left == self._special_tokens()):
            raise LayoutError(
                f"{host!r} returns {length} tokens, which do not match grid={grid} with {prefixes[0]} prefix tokens; "
                "pass the grid of its patches, and prefix_tokens= if there are more tokens before them"
            )
        return Layout("NLC", grid, (left,), fixed=True)

    def _prefixes(self, host: str) -> tuple[int, ...]:
        return (self.prefix_tokens,) if self.prefix_tokens is not None else declared_prefixes(self.model, host)

    def _with_measured(self, host: str, prefixes: tuple[int, ...], length: int, grid: Grid) -> tuple[int, ...]:
        """Return the prefixes, or the number of tokens that the grid leaves if the library puts all prefixes first."""
        left = length - cell_count(grid)
        first = family_at(self.model, host).library in PREFIX_FIRST or left == self._special_tokens()
        measured = first and self.prefix_tokens is None and 0 <= left <= MOST_PREFIXES
        return (left,) if measured and left not in prefixes else prefixes

    def _special_tokens(self) -> int:
        """Return the number of class and register tokens for which the model has parameters."""
        count = 0
        for name, parameter in self.model.named_parameters():
            own = name.rpartition(".")[2]
            if own.startswith(SPECIAL_TOKENS) and parameter.dim() <= 3:
                count += parameter.shape[-2] if parameter.dim() > 1 else 1
        return count

    def _by_patch_module(
        self, host: str, stage: Stage, length: int, prefixes: tuple[int, ...]
    ) -> tuple[Layout, str | None] | None:
        patches = patch_module(self.model, host)
        firings = self.found.firings[patches, "output"] if patches is not None else []
        if patches is None or not firings:
            return None
        grid = patch_grid(self.model.get_submodule(patches), firings[0].args, firings[0].value)
        if grid is None:
            return None
        base = max(1, round(self.picture.shape[-2] / grid[-2]))
        declared = stage.reduction // base if stage.reduction else 0
        for stride in dict.fromkeys([max(1, declared), 1, 2, 4, 8]):
            layout = Layout("NLC", strided(grid, stride), prefixes, stride)
            if layout.fits(length, strided(grid, stride)):
                return layout._replace(fixed=self._only_grid(grid)), patches
        return None

    def _by_convolution(
        self, host: str, length: int, prefixes: tuple[int, ...], firing: dry_run.Firing
    ) -> tuple[Layout, str | None]:
        """Return the layout by the last convolution before the host whose map has as many pixels as the grid needs."""
        best: tuple[int, Layout, str] | None = None
        for name, runs in self.found.shapes.items():
            for shape, order in runs:
                grid = shape[2:]
                if order > firing.order or len(grid) + 2 != self.picture.dim():
                    continue
                layout = Layout("NLC", grid, self._with_measured(host, prefixes, length, grid))
                if layout.fits(length, grid) and (best is None or order >= best[0]):
                    best = order, layout, name
        if best is None:
            raise LayoutError(
                f"{host!r} returns {length} tokens, and nothing tells their rows and columns; pass grid=(rows, "
                "columns) and, if there are class or register tokens, prefix_tokens="
            )
        _, layout, name = best
        assert layout.grid is not None
        return layout._replace(fixed=self._only_grid(layout.grid)), name

    def _only_grid(self, grid: Grid) -> bool:
        """Tell whether the model rejects a picture with as many patches in another grid."""
        if len(grid) != 2:
            return False
        rows, columns = grid
        other = next((r for r in range(rows - 1, 0, -1) if (rows * columns) % r == 0), None)
        if other is None:
            other = next((r for r in range(rows + 1, rows * columns + 1) if (rows * columns) % r == 0), None)
        if other is None:
            return True  # one token
        height, width = self.picture.shape[-2:]
        return self.at(height // rows * other, width // columns * (rows * columns // other)) is None


def patch_module(model: nn.Module, name: str) -> str | None:
    """Return the name of the module that cuts the picture into the patches of a module's tokens."""
    parts = name.split(".")
    around = ancestors(model, name)
    for depth in range(len(parts) - 1, -1, -1):
        for attribute in PATCH_MODULES:
            if isinstance(around[depth]._modules.get(attribute), nn.Module):
                return ".".join([*parts[:depth], attribute])
    return None
