"""Find the stages of a model: from what timm's models declare, and from tables for other libraries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from torch import nn

from sia_layers.injection.families import WRAPPERS, Family, config_of, entry, family_of, origin

DEFAULT_REDUCTIONS: Final = (4, 8, 16)


class Stage(NamedTuple):
    """A stage: the name of its module, its reduction (0 if unknown), and its number of channels if known."""

    name: str
    reduction: int
    channels: int | None = None


# torchvision's architectures, by the file that defines them: the module that ends each reduction.
TORCHVISION: Final[dict[str, dict[str, int]]] = {
    "resnet": {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32},
    "regnet": {
        "trunk_output.block1": 4,
        "trunk_output.block2": 8,
        "trunk_output.block3": 16,
        "trunk_output.block4": 32,
    },
    "densenet": {"features.denseblock1": 4, "features.denseblock2": 8, "features.denseblock3": 16},
    "convnext": {"features.1": 4, "features.3": 8, "features.5": 16, "features.7": 32},
    "swin_transformer": {"features.1": 4, "features.3": 8, "features.5": 16, "features.7": 32},
    "shufflenetv2": {"maxpool": 4, "stage2": 8, "stage3": 16, "stage4": 32},
    "maxvit": {"blocks.0": 4, "blocks.1": 8, "blocks.2": 16, "blocks.3": 32},
    "googlenet": {"conv3": 4, "inception3b": 8, "inception4e": 16, "inception5b": 32},
    "inception": {"Conv2d_4a_3x3": 4, "Mixed_5d": 8, "Mixed_6e": 16, "Mixed_7c": 32},
}
# Those that are one long sequence, by file: the name of the sequence. A stage ends before the next stride.
SEQUENCES: Final[dict[str, str]] = {
    "alexnet": "features",
    "efficientnet": "features",
    "mnasnet": "layers",
    "mobilenetv2": "features",
    "mobilenetv3": "features",
    "squeezenet": "features",
    "vgg": "features",
}
# Substitutions for names in feature_info that differ from those of the modules, by timm's family.
RENAMED: Final[dict[str, tuple[str, str]]] = {
    "gemma4_vit": (r"^blocks\.", "encoder.blocks."),
    "mvitv2": (r"^block\.", "stages."),
    "pit": (r"^(transformers\.\d+)$", r"\1.blocks"),  # the stage returns its class token separately from its map
    "twins": (r"^block\.", "blocks."),
    "efficientvim": (r"^(stages\.\d+)$", r"\1.blocks"),  # the next stage does not use a stage's first item
}
# transformers: the list of the stages, or of the blocks of a plain vision transformer; the first that exists.
TRANSFORMERS_LISTS: Final = (
    "encoder.stages", "model.stages", "stages", "encoder.block", "encoder.blocks", "encoder.layers", "encoder.layer",
    "model.layer", "layers", "layer",
)  # fmt: skip
# Other libraries, by package and file.
FOREIGN_LISTS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("open_clip", "transformer"): ("transformer.resblocks",),
    ("dinov2", "vision_transformer"): ("blocks",),
}
FOREIGN_TABLES: Final[dict[tuple[str, str], dict[str, int]]] = {
    ("open_clip", "modified_resnet"): TORCHVISION["resnet"],
    ("segmentation_models_pytorch", "mix_transformer"): {"block1": 4, "block2": 8, "block3": 16, "block4": 32},
}
# Families whose feature is inside a block that a shortcut bypasses: the block before it ends the stage.
INSIDE_A_BLOCK: Final[dict[str, str]] = {
    "xception": r"^(block)(\d+)\.rep\b.*$",
    "xception_aligned": r"^(blocks\.)(\d+)\.stack\b.*$",
}


class Stages(NamedTuple):
    """What a model declares about its stages.

    Attributes:
        scope: full name of the module that declares them, the backbone; ``""`` for the model itself.
        stages: the stages in the order of a forward pass; a reduction of 0 has yet to be measured.
        features: whether the stages are the modules whose outputs the scope returns as features, which a dry run
            has to find.
    """

    scope: str = ""
    stages: tuple[Stage, ...] = ()
    features: bool = False


def stages_of(model: nn.Module) -> Stages:
    """Return the stages that a model, or the first of its modules that has any, declares."""
    part = entry(model)
    for prefix, module in model.get_submodule(part).named_modules(prefix=part):
        stages = _own_stages(module)
        if stages:
            return Stages(prefix, _within(prefix, stages))
        if _returns_features(module):
            return Stages(prefix, features=True)
    return Stages()


def _returns_features(module: nn.Module) -> bool:
    """Tell whether a module is one of segmentation_models_pytorch's own encoders, which return their features."""
    return origin(module).__module__.startswith("segmentation_models_pytorch.encoders") and hasattr(
        module, "get_stages"
    )


