"""Injection into timm and torchvision models: one for every layout and every special case."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sia_layers.injection import disable_sia, eject_sia, find_sites, inject_sia, sia_modules, sia_parameters
from sia_layers.injection.relay import relay_of


class Case(NamedTuple):
    """A model, its input, and its expected sites."""

    name: str
    kind: str
    hosts: tuple[str, ...]
    size: tuple[int, int] = (64, 64)
    kwargs: dict[str, object] | None = None

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        model = timm.create_model(self.name, num_classes=7, **(self.kwargs or {}))
        # The output of a fresh network hardly depends on its input; scale the normalisation so that it does.
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
            elif isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.1)
        return model.eval()


IMAGE = {"img_size": (32, 64)}
# By default the first ten are tested: quick ones, and one of each family and layout.
CASES = [
    Case("resnet10t", "NCHW", ("layer1.0", "layer2.0", "layer3.0")),
    Case("efficientnet_b0", "NCHW", ("blocks.1.1", "blocks.2.1", "blocks.4.2")),
    Case("mobilenetv3_small_050", "NCHW", ("blocks.0.0", "blocks.1.1", "blocks.3.1")),
    Case("convnext_atto", "NCHW", ("stages.0", "stages.1", "stages.2")),
    Case("swin_tiny_patch4_window7_224", "NHWC", ("layers.0", "layers.1", "layers.2"), kwargs={"img_size": (64, 64)}),
    Case("mambaout_femto", "NHWC", ("stages.0", "stages.1", "stages.2")),
    Case("vit_tiny_patch16_224", "NLC", ("blocks.2", "blocks.5", "blocks.8"), (32, 64), IMAGE),
    Case("coat_lite_tiny", "NLC", tuple(f"serial_blocks{i}.1" for i in (1, 2, 3)), (64, 96), {"img_size": (64, 96)}),
    Case("levit_128s", "NLC", ("stages.0",), (224, 224)),
    Case("pvt_v2_b0", "NCHW", ("stages.0", "stages.1", "stages.2")),
    Case("xception41", "NCHW", ("blocks.0", "blocks.1", "blocks.10")),
    Case("legacy_xception", "NCHW", ("block1", "block2", "block11")),
    Case("densenet121", "NCHW", tuple(f"features.transition{i}.conv" for i in (1, 2, 3))),
    Case("rdnet_tiny", "NCHW", ("dense_stages.1.0", "dense_stages.2.0", "dense_stages.6.0")),
    Case("regnety_002", "NCHW", ("s1.b1", "s2.b1", "s3.b4")),
    Case("maxvit_tiny_tf_224", "NCHW", ("stages.0", "stages.1", "stages.2"), kwargs={"img_size": (64, 64)}),
    Case("vit_small_patch16_dinov3", "NLC", ("blocks.2", "blocks.5", "blocks.8"), (32, 64), IMAGE),
    Case("vit_wee_patch16_reg1_gap_256", "NLC", ("blocks.2", "blocks.6", "blocks.9"), (32, 64), IMAGE),
    Case("eva02_tiny_patch14_224", "NLC", ("blocks.2", "blocks.5", "blocks.8"), (28, 56), {"img_size": (28, 56)}),
    Case("deit_tiny_distilled_patch16_224", "NLC", ("blocks.2", "blocks.5", "blocks.8"), (32, 64), IMAGE),
    Case("mixer_s32_224", "NLC", ("blocks.1", "blocks.3", "blocks.5"), (64, 96), {"img_size": (64, 96)}),
    Case("mvitv2_tiny", "NLC", ("stages.0", "stages.1", "stages.2"), (64, 64), {"img_size": 64}),
    Case("twins_pcpvt_small", "NLC", ("blocks.0.2", "blocks.1.3", "blocks.2.5")),
]


def picture(case: Case, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *case.size)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inject_and_eject(case: Case) -> None:
    model, x = case.make(), picture(case)
    example = torch.empty(1, 3, *case.size)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
    assert inject_sia(model, example_input=example) is model
    assert tuple(name.removesuffix(".sia") for name in sia_modules(model)) == case.hosts
    assert {module.layout.kind for module in sia_modules(model).values()} == {case.kind}
    assert [key for key in model.state_dict() if "sia" not in key.split(".")] == list(base)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    _check_training(model, x)
    eject_sia(model)
    model.load_state_dict(base, strict=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _check_training(model: nn.Module, x: Tensor) -> None:
    """With a gain that is not 0, every SIA parameter gets a gradient, and the output changes."""
    with torch.no_grad():
        before = model(x)
        for module in sia_modules(model).values():
            assert module.gain is not None
            module.gain.fill_(0.5)
    output = model(x)
    assert output.shape == before.shape and not torch.allclose(output, before)
    output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if "sia" in name.split("."):
            assert parameter.grad is not None, name
    gains = [module.gain.grad for module in sia_modules(model).values()]
    assert all(gain is not None and gain.item() != 0 for gain in gains)


def test_the_map_of_tokens_is_that_of_their_grid() -> None:
    from sia_layers import self_information

    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64)).eval()
    inject_sia(model, "blocks.3", example_input=torch.empty(1, 3, 32, 64), identity_init=False, channel=None)
    given, made = [], []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given.append(inputs[0])
        made.append(output)

    model.blocks[3].sia.register_forward_hook(note)
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 64))
    tokens = given[0]
    assert tokens.shape == (2, 1 + 2 * 4, 192)
    maps = tokens[:, 1:].reshape(2, 2, 4, 192).permute(0, 3, 1, 2)
    gated = maps * (1 + self_information(maps).sigmoid())
    assert torch.equal(made[0][:, :1], tokens[:, :1])
    assert torch.allclose(made[0][:, 1:], gated.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-5)


def test_the_grid_is_that_of_each_pass() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True).eval()
    with torch.no_grad():
        wide, high = torch.rand(1, 3, 32, 128), torch.rand(1, 3, 128, 32)
        inject_sia(model, example_input=torch.empty(1, 3, 64, 64), identity_init=False)
        grids = []
        note = lambda host, args: grids.append(relay_of(host).slot.passed.grid_of("patch_embed"))  # noqa: E731
        for name in sia_modules(model):
            model.get_submodule(name.removesuffix(".sia")).register_forward_pre_hook(note)
        model(wide)
        model(high)
    assert grids == [(2, 8)] * 3 + [(8, 2)] * 3


def test_square_channels_do_not_confuse_the_layout() -> None:
    model = timm.create_model("convnext_atto", dims=(16, 32, 64, 128)).eval()
    sites = find_sites(model, example_input=torch.empty(1, 3, 64, 64))  # stage 0: 16 channels on 16 by 16
    assert [(site.channels, site.reduction) for site in sites] == [(16, 4), (32, 8), (64, 16)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_features_only_before_and_after(name: str) -> None:
    size = {"img_size": 64} if "vit" in name else {}
    x = torch.rand(1, 3, 64, 64)
    model = timm.create_model(name, features_only=True, **size).eval()
    with torch.no_grad():
        expected = model(x)
        inject_sia(model, example_input=x)
        assert len(sia_modules(model)) == 3
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
        for module in sia_modules(model).values():
            module.gain.fill_(0.5)
        assert not all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
        eject_sia(model)
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "hosts"),
    [
        ("mobilenetv3_small_050", {"out_indices": (1, -3)}, ["blocks.0.0", "blocks.1.1"]),
        ("densenet121", {"block_config": (1, 1, 1, 1), "out_indices": (1, 2)}, ["features_transition1.conv"]),
        ("densenet121", {"block_config": (1, 1, 1, 1), "out_indices": (1,)}, ["features_norm0.act"]),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}, [f"model.blocks.{index}" for index in (0, 1, 2)]),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4, "out_indices": (1,)}, ["model.blocks.1"]),
    ],
)
def test_features_only_up_to_the_last_output(name: str, options: dict[str, object], hosts: list[str]) -> None:
    model = timm.create_model(name, features_only=True, **options).eval()
    inject_sia(model, identity_init=False)
    assert list(sia_modules(model)) == [f"{host}.sia" for host in hosts]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad(), disable_sia(model):
        bare = model(x)
    with torch.no_grad():
        assert not torch.equal(model(x)[-1], bare[-1])


@pytest.mark.parametrize("name", ["xception41", "efficientvim_m1"])
def test_features_only_has_the_sites_of_the_whole_model(name: str) -> None:
    """Sites that a family's tables correct, because the declared modules lie inside a block or return a tuple."""
    with torch.device("meta"):
        whole, features = timm.create_model(name), timm.create_model(name, features_only=True)
    expected, found = find_sites(whole), find_sites(features)
    assert expected and len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.host.removeprefix("model.").replace("_", ".") == other.host
        assert (one.reduction, one.channels, one.layout) == (other.reduction, other.channels, other.layout)


