"""DCL: contrastive learning between pictures, and between the regions of one picture.

Sun et al., "Dual Contrastive Learning for General Face Forgery Detection" (AAAI 2022). In addition to cross-entropy:

- Inter-instance: two views of a picture, one encoded by the network and one by its moving average, should be similar to
  each other and dissimilar to the pictures of the other class in a queue. Only hard pictures enter the queue, namely
  those closest to the running mean of the other class.
- Intra-instance: the local features of a real picture should be similar to each other. So should those of a fake
  picture's untouched region, which should also differ from those of its manipulated region.

The loss is cross-entropy + inter + 0.1 (fake + 0.01 real); the weights of the two intra-instance terms are those of the
published code. The network is EfficientNet-Lite0. Our choices: local features come from the fifth stage, at a sixteenth
of the picture; averages replace the sums of the published code, so that the regions of a real picture give 0 when they
are all equal; the queue and the momentum suit small data sets; and views differ by flips, light, blur and noise,
without the paper's shuffled patches, SRM filter and shifted frames.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from benchmarks.reproduction.networks.detector import BackboneDetector, cross_entropy, normalised
from benchmarks.reproduction.networks.lite import lite0

LOCAL_STAGES: Final = 5  # local features come from the fifth stage
DIMENSIONS: Final = 128  # dimensions of the projections
QUEUE: Final = 128  # pictures of each class
HARD: Final = 4  # pictures of each class that enter the queue with a batch
MOMENTUM: Final = 0.99  # of the moving average; the paper's 0.999 needs more steps than small data sets have
PROTOTYPE_MOMENTUM: Final = 0.9
TEMPERATURE: Final = 0.07
INTRA_WEIGHT: Final = 0.1
REAL_WEIGHT: Final = 0.01


class Encoder(nn.Module):
    """A backbone with its logit, a projection for the inter-instance contrast, and local features.

    Args:
        pretrained: whether to start from the ImageNet weights.
    """

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        self.backbone = lite0(pretrained=pretrained)
        self.fc = nn.Linear(self.backbone.num_features, 1)
        self.projection = nn.Linear(self.backbone.num_features, DIMENSIONS)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N,), projections (N, 128) and local features (N, C, h, w), the last two of unit length."""
        net: Any = self.backbone
        local = net.blocks[:LOCAL_STAGES](net.bn1(net.conv_stem(picture)))
        features = net.global_pool(net.bn2(net.conv_head(net.blocks[LOCAL_STAGES:](local))))
        projected = F.normalize(self.projection(features), dim=1)
        return self.fc(features).squeeze(1), projected, F.normalize(local, dim=1)


