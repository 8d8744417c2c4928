"""PEFT: LoRA beside SIA, where ``modules_to_save=["sia"]`` trains and saves a copy of every site."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ecosystem_checks import difference
from torch import Tensor, nn

from sia_layers.injection import disable_sia, eject_sia, inject_sia, sia_config, sia_modules, sia_parameters

pytestmark = pytest.mark.sampled(1)
timm = pytest.importorskip("timm", reason="needs timm")
peft = pytest.importorskip("peft", reason="needs peft")

NAMES = [f"blocks.{index}.sia" for index in range(3)]


def made() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=2, depth=4, embed_dim=48, num_heads=4
    )
    return model.eval()


def adapted(aggregate: bool | str) -> nn.Module:
    config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=["sia"])
    model: nn.Module = peft.get_peft_model(inject_sia(made(), aggregate=aggregate), config)
    return model


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(x).square().sum().backward()
        optimizer.step()
    return model.eval()


def gains(model: nn.Module) -> list[float]:
    return [site.gain.item() for site in sia_modules(model).values() if site.gain is not None]


@pytest.mark.parametrize("aggregate", [True, False, "pooled"])
def test_only_the_copies_learn(aggregate: bool | str) -> None:
    model, x = adapted(aggregate), torch.rand(2, 3, 64, 64)
    plain = made()(x)
    assert list(sia_modules(model)) == [f"base_model.model.{name}.modules_to_save.default" for name in NAMES]
    assert difference(model.eval()(x), plain) == 0
    assert all(parameter.requires_grad for parameter in sia_parameters(model))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained(model, x)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and not any("original_module" in name for name in changed)
    assert sum("modules_to_save" in name for name in changed) == sum(1 for _ in sia_parameters(model))
    assert all(gain != 0 for gain in gains(model))
    found = model(x)
    with model.disable_adapter():
        assert difference(model(x), plain) == 0
        assert list(sia_modules(model)) == [f"base_model.model.{name}.original_module" for name in NAMES]
    with disable_sia(model):
        assert difference(model(x), found) > 0
    assert difference(model(x), found) == 0


@pytest.mark.parametrize("aggregate", [True, False])
def test_an_adapter_is_saved_loaded_and_merged(aggregate: bool, tmp_path: Path) -> None:
    x = torch.rand(2, 3, 64, 64)
    model = trained(adapted(aggregate), x)
    found, learnt = model(x), gains(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(inject_sia(made(), aggregate=aggregate), tmp_path).eval()
    assert difference(again(x), found) < 1e-6 and gains(again) == learnt
    assert sia_config(again)["aggregate"] is aggregate
    merged = again.merge_and_unload().eval()
    assert difference(merged(x), found) < 1e-6 and list(sia_modules(merged)) == NAMES and gains(merged) == learnt
    eject_sia(merged)
    assert list(merged.state_dict()) == list(made().state_dict())


def test_unloading_the_adapter_keeps_sia() -> None:
    x = torch.rand(2, 3, 64, 64)
    model = trained(adapted(True), x)
    learnt = gains(model)
    unloaded = model.unload().eval()
    assert gains(unloaded) == learnt and torch.isfinite(unloaded(x)).all()


def test_ejecting_sia_keeps_the_adapter() -> None:
    x = torch.rand(2, 3, 64, 64)
    model = trained(adapted(True), x)
    with disable_sia(model):
        expected = model(x)
    eject_sia(model)
    assert not sia_modules(model) and not any(module._forward_hooks for module in model.modules())
    assert difference(model(x), expected) == 0


def test_two_adapters_have_a_copy_each() -> None:
    x = torch.rand(2, 3, 64, 64)
    model = trained(adapted(False), x)
    learnt, found = gains(model), model(x)
    model.add_adapter("second", peft.LoraConfig(target_modules=["qkv"], modules_to_save=["sia"]))
    model.set_adapter("second")
    assert gains(model) == [0.0, 0.0, 0.0] and all("second" in name for name in sia_modules(model))
    model.set_adapter("default")
    assert gains(model) == learnt and difference(model.eval()(x), found) == 0
