"""The toy networks of the supplement's Table 2: six convolutions, vanilla, central difference or depthwise.

The layers are as printed, so the networks differ in more than the kind of convolution:

- Norm and CDC halve the map in layers 1, 3 and 5, Depthwise in layers 1, 2 and 3. All end at an eighth of the picture.
- Depthwise has no ReLU in layers 2 to 6.
- Norm and CDC have 6,286,176 convolution weights, the 6.29M of Table 3. Depthwise has 708,160, that is, 0.71M, where
  Table 3 prints 4.90M. Nothing was changed to match.

The paper does not print the following, which is our choice: padding 1, no biases before BatchNorm, and "pooling fc" as
global average pooling and a linear layer with one logit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import Detector, listed, normalised

CHANNELS: Final = (3, 32, 64, 128, 256, 512, 1024)
STRIDES: Final = (2, 1, 2, 1, 2, 1)  # for Norm and CDC
DEPTHWISE_STRIDES: Final = (2, 2, 2, 1, 1, 1)
THETA: Final = 0.7  # the best value in Yu et al.

Layer = Callable[[int, int, int], nn.Module]


class CentralDifferenceConv2d(nn.Conv2d):
    """A 3x3 central difference convolution: a convolution minus theta times a convolution of the central pixel.

    y = conv(x, w) - theta * conv1x1(x, w summed over the window). The 1x1 convolution sees only the centre of each
    window, so both are one convolution, whose centre weight is reduced by theta times the sum.

    Yu et al., "Searching Central Difference Convolutional Networks for Face Anti-Spoofing" (CVPR 2020), Eq. 4.

    Args:
        in_channels: channels of the map.
        out_channels: channels of the result.
        stride: stride of the window.
        theta: weight of the central difference, 0 for a vanilla convolution.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, theta: float = THETA) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.theta = theta
        self.centre: Tensor
        centre = torch.zeros(3, 3)
        centre[1, 1] = 1
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        weight = self.weight - self.theta * self.weight.sum((2, 3), keepdim=True) * self.centre
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Toy(Detector):
    """A toy network.

    Args:
        layer: function that builds a layer from its input channels, output channels and stride.
        strides: strides of the six layers.

    Attributes:
        layers: six layers, each a Sequential that ends with its BatchNorm and, if present, ReLU.
    """

    def __init__(self, layer: Layer, strides: tuple[int, ...]) -> None:
        super().__init__()
        layers = [layer(*channels, stride) for channels, stride in zip(pairwise(CHANNELS), strides, strict=True)]
        self.layers = nn.Sequential(*layers)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(CHANNELS[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits: Tensor = self.fc(self.pooling(self.layers(normalised(x))).flatten(1))
        return logits.squeeze(1)


def norm_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a vanilla convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def cdc_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a central difference convolution, BatchNorm and ReLU."""
    conv = CentralDifferenceConv2d(channels, out_channels, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def depthwise_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a depthwise and a pointwise convolution and BatchNorm; the first layer is a vanilla convolution."""
    if channels == CHANNELS[0]:
        return norm_layer(channels, out_channels, stride)
    depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


KINDS: Final[dict[str, tuple[Layer, tuple[int, ...]]]] = {
    "Norm": (norm_layer, STRIDES),
    "CDC": (cdc_layer, STRIDES),
    "Depthwise": (depthwise_layer, DEPTHWISE_STRIDES),
}
TOYS: Final = tuple(KINDS)
PRINTED_PARAMETERS: Final = {"Norm": 6.29e6, "CDC": 6.29e6, "Depthwise": 4.90e6}  # Table 3


def toy(name: str) -> Toy:
    """Return a toy network with fresh weights.

    Args:
        name: one of :data:`TOYS`.

    Raises:
        ValueError: there is no network of that name.
    """
    if name not in KINDS:
        raise listed("toy network", name, TOYS)
    return Toy(*KINDS[name])


def convolution_weights(model: nn.Module) -> int:
    """Return the number of weights in the convolutions of a model."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
