"""Tools that inspect models: summaries, explanations, pruning, private gradients, counters, profilers, fusing."""

from __future__ import annotations

import io

import pytest
import torch
from ecosystem_checks import channels, difference
from torch import Tensor, nn

from sia_layers import SIAttention
from sia_layers.injection import eject_sia, inject_sia, sia_config, sia_modules, sia_parameters

pytestmark = pytest.mark.sampled(1)
timm = pytest.importorskip("timm", reason="needs timm")
NAMES = ["resnet10t", "vit_tiny_patch16_224"]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 4} if "vit" in name else {}
    model: nn.Module = timm.create_model(name, num_classes=2, **small)
    return model.eval()


def injected(name: str, **options: object) -> nn.Module:
    return inject_sia(made(name), identity_init=False, gain=0.5, **options)


def pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_torchinfo_lists_the_sites(name: str) -> None:
    torchinfo = pytest.importorskip("torchinfo", reason="needs torchinfo")
    model = injected(name)
    before = model(pictures())
    summary = torchinfo.summary(model, input_size=(1, 3, 64, 64), verbose=0, depth=9)
    assert summary.total_params == sum(parameter.numel() for parameter in model.parameters())
    assert str(summary).count("SIAttention: ") == 3 and "SIAggregation" in str(summary)
    assert before.isfinite().all() and len(sia_modules(model)) == 3
    alone = torchinfo.summary(SIAttention(8), input_size=(1, 8, 16, 16), verbose=0)
    assert alone.total_params == 16


