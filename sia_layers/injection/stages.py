"""Where a model's stages are: what timm's models say themselves, and a table for torchvision's."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from torch import nn

from sia_layers.injection.layouts import family_of

DEFAULT_REDUCTIONS: Final = (4, 8, 16)


class Stage(NamedTuple):
    """A stage: the name of its module, by how much it reduces the picture, and its channels if they are known."""

    name: str
    reduction: int
    channels: int | None = None


# torchvision's architectures by the file that defines them: the module at which each reduction ends.
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
# Those that are one long sequence, by the file and the sequence: a stage ends where the next stride begins.
SEQUENCES: Final[dict[str, str]] = {
    "alexnet": "features",
    "efficientnet": "features",
    "mnasnet": "layers",
    "mobilenetv2": "features",
    "mobilenetv3": "features",
    "squeezenet": "features",
    "vgg": "features",
}
# Names in feature_info that are not those of the modules, by timm's family.
RENAMED: Final[dict[str, tuple[str, str]]] = {
    "gemma4_vit": (r"^blocks\.", "encoder.blocks."),
    "mvitv2": (r"^block\.", "stages."),
    "pit": (r"^(transformers\.\d+)$", r"\1.blocks"),  # the stage gives its class token apart from its map
    "twins": (r"^block\.", "blocks."),
}
# Families whose feature lies within a block that a shortcut leads around: the block before it ends the stage.
INSIDE_A_BLOCK: Final[dict[str, str]] = {
    "xception": r"^(block)(\d+)\.rep\b.*$",
    "xception_aligned": r"^(blocks\.)(\d+)\.stack\b.*$",
}


def stages_of(model: nn.Module) -> list[Stage]:
    """The stages of a model, or of the first module in it that has some; an empty list if nothing tells."""
    for prefix, module in model.named_modules():
        stages = _own_stages(module)
        if stages:
            return [stage._replace(name=f"{prefix}.{stage.name}" if prefix else stage.name) for stage in stages]
    return []


def _own_stages(module: nn.Module) -> list[Stage]:
    family, names = family_of(module), dict(module.named_modules(remove_duplicate=False))
    info: Any = getattr(module, "feature_info", None)
    info = getattr(info, "info", info)
    if isinstance(info, (list, tuple)) and info and all(isinstance(entry, dict) for entry in info):
        found = []
        for entry in info:
            declared = entry.get("module", "")
            name = _present(_renamed(declared, family.name), names) or _present(declared, names)
            if name is not None:
                channels = None if family.name in INSIDE_A_BLOCK and name != declared else entry.get("num_chs")
                found.append(Stage(name, int(entry["reduction"]), channels))
        return found
    if family.library == "torchvision":
        return _of_torchvision(module, family.name, names)
    return []


def _of_torchvision(module: nn.Module, family: str, names: dict[str, nn.Module]) -> list[Stage]:
    kind = type(module).__name__
    if kind == "VisionTransformer":
        blocks, reduction = module.get_submodule("encoder.layers"), int(getattr(module, "patch_size", 16))
        return [Stage(f"encoder.layers.{name}", reduction) for name, _ in blocks.named_children()]
    if kind == "IntermediateLayerGetter":  # the body of a detector or segmenter
        return _in_table(TORCHVISION["resnet"], names) or _in_sequence("", module)
    if kind == "SSDLiteFeatureExtractorMobileNet":
        return _in_sequence("features.0.", module.get_submodule("features.0"))
    if kind == "SSDFeatureExtractorVGG":
        return _in_sequence("features.", module.get_submodule("features"))
    if family in SEQUENCES and SEQUENCES[family] in module._modules:
        return _in_sequence(f"{SEQUENCES[family]}.", module.get_submodule(SEQUENCES[family]))
    return _in_table(TORCHVISION.get(family, {}), names)


def _in_table(table: dict[str, int], names: dict[str, nn.Module]) -> list[Stage]:
    if not table or not all(name in names for name in list(table)[:3]):
        return []
    return [Stage(name, reduction) for name, reduction in table.items() if name in names]


def _in_sequence(prefix: str, sequence: nn.Module) -> list[Stage]:
    """The children of a sequence, each with the product of the strides up to its end."""
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
    """The name as it is in the model; timm's features_only models hold their stages under changed names."""
    for candidate in (name, name.replace(".", "_"), f"model.{name}"):
        if candidate and candidate in names:
            return candidate
    return None


def default_stages(stages: list[Stage]) -> list[Stage]:
    """The stages to take when none are named: those at the paper's reductions.

    A model whose stages all have one reduction (a plain vision transformer) has none to tell apart: the blocks at a
    quarter, a half and three quarters of its depth. Otherwise, without any at those reductions, all but the last.
    """
    if len(stages) >= 4 and len({stage.reduction for stage in stages}) == 1:
        return [stages[max(0, len(stages) * quarter // 4 - 1)] for quarter in (1, 2, 3)]
    last = {stage.reduction: stage for stage in stages}
    chosen = [last[reduction] for reduction in DEFAULT_REDUCTIONS if reduction in last]
    return chosen or stages[:-1] or stages
