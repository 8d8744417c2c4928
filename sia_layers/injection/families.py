"""Facts about the architectures of timm, torchvision, transformers and other libraries: one table for each fact."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

# timm's architectures, by the file that defines them. All others return NCHW maps.
NHWC_FAMILIES: Final = frozenset({
    "hieradet_sam2", "mambaout", "sequencer", "swin_transformer", "swin_transformer_v2", "vision_transformer_sam",
    "volo",
})  # fmt: skip
TOKEN_FAMILIES: Final = frozenset({
    "beit", "cait", "coat", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera", "levit",
    "mlp_mixer", "mvitv2", "naflexvit", "pit", "qwen3_vit", "tnt", "twins", "vision_transformer",
    "vision_transformer_hybrid", "vision_transformer_relpos", "vitamin", "xcit",
})  # fmt: skip
# Blocks that return NHWC maps, although their family does not.
NHWC_BLOCKS: Final = frozenset({
    "GlobalContextVitBlock", "SwinTransformerV2CrBlock", "TinyVitBlock",
    "GotOcr2VisionLayer", "Sam2MultiScaleBlock", "SamHQVisionLayer", "SamVisionLayer",
})  # fmt: skip
# torchvision's architectures, by the file that defines them, and video models by their class.
TORCHVISION_NHWC: Final = frozenset({"swin_transformer"})
TORCHVISION_TOKENS: Final = frozenset({"vision_transformer", "mvit"})
TORCHVISION_VIDEO: Final = frozenset({"resnet", "s3d"})  # NCTHW, within torchvision.models.video
VIDEO_NTHWC: Final = frozenset({"SwinTransformer3d"})

# Files that define wrappers of a backbone.
WRAPPERS: Final = frozenset({
    "_features", "_features_fx", "_utils", "backbone_utils", "deeplabv3", "faster_rcnn", "fcn", "fcos",
    "feature_extraction", "generalized_rcnn", "keypoint_rcnn", "lraspp", "mask_rcnn", "retinanet", "ssd", "ssdlite",
})  # fmt: skip
# The item of a block's output that is the map, for blocks in which another item could be mistaken for it.
MAP_ITEMS: Final = {"tnt": 1}  # the other item holds the tokens inside each patch
UNREADABLE_FAMILIES: Final = {
    ("timm", "nest"): "inside a level its tokens are cut into blocks; name the level",
    ("transformers", "vit_mae"): "it drops patches and shuffles the rest; inject into a ViTModel with its weights",
    ("transformers", "yolos"): "its detection tokens come after the patches, and SIA supports only tokens before them",
}
# Libraries that put all prefix tokens first, so that their number follows from the number of tokens.
PREFIX_FIRST: Final = frozenset({"transformers", "open_clip", "dinov2", "segmentation_models_pytorch"})
# Attributes that hold the vision tower of a model with several towers.
TOWERS: Final = ("visual", "vision_model", "vision_tower", "image_encoder")
PREFIX_TOKENS: Final = ("cls_token", "class_token", "class_embedding", "cls_pos_embed")


class Family(NamedTuple):
    """The origin of an architecture.

    Attributes:
        library: the package, such as ``"timm"``; ``""`` for the user's own model.
        name: the file that defines it.
        video: whether its inputs are videos.
    """

    library: str = ""
    name: str = ""
    video: bool = False


def family_of(module: nn.Module) -> Family:
    """Return the family of a module's class, or else of the first of its base classes that a known library defines."""
    return _family(origin(module))


def origin(module: nn.Module) -> type:
    """Return the first class in a module's MRO that a known library defines, or else the module's own class."""
    return next((kind for kind in type(module).__mro__ if _family(kind).library), type(module))


def _family(kind: type) -> Family:
    parts = kind.__module__.split(".")
    if parts[:2] == ["timm", "models"] and len(parts) > 2:
        return Family("timm", parts[2])
    if parts[:2] == ["torchvision", "models"] and len(parts) > 2:
        return Family("torchvision", parts[-1], parts[2] == "video" or kind.__name__ in VIDEO_NTHWC)
    if parts[:2] == ["transformers", "models"] and len(parts) > 2:
        return Family("transformers", parts[2])
    if parts[0] in ("open_clip", "dinov2", "segmentation_models_pytorch", "ultralytics") and len(parts) > 1:
        return Family(parts[0], parts[-1])
    if kind.__name__ == "DinoVisionTransformer":  # from torch.hub, where the package may have any name
        return Family("dinov2", "vision_transformer")
    return Family()


def ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules on the path from the model to the named module, outermost first."""
    found = [model]
    for part in name.split(".") if name else []:
        found.append(found[-1]._modules[part])  # type: ignore[arg-type]
    return found


def family_at(model: nn.Module, name: str) -> Family:
    """Return the family of the outermost module around a module that a known library defines and that is no wrapper."""
    for module in ancestors(model, name):
        family = family_of(module)
        if family.library and family.name not in WRAPPERS:
            return family
    return Family()


def known_kind(model: nn.Module, name: str, output: Tensor) -> str | None:
    """Return the layout of a module's output if its family determines it; None otherwise."""
    host, family = ancestors(model, name)[-1], family_at(model, name)
    if output.dim() == 5 and family.library == "torchvision":
        swin = any(origin(module).__name__ in VIDEO_NTHWC for module in ancestors(model, name))
        return "NTHWC" if swin else "NCTHW" if family.name in TORCHVISION_VIDEO else None
    if output.dim() == 4 and family.library in ("segmentation_models_pytorch", "ultralytics", "open_clip"):
        return "NCHW"
    if output.dim() == 4 and family.library == "transformers" and type(host).__name__ in NHWC_BLOCKS:
        return "NHWC"
    if output.dim() == 4 and family.library in ("timm", "torchvision"):
        nhwc = NHWC_FAMILIES if family.library == "timm" else TORCHVISION_NHWC
        return "NHWC" if family.name in nhwc or type(host).__name__ in NHWC_BLOCKS else "NCHW"
    if output.dim() == 3:
        tokens = TOKEN_FAMILIES if family.library == "timm" else TORCHVISION_TOKENS
        known = family.name in tokens if family.library in ("timm", "torchvision") else family.library in PREFIX_FIRST
        return "NLC" if known else None
    return None


def declared_prefixes(model: nn.Module, name: str) -> tuple[int, ...]:
    """Return the possible numbers of prefix tokens (class, registers) of a module's tokens."""
    for module in reversed(ancestors(model, name)):
        for attribute in ("num_prefix_tokens", "num_tokens"):
            number = getattr(module, attribute, None)
            if isinstance(number, int):
                return (number, 0) if number else (0,)
    around = ancestors(model, name)
    named = [key for module in around for key in (*module._parameters, *module._buffers)]
    has_class = any(key.startswith(PREFIX_TOKENS) for key in named)
    return (1, 0) if has_class or family_at(model, name).name == "coat" else (0,)


def token_order(model: nn.Module, name: str, length: int) -> tuple[tuple[int, ...], tuple[int, int]] | None:
    """Return the position of each grid cell's token, and the grid, for models that order tokens by mask unit.

    The order is that of the model's own ``reroll``. Return None for models whose tokens are in reading order.
    """
    around = ancestors(model, name)
    roller = next((module for module in reversed(around) if hasattr(module, "reroll")), None)
    if roller is None:
        return None
    number = int(next(part for part in reversed(name.split(".")) if part.isdigit()))
    places = torch.arange(length, dtype=torch.float64, device="cpu").reshape(1, length, 1)
    rolled = roller.reroll(places, number)[0, ..., 0]  # type: ignore[operator]
    return tuple(int(place) for place in rolled.flatten()), (rolled.shape[0], rolled.shape[1])


def entry(model: nn.Module) -> str:
    """Return the name of the part of a model that a dry run runs; "" for the whole model.

    For torchvision's detectors and segmenters it is the backbone, because the rest depends on values. For models of
    pictures and text it is the vision tower.
    """
    module = origin(model).__module__
    if module.startswith(("torchvision.models.detection.", "torchvision.models.segmentation.")):
        return "backbone" if isinstance(model._modules.get("backbone"), nn.Module) else ""
    if module.startswith(("open_clip", "transformers.")):
        two_towers = any(hasattr(model, text) for text in ("text_model", "transformer", "text", "token_embedding"))
        tower = next((name for name in TOWERS if isinstance(model._modules.get(name), nn.Module)), "")
        return tower if two_towers else ""
    return ""


def config_of(module: nn.Module) -> Any:
    """Return the configuration of a transformers model, or the vision part of it; None for any other module."""
    config = getattr(module, "config", None)
    if not any(kind.__module__.startswith("transformers.") for kind in type(config).__mro__):
        return None
    return getattr(config, "vision_config", config)
