"""Injection: maps of every layout, given or proved; lists, video, tokens of unknown models; inputs of every form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sia_layers import profile_self_information
from sia_layers.attention import SIAttention
from sia_layers.injection import eject_sia, errors, find_sites, inject_sia, sia_modules, sia_parameters


class Maps(nn.Module):
    """A stem, a block on maps of some layout, and a head, for any resolution or for only one."""

    def __init__(self, order: tuple[int, ...], only: int | None = None) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 16, 4, 4), Doubled(), nn.Linear(16, 2)
        self.order, self.only = order, only

    def forward(self, x: Tensor) -> Tensor:
        if self.only is not None and x.shape[-1] != self.only:
            raise ValueError(f"only pictures of {self.only} pixels")
        maps = self.block(self.stem(x).permute(self.order))
        back = [self.order.index(axis) for axis in range(4)]
        return self.head(maps.permute(back).mean((2, 3)))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


NCHW, NHWC, NHCW = (0, 1, 2, 3), (0, 2, 3, 1), (0, 2, 1, 3)
PICTURE = torch.empty(1, 3, 64, 64)  # its map has as many rows and columns as channels


@pytest.mark.parametrize(("order", "kind"), [(NCHW, "NCHW"), (NHWC, "NHWC")])
def test_the_axis_of_constant_size_is_the_channels(order: tuple[int, ...], kind: str) -> None:
    (site,) = find_sites(Maps(order), "block", example_input=PICTURE)
    assert (site.layout.kind, site.channels, site.reduction) == (kind, 16, 4)


def test_ambiguous_layouts_are_refused_unless_given() -> None:
    with pytest.raises(errors.LayoutError, match="nothing proves which axis"):
        find_sites(Maps(NHCW), "block", example_input=PICTURE)
    only = Maps(NHWC, only=64)
    with pytest.raises(errors.LayoutError, match=r"takes no other resolution.*pass layout='NCHW' or 'NHWC', or name"):
        find_sites(only, "block", example_input=PICTURE)
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(errors.LayoutError, match=r"of shape \(1, 2\), and nothing .* it\); name a module that returns"):
        find_sites(head, "3", example_input=PICTURE)  # no layout would fit
    (site,) = find_sites(only, "block", example_input=PICTURE, layout="NHWC")
    assert site.layout.kind == "NHWC"
    with pytest.raises(errors.LayoutError, match=r"layout='NLC' was given, but 'block' returns a tensor of shape"):
        find_sites(only, "block", example_input=PICTURE, layout="NLC")
    for wrong in ({"layout": "HWC"}, {"layout": "NCHW", "grid": (2, 2)}, {"grid": (0, 2)}, {"prefix_tokens": -1}):
        with pytest.raises(ValueError, match=r"layout|grid|prefix_tokens"):
            find_sites(only, "block", example_input=PICTURE, **wrong)


def test_gating_in_a_layout_equals_gating_the_maps() -> None:
    torch.manual_seed(0)
    model, x = Maps(NHWC).eval(), torch.rand(2, 3, 48, 64)
    inject_sia(model, "block", example_input=PICTURE, identity_init=False)
    (site,) = sia_modules(model).values()
    with torch.no_grad():
        maps = 2 * model.stem(x)
        assert torch.allclose(model(x), model.head(SIAttention.forward(site, maps).mean((2, 3))), atol=1e-6)


class Tokens(nn.Module):
    """A plain vision transformer, with positions for one grid or for none."""

    def __init__(self, prefix: int, name: str = "cls_token", positions: bool = False) -> None:
        super().__init__()
        self.cut, self.block, self.head = nn.Conv2d(3, 12, 8, 8), Doubled(), nn.Linear(12, 2)
        self.prefix = prefix
        if prefix:
            setattr(self, name, nn.Parameter(torch.zeros(1, prefix, 12)))
        self.name, self.positions = name, nn.Parameter(torch.rand(1, 16 + prefix, 12)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is not None and x.shape[2:] != (32, 32):
            raise ValueError("32 x 32 alone")
        tokens = self.cut(x).flatten(2).transpose(1, 2)
        if self.prefix:
            tokens = torch.cat([getattr(self, self.name).expand(len(x), -1, -1), tokens], 1)
        return self.head(self.block(tokens if self.positions is None else tokens + self.positions)[:, 0])


def test_tokens_of_a_foreign_model_have_the_grid_of_its_convolution() -> None:
    x = torch.empty(1, 3, 32, 32)
    (site,) = find_sites(Tokens(0), "block", example_input=x)
    assert (site.layout.kind, site.layout.grid, site.layout.prefixes, site.patches) == ("NLC", (4, 4), (0,), "cut")
    assert not site.layout.fixed
    (site,) = find_sites(Tokens(1), "block", example_input=x)
    assert site.layout.prefixes == (1, 0) or site.layout.prefixes == (1,)
    (site,) = find_sites(Tokens(5, "register_tokens"), "block", example_input=x)
    assert site.layout.prefixes == (5,)
    with pytest.raises(errors.LayoutError, match="pass grid="):
        find_sites(Tokens(3, "extra"), "block", example_input=x)
    (site,) = find_sites(Tokens(3, "extra"), "block", example_input=x, prefix_tokens=3)
    assert site.layout.prefixes == (3,) and site.layout.grid == (4, 4)
    with pytest.raises(errors.LayoutError, match="do not match grid="):
        find_sites(Tokens(3, "extra"), "block", example_input=x, grid=(4, 5))


def test_tokens_of_one_grid_alone() -> None:
    x = torch.rand(2, 3, 32, 32)
    model = Tokens(1, positions=True)
    with pytest.raises(errors.LayoutError, match="nothing proves which axis"):  # no other resolution, no known family
        find_sites(model, "block", example_input=x)
    inject_sia(model, "block", example_input=x, layout="NLC", identity_init=False)
    (site,) = sia_modules(model).values()
    assert site.layout.fixed and site.layout.grid == (4, 4)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


def test_another_aspect_ratio_is_gated_in_its_own_grid() -> None:
    torch.manual_seed(0)
    model, wide = Tokens(1).eval(), torch.rand(1, 3, 16, 64)
    with torch.no_grad():
        model.cls_token.normal_()
    inject_sia(model, "block", example_input=torch.empty(1, 3, 32, 32), identity_init=False)
    (site,) = sia_modules(model).values()
    with torch.no_grad():
        model.block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        seen: list[Tensor] = []
        model(wide)
        expected = SIAttention.forward(site, 2 * model.cut(wide))
    assert torch.allclose(seen[0][:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.equal(seen[0][:, :1], 2 * model.cls_token)


class Branches(nn.Module):
    """A block that returns two maps as a list, tuple or dict; or one that the output does not depend on."""

    def __init__(self, kind: Callable[..., Any], needed: bool = True) -> None:
        super().__init__()
        self.stem, self.block, self.head, self.needed = nn.Conv2d(3, 6, 4, 4), Split(kind), nn.Linear(6, 2), needed

    def forward(self, x: Tensor) -> Tensor:
        first, second = (lambda both: both.values() if isinstance(both, dict) else both)(self.block(self.stem(x)))
        return self.head(first.mean((2, 3)) + (second.mean((2, 3)) if self.needed else 0))


class Split(nn.Module):
    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind((x, x[:, :, ::2, ::2] * 2))


def as_dict(pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"fine": pair[0], "coarse": pair[1]}


@pytest.mark.parametrize("kind", [list, tuple, as_dict])
def test_each_of_several_maps_is_gated(kind: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Branches(kind), torch.rand(2, 3, 32, 32)
    before = model(x), list(model.state_dict())
    sites = find_sites(model, "block", example_input=x)
    items = ["fine", "coarse"] if kind is as_dict else [0, 1]
    assert [(site.item, site.reduction, site.bypassed) for site in sites] == [
        (items[0], 4, False),
        (items[1], 8, False),
    ]
    inject_sia(model, "block", example_input=x)
    assert list(sia_modules(model)) == [f"block.sia.{item}" for item in items]
    assert torch.equal(model(x), before[0])
    model(x).sum().backward()
    assert all(module.gain.grad is not None for module in sia_modules(model).values())
    eject_sia(model)
    assert list(model.state_dict()) == before[1]


def test_a_map_that_the_output_does_not_need_is_left_alone() -> None:
    (site,) = find_sites(Branches(tuple, needed=False), "block", example_input=torch.empty(1, 3, 32, 32))
    assert site.item == 0 and site.name == "block.sia"


class Skips(nn.Module):
    """An encoder whose features reach the output along several paths."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.encoder(x)
        return self.head(fine + nn.functional.interpolate(coarse, size=fine.shape[2:]))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.one(x)
        return [fine, self.two(fine)]