def test_features_only_of_an_injected_model() -> None:
    from timm.models._features import FeatureGetterNet, FeatureListNet

    x = torch.rand(1, 3, 64, 64)
    for wrapper, name, indices in (
        (FeatureListNet, "resnet10t", (2, 4)),
        (FeatureGetterNet, "vit_tiny_patch16_224", (8, 9)),
    ):
        model = timm.create_model(name, **({"img_size": 64} if "vit" in name else {})).eval()
        inject_sia(model, example_input=x, identity_init=False)
        with torch.no_grad():
            expected = model.forward_intermediates(x, intermediates_only=True)
            features = wrapper(model, out_indices=indices).eval()
            assert len(sia_modules(features)) == 3
            assert all(torch.equal(a, b) for a, b in zip(features(x), [expected[i] for i in indices], strict=True))


class Detector(nn.Module):
    """A custom model around a timm backbone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=4, **({"img_size": 32} if "vit" in name else {}))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["resnet10t", "mambaout_femto", "vit_tiny_patch16_224"])
def test_a_backbone_inside_a_model_of_ones_own(name: str) -> None:
    model, x = Detector(name).eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        inject_sia(nn.DataParallel(model), example_input=x)
        assert all(key.startswith("backbone.") for key in sia_modules(model)) and len(sia_modules(model)) == 3
        assert torch.equal(model(x), expected)
    model(x).sum().backward()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_forward_intermediates_agrees_with_forward(name: str) -> None:
    size = {"img_size": 64} if "vit" in name else {}
    model, x = timm.create_model(name, **size).eval(), torch.rand(2, 3, 64, 64)
    inject_sia(model, example_input=x, identity_init=False)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(final), model(x))
        assert torch.equal(final, model.forward_features(x)) and len(maps) > 2


def test_bypassing_the_hooks_is_an_error_rather_than_a_silent_difference() -> None:
    model = inject_sia(timm.create_model("xception41").eval())  # its blocks have a second forward
    if not hasattr(model, "forward_intermediates"):
        pytest.skip("this version of timm does not use that second forward")
    with torch.no_grad(), pytest.raises(RuntimeError, match="run the model from its input on"):
        model.forward_intermediates(torch.rand(1, 3, 64, 64))


def test_an_input_size_other_than_the_configured_one() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), in_chans=1)
    assert [site.layout.grid for site in find_sites(model)] == [(2, 3)] * 3


TORCHVISION = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
               "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
               "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16", "deeplabv3_resnet50",
               "lraspp_mobilenet_v3_large", "fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    with torch.device("cpu" if "regnet" in name else "meta"):
        extra = {"weights_backbone": None} if "_" in name and name.split("_")[0] in (
            "deeplabv3", "lraspp", "fasterrcnn", "ssdlite320") else {}  # fmt: skip
        if name in ("googlenet", "inception_v3"):
            extra = {"init_weights": False}
        model = torchvision.models.get_model(name, weights=None, **extra)
    keys = list(model.state_dict())
    sites = find_sites(model)
    assert len(sites) >= 2
    inject_sia(model)
    assert [key for key in model.state_dict() if "sia" not in key.split(".")] == keys
    assert len(list(sia_parameters(model))) > 0
    eject_sia(model)
    assert list(model.state_dict()) == keys


def test_torchvision_with_numbers() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=5).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        inject_sia(model)
        assert torch.equal(model(x), expected)
        eject_sia(model)
        assert torch.equal(model(x), expected)


def test_a_detector_with_numbers() -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model("fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None)
    images = [torch.rand(3, 64, 80)]
    model.eval().roi_heads.score_thresh = 0.0
    with torch.no_grad():
        expected = model(images)[0]
        inject_sia(model)
        assert list(sia_modules(model)) == [f"backbone.body.{stage}.sia" for stage in (3, 6, 12)]
        assert all(torch.equal(value, expected[key]) for key, value in model(images)[0].items())
        for module in sia_modules(model).values():
            module.gain.fill_(1.0)
        assert not torch.equal(model(images)[0]["scores"], expected["scores"])


def test_a_subclass_of_a_librarys_model_is_recognised() -> None:
    class Mine(torchvision.models.ResNet):
        pass

    model = Mine(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    assert [site.host for site in find_sites(model)] == ["layer1.0", "layer2.0", "layer3.0"]