class DCL(BackboneDetector):
    """The DCL detector. Its state dict includes the moving average, the queues and the prototypes.

    Args:
        pretrained: whether to start from the ImageNet weights.

    Attributes:
        query: encoder that is trained.
        key: its moving average, which gets no gradient.
        queues: projections (2, 128, Q) of hard pictures of each class.
        prototypes: running means (2, 128) of the projections of each class.
        positions: (2,) next position in the queue of each class.
    """

    def __init__(self, pretrained: bool = True) -> None:
        super().__init__()
        self.query = Encoder(pretrained)
        self.key = frozen_copy(self.query)
        self.queues: Tensor
        self.prototypes: Tensor
        self.positions: Tensor
        self.register_buffer("queues", F.normalize(torch.randn(2, DIMENSIONS, QUEUE), dim=1))
        self.register_buffer("prototypes", F.normalize(torch.randn(2, DIMENSIONS), dim=1))
        self.register_buffer("positions", torch.zeros(2, dtype=torch.int64))

    @property
    def backbones(self) -> list[nn.Module]:
        """Return the backbone that is trained."""
        return [self.query.backbone]

    def inject(self) -> None:
        """Inject SIA into the encoder that is trained, and restart its moving average from it."""
        super().inject()
        self.key = frozen_copy(self.query).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of each picture."""
        logits: Tensor = self.query(normalised(x))[0]
        return logits

    def loss(self, x: Tensor, labels: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return all three terms for two random views and update the averages; in evaluation, only cross-entropy.

        Without masks the regions of a fake picture are unknown, and only real pictures have an intra-instance term.
        """
        if not self.training:
            return super().loss(x, labels)
        labels = labels.long()
        view, view_masks = augmented(x, masks)
        other, _ = augmented(x, None)
        logits, queries, local = self.query(normalised(view))
        keys = self._keys(normalised(other))
        self._update(keys, labels)
        inter = self._inter(queries, keys, labels)
        return cross_entropy(logits, labels) + inter + INTRA_WEIGHT * intra_contrast(local, labels, view_masks)

    def _inter(self, queries: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """Contrast each query with its own key and with the queue of the other class."""
        positive = (queries * keys).sum(1, keepdim=True)
        negatives = torch.einsum("nd,ndq->nq", queries, self.queues[1 - labels])
        logits = torch.cat([positive, negatives], 1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros_like(labels))

    @torch.no_grad()
    def _keys(self, picture: Tensor) -> Tensor:
        """Update the moving average and return its projections."""
        for average, parameter in zip(self.key.parameters(), self.query.parameters(), strict=True):
            average.lerp_(parameter, 1 - MOMENTUM)
        keys: Tensor = self.key(picture)[1]
        return keys

    @torch.no_grad()
    def _update(self, keys: Tensor, labels: Tensor) -> None:
        """Update each class's prototype, and add its hard pictures to its queue."""
        members = [keys[labels == label] for label in (0, 1)]
        for label, own in enumerate(members):
            if len(own):
                self.prototypes[label].lerp_(own.mean(0), 1 - PROTOTYPE_MOMENTUM)
        for label, own in enumerate(members):
            hard = own[(own @ self.prototypes[1 - label]).argsort(descending=True)[:HARD]]
            places = (self.positions[label] + torch.arange(len(hard), device=keys.device)) % QUEUE
            self.queues[label, :, places] = hard.T
            self.positions[label] = (self.positions[label] + len(hard)) % QUEUE


def frozen_copy(encoder: Encoder) -> Encoder:
    """Return a copy that gets no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


def intra_contrast(local: Tensor, labels: Tensor, masks: Tensor | None) -> Tensor:
    """Return the contrast between the regions of each picture.

    Args:
        local: features (N, C, h, w) of unit length.
        labels: (N,), 0 for real.
        masks: bool (N, H, W), True where each picture was manipulated; None if unknown.

    Returns:
        A scalar: the term of fakes that have both kinds of regions, plus 0.01 times that of real pictures.
    """
    features = local.flatten(2)
    likeness = torch.exp((features.mT @ features - 1) / TEMPERATURE)
    real = -torch.log(likeness.mean((1, 2)))
    total = REAL_WEIGHT * _mean(real[labels == 0])
    if masks is None:
        return total
    changed = F.adaptive_max_pool2d(masks[:, None].to(local.dtype), local.shape[-2:]).flatten(1)
    alike = torch.einsum("nij,ni,nj->n", likeness, 1 - changed, 1 - changed)
    unlike = torch.einsum("nij,ni,nj->n", likeness, changed, 1 - changed)
    both = (labels == 1) & (changed.amin(1) == 0) & (changed.amax(1) == 1)
    return total - _mean(torch.log(alike[both] / (alike[both] + unlike[both])))


def _mean(values: Tensor) -> Tensor:
    """Return the mean, or 0 if there are no values."""
    return values.sum() / max(1, len(values))


def augmented(x: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a random view of each picture, with its mask transformed in the same way.

    Args:
        x: pictures (N, 3, H, W) in [0, 1].
        masks: (N, H, W).
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(x), 1, 1, 1).uniform_(low, high).to(x)

    flipped = uniform(0, 1) < 0.5
    view = torch.where(flipped, x.flip(-1), x)
    view = (view - 0.5) * uniform(0.8, 1.2) + 0.5 + uniform(-0.1, 0.1)
    view = torch.lerp(view, gaussian_blur(view, [3, 3]), uniform(0, 1))
    view = view + uniform(0, 0.03) * torch.randn(x.shape).to(x)
    return view.clamp(0, 1), None if masks is None else torch.where(flipped[:, 0], masks.flip(-1), masks)
