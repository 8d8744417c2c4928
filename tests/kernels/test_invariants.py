"""Bitwise guarantees of every backend: batches, threads, memory formats, bad pixels and empty maps."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import Backend, every_case
from oracle import assert_near
from strategies import DTYPES, Map, laid_out, values
from torch import Tensor

from sia_layers.kernels import reference
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

pytestmark = pytest.mark.usefixtures("poison")

LAYOUTS = ("contiguous", "channels_last", "stepped")


def forms(backend: Backend) -> list[Options]:
    """Return every estimator and padding mode; if a launch takes a second, one or, for every case, two of them."""
    if backend.interpreted:
        few = [Options(3, inter_channels=1), Options(3, 1.0, True, "distance", 1, 0.5, "reflect")]
        return few if every_case() else few[:1]
    kernel_size = 3 if backend.name == "reference" else 5  # the reference calls several operators per pair
    return [
        Options(kernel_size, estimator=estimator, padding_mode=mode, inter_channels=2)
        for estimator in ESTIMATORS
        for mode in PADDING_MODES
    ]


def shape(backend: Backend, samples: int = 2) -> tuple[int, int, int, int]:
    """Return the shape of a map with tails in every direction, or of a tiny one."""
    return (samples, 2, 3, 4) if backend.interpreted else (samples, 9, 13, 21)


@contextlib.contextmanager
def running(*case: object) -> Iterator[None]:
    """Name the case in failures within the block."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{case}: {error}") from error


def everything(backend: Backend, x: Tensor, chosen: Options) -> dict[str, Tensor]:
    """Return all results of the backend on a map by name; the first axis of each is the samples."""
    kernels = backend.kernels
    grad = values(tuple(x.shape[1:]), seed=7).to(x).expand(x.shape)
    mean_grad = values(tuple(x.shape[1:2]), seed=8).to(x.device, torch.float32).expand(x.shape[:2])
    info, scale = kernels.self_information(x, chosen)
    gated, mean = kernels.gate_and_mean(x, chosen, True, "excite")
    excite, gain = 0.3 * mean, mean.new_tensor(0.4)  # no torch.sigmoid, whose rounding depends on the batch
    names = ("dx", "dinfo", "dchannel_gate", "dgain", "dbase")
    gradients = kernels.gate_backward(grad, x, info, excite, gain, x, True)
    return {
        "info": info,
        "scale": scale.transpose(0, 1),
        "self_information_backward": kernels.self_information_backward(grad, x, scale, chosen),
        "gated": gated,
        "mean": mean,
        "mean of the other kind": kernels.gate_and_mean(x, chosen, False, "mean")[1],
        "channel_mean": kernels.channel_mean(info, "excite"),
        "channel_mean of the other kind": kernels.channel_mean(info, "mean"),
        "channel_mean_backward": kernels.channel_mean_backward(mean_grad.to(mean), info, "mean"),
        "gate": kernels.gate(x, info, excite, gain, None),
        **{f"gate_backward {name}": tensor for name, tensor in zip(names, gradients, strict=True)},
    }


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    different = [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])]
    assert not different, f"other bits in {different}"


# --- Bit by bit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_alone_and_in_any_batch(backend: Backend, layout: str) -> None:
    for chosen in forms(backend):
        x = Map(shape(backend, samples=2 if backend.interpreted else 5), layout=layout).make(backend.device)
        batch = everything(backend, x, chosen)
        for place in (1,) if backend.interpreted else (0, 2, 4):
            alone = everything(backend, laid_out(x[place : place + 1], layout), chosen)
            with running(chosen, place):
                assert_same_bits(alone, {name: tensor[place : place + 1] for name, tensor in batch.items()})