def _within(prefix: str, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(stage._replace(name=f"{prefix}.{stage.name}") if prefix else stage for stage in stages)


def _own_stages(module: nn.Module) -> list[Stage]:
    family = family_of(module)
    info: Any = _up_to_the_last_output(getattr(module, "feature_info", None))
    if isinstance(info, (list, tuple)) and info and all(isinstance(entry, dict) for entry in info):
        return _of_feature_info(module, info, _wrapped_family(module).name)
    if family.library == "torchvision":
        return _of_torchvision(module, family, dict(module.named_modules(remove_duplicate=False)))
    if family.library == "transformers" and sees_pictures(module) and "backbone" not in module._modules:
        return _in_lists(module, TRANSFORMERS_LISTS)
    if family.library == "ultralytics":
        return _of_ultralytics(module)
    table = FOREIGN_TABLES.get((family.library, family.name), {})
    return _in_lists(module, FOREIGN_LISTS.get((family.library, family.name), ())) or _in_table(
        table, dict(module.named_modules()) if table else {}
    )


def _up_to_the_last_output(info: Any) -> Any:
    """Return what a timm model tells of its stages, up to the last of those that a features_only model returns."""
    told, indices = getattr(info, "info", info), getattr(info, "out_indices", None)
    if not isinstance(told, (list, tuple)) or not indices:
        return told
    return told[: 1 + max(index + len(told) if index < 0 else index for index in indices)]


def _of_feature_info(module: nn.Module, info: Sequence[dict[str, Any]], family: str) -> list[Stage]:
    """Return the stages that a timm model declares."""
    names, found = dict(module.named_modules(remove_duplicate=False)), []
    for told in info:
        declared = told.get("module", "")
        name = _present(_renamed(declared, family), names) or _present(declared, names)
        if name is not None:
            channels = None if family in INSIDE_A_BLOCK and name != declared else told.get("num_chs")
            found.append(Stage(name, int(told["reduction"]), channels))
    return found


def _wrapped_family(module: nn.Module) -> Family:
    """Return the family of a timm model, also of one that is wrapped to return its features."""
    families = (family_of(each) for each in module.modules())
    return next((each for each in families if each.library == "timm" and each.name not in WRAPPERS), Family())


def sees_pictures(module: nn.Module) -> bool:
    """Tell whether a transformers model has a configuration for pictures."""
    config = config_of(module)
    return any(hasattr(config, attribute) for attribute in ("num_channels", "image_size", "patch_size"))


def _in_lists(module: nn.Module, paths: Sequence[str]) -> list[Stage]:
    """Return the members of the first of these lists that the module has as stages."""
    for path in paths:
        try:
            found = module.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, (nn.ModuleList, nn.Sequential)):
            inner = [f"{path}.{name}.blocks" if _has_blocks(child) else f"{path}.{name}"
                     for name, child in found.named_children()]  # fmt: skip
            return [Stage(name, 0) for name in inner]
    return []


def _has_blocks(child: nn.Module) -> bool:
    """Tell whether a stage has a list of its blocks, separate from the patch merging after them."""
    return isinstance(child._modules.get("blocks"), nn.ModuleList)


