"""The attention layers of the supplement's section 5, at the sites of SIA.

SE, SK, CBAM, ECA and the non-local block are timm's. DANet's and ADL's are implemented here from their papers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from sia_layers import find_sites


class DualAttention(nn.Module):
    """DANet's attention, over positions and over channels, both added to the map.

    Fu et al., "Dual Attention Network for Scene Segmentation" (CVPR 2019), equations 1 to 4. Both start at 0, as in the
    paper; here they are added to the same map, so that the layer starts as the identity.

    Args:
        channels: channels of the map.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 8)
        self.query = nn.Conv2d(channels, hidden, 1)
        self.key = nn.Conv2d(channels, hidden, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.position_gain = nn.Parameter(torch.zeros(1))
        self.channel_gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with the attention over its positions and channels added."""
        flat = x.flatten(2)
        scores = self.query(x).flatten(2).mT @ self.key(x).flatten(2)
        positions = self.value(x).flatten(2) @ scores.softmax(-1).mT
        likeness = flat @ flat.mT
        channels = (likeness.amax(-1, keepdim=True) - likeness).softmax(-1) @ flat
        attended = self.position_gain * positions + self.channel_gain * channels
        return x + attended.view_as(x)


class DropoutAttention(nn.Module):
    """ADL: in training, hide the strongest positions of a map or weight all positions; in evaluation, do nothing.

    Choe and Shim, "Attention-Based Dropout Layer for Weakly Supervised Object Localization" (CVPR 2019), with its drop
    rate of 0.75 and threshold of 0.8. It has no parameters.

    Args:
        channels: channels of the map; unused, but part of the common interface.
        drop_rate: probability of hiding the strongest positions.
        threshold: share of a map's maximum above which a position is among the strongest.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int, drop_rate: float = 0.75, threshold: float = 0.8) -> None:
        super().__init__()
        self.drop_rate, self.threshold = drop_rate, threshold

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with positions hidden or weighted."""
        if not self.training:
            return x
        strength = x.mean(1, keepdim=True)
        if float(torch.rand(())) < self.drop_rate:
            return x * (strength < self.threshold * strength.amax((2, 3), keepdim=True))
        return x * strength.sigmoid()


class SelectiveKernels(nn.Module):
    """SK: the map plus a selection, per channel, between two convolutions with different receptive fields.

    Li et al., "Selective Kernel Networks" (CVPR 2019), with timm's layer. In the paper it replaces a convolution; here,
    after a stage with pretrained weights, it is added to its input.

    Args:
        channels: channels of the map; an even number.

    Shape:
        (N, C, H, W) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        from timm.layers import SelectiveKernel

        self.kernels = SelectiveKernel(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map plus the selected convolutions."""
        selected: Tensor = self.kernels(x)
        return x + selected


OWN: Final[dict[str, Callable[[int], nn.Module]]] = {
    "danet": DualAttention, "adl": DropoutAttention, "sk": SelectiveKernels,
}  # fmt: skip


def append_attention(model: nn.Module, kind: str) -> nn.Module:
    """Add an attention layer after each module where :func:`sia_layers.inject_sia` puts SIA by default.

    Args:
        model: model to change in place; each host becomes a Sequential of itself and the attention.
        kind: ``"danet"``, ``"adl"`` or ``"sk"``, or a layer that ``timm.layers.create_attn`` knows by this name.

    Returns:
        The same model.
    """
    from timm.layers.create_attn import create_attn

    for site in find_sites(model):
        attention = OWN[kind](site.channels) if kind in OWN else create_attn(kind, site.channels)
        assert attention is not None
        model.set_submodule(site.host, nn.Sequential(model.get_submodule(site.host), attention))
    return model
