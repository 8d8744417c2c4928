"""The toy networks of the supplement's Table 2: six convolutions, vanilla, central difference or depthwise.

The layers are as printed, and what is printed differs in more than the kind of convolution:

- Norm and CDC halve the map in layers 1, 3 and 5, Depthwise in layers 1, 2 and 3. All end at an eighth of the picture.
- Depthwise has no ReLU in layers 2 to 6.
- Norm and CDC hold 6,286,176 convolution weights, the 6.29M of Table 3. Depthwise holds 708,160, that is 0.71M, where
  Table 3 prints 4.90M. Nothing is changed to fit.

Not printed, and chosen here: padding 1, no biases before BatchNorm, "pooling fc" as global average pooling and a linear
layer with one logit.
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
STRIDES: Final = (2, 1, 2, 1, 2, 1)  # of Norm and CDC
DEPTHWISE_STRIDES: Final = (2, 2, 2, 1, 1, 1)
THETA: Final = 0.7  # Yu et al., the value that they found best

Layer = Callable[[int, int, int], nn.Module]


class CentralDifferenceConv2d(nn.Conv2d):
    """Central difference convolution 3x3: of each pixel's neighbourhood, less theta times the pixel itself.

    y = conv(x, w) - theta * conv1x1(x, w summed over the window). The 1x1 convolution sees the centre of each window
    alone, so both are one convolution whose centre weight is less by theta times the sum.

    Yu et al., "Searching Central Difference Convolutional Networks for Face Anti-Spoofing" (CVPR 2020), Eq. 4.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        stride: of the window.
        theta: share of the central difference, 0 for a vanilla convolution.

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
        """The convolved map."""
        weight = self.weight - self.theta * self.weight.sum((2, 3), keepdim=True) * self.centre
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Toy(Detector):
    """A toy network.

    Args:
        layers: makes a layer from its input channels, output channels and stride.
        strides: of the six layers.

    Attributes:
        layers: the six layers, each a Sequential that ends with its BatchNorm and, where there is one, ReLU.
    """

    def __init__(self, layer: Layer, strides: tuple[int, ...]) -> None:
        super().__init__()
        made = [layer(*channels, stride) for channels, stride in zip(pairwise(CHANNELS), strides, strict=True)]
        self.layers = nn.Sequential(*made)
        self.pooling = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(CHANNELS[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """The logit of each picture."""
        logits: Tensor = self.fc(self.pooling(self.layers(normalised(x))).flatten(1))
        return logits.squeeze(1)


def norm_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A vanilla convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def cdc_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A central difference convolution, BatchNorm and ReLU."""
    conv = CentralDifferenceConv2d(channels, out_channels, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def depthwise_layer(channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """A depthwise and a pointwise convolution and BatchNorm; the first layer, of the picture, is a vanilla one."""
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
    """A toy network with fresh weights.

    Args:
        name: one of :data:`TOYS`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in KINDS:
        raise listed("toy network", name, TOYS)
    return Toy(*KINDS[name])


def convolution_weights(model: nn.Module) -> int:
    """The number of weights in the convolutions of a model."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