def _of_ultralytics(module: nn.Module) -> list[Stage]:
    """Return the layers of the backbone; the neck and the head follow in the same sequence."""
    layers, yaml = module._modules.get("model"), getattr(module, "yaml", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(yaml, dict) or "backbone" not in yaml:
        return []
    return [Stage(f"model.{index}", 0) for index in range(len(yaml["backbone"]))]


def _of_torchvision(module: nn.Module, family: Family, names: dict[str, nn.Module]) -> list[Stage]:
    kind = origin(module).__name__
    if family.video:
        return _of_video(module, kind, names)
    if kind == "VisionTransformer":
        blocks, reduction = module.get_submodule("encoder.layers"), int(getattr(module, "patch_size", 16))
        return [Stage(f"encoder.layers.{name}", reduction) for name, _ in blocks.named_children()]
    if kind == "IntermediateLayerGetter":  # the body of a detector or segmenter
        return _in_table(TORCHVISION["resnet"], names) or _in_sequence("", module)
    if kind == "SSDLiteFeatureExtractorMobileNet":
        return _in_sequence("features.0.", module.get_submodule("features.0"))
    if kind == "SSDFeatureExtractorVGG":
        return _in_sequence("features.", module.get_submodule("features"))
    if family.name in SEQUENCES and SEQUENCES[family.name] in module._modules:
        return _in_sequence(f"{SEQUENCES[family.name]}.", module.get_submodule(SEQUENCES[family.name]))
    return _in_table(TORCHVISION.get(family.name, {}), names)


def _of_video(module: nn.Module, kind: str, names: dict[str, nn.Module]) -> list[Stage]:
    if kind == "VideoResNet":
        return [Stage(f"layer{number}", 0) for number in (1, 2, 3, 4)]
    if kind == "MViT":
        return [Stage(f"blocks.{name}", 0) for name, _ in module.get_submodule("blocks").named_children()]
    if kind == "S3D":
        return [Stage(f"features.{name}", 0) for name, _ in module.get_submodule("features").named_children()]
    if kind == "SwinTransformer3d":  # patch merging layers lie between the stages in its features
        return _in_table({"features.0": 4, "features.2": 8, "features.4": 16, "features.6": 32}, names)
    return []


def _in_table(table: dict[str, int], names: dict[str, nn.Module]) -> list[Stage]:
    if not table or not all(name in names for name in list(table)[:3]):
        return []
    return [Stage(name, reduction) for name, reduction in table.items() if name in names]


def _in_sequence(prefix: str, sequence: nn.Module) -> list[Stage]:
    """Return the children of a sequence as stages, each with the product of the strides up to its end."""
    reduction, stages = 1, []
    for name, child in sequence.named_children():
        for layer in child.modules():
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                stride = layer.stride
                reduction *= stride[0] if isinstance(stride, tuple) else stride
        stages.append(Stage(f"{prefix}{name}", reduction))
    return stages


def _renamed(name: str, family: str) -> str:
    inside = re.match(INSIDE_A_BLOCK[family], name) if family in INSIDE_A_BLOCK else None
    if inside is not None:
        return f"{inside[1]}{int(inside[2]) - 1}"
    return re.sub(*RENAMED[family], name) if family in RENAMED else name


def _present(name: str, names: dict[str, nn.Module]) -> str | None:
    """Return the name of a module as it is in the model; timm's features_only models rename their stages."""
    for candidate in (name, name.replace(".", "_"), f"model.{name}"):
        if candidate and candidate in names:
            return candidate
    return None


def default_stages(stages: list[Stage]) -> list[Stage]:
    """Return the stages to use when none are named: those at the reductions of the paper.

    If all stages have one reduction, as in a plain vision transformer, return the blocks at a quarter, a half and
    three quarters of the depth. Otherwise, if no stage has one of those reductions, return all but the last.
    """
    if len(stages) >= 4 and len({stage.reduction for stage in stages}) == 1:
        return [stages[max(0, len(stages) * quarter // 4 - 1)] for quarter in (1, 2, 3)]
    last = {stage.reduction: stage for stage in stages}
    chosen = [last[reduction] for reduction in DEFAULT_REDUCTIONS if reduction in last]
    return chosen or stages[:-1] or stages
