"""The libraries that ``benchmarks.zoo`` covers: the names of their models, and how to build one without weights."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

LIBRARIES: Final = ("timm", "torchvision", "torchvision-video", "transformers", "smp", "ultralytics", "open_clip")

# transformers: vision backbones by their class, in the default configuration unless noted otherwise.
SMALL_VIT: Final = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
TRANSFORMERS: Final[dict[str, dict[str, Any]]] = {
    "BeitModel": SMALL_VIT,
    "BitModel": {},
    "CLIPVisionModel": SMALL_VIT,
    "ConvNextModel": {},
    "ConvNextV2Model": {},
    "ConvNextForImageClassification": {},
    "CvtModel": {},
    "DINOv3ConvNextModel": {},
    "DINOv3ViTModel": SMALL_VIT,
    "DeiTModel": SMALL_VIT,
    "Dinov2ForImageClassification": {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    "Dinov2Model": {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    "Dinov2WithRegistersModel": {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4},
    "EfficientNetModel": {},
    "FocalNetModel": {},
    "HieraModel": {},
    "LevitModel": {},
    "MobileNetV1Model": {},
    "MobileNetV2Model": {},
    "MobileViTForSemanticSegmentation": {},
    "MobileViTModel": {},
    "MobileViTV2Model": {},
    "PoolFormerModel": {},
    "PvtModel": {},
    "PvtV2Model": {},
    "RegNetModel": {},
    "ResNetForImageClassification": {},
    "ResNetModel": {},
    "SegformerForSemanticSegmentation": {},
    "SegformerModel": {},
    "SiglipVisionModel": SMALL_VIT,
    "Siglip2VisionModel": SMALL_VIT,
    "SwinForImageClassification": {},
    "SwinModel": {},
    "Swinv2Model": {},
    "ViTForImageClassification": SMALL_VIT,
    "ViTMAEModel": SMALL_VIT,
    "ViTMSNModel": SMALL_VIT,
    "ViTModel": SMALL_VIT,
}
SMP_ENCODERS: Final = (
    "resnet18", "resnext50_32x4d", "densenet121", "efficientnet-b0", "mobilenet_v2", "vgg11_bn", "mit_b0",
    "timm-regnetx_002", "tu-resnet10t", "tu-convnext_atto", "tu-efficientnet_lite0", "xception",
)  # fmt: skip
SMP_DECODERS: Final = (
    "Unet",
    "UnetPlusPlus",
    "FPN",
    "DeepLabV3Plus",
    "Linknet",
    "MAnet",
    "PAN",
    "PSPNet",
    "UPerNet",
    "Segformer",
)
ULTRALYTICS: Final = (
    "yolov5n.yaml", "yolov8n.yaml", "yolov8n-seg.yaml", "yolov8n-cls.yaml", "yolov8n-pose.yaml", "yolov9t.yaml",
    "yolov10n.yaml", "yolo11n.yaml", "yolo11n-seg.yaml", "yolo11n-cls.yaml", "yolo11n-obb.yaml", "yolo12n.yaml",
)  # fmt: skip
OPEN_CLIP: Final = (
    "RN50",
    "ViT-B-32",
    "ViT-B-16-SigLIP",
    "ViT-S-16",
    "convnext_base",
    "coca_ViT-B-32",
    "EVA02-B-16",
    "MobileCLIP-S1",
)


def models(library: str) -> list[str]:
    """Return the names of a library's image models, or of torchvision's video models."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    if library in ("torchvision", "torchvision-video"):
        import torchvision.models as vision

        video = vision.list_models(module=vision.video)
        if library == "torchvision-video":
            return list(video)
        return [*vision.list_models(module=vision), *vision.list_models(module=vision.segmentation),
                *vision.list_models(module=vision.detection)]  # fmt: skip
    if library == "smp":
        return [f"{decoder}/resnet18" for decoder in SMP_DECODERS] + [f"Unet/{encoder}" for encoder in SMP_ENCODERS[1:]]
    return list({"transformers": TRANSFORMERS, "ultralytics": ULTRALYTICS, "open_clip": OPEN_CLIP}[library])


def make(library: str, name: str) -> nn.Module:
    """Return a model without weights, on the meta device where its library can make it there."""
    return MAKERS[library](name)


def _timm(name: str) -> nn.Module:
    import timm

    with torch.device("meta"):
        made: nn.Module = timm.create_model(name)
    return made


def _torchvision(name: str) -> nn.Module:
    import torchvision

    # torchvision's regnets and video transformers compute their widths with tensors, which need numbers.
    with torch.device("cpu" if name.startswith(("regnet", "mvit", "swin3d")) else "meta"):
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        backbones = ("deeplab", "fcn", "lraspp", "faster", "fcos", "keypoint", "mask", "retina", "ssd")
        no_backbone = {"weights_backbone": None} if name.startswith(backbones) else {}
        made: nn.Module = torchvision.models.get_model(name, weights=None, **extra, **no_backbone)
    return made.to("meta")


def _transformers(name: str) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    with torch.device("meta"):
        made: nn.Module = kind(kind.config_class(**TRANSFORMERS[name]))
    return made


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    decoder, encoder = name.split("/")
    made: nn.Module = getattr(smp, decoder)(encoder, encoder_weights=None)
    return made.to("meta")


def _ultralytics(name: str) -> nn.Module:
    from ultralytics import YOLO

    with contextlib.redirect_stdout(io.StringIO()):
        made: nn.Module = YOLO(name, verbose=False).model
    return made


def _open_clip(name: str) -> nn.Module:
    import open_clip

    with torch.device("meta"):
        made: nn.Module = open_clip.create_model(name, pretrained=None, device="meta")
    return made.to("meta")


MAKERS: Final[dict[str, Callable[[str], nn.Module]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "torchvision-video": _torchvision,
    "transformers": _transformers,
    "smp": _smp,
    "ultralytics": _ultralytics,
    "open_clip": _open_clip,
}
