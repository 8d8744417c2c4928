"""Models whose input is not a plain picture: batch dicts, keywords, lists; also from a loader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ecosystem_checks import channels, check, kinds, shape_of
from torch import Tensor, nn

from sia_layers import profile_self_information
from sia_layers.injection import eject_sia, inject_sia, sia_modules

pytestmark = pytest.mark.sampled(1)
timm = pytest.importorskip("timm", reason="needs timm")


class BatchDetector(nn.Module):
    """A detector like DeepfakeBench's: the whole batch, including labels, is one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet10t", num_classes=2)

    def features(self, data_dict: dict[str, Any]) -> Tensor:
        features: Tensor = self.backbone.forward_features(data_dict["image"])
        return features

    def forward(self, data_dict: dict[str, Any], inference: bool = False) -> dict[str, Tensor]:
        features = self.features(data_dict)
        logits = self.backbone.forward_head(features)
        return {"cls": logits, "prob": logits.softmax(1)[:, 1], "feat": features}


class KeywordDetector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet10t", num_classes=2)

    def forward(self, *, image: Tensor, scale: float = 1.0) -> Tensor:
        logits: Tensor = scale * self.backbone(image)
        return logits


def pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("order", [("image", "label"), ("label", "image")])
def test_models_that_take_a_batch_dict(order: tuple[str, str]) -> None:
    parts: dict[str, Any] = {"image": pictures(), "label": torch.tensor([0, 1])}
    batch = {**{name: parts[name] for name in order}, "name": ["a", "b"], "mask": None}
    model = BatchDetector().eval()
    sites = check(model, lambda: model(batch, inference=True), example_input=batch)
    assert all(name.startswith("backbone.") for name in sites) and channels(sites) == [64, 128, 256]
    profile = profile_self_information(model, [batch], progress=False)
    assert len(profile) == 3


def test_keywords() -> None:
    model, x = KeywordDetector().eval(), pictures()
    sites = check(model, lambda: model(image=x, scale=2.0), example_kwargs={"image": x, "scale": 2.0})
    assert channels(sites) == [64, 128, 256]
    assert len(profile_self_information(model, [{"image": x}], progress=False)) == 3


def test_a_detector_takes_a_list_of_pictures() -> None:
    detection = pytest.importorskip("torchvision.models.detection", reason="needs torchvision")
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=2)
    before = shape_of(model)
    inject_sia(model)
    assert all(name.startswith("backbone.") for name in sia_modules(model)) and kinds(sia_modules(model)) == {"NCHW"}
    x = [torch.rand(3, 64, 48), torch.rand(3, 48, 64)]
    boxes = [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}] * 2
    sum(model.train()(x, boxes).values()).backward()
    gains = [site.gain for site in sia_modules(model).values()]
    assert all(gain is not None and gain.grad is not None and gain.grad.isfinite().all() for gain in gains)
    assert len(model.eval()(x)) == 2
    eject_sia(model.train())
    assert shape_of(model) == before