def test_skips_are_refused_with_the_part_to_inject_into_or_insisted_on() -> None:
    model, x = Skips(), torch.rand(1, 3, 16, 16)
    with pytest.raises(errors.OffTrunkError, match=r"inject_sia\(model\.encoder, \.\.\.\).*allow_bypass=True"):
        inject_sia(model, "encoder.two", example_input=x)
    assert [site.bypassed for site in find_sites(model.encoder, "two", example_input=x)] == [False]
    (site,) = find_sites(model, "encoder.two", example_input=x, allow_bypass=True)
    assert site.bypassed
    inject_sia(model, "encoder.two", example_input=x, allow_bypass=True, identity_init=False)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("hrnet_w18_small", [0, 1, 0, 1, 2]),
        ("crossvit_tiny_240", [0, 1, 0, 1, 0, 1]),
        ("coat_tiny", [None, 1, 2, 3]),
        ("selecsls42", [0, 0, 0]),
        ("efficientvim_m1", [0]),
        ("tnt_s_patch16_224", [1, 1, 1]),
        ("hiera_tiny_224", [None, None, None]),
        ("nasnetalarge", [None, None, None]),
    ],
)
def test_timms_models_with_lists_and_orders_of_their_own(name: str, items: list[object]) -> None:
    if not timm.is_model(name):
        pytest.skip("not in this version of timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    if not hasattr(model, "feature_info"):
        pytest.skip("this version of timm does not say where its stages are")
    sites = find_sites(model)
    assert [site.item for site in sites] == items
    assert all(site.bypassed for site in sites) == (name in ("efficientvim_m1", "tnt_s_patch16_224", "nasnetalarge"))


def test_tokens_in_mask_unit_order_are_read_as_pictures() -> None:
    model = timm.create_model("hiera_tiny_224", num_classes=2).eval()
    x = torch.rand(1, 3, 224, 224)
    inject_sia(model, ["blocks.0"], identity_init=False)
    (site,) = sia_modules(model).values()
    seen: dict[str, Tensor] = {}
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: seen.__setitem__("gated", output))
    with torch.no_grad():
        model(x)
        handle.remove()
        bare = eject_sia(model)
        bare.blocks[0].register_forward_hook(lambda module, args, output: seen.__setitem__("bare", output))
        bare(x)
        maps, gated = (model.reroll(seen[key], 0).permute(0, 3, 1, 2) for key in ("bare", "gated"))
        assert torch.allclose(SIAttention.forward(site, maps.contiguous()), gated, atol=1e-5)


