"""F3-Net: two streams that process a picture's frequencies, with cross attention between them.

Qian et al., "Thinking in Frequency: Face Forgery Detection by Mining Frequency-Aware Clues" (ECCV 2020):

- FAD, frequency-aware decomposition (its section 3.1): the picture's discrete cosine transform is split by band filters
  with a learnable part, and each band is transformed back.
- LFS, local frequency statistics (3.2): the transforms of small windows are summed by bands to form a map.
- MixBlock (3.3): cross attention between the two streams.

Both streams are EfficientNet-Lite0 instead of the paper's Xception. Our other choices: a fourth FAD filter passes the
whole spectrum, as in public implementations; the learnable parts of FAD are a grid over the spectrum that is
interpolated to the picture's size; the LFS map is normalised and resized to the picture; attention is over positions,
mixed in by a scalar that starts at 0, after the fifth and the last stage.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from benchmarks.reproduction.networks.detector import BackboneDetector, normalised
from benchmarks.reproduction.networks.lite import lite0

FAD_BANDS: Final = ((0, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1), (0, 1))  # low, middle, high, all; fractions of the area
FAD_GRID: Final = 64  # frequencies along each side of the learnable filters
LFS_WINDOW: Final = 10
LFS_STRIDE: Final = 2
LFS_BANDS: Final = 6
MIXED_STAGES: Final = (4, 6)  # stages of EfficientNet-Lite0, from 0
FLOOR: Final = 1e-6  # added before the logarithm, which flat windows would make infinite


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (type II) of vectors of that size: D x, with inverse D' x."""
    return torch.tensor(dct(torch.eye(size, dtype=torch.float64).numpy(), axis=0, norm="ortho"), dtype=torch.float32)


def squashed(weight: Tensor) -> Tensor:
    """Return the paper's sigma(w) = (1 - exp(-w)) / (1 + exp(-w)), between -1 and 1."""
    return torch.tanh(weight / 2)


class FrequencyDecomposition(nn.Module):
    """FAD: split a picture into one picture for each band of frequencies.

    y_i = D' (D x D' * (f_i + sigma(w_i))) D, with the cosine transform D, the bands' filters f and the learnable w.
    Frequencies are ordered by u + v, and a band is a range of fractions of the spectrum's area in that order.

    Shape:
        (N, C, H, W) to (N, 4 C, H, W), band by band.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(FAD_BANDS), FAD_GRID, FAD_GRID) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the bands of each picture."""
        rows, columns = (dct_matrix(size).to(x) for size in x.shape[-2:])
        spectrum = rows @ x @ columns.T
        weight = F.interpolate(self.weight[None], x.shape[-2:], mode="bilinear")[0]
        filters = self.bands(x.shape[-2], x.shape[-1]).to(x) + squashed(weight)
        return (rows.T @ (spectrum[:, None] * filters[:, None]) @ columns).flatten(1, 2)

    @staticmethod
    def bands(height: int, width: int) -> Tensor:
        """Return the fixed filters (4, H, W), 0 or 1."""
        position = torch.arange(height)[:, None] / height + torch.arange(width) / width
        # The corner u + v < t of the unit square has the area t^2 / 2, and 1 - (2 - t)^2 / 2 beyond the diagonal.
        share = torch.where(position < 1, position**2 / 2, 1 - (2 - position) ** 2 / 2)
        return torch.stack([(share >= low) & (share < high) for low, high in FAD_BANDS]).float()


