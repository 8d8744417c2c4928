"""SPSL: the phase spectrum as a fourth channel, and a shallow network.

Liu et al., "Spatial-Phase Shallow Learning: Rethinking Face Forgery Detection in Frequency Domain" (CVPR 2021).
Upsampling leaves its traces in the phase, so a picture that is made from the phase alone goes beside RGB, and a network
with a small receptive field looks at texture and not at the whole face. The paper cuts Xception; this is
EfficientNet-Lite0, cut behind its fifth stage, at a sixteenth of the picture.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, normalised
from benchmarks.reproduction.networks.lite import lite0

SHALLOW: Final = 5  # stages of seven


def phase_picture(x: Tensor) -> Tensor:
    """The picture whose Fourier transform has the phase of the given one's grey values, and amplitude 1 everywhere.

    Scaled so that its mean square is 1, whatever the size of the picture.

    Args:
        x: pictures (N, C, H, W).

    Returns:
        (N, 1, H, W).
    """
    spectrum = torch.fft.rfft2(x.mean(1, keepdim=True))
    phase = torch.polar(torch.ones_like(spectrum.real), spectrum.angle())
    picture: Tensor = torch.fft.irfft2(phase, s=x.shape[-2:], norm="ortho")
    return picture


class SPSL(BackboneDetector):
    """The detector.

    Args:
        pretrained: start from the ImageNet weights; those of the fourth channel are a copy of red's.

    Attributes:
        backbone: the shallow network, of four channels.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(channels=4, stages=SHALLOW, pretrained=pretrained)
        self.fc = nn.Linear(self.backbone.num_features, 1)

    @property
    def backbones(self) -> list[nn.Module]:
        """The one that there is."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """The logit of each picture."""
        picture = normalised(x)
        logits: Tensor = self.fc(self.backbone(torch.cat([picture, phase_picture(picture)], 1)))
        return logits.squeeze(1)