class Video(nn.Module):
    """Maps with a time axis before the rows or after the batch; the second stage halves the frames."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 6, 1), nn.Conv3d(6, 8, 2, 2)
        self.one, self.two, self.head, self.last = Doubled(), Doubled(), nn.Linear(8, 2), last

    def forward(self, x: Tensor) -> Tensor:
        def through(block: nn.Module, maps: Tensor) -> Tensor:
            return block(maps.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3) if self.last else block(maps)

        return self.head(through(self.two, self.b(through(self.one, self.a(x)))).mean((2, 3, 4)))


@pytest.mark.parametrize("last", [False, True])
def test_every_frame_of_a_video_is_gated_separately(last: bool) -> None:
    torch.manual_seed(0)
    model, x = Video(last).eval(), torch.rand(2, 3, 4, 8, 8)
    sites = find_sites(model, ["one", "two"], example_input=x)
    assert [site.layout.kind for site in sites] == 2 * ["NTHWC" if last else "NCTHW"]
    assert [site.channels for site in sites] == [6, 8]
    inject_sia(model, ["one", "two"], example_input=x, identity_init=False)
    first, second = sia_modules(model).values()
    with torch.no_grad():
        frames = (2 * model.a(x)).transpose(1, 2).flatten(0, 1)
        gated, info = SIAttention.attend(first, frames)
        later = 2 * model.b(gated.unflatten(0, (2, 4)).transpose(1, 2))
        info = info.unflatten(0, (2, 2, 2)).amax(2).flatten(0, 1)  # the maximum of each pair of frames
        later = later.transpose(1, 2).flatten(0, 1)
        expected = SIAttention.forward(second, later, second.aggregation([info], size=later.shape[2:]))
        expected = model.head(expected.unflatten(0, (2, 2)).mean((1, 3, 4)))
        assert torch.allclose(model(x), expected, atol=1e-5)
        profiles = profile_self_information(model, [x], ["one", "two"], progress=False)
    assert all(profile.pictures == 2 and profile.mean > 0 for profile in profiles.values())


def test_torchvisions_video_models() -> None:
    with torch.device("meta"):
        model = torchvision.models.video.r3d_18()
    assert [(site.host, site.layout.kind, site.reduction) for site in find_sites(model)] == [
        ("layer2.1", "NCTHW", 4),
        ("layer3.1", "NCTHW", 8),
        ("layer4.1", "NCTHW", 16),
    ]


class ByName(nn.Module):
    """A model that takes a batch dict, keywords, or a list of pictures."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.backbone, self.form = timm.create_model("resnet10t", num_classes=2), form

    def forward(
        self, data: Any = None, *, image: Tensor | None = None, label: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.form == "keywords":
            assert data is None and image is not None
            return {"cls": self.backbone(image)}
        return {"cls": self.backbone(data["image"] if self.form == "dict" else torch.stack(list(data)))}


BATCH = {"label": torch.tensor([0, 1]), "image": torch.rand(2, 3, 64, 64)}


@pytest.mark.parametrize(
    ("form", "example"),
    [
        ("dict", {"example_input": BATCH}),
        ("keywords", {"example_kwargs": {"image": BATCH["image"]}}),
        ("list", {"example_input": [torch.empty(3, 64, 64), torch.empty(3, 64, 64)]}),
    ],
)
def test_inputs_of_every_form(form: str, example: dict[str, Any]) -> None:
    model = inject_sia(ByName(form), **example)
    assert list(sia_modules(model)) == [f"backbone.layer{number}.0.sia" for number in (1, 2, 3)]


def test_profiles_take_batches_of_every_form() -> None:
    expected = None
    for model, batch, key in (
        (ByName("dict"), BATCH, None),
        (ByName("keywords"), {"image": BATCH["image"]}, None),
        (ByName("dict").backbone, BATCH, None),
        (ByName("dict").backbone, {**BATCH, "mask": torch.rand(2, 1, 64, 64)}, "image"),
        (ByName("dict").backbone, (BATCH["image"], BATCH["label"]), None),
    ):
        torch.manual_seed(0)
        model.load_state_dict({k: torch.full_like(v, 0.1) for k, v in model.state_dict().items()})
        profiles = profile_self_information(model, [batch], progress=False, key=key)
        found = [(profile.mean, profile.pictures) for profile in profiles.values()]
        assert found == (expected := expected or found) and found[0][1] == 2


def test_examples_without_a_picture_report_what_was_found() -> None:
    with pytest.raises(errors.DryRunError, match=r"got \(2,\) of torch.int64"):
        inject_sia(ByName("dict"), example_input={"label": BATCH["label"]})
    with pytest.raises(TypeError, match="example_kwargs must be a mapping"):
        inject_sia(ByName("keywords"), example_kwargs=[1])
    with pytest.raises(KeyError, match="key='photo'"):
        profile_self_information(ByName("dict"), [BATCH], key="photo", progress=False)


def test_a_model_that_is_partly_on_meta() -> None:
    model = timm.create_model("resnet10t", num_classes=2)
    model.layer4.to("meta")
    inject_sia(model)
    assert [module.gain.is_meta for module in sia_modules(model).values()] == [False] * 3
    assert all(parameter.is_meta for parameter in model.layer4.parameters())


class Heads(nn.Module):
    """A head that needs values in evaluation mode, like detectors that decode boxes, but not in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.head(self.block(x)).mean((2, 3))
        return maps if self.training else maps[: int(maps.argmax())]


def test_a_head_that_needs_values_in_evaluation_mode() -> None:
    model = Heads().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inject_sia(model, "block", example_input=torch.empty(1, 3, 16, 16))
    assert not model.training and all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


class Patches(nn.Module):
    """Patch embedding like that of torch.hub's DINOv2."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size, self.patch_size = (56, 56), (14, 14)
        self.proj = nn.Conv2d(3, 24, 14, 14)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    """The parts of torch.hub's DINOv2 that determine its token layout: a class token and registers come first."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Patches()
        self.cls_token, self.register_tokens = nn.Parameter(torch.rand(1, 1, 24)), nn.Parameter(torch.rand(1, 4, 24))
        self.blocks, self.norm = nn.ModuleList(Doubled() for _ in range(4)), nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        special = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(x), -1, -1)
        tokens = torch.cat([special, self.patch_embed(x)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


def test_dinov2_of_torch_hub_without_arguments() -> None:
    model = DinoVisionTransformer()
    sites = find_sites(model)
    assert [site.host for site in sites] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all((site.layout.grid, site.layout.prefixes) == ((4, 4), (5,)) for site in sites)
    wide = torch.rand(1, 3, 28, 112)
    expected = model(wide)
    assert torch.equal(inject_sia(model)(wide), expected)
    model(wide).sum().backward()
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in sia_parameters(model))
