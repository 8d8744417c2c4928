"""open_clip: the visual tower, within the whole model and alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ecosystem_checks import channels, check, kinds
from torch import nn

from sia_layers.injection import inject_sia, sia_modules

pytestmark = pytest.mark.sampled(1)
open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"layers": 4, "width": 48, "head_width": 12, "patch_size": 16, "image_size": 64},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 64, "head_width": 8},
    "timm": {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "avg", "image_size": 64},
}
EXPECTED = {"vit": ("NLC", [48, 48, 48]), "resnet": ("NCHW", [32, 64, 128]), "timm": ("NCHW", [64, 128, 256])}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = open_clip.CLIP(embed_dim=16, vision_cfg=VISION[kind], text_cfg=TEXT).eval()
    return model


@pytest.mark.parametrize("kind", VISION)
def test_the_visual_tower_of_the_whole_model_is_selected(kind: str) -> None:
    model, x, words = made(kind), torch.rand(2, 3, 64, 64), torch.ones(2, 8, dtype=torch.long)
    sites = check(model, lambda: model(x, words))
    assert all(name.startswith("visual.") for name in sites)
    assert (kinds(sites), channels(sites)) == ({EXPECTED[kind][0]}, EXPECTED[kind][1])


def test_the_tower_alone_gives_the_same_sites() -> None:
    model = made("vit")
    other = copy.deepcopy(model)
    x = torch.rand(2, 3, 64, 64)
    sites = check(other.visual, lambda: other.visual(x))
    assert {site.layout.prefixes for site in sites.values()} == {(1, 0)}
    assert [f"visual.{name}" for name in sites] == list(sia_modules(inject_sia(model)))


def test_checkpointing_gives_the_same_gradients() -> None:
    model, x = inject_sia(made("vit"), identity_init=False, gain=0.5).train(), torch.rand(2, 3, 64, 64)
    found = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model.encode_image(x).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.visual.named_parameters()})
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items() if grad is not None)
