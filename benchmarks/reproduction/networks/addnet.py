"""Add-Net, for single pictures: masks of the face and of its organs weigh the low-level features.

Zi et al., "WildDeepfake: A Challenging Real-World Dataset for Deepfake Detection" (ACM MM 2020), ADDNet-2D. Its ADD
block takes an attention mask of the face, made from landmarks, with the organs in it; low-level features are multiplied
by the mask, brought to their size, and added to the features as they are.

The network is EfficientNet-Lite0, where the paper has Xception, and the block stands behind its first stage, at half
of the picture. The paper draws a mask for each picture from the landmarks of the face. Detectors here are given
pictures alone, all upright and cropped by one rule, so one mask serves all of them: an ellipse for the face, 0.5, and
smaller ones for eyes, nose and mouth, 1, at about their mean places in the crop. A convolution of the multiplied
features comes before they are added, and begins at 0, so that the pretrained network is kept at first.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, normalised
from benchmarks.reproduction.networks.lite import lite0

# Centre and half axes of each ellipse, x and y, in shares of the picture.
FACE: Final = (0.5, 0.5, 0.38, 0.42)
ORGANS: Final = (
    (0.34, 0.38, 0.11, 0.07),  # the eyes
    (0.66, 0.38, 0.11, 0.07),
    (0.5, 0.53, 0.1, 0.13),  # nose
    (0.5, 0.72, 0.17, 0.09),  # mouth
)


def attention_mask(height: int, width: int) -> Tensor:
    """The mask (H, W): 0 outside of the face, 0.5 in it, 1 in its organs."""
    y, x = (torch.arange(side).add(0.5).div(side) for side in (height, width))
    x, y = x[None, :], y[:, None]

    def within(ellipse: tuple[float, float, float, float]) -> Tensor:
        left, top, across, down = ellipse
        return ((x - left) / across) ** 2 + ((y - top) / down) ** 2 <= 1

    organs = torch.stack([within(each) for each in ORGANS]).any(0)
    return torch.where(organs, 1.0, 0.5 * within(FACE))


class AttentionBlock(nn.Module):
    """The ADD block: y = x + conv(x * mask).

    Args:
        channels: of the map.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The features, with those that the mask lets through."""
        mask = F.interpolate(attention_mask(64, 64)[None, None].to(x), x.shape[-2:], mode="bilinear")
        attended: Tensor = self.norm(self.conv(x * mask))
        return x + attended


class AddNet(BackboneDetector):
    """The detector.

    Args:
        pretrained: start from the ImageNet weights.

    Attributes:
        backbone: the network with its classifier.
        attention: the ADD block.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(pretrained=pretrained)
        self.backbone.reset_classifier(1)
        self.attention = AttentionBlock(self.backbone.blocks[0][-1].conv_pw.out_channels)

    @property
    def backbones(self) -> list[nn.Module]:
        """The one that there is."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """The logit of each picture."""
        net: Any = self.backbone
        features = self.attention(net.blocks[0](net.bn1(net.conv_stem(normalised(x)))))
        logits: Tensor = net.forward_head(net.bn2(net.conv_head(net.blocks[1:](features))))
        return logits.squeeze(1)
