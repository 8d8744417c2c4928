"""EfficientNet-Lite0 with ImageNet weights, bare and with attention, with a decoder or a classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reproduction.networks.detector import listed, normalised
from benchmarks.reproduction.networks.lite import Lite, append_attention, bare, lite0
from sia_layers import inject_sia

# The maps are a quarter to a sixteenth of pictures of a hundred pixels: the default blocks of 8 would leave one.
BLOCK: Final = 4
STAGES: Final = 5  # up to a sixteenth of the picture: the decoder uses no smaller map
LOW, HIGH = 1, 3  # indices of the backbone's maps, which start at half of the picture: a quarter and a sixteenth
DECODER: Final = 64  # channels of the decoder

VARIANTS: Final[dict[str, Callable[[nn.Module], object]]] = {
    "bare": bare,
    "SE": partial(append_attention, kind="se"),
    "SIA": inject_sia,
    "frequency SIA": partial(inject_sia, domain="frequency", block=BLOCK),
    "both": partial(inject_sia, domain="both", block=BLOCK),
}


class Segmenter(nn.Module):
    """EfficientNet-Lite0 up to a sixteenth of the picture, with torchvision's LR-ASPP (Howard et al., ICCV 2019).

    Args:
        variant: one of :data:`VARIANTS`.
        pretrained: whether to start from the ImageNet weights.

    Shape:
        float pictures (N, 3, H, W), RGB in [0, 1], to logits (N, H, W).

    Raises:
        ValueError: there is no such variant.
    """

    def __init__(self, variant: str, pretrained: bool = True) -> None:
        from torchvision.models.segmentation.lraspp import LRASPPHead

        super().__init__()
        self.backbone: Any = lite0(stages=STAGES, pretrained=pretrained)
        channels = [info["num_chs"] for info in self.backbone.feature_info]
        attach(variant, self.backbone)
        self.decoder = LRASPPHead(channels[LOW], channels[HIGH], 1, DECODER)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each pixel."""
        features = self.backbone.forward_intermediates(normalised(x), intermediates_only=True)
        logits = self.decoder({"low": features[LOW], "high": features[HIGH]})
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)


def classifier(variant: str, pretrained: bool = True) -> Lite:
    """Return an EfficientNet-Lite0 with one logit.

    Raises:
        ValueError: there is no such variant.
    """
    made = Lite(pretrained)
    attach(variant, made.backbone)
    return made


def attach(variant: str, backbone: nn.Module) -> None:
    """Add a variant's attention to a backbone, in place.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise listed("variant", variant, tuple(VARIANTS))
    VARIANTS[variant](backbone)
