"""SPSL: the phase spectrum as a fourth channel, and a shallow network.

Liu et al., "Spatial-Phase Shallow Learning: Rethinking Face Forgery Detection in Frequency Domain" (CVPR 2021).
Upsampling leaves traces in the phase, so a picture reconstructed from the phase alone is added as a fourth channel. A
network with a small receptive field looks at texture rather than at the whole face. The paper truncates Xception; this
is EfficientNet-Lite0, truncated after its fifth stage, at a sixteenth of the picture.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, normalised
from benchmarks.reproduction.networks.lite import lite0

SHALLOW: Final = 5  # stages of seven


def phase_picture(x: Tensor) -> Tensor:
    """Return the picture whose Fourier transform has the phase of the grey values of ``x`` and amplitude 1 everywhere.

    It is scaled so that its mean square is 1, whatever the size of the picture.

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
    """The SPSL detector.

    Args:
        pretrained: whether to start from the ImageNet weights; the fourth channel copies the weights of red.

    Attributes:
        backbone: shallow network with four input channels.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(channels=4, stages=SHALLOW, pretrained=pretrained)
        self.fc = nn.Linear(self.backbone.num_features, 1)

    @property
    def backbones(self) -> list[nn.Module]:
        """Return the only backbone."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        picture = normalised(x)
        logits: Tensor = self.fc(self.backbone(torch.cat([picture, phase_picture(picture)], 1)))
        return logits.squeeze(1)
