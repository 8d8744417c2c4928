"""MAT: several attention maps, each of which attends to the texture of one region.

Zhao et al., "Multi-attentional Deepfake Detection" (CVPR 2021):

- Attention maps (its section 3.2): a convolution computes M maps from a middle layer.
- Texture enhancement (3.3): a shallow layer is averaged over patches to the size of the attention maps, and its
  difference from that average goes through a densely connected block.
- Bilinear attention pooling (3.2): the enhanced features under each map are pooled to a vector of unit length. The deep
  features are pooled under the sum of the maps, to a weighted mean, as in the authors' code
  (https://github.com/yoctta/multiple-attention).
- Region independence loss (3.4): the averaged shallow features under a map should lie near the map's own centre, which
  is the same for both classes and updated with every batch, and the centres should lie apart.

The network is EfficientNet-Lite0: textures come from its second stage, at a quarter of the picture, and attention from
its fifth, at a sixteenth. Our choices: the dense block and the two branches are narrow, there is no dropout, and the
paper's augmentation, which blurs or crops by a map, is omitted.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, cross_entropy, normalised
from benchmarks.reproduction.networks.lite import lite0

TEXTURE_STAGE: Final = 1  # index, from 0
ATTENTION_STAGE: Final = 4
MAPS: Final = 4
TEXTURE_CHANNELS: Final = 64
HIDDEN: Final = 128  # hidden units of each branch
INNER_MARGIN: Final = (0.05, 0.1)  # margin around a centre, for real and for fake pictures
OUTER_MARGIN: Final = 0.2  # margin between two centres
CENTRE_RATE: Final = 0.05  # fraction of the distance to a batch's mean by which a centre moves
INDEPENDENCE_WEIGHT: Final = 1.0
SMALLEST_MASS: Final = 1e-6  # denominator of the weighted mean where every map is 0


class TextureEnhancement(nn.Module):
    """Three densely connected convolutions of a map minus its average over patches.

    Args:
        channels: channels of the map.

    Shape:
        (N, C, H, W) and its average (N, C, h, w) to (N, 64, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [_convolution((1 + count) * channels, channels, 3) for count in range(2)]
            + [_convolution(3 * channels, TEXTURE_CHANNELS, 3)]
        )

    def forward(self, x: Tensor, average: Tensor) -> Tensor:
        """Return the enhanced texture."""
        features = x - F.interpolate(average, x.shape[-2:], mode="nearest")
        for layer in self.layers[:-1]:
            features = torch.cat([features, layer(features)], 1)
        enhanced: Tensor = self.layers[-1](features)
        return enhanced


class MAT(BackboneDetector):
    """The MAT detector. The centres are part of its state dict.

    Args:
        pretrained: whether to start from the ImageNet weights.

    Attributes:
        backbone: network without its classifier.
        centres: (M, C) centre of the averaged shallow features under each map.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(pretrained=pretrained)
        stages: Any = self.backbone.blocks
        textured, attended = (stages[at][-1].conv_pwl.out_channels for at in (TEXTURE_STAGE, ATTENTION_STAGE))
        deep = self.backbone.num_features
        self.attention = _convolution(attended, MAPS, 1)
        self.texture = TextureEnhancement(textured)
        self.local = nn.Sequential(nn.Linear(MAPS * TEXTURE_CHANNELS, HIDDEN), nn.ReLU())
        self.overall = nn.Sequential(nn.Linear(deep, HIDDEN), nn.ReLU())
        self.fc = nn.Linear(2 * HIDDEN, 1)
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(MAPS, textured))

    @property
    def backbones(self) -> list[nn.Module]:
        """Return the only backbone."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits, _ = self._with_regions(x)
        return logits

    def loss(self, x: Tensor, labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return cross-entropy; in training, add the region independence loss and update the centres."""
        logits, regions = self._with_regions(x)
        if not self.training:
            return cross_entropy(logits, labels)
        return cross_entropy(logits, labels) + INDEPENDENCE_WEIGHT * self._independence(regions, labels.long())

    def _with_regions(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N,), and the averaged shallow features (N, M, C) under each map, of unit length."""
        net: Any = self.backbone
        features = net.bn1(net.conv_stem(normalised(x)))
        for stage, block in enumerate(net.blocks):
            features = block(features)
            if stage == TEXTURE_STAGE:
                shallow = features
            if stage == ATTENTION_STAGE:
                maps = self.attention(features)
        deep = net.bn2(net.conv_head(features))
        average = F.adaptive_avg_pool2d(shallow, maps.shape[-2:])
        local = F.normalize(under(self.texture(shallow, average), maps), dim=-1)
        together = maps.sum(1, keepdim=True)
        mass = F.interpolate(together, deep.shape[-2:], mode="bilinear").sum((-2, -1)).clamp_min(SMALLEST_MASS)
        overall = under(deep, together).squeeze(1) / mass
        logits = self.fc(torch.cat([self.local(local.flatten(1)), self.overall(overall)], 1)).squeeze(1)
        return logits, F.normalize(under(F.instance_norm(average), maps), dim=-1)

    def _independence(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Return the region independence loss, and update the centres."""
        with torch.no_grad():
            self.centres.lerp_(regions.mean(0), CENTRE_RATE)
        # The centres move with this batch first, so that the loss also separates this batch.
        centres = self.centres + CENTRE_RATE * (regions.mean(0) - regions.mean(0).detach())
        margin = regions.new_tensor(INNER_MARGIN)[labels, None]
        within = F.relu((regions - self.centres).square().sum(-1) - margin).mean()
        apart = (centres[:, None] - centres).square().sum(-1)
        others = ~torch.eye(MAPS, dtype=torch.bool, device=apart.device)
        return within + F.relu(OUTER_MARGIN - apart[others]).mean()


def under(features: Tensor, maps: Tensor) -> Tensor:
    """Sum features (N, C, H, W), weighted by each of the maps (N, M, h, w) resized to them: (N, M, C)."""
    weights = F.interpolate(maps, features.shape[-2:], mode="bilinear")
    return torch.einsum("nmhw,nchw->nmc", weights, features)


def _convolution(inputs: int, outputs: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