class FrequencyStatistics(nn.Module):
    """LFS: the strength of each band of frequencies in a small window, at every second pixel.

    q_i = log10 of the sum of |D(window) * (h_i + sigma(w_i))|, with the cosine transform D of the grey values, the
    bands' filters h and the learnable w; six bands of equal width in u + v, each normalised over the batch.

    Shape:
        (N, C, H, W) to (N, 6, H, W), computed at half the size and interpolated.
    """

    def __init__(self) -> None:
        super().__init__()
        matrix = dct_matrix(LFS_WINDOW)
        basis = torch.einsum("ui,vj->uvij", matrix, matrix).reshape(-1, 1, LFS_WINDOW, LFS_WINDOW)
        order = torch.arange(LFS_WINDOW)[:, None] + torch.arange(LFS_WINDOW)
        band = (order * LFS_BANDS // (2 * LFS_WINDOW - 1)).flatten()
        self.basis: Tensor
        self.bands: Tensor
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("bands", F.one_hot(band, LFS_BANDS).T.float(), persistent=False)
        self.weight = nn.Parameter(torch.randn(LFS_BANDS, LFS_WINDOW**2) * 0.1)
        self.norm = nn.BatchNorm2d(LFS_BANDS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of each picture."""
        padded = F.pad(x.mean(1, keepdim=True), [(LFS_WINDOW - LFS_STRIDE) // 2] * 4, mode="reflect")
        spectra = F.conv2d(padded, self.basis, stride=LFS_STRIDE).abs()
        filters = (self.bands + squashed(self.weight)).abs()
        statistics = torch.log10(F.conv2d(spectra, filters[:, :, None, None]) + FLOOR)
        return F.interpolate(self.norm(statistics), x.shape[-2:], mode="bilinear")


class MixBlock(nn.Module):
    """Cross attention: each stream attends to the other's positions, with scores computed from both streams.

    Args:
        channels: channels of both maps.

    Shape:
        two maps (N, C, H, W) to two maps of that shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.gains = nn.ParameterList([torch.zeros(()), torch.zeros(())])

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps, with the attention to the other map added to each."""
        query, key = _positions(self.query(first)), _positions(self.key(second))
        to_first = F.scaled_dot_product_attention(query, key, _positions(second))
        to_second = F.scaled_dot_product_attention(key, query, _positions(first))
        return (
            first + self.gains[0] * to_first.mT.reshape(first.shape),
            second + self.gains[1] * to_second.mT.reshape(second.shape),
        )


def _positions(x: Tensor) -> Tensor:
    """Return a map (N, C, H, W) as vectors (N, H W, C)."""
    return x.flatten(2).mT


class F3Net(BackboneDetector):
    """The F3-Net detector.

    Args:
        pretrained: whether to start both streams from the ImageNet weights.

    Attributes:
        fad: network of the decomposed picture, with 12 input channels.
        lfs: network of the local statistics, with 6 input channels.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.decomposition = FrequencyDecomposition()
        self.statistics = FrequencyStatistics()
        self.fad = lite0(channels=3 * len(FAD_BANDS), pretrained=pretrained)
        self.lfs = lite0(channels=LFS_BANDS, pretrained=pretrained)
        self.mixes = nn.ModuleDict(
            {str(stage): MixBlock(self.fad.blocks[stage][-1].conv_pwl.out_channels) for stage in MIXED_STAGES}
        )
        self.fc = nn.Linear(self.fad.num_features + self.lfs.num_features, 1)

    @property
    def backbones(self) -> list[nn.Module]:
        """Return both streams."""
        return [self.fad, self.lfs]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        picture = normalised(x)
        first, second = _stem(self.fad, self.decomposition(picture)), _stem(self.lfs, self.statistics(picture))
        for stage, (fad, lfs) in enumerate(zip(self.fad.blocks, self.lfs.blocks, strict=True)):
            first, second = fad(first), lfs(second)
            if stage in MIXED_STAGES:
                first, second = self.mixes[str(stage)](first, second)
        logits: Tensor = self.fc(torch.cat([_pooled(self.fad, first), _pooled(self.lfs, second)], 1))
        return logits.squeeze(1)


def _stem(backbone: Any, x: Tensor) -> Tensor:
    return backbone.bn1(backbone.conv_stem(x))  # type: ignore[no-any-return]


def _pooled(backbone: Any, x: Tensor) -> Tensor:
    return backbone.global_pool(backbone.bn2(backbone.conv_head(x)))  # type: ignore[no-any-return]
