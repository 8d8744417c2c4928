"""RFM: in training, erase the regions that the network is most sensitive to, so that it also learns others.

Wang and Deng, "Representative Forgery Mining for Fake Face Detection" (CVPR 2021). Before each step, the gradient of
"fake" minus "real" with respect to the picture measures how sensitive the network is to each pixel (forgery attention
map). In order of sensitivity, pixels become the anchors of blocks of random size, which are filled with random values,
until three blocks are erased; pixels that are already erased are skipped (suspicious forgeries erasing). The training
step then uses the erased pictures. With one logit, fake minus real is the logit itself.

The network is EfficientNet-Lite0 instead of the paper's Xception. The sides of a block are at most 0.4 of the
picture's, which matches the published code's 120 of 299 pixels, and its anchor is at a random position in it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, cross_entropy, normalised
from benchmarks.reproduction.networks.lite import lite0

BLOCKS: Final = 3
LARGEST: Final = 0.4  # largest side of a block, relative to the picture's


class RFM(BackboneDetector):
    """The RFM detector.

    Args:
        pretrained: whether to start from the ImageNet weights.

    Attributes:
        backbone: the network with its classifier.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = lite0(pretrained=pretrained)
        self.backbone.reset_classifier(1)

    @property
    def backbones(self) -> list[nn.Module]:
        """Return the only backbone."""
        return [self.backbone]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits: Tensor = self.backbone(normalised(x))
        return logits.squeeze(1)

    def loss(self, x: Tensor, labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return cross-entropy; in training, erase the most sensitive regions of the pictures first."""
        return cross_entropy(self(erased(x, self.sensitivity(x)) if self.training else x), labels)

    def sensitivity(self, x: Tensor) -> Tensor:
        """Return the forgery attention map (N, H, W): the largest change of the logit by a channel of each pixel."""
        training = self.training
        self.eval()  # each picture independently, and without updating the running statistics
        with torch.enable_grad():
            pictures = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self(pictures).sum(), pictures)
        self.train(training)
        return gradient.abs().amax(1)


def erased(x: Tensor, sensitivity: Tensor) -> Tensor:
    """Fill blocks at the most sensitive pixels of pictures with random values.

    Args:
        x: pictures (N, 3, H, W) in [0, 1].
        sensitivity: sensitivity of each pixel, (N, H, W).
    """
    result = x.clone()
    height, width = x.shape[-2:]
    for picture, order in zip(result, sensitivity.flatten(1).argsort(1, descending=True), strict=True):
        free = torch.ones(height, width, dtype=torch.bool)
        for _ in range(BLOCKS):
            row, column = divmod(int(order[free.flatten()[order]][0]), width)
            rows, columns = _around(row, height), _around(column, width)
            picture[:, rows, columns] = torch.rand(picture[:, rows, columns].shape).to(picture)
            free[rows, columns] = False
    return result


def _around(place: int, side: int) -> slice:
    """Return a random interval of length ``side`` that contains a position."""
    length = int(torch.randint(1, max(2, int(LARGEST * side) + 1), ()))
    first = place - int(torch.randint(length, ()))
    return slice(max(0, first), min(side, first + length))
