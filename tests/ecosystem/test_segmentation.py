"""segmentation_models_pytorch: whole segmenters, encoders alone, and sites that are off the trunk."""

from __future__ import annotations

import pytest
import torch
from ecosystem_checks import channels, check, kinds
from torch import nn

from sia_layers.injection import OffTrunkError, eject_sia, find_sites, inject_sia, sia_modules

pytestmark = pytest.mark.sampled(1)
smp = pytest.importorskip("segmentation_models_pytorch", reason="needs segmentation_models_pytorch")


def made(decoder: str, encoder: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(smp, decoder)(encoder, encoder_weights=None).eval()
    return model


@pytest.mark.parametrize(
    ("decoder", "encoder", "expected"),
    [
        ("Unet", "tu-resnet10t", [64, 128, 256]),
        ("FPN", "tu-convnext_atto", [40, 80, 160]),
        ("FPN", "mit_b0", [32, 64, 160]),
        ("DeepLabV3Plus", "resnet18", [64, 128, 512]),  # with stride 16, its last stage has that reduction
    ],
)
def test_a_segmenters_encoder_is_selected(decoder: str, encoder: str, expected: list[int]) -> None:
    model, x = made(decoder, encoder), torch.rand(2, 3, 64, 64)
    sites = check(model, lambda: model(x))
    assert channels(sites) == expected and kinds(sites) == {"NCHW"}
    assert all(name.startswith("encoder.") for name in sites)


@pytest.mark.parametrize("encoder", ["resnet18"])
def test_the_encoder_alone_gives_the_same_sites(encoder: str) -> None:
    model = made("Unet", encoder)
    whole = [site.host for site in find_sites(model)]
    inject_sia(model.encoder)
    assert [f"{host}.sia" for host in whole] == list(sia_modules(model))
    eject_sia(model)
    assert not sia_modules(model)


@pytest.mark.parametrize(("decoder", "stage"), [("Unet", "decoder.blocks.0"), ("FPN", "decoder.p3")])
def test_stages_of_a_decoder_are_refused_with_advice_that_leads_somewhere(decoder: str, stage: str) -> None:
    model = made(decoder, "resnet18")
    with pytest.raises(OffTrunkError, match=r"stage of 'encoder'.*allow_bypass=True"):
        inject_sia(model, [stage])
    assert not sia_modules(model)
    inject_sia(model, [stage], allow_bypass=True)
    assert all(name.startswith(stage) for name in sia_modules(model))
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