@pytest.mark.parametrize("name", NAMES)
def test_captum_explains(name: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    model, x = injected(name), pictures()
    expected = model(x)
    site = list(sia_modules(model).values())[1]
    found = [
        attr.Saliency(model).attribute(x, target=0),
        attr.IntegratedGradients(model).attribute(x, target=0, n_steps=3, internal_batch_size=3),
        attr.GuidedBackprop(model).attribute(x, target=0),
        attr.DeepLift(model).attribute(x, target=0),
        attr.Occlusion(model).attribute(x, target=0, sliding_window_shapes=(3, 32, 32), strides=(3, 32, 32)),
    ]
    assert all(value.shape == x.shape and value.isfinite().all() for value in found)
    for value in (
        attr.LayerActivation(model, site).attribute(x),
        attr.LayerGradCam(model, site).attribute(x, target=0),
    ):
        assert value.isfinite().all()
    assert difference(model(x), expected) == 0  # and its hooks are gone


@pytest.mark.parametrize("name", NAMES)
def test_grad_cam(name: str) -> None:
    cam = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = injected(name), pictures()
    expected = model(x)
    tokens = "vit" in name
    host = model.blocks[2] if tokens else model.layer3[0]

    def maps(value: Tensor) -> Tensor:
        return value[:, 1:].reshape(value.shape[0], 4, 4, -1).permute(0, 3, 1, 2)

    ways = [cam.GradCAM, cam.HiResCAM, cam.EigenCAM]
    for way, layer in [(way, layer) for way in ways for layer in (host, host.sia)]:
        with way(model=model, target_layers=[layer], reshape_transform=maps if tokens else None) as explainer:
            found = explainer(input_tensor=x, targets=[targets.ClassifierOutputTarget(0)] * 2)
        assert found.shape == (2, 64, 64)
    assert difference(model(x), expected) == 0


@pytest.mark.parametrize(
    ("way", "layer", "aggregate"),
    [
        ("ScoreCAM", "layer1", True),  # runs many masked pictures with another batch size
        ("AblationCAM", "layer3", True),  # replaces the host by its own layer, and changes channels
        ("AblationCAM", "layer1", False),  # with aggregation it works only at the last site's host
    ],
)
def test_cams_that_change_the_batch_or_the_channels_in_mid_pass(way: str, layer: str, aggregate: bool) -> None:
    cam = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = injected("resnet10t", aggregate=aggregate), pictures()
    expected = model(x)
    with getattr(cam, way)(model=model, target_layers=[getattr(model, layer)[0]]) as explainer:
        explainer.batch_size = 32
        assert explainer(input_tensor=x, targets=[targets.ClassifierOutputTarget(0)] * 2).shape == (2, 64, 64)
    assert difference(model(x), expected) == 0
    assert len(sia_modules(model)) == 3


def pruned(model: nn.Module, ignored: list[nn.Module]) -> nn.Module:
    pruning = pytest.importorskip("torch_pruning", reason="needs torch-pruning")
    importance = pruning.importance.MagnitudeImportance(p=2)
    pruning.pruner.MagnitudePruner(
        model, torch.rand(1, 3, 64, 64), importance=importance, pruning_ratio=0.5, ignored_layers=[model.fc, *ignored]
    ).step()
    return model


@pytest.mark.parametrize("aggregate", [True, False])
def test_torch_pruning_keeps_the_width_of_ignored_sites(aggregate: bool) -> None:
    model = injected("resnet10t", aggregate=aggregate)
    sites = [layer for site in sia_modules(model).values() for layer in site.modules()]
    weights = sum(parameter.numel() for parameter in model.parameters())
    pruned(model, sites)
    assert channels(sia_modules(model)) == [64, 128, 256]
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.9 * weights
    model.train()(pictures()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


def test_torch_pruning_then_injection() -> None:
    model = inject_sia(made("resnet10t"))
    config = sia_config(model)
    pruned(eject_sia(model), [])
    x = pictures()
    plain = model(x)
    inject_sia(model, **config)
    assert channels(sia_modules(model)) == [32, 64, 128]
    assert difference(model(x), plain) == 0


def test_opacus_gives_gradients_by_sample() -> None:
    opacus = pytest.importorskip("opacus", reason="needs opacus")
    model, x = injected("vit_tiny_patch16_224", aggregate=False), pictures()
    assert not opacus.validators.ModuleValidator.validate(model.train(), strict=False)
    private = opacus.GradSampleModule(model, loss_reduction="sum")
    private(x).square().sum().backward()
    singly = injected("vit_tiny_patch16_224", aggregate=False).train()
    for index in range(2):
        singly.zero_grad()
        singly(x[index : index + 1]).square().sum().backward()
        for ours, alone in zip(sia_parameters(model), sia_parameters(singly), strict=True):
            assert torch.allclose(ours.grad_sample[index], alone.grad, rtol=1e-3, atol=1e-6)


def test_opacus_replaces_the_batch_norms_of_the_aggregation() -> None:
    opacus = pytest.importorskip("opacus", reason="needs opacus")
    validator = opacus.validators.ModuleValidator
    model = injected("vit_tiny_patch16_224").train()
    assert len(validator.validate(model, strict=False)) == 3  # they mix the samples of a batch
    mended = validator.fix(model)
    assert not validator.validate(mended.train(), strict=False) and len(sia_modules(mended)) == 3
    assert mended(pictures()).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_fvcore_counts_more_with_sia(name: str) -> None:
    fvcore = pytest.importorskip("fvcore.nn", reason="needs fvcore")
    x = pictures()[:1]

    def counted(model: nn.Module) -> object:
        return fvcore.FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)

    plain, ours = counted(made(name)), counted(injected(name))
    by_module = ours.by_module()
    assert ours.total() > plain.total()
    assert all(by_module[site] > 0 for site in sia_modules(injected(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_profiler_names_the_operators(name: str) -> None:
    model = injected(name)
    with torch.profiler.profile(with_modules=True, record_shapes=True) as profile:
        model(pictures())
    names = {event.key for event in profile.key_averages()}
    assert {"sia_layers::self_information", "sia_layers::gate"} <= names


@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8"])
def test_timm_reparameterizes_blocks_that_are_hosts(name: str) -> None:
    model, x = inject_sia(timm.create_model(name, num_classes=2)), pictures()
    with torch.no_grad():
        for parameter in sia_parameters(model):
            parameter.add_(0.05)
    expected = model.eval()(x)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    fused = timm.utils.reparameterize_model(torch.load(file, weights_only=False))
    assert list(sia_modules(fused)) == list(sia_modules(model))
    assert torch.allclose(fused(x), expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in sia_parameters(fused))
    eject_sia(fused)
    assert fused(x).isfinite().all()
    eject_sia(model)
    assert not any("reparameterize" in vars(module) for module in model.modules())
