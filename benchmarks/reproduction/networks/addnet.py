"""Add-Net, for single pictures: masks of the face and of its parts weight the low-level features.

Zi et al., "WildDeepfake: A Challenging Real-World Dataset for Deepfake Detection" (ACM MM 2020), ADDNet-2D. Its ADD
block uses an attention mask of the face and its parts (eyes, nose, mouth), made from landmarks. Low-level features are
multiplied by the mask, which is resized to them, and added to the original features.

The network here is EfficientNet-Lite0 instead of the paper's Xception, and the block follows its first stage, at half
the size of the picture. The paper draws a mask for each picture from the landmarks of the face. Detectors here see only
pictures, all upright and cropped by one rule, so one mask serves all of them: an ellipse of 0.5 for the face, and
smaller ellipses of 1 for eyes, nose and mouth, at their approximate mean positions in the crop. A convolution is
applied to the multiplied features before they are added; it starts at 0, so that the block does not change the
pretrained network at first.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, normalised
from benchmarks.reproduction.networks.lite import lite0

# Centre and half axes of each ellipse, x and y, relative to the picture.
FACE: Final = (0.5, 0.5, 0.38, 0.42)
ORGANS: Final = (
    (0.34, 0.38, 0.11, 0.07),  # the eyes
    (0.66, 0.38, 0.11, 0.07),
    (0.5, 0.53, 0.1, 0.13),  # nose
    (0.5, 0.72, 0.17, 0.09),  # mouth
)


def attention_mask(height: int, width: int) -> Tensor:
    """Return the mask (H, W): 0 outside the face, 0.5 inside it, 1 in eyes, nose and mouth."""
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
        channels: channels of the map.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features plus those that the mask lets through."""
        mask = F.interpolate(attention_mask(64, 64)[None, None].to(x), x.shape[-2:], mode="bilinear")
        attended: Tensor = self.norm(self.conv(x * mask))
        return x + attended


class AddNet(BackboneDetector):
    """The Add-Net detector.

    Args:
        pretrained: whether to start from the ImageNet weights.

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
        """Return the only backbone."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        net: Any = self.backbone
        features = self.attention(net.blocks[0](net.bn1(net.conv_stem(normalised(x)))))
        logits: Tensor = net.forward_head(net.bn2(net.conv_head(net.blocks[1:](features))))
        return logits.squeeze(1)