@pytest.mark.parametrize("size", [(3, 1, 40, 41), (3, 70, 3, 4), (2, 16, 1, 1), (3, 40, 8, 16), (2, 2, 150, 190)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_alone_whatever_the_size(
    backend: Backend, size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    if backend.interpreted:
        pytest.skip("too large for Triton's interpreter")
    for layout in LAYOUTS:
        x = Map(size, dtype, layout).make(backend.device)
        batch, alone = everything(backend, x, Options()), everything(backend, laid_out(x[-1:], layout), Options())
        with running(layout):
            assert_same_bits(alone, {name: tensor[-1:] for name, tensor in batch.items()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_run_to_run_and_for_any_number_of_threads(backend: Backend, layout: str) -> None:
    large = [(1, 2, 120, 130), (1, 70, 9, 9)] if backend.name == "cpu" else []
    if backend.interpreted and layout != "contiguous":
        pytest.skip("too slow for Triton's interpreter")
    for size, chosen in itertools.product([shape(backend), *large], forms(backend)):
        x = Map(size, layout=layout).make(backend.device)
        torch.set_num_threads(1)
        expected = everything(backend, x, chosen)
        for threads in (2,) if backend.interpreted else (1, 2, 3):
            torch.set_num_threads(threads)
            with running(size, chosen, threads):
                assert_same_bits(everything(backend, x, chosen), expected)


# --- Memory formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_format_is_kept_and_changes_nothing_but_rounding(backend: Backend, dtype: torch.dtype) -> None:
    tolerance = 4e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for chosen in forms(backend)[:1] if backend.interpreted else forms(backend):
        maps = {layout: Map(shape(backend), dtype, layout, "lattice").make(backend.device) for layout in LAYOUTS}
        found = {layout: everything(backend, x, chosen) for layout, x in maps.items()}
        for layout, (name, plain) in itertools.product(LAYOUTS, found["contiguous"].items()):
            with running(chosen, layout, name):
                other = found[layout][name]
                if other.dim() == 4:
                    last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
                    assert other.is_contiguous(memory_format=last)
                assert_near(other, plain, tolerance * max(1.0, plain.abs().max().item()))


# --- Bad pixels ----------------------------------------------------------------------------------------------------


def dependents(bad: Tensor, chosen: Options) -> Tensor:
    """Return the pixels whose self-information depends on a set of pixels, including through padded copies."""
    spread = F.max_pool2d(bad.float(), chosen.kernel_size, 1, chosen.radius) > 0
    for step in range(1, chosen.neighbours(bad.shape[1]) + 1):
        spread |= bad.roll(-step, 1)
    return spread


def affected(bad: Tensor, chosen: Options) -> Tensor:
    """Return the pixels whose gradient can depend on a set of pixels, namely those that share a dependent with them."""
    spread = dependents(bad, chosen)
    reach = F.max_pool2d(spread.float(), chosen.kernel_size, 1, chosen.radius) > 0
    for step in range(1, chosen.neighbours(bad.shape[1]) + 1):
        reach |= spread.roll(step, 1)
    return reach


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nan_spoils_only_the_windows_that_hold_it(backend: Backend, estimator: str, mode: str, layout: str) -> None:
    if backend.interpreted and layout != "contiguous":
        pytest.skip("too slow for Triton's interpreter")
    chosen = Options(3, adaptive=False, estimator=estimator, padding_mode=mode, inter_channels=1)
    clean = Map(shape(backend), layout=layout).make(backend.device)
    dirty = clean.clone(memory_format=torch.preserve_format)
    dirty[-1, 1, 0, -2] = torch.nan
    depends = dependents(dirty.isnan().cpu(), chosen)
    before, after = (backend.kernels.self_information(x, chosen)[0].cpu() for x in (clean, dirty))
    assert torch.equal(after.isnan(), depends)
    assert torch.equal(after[~depends], before[~depends])
    gated, _ = backend.kernels.gate_and_mean(dirty, chosen, True, "excite")
    assert torch.equal(gated.isnan().cpu(), depends)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bad_pixels_behave_as_in_the_reference(backend: Backend, estimator: str, mode: str, bad: float) -> None:
    if backend.interpreted and bad != -torch.inf and not every_case():
        pytest.skip("Triton's interpreter takes seconds: make test-all")
    for adaptive in (True,) if backend.interpreted else (True, False):
        check_bad_pixels(backend, Options(3, 1.0, adaptive, estimator, 1, 0.5, mode), bad)


def check_bad_pixels(backend: Backend, chosen: Options, bad: float) -> None:
    """The adaptive bandwidth ignores them, and the gradient is right outside their reach."""
    x = Map((1, 3, 4, 6) if backend.interpreted else shape(backend), content="lattice").make(backend.device)
    x[-1, 1, 1, -2] = x[0, 0, -1, 0] = bad
    info, scale = backend.kernels.self_information(x, chosen)
    expected, expected_scale = reference.self_information(x.double().cpu(), chosen)
    assert_near(info, expected, 5e-6 * expected[expected.isfinite()].max().clamp(min=1))
    assert_near(scale, expected_scale, 5e-6 * expected_scale)
    grad = values(tuple(x.shape), seed=1).to(x)
    found = backend.kernels.self_information_backward(grad, x, scale, chosen)
    wide = grad.double().cpu(), x.double().cpu(), scale.double().cpu()
    gradient = reference.self_information_backward(*wide, chosen)
    beyond = ~affected(~x.isfinite().cpu(), chosen)
    assert beyond.any() and gradient[beyond].isfinite().all()
    assert_near(found.cpu()[beyond], gradient[beyond], 4e-6 * gradient[beyond].abs().max())


def test_other_samples_and_planes_do_not_see_a_bad_pixel(backend: Backend) -> None:
    chosen = Options(3, inter_channels=0)
    clean = Map(shape(backend, samples=3)).make(backend.device)
    dirty = clean.clone()
    dirty[1, 1] = torch.nan
    before, after = everything(backend, clean, chosen), everything(backend, dirty, chosen)
    for name, tensor in after.items():
        assert torch.equal(tensor[::2], before[name][::2]), name
    for name in ("info", "self_information_backward", "gated", "mean", "channel_mean", "gate"):
        assert torch.equal(after[name][1, 0], before[name][1, 0]), name
        assert after[name][1, 1].isnan().all(), name


# --- Sizes at the edge ---------------------------------------------------------------------------------------------

REFERENCE = Backend("reference", reference, torch.device("cpu"))
EMPTY = ((0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (0, 0, 0, 0))
SMALL = ((1, 2, 3, 1), (1, 1, 1, 1), (2, 1, 1, 3), (1, 3, 2, 2), (2, 2, 1, 1), (1, 4, 2, 7))


@pytest.mark.parametrize("size", EMPTY, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_maps(backend: Backend, size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Shapes and dtypes are those of the reference's results; a mean over no pixels is always NaN."""
    for chosen in (Options(), Options(estimator="distance")):
        x = torch.empty(size, dtype=dtype, device=backend.device)
        found, expected = everything(backend, x, chosen), everything(REFERENCE, x.cpu(), chosen)
        for name, tensor in found.items():
            with running(chosen, name):
                assert tensor.shape == expected[name].shape and tensor.dtype == expected[name].dtype
                assert torch.equal(tensor.isnan().cpu(), expected[name].isnan())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("chosen", [Options(3), Options(9, padding_mode="zeros", inter_channels=1)], ids=str)
def test_maps_smaller_than_the_window_with_fewer_channels_than_neighbours(
    backend: Backend, chosen: Options, layout: str
) -> None:
    estimators = ESTIMATORS[:1] if backend.interpreted else ESTIMATORS
    for size, estimator in itertools.product(SMALL[:1] if backend.interpreted else SMALL, estimators):
        x = Map(size, layout=layout, content="lattice").make(backend.device)
        form = chosen._replace(estimator=estimator)
        found, expected = everything(backend, x, form), everything(REFERENCE, x.double().cpu(), form)
        for name, truth in expected.items():
            with running(size, form, name):
                assert_near(found[name], truth, 5e-6 * truth.abs().max().clamp(min=1))


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.5, 6e4, 3e30])
def test_constant_maps_give_exactly_zero(backend: Backend, value: float) -> None:
    layouts, dtypes = LAYOUTS, DTYPES if value < 65504 else (torch.float32, torch.bfloat16)
    if backend.name != "cpu":
        layouts = LAYOUTS[:1]
    if backend.interpreted:
        dtypes = DTYPES[:1]
    for layout, dtype, chosen in itertools.product(layouts, dtypes, forms(backend)):
        if chosen.padding_mode == "zeros" or (backend.interpreted and value not in (0.1, 3e30)):
            continue
        x = laid_out(torch.full(shape(backend), value, dtype=dtype, device=backend.device), layout)
        for form in (chosen, chosen._replace(adaptive=False, bandwidth=0.1)):
            info, scale = backend.kernels.self_information(x, form)
            slope = backend.kernels.self_information_backward(torch.ones_like(x), x, scale, form)
            with running(layout, dtype, form):
                assert (info == 0).all() and (slope == 0).all() and (not form.adaptive or (scale == 0).all())
