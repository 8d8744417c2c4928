"""Where a module's output has its channels, rows and columns, by the family that the module belongs to."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from sia_layers.injection.errors import LayoutError

# timm's architectures, by the file that defines them. All others give NCHW maps and no tokens.
NHWC_FAMILIES: Final = frozenset({
    "hieradet_sam2", "mambaout", "sequencer", "swin_transformer", "swin_transformer_v2", "vision_transformer_sam",
    "volo",
})  # fmt: skip
TOKEN_FAMILIES: Final = frozenset({
    "beit", "cait", "coat", "convit", "deepseek_vit", "deit", "eva", "gemma4_vit", "levit", "mlp_mixer", "mvitv2",
    "naflexvit", "pit", "qwen3_vit", "twins", "vision_transformer", "vision_transformer_hybrid",
    "vision_transformer_relpos", "vitamin", "xcit",
})  # fmt: skip
# Blocks whose layout is not that of their stage.
NHWC_BLOCKS: Final = frozenset({"GlobalContextVitBlock", "SwinTransformerV2CrBlock", "TinyVitBlock"})
# torchvision, by the class of the model's file.
TORCHVISION_NHWC: Final = frozenset({"swin_transformer"})
TORCHVISION_TOKENS: Final = frozenset({"vision_transformer"})

# Files that define what goes around a backbone.
WRAPPERS: Final = frozenset({
    "_features", "_features_fx", "_utils", "backbone_utils", "deeplabv3", "faster_rcnn", "fcn", "fcos",
    "feature_extraction", "generalized_rcnn", "keypoint_rcnn", "lraspp", "mask_rcnn", "retinanet", "ssd", "ssdlite",
})  # fmt: skip

REFUSED_FAMILIES: Final = {
    "hiera": "its tokens are ordered by mask unit, not by rows and columns",
    "nest": "inside of a level its tokens are cut into blocks; name the level",
}
# Where a model's patches come from, nearest first: their grid is the tokens' grid.
PATCH_MODULES: Final = ("patch_embed", "patch_embed1", "embeds", "stem", "conv_proj")


class Layout(NamedTuple):
    """How to read a site's output as maps (N, C, H, W).

    Attributes:
        kind: ``"NCHW"``, ``"NHWC"`` or ``"NLC"`` (tokens).
        grid: of tokens, rows and columns at the size that was tried; None for maps.
        prefixes: how many tokens may come before those of the grid (class, registers).
        stride: rows of the patches to one row of this site's tokens.
    """

    kind: str
    grid: tuple[int, int] | None = None
    prefixes: tuple[int, ...] = (0,)
    stride: int = 1

    def channels(self, output: Tensor) -> int:
        """The number of channels."""
        return output.shape[1 if self.kind == "NCHW" else -1]

    def read(self, output: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
        """The output as maps (N, C, H, W), without a copy, and the tokens that come before the grid."""
        if self.kind == "NCHW":
            return output, None
        if self.kind == "NHWC":
            return output.permute(0, 3, 1, 2), None
        rows, columns = self.fitting(output, grid)
        prefix = output.shape[1] - rows * columns
        tokens = output[:, prefix:] if prefix else output
        maps = tokens.reshape(output.shape[0], rows, columns, output.shape[2]).permute(0, 3, 1, 2)
        return maps, output[:, :prefix] if prefix else None

    def write(self, maps: Tensor, prefix: Tensor | None) -> Tensor:
        """Maps (N, C, H, W) as the output was."""
        if self.kind == "NCHW":
            return maps
        if self.kind == "NHWC":
            return maps.permute(0, 2, 3, 1)
        tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
        return tokens if prefix is None else torch.cat([prefix, tokens], 1)

    def fitting(self, output: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        """The grid that the tokens have: that of this forward pass, else the one that was tried."""
        length = output.shape[1]
        passed = None if grid is None else (-(-grid[0] // self.stride), -(-grid[1] // self.stride))
        for rows_columns in (passed, self.grid):
            if rows_columns is not None and length - rows_columns[0] * rows_columns[1] in self.prefixes:
                return rows_columns
        raise LayoutError(
            f"{length} tokens are no grid of {passed or self.grid} with {' or '.join(map(str, self.prefixes))} tokens "
            "before it; run the model as a whole, from its patches on, so that the grid is known"
        )


class Family(NamedTuple):
    """The file that defines an architecture, and the library it is of: "timm", "torchvision" or ""."""

    library: str
    name: str

    @property
    def nhwc(self) -> bool:
        """Whether its maps of four dimensions end in the channels."""
        return self.name in (NHWC_FAMILIES if self.library == "timm" else TORCHVISION_NHWC if self.library else ())

    @property
    def tokens(self) -> bool:
        """Whether its outputs of three dimensions are tokens (N, L, C)."""
        return self.name in (TOKEN_FAMILIES if self.library == "timm" else TORCHVISION_TOKENS if self.library else ())


def family_of(module: nn.Module) -> Family:
    """The family of a module's class."""
    parts = type(module).__module__.split(".")
    if parts[:2] == ["timm", "models"] and len(parts) > 2:
        return Family("timm", parts[2])
    if parts[:2] == ["torchvision", "models"] and len(parts) > 2:
        return Family("torchvision", parts[2] if parts[2] == "video" else parts[-1])
    return Family("", "")


def ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules on the way from the model to the named one, outermost first."""
    found = [model]
    for part in name.split(".") if name else []:
        found.append(found[-1]._modules[part])  # type: ignore[arg-type]
    return found


def family_at(model: nn.Module, name: str) -> Family:
    """The family of the innermost model around a module: of the outermost module that a library defines."""
    for module in ancestors(model, name):
        family = family_of(module)
        if family.library and family.name not in WRAPPERS:
            return family
    return Family("", "")


def layout_kind(model: nn.Module, name: str, output: Tensor) -> str:
    """The layout of a module's output.

    Raises:
        LayoutError: it has none that is known.
    """
    host, family = ancestors(model, name)[-1], family_at(model, name)
    shape = tuple(output.shape)
    if family.library == "timm" and family.name in REFUSED_FAMILIES and type(host).__name__ != "NestLevel":
        raise LayoutError(f"{name!r} cannot be read as maps: {REFUSED_FAMILIES[family.name]}")
    if output.dim() == 4:
        return "NHWC" if family.nhwc or type(host).__name__ in NHWC_BLOCKS else "NCHW"
    if output.dim() == 3 and family.tokens:
        return "NLC"
    raise LayoutError(
        f"{name!r} gives a tensor of shape {shape}, which cannot be read as feature maps; "
        "name a module that gives maps (N, C, H, W)"
    )


def patch_module(model: nn.Module, name: str) -> str | None:
    """The name of the module that cuts the picture into the patches which a module's tokens stand for."""
    parts = name.split(".")
    around = ancestors(model, name)
    for depth in range(len(parts) - 1, -1, -1):
        for attribute in PATCH_MODULES:
            if isinstance(around[depth]._modules.get(attribute), nn.Module):
                return ".".join([*parts[:depth], attribute])
    return None


def declared_prefixes(model: nn.Module, name: str) -> tuple[int, ...]:
    """How many tokens the model says it puts before those of the grid; before it does, there are none."""
    for module in reversed(ancestors(model, name)):
        for attribute in ("num_prefix_tokens", "num_tokens"):
            number = getattr(module, attribute, None)
            if isinstance(number, int):
                return (number, 0) if number else (0,)
    around = ancestors(model, name)
    tokens = [getattr(module, token, None) for module in around for token in ("cls_token", "class_token")]
    return (1, 0) if any(token is not None for token in tokens) or family_at(model, name).name == "coat" else (0,)


def grid_of(module: nn.Module, inputs: tuple[object, ...], output: object) -> tuple[int, int] | None:
    """Rows and columns of the patches that a patch module has just made; None if it does not tell."""
    first, *rest = output if isinstance(output, (tuple, list)) else (output,)
    for value in rest:
        if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(number, int) for number in value):
            return value[0], value[1]
    if not isinstance(first, Tensor):
        return None
    if first.dim() == 4:
        nhwc = str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC")
        return (first.shape[1], first.shape[2]) if nhwc else (first.shape[2], first.shape[3])
    sizes = [value.shape[-2:] for value in inputs if isinstance(value, Tensor) and value.dim() == 4]
    patch = getattr(module, "patch_size", None)
    if sizes and patch is not None:
        if hasattr(module, "dynamic_feat_size"):
            grid = cast(Any, module).dynamic_feat_size(tuple(sizes[0]))
        else:
            rows, columns = patch if isinstance(patch, (tuple, list)) else (patch, patch)
            grid = (sizes[0][0] // rows, sizes[0][1] // columns)
    else:
        grid = getattr(module, "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid is not None else None
