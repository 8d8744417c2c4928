"""The reference against float64 loops, closed forms, symmetries, numerical derivatives and a memory budget."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_near
from strategies import CONTENTS, Case, Map, options, small_cases, values
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sia_layers.kernels import reference
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

FLOAT64 = (torch.float64,)
EVERY_FORM = [
    Options(kernel_size=3, estimator=estimator, padding_mode=mode, adaptive=adaptive, inter_channels=2)
    for estimator in ESTIMATORS
    for mode in PADDING_MODES
    for adaptive in (True, False)
]


def info(x: Tensor, chosen: Options) -> Tensor:
    return reference.self_information(x, chosen)[0]


def truth(x: Tensor, chosen: Options) -> oracle.Array:
    return oracle.self_information(x.double().numpy(), **chosen._asdict())


# --- Against the loops ---------------------------------------------------------------------------------------------


@given(small_cases(options(), dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)))
def test_matches_the_loops(case: Case) -> None:
    x = case.map.make()
    result = info(x, case.options)
    expected = truth(x, case.options)
    # The density form is bounded; the distance form grows with its input, and so does its rounding error.
    size = max(1.0, float(abs(expected).max()))
    assert_near(result, expected, (1e-10 if x.dtype == torch.float64 else 5e-6) * size)
    assert result.dtype == x.dtype


@pytest.mark.parametrize("chosen", EVERY_FORM, ids=str)
def test_matches_the_loops_in_every_form(chosen: Options) -> None:
    x = values((2, 4, 5, 4))
    assert_near(info(x, chosen), truth(x, chosen), 1e-12)


@pytest.mark.parametrize("name", ["mean", "excite"])
def test_channel_mean_follows_its_formula(name: str) -> None:
    maps = values((2, 3, 4, 5)).abs()
    plain = maps.numpy() if name == "excite" else -np.log(np.exp(-maps.numpy()) + 0.1)
    assert_near(reference.channel_mean(maps, name), plain.mean((2, 3)), 1e-12)


def test_gate_follows_its_formula() -> None:
    x, maps, base = values((2, 3, 4, 5)), values((2, 3, 4, 5), seed=1).abs(), values((2, 3, 4, 5), seed=2)
    channel_gate, gain = values((2, 3), seed=3), torch.tensor(0.3, dtype=torch.float64)
    spatial = x.numpy() * (1 + 1 / (1 + np.exp(-maps.numpy())))
    both = spatial * channel_gate.numpy()[:, :, None, None]
    assert_near(reference.gate(x, maps, None, None, None), spatial, 1e-12)
    assert_near(reference.gate(x, maps, channel_gate, None, None), both, 1e-12)
    assert_near(reference.gate(x, maps, channel_gate, None, base), both, 1e-12)
    assert_near(reference.gate(x, maps, channel_gate, gain, None), x.numpy() + 0.3 * (both - x.numpy()), 1e-12)
    assert_near(reference.gate(x, maps, channel_gate, gain, base), base.numpy() + 0.3 * (both - base.numpy()), 1e-12)
    assert torch.equal(reference.gate(x, None, None, None, None), x)


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("channel", ["excite", "mean", ""])
def test_attend_combines_its_parts(spatial: bool, channel: str) -> None:
    x, chosen = values((2, 3, 4, 5)), Options()
    gated, mean = reference.gate_and_mean(x, chosen, spatial, channel)
    maps = info(x, chosen)
    assert torch.equal(gated, reference.gate(x, maps, None, None, None) if spatial else torch.empty(0).double())
    assert torch.equal(mean, reference.channel_mean(maps, channel) if channel else torch.empty(0).double())


# --- Golden values and closed forms --------------------------------------------------------------------------------


def test_golden_values_of_a_map_counted_by_hand() -> None:
    x = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]]], dtype=torch.float64)
    one, two = math.exp(-0.5), math.exp(-2.0)  # kernels of the differences 1 and 2 at bandwidth 1
    counted = [  # numbers of pixels in the window with differences 0, 1 and 2, including the centre
        [(2, 1, 1), (1, 5, 0), (2, 1, 1)],
        [(4, 1, 1), (1, 2, 6), (3, 2, 1)],
        [(3, 0, 1), (4, 1, 1), (1, 3, 0)],
    ]
    golden = [
        [0.377656, 0.397335, 0.377656],
        [0.235329, 1.090289, 0.321952],
        [0.243558, 0.235329, 0.349702],
    ]
    by_hand = [[math.log(a + b + c) - math.log(a + b * one + c * two) for a, b, c in row] for row in counted]
    np.testing.assert_allclose(by_hand, golden, atol=5e-7, rtol=0)
    assert_near(info(x, Options(adaptive=False))[0, 0], np.array(by_hand), 1e-12)


def test_golden_values_between_channels() -> None:
    x = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    chosen = Options(kernel_size=1, adaptive=False, inter_channels=2, inter_weight=1.0)
    one, two, three = math.exp(-0.5), math.exp(-2.0), math.exp(-4.5)
    counted = [1 + one + three, 1 + two + one, 1 + three + two]
    assert_near(info(x, chosen).flatten(), np.log(3) - np.log(counted), 1e-12)
    following = [1 + one, 1 + two, 1 + three]  # only the next channel; the first follows the last
    assert_near(info(x, chosen._replace(inter_channels=1)).flatten(), np.log(2) - np.log(following), 1e-12)


def test_golden_values_of_the_distance_form() -> None:
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    # |sum over the window of x_i - x_j| is 1, |1 - 4| and 4; their mean 8/3.
    chosen = Options(estimator="distance")
    assert_near(info(x, chosen).flatten(), np.array([3 / 16, 9 / 16, 12 / 16]), 1e-12)
    assert_near(info(x, chosen._replace(adaptive=False)).flatten(), np.array([0.5, 1.5, 2.0]), 1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", ["exclude", "replicate", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e30])
def test_constant_map_is_exactly_zero_borders_too(estimator: str, mode: str, dtype: torch.dtype, value: float) -> None:
    chosen = Options(kernel_size=5, estimator=estimator, padding_mode=mode)
    x = torch.full((2, 3, 5, 7), value, dtype=dtype)
    result, scale = reference.self_information(x, chosen)
    assert (result == 0).all() and (scale == 0).all()
    assert (info(x, chosen._replace(adaptive=False)) == 0).all()
    assert (reference.self_information_backward(torch.ones_like(x), x, scale, chosen) == 0).all()


def test_two_valued_map() -> None:
    mask = values((9, 8), seed=5) > 0.3
    x = torch.where(mask, 2.5, 0.0).double().reshape(1, 1, 9, 8)
    for kernel_size in (1, 3, 5, 7):
        chosen = Options(kernel_size, bandwidth=1.3, adaptive=False)
        assert_near(info(x, chosen)[0, 0], oracle.two_valued(mask.numpy(), 2.5, 1.3, chosen.radius), 1e-12)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (2, 2), (1, 5), (4, 1)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-7.0, 100.0)])
def test_checkerboard(height: int, width: int, low: float, high: float) -> None:
    odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
    x = torch.where(odd, high, low).double().reshape(1, 1, height, width)
    for bandwidth in (0.5, 1.0):
        result = info(x, Options(bandwidth=bandwidth))[0, 0]
        assert_near(result, oracle.checkerboard(height, width, bandwidth), 1e-12)


@given(small_cases(options(estimators=("kde",)), dtypes=(torch.float64, torch.float32)))
def test_bounds(case: Case) -> None:
    x, chosen = case.map.make(), case.options._replace(inter_weight=1.0)
    intra = info(x, chosen._replace(inter_channels=0))
    inter = info(x, chosen._replace(kernel_size=1))
    # Rounding log n may exceed log n by an ulp.
    above = 1 + 2 * torch.finfo(x.dtype).eps
    assert (intra >= 0).all() and (intra <= above * math.log(chosen.kernel_size**2)).all()
    assert (inter >= 0).all() and (inter <= above * math.log(chosen.neighbours(x.shape[1]) + 1)).all()


# --- Symmetries ----------------------------------------------------------------------------------------------------

WITHOUT_ZEROS = tuple(mode for mode in PADDING_MODES if mode != "zeros")


@given(
    small_cases(options(padding_modes=WITHOUT_ZEROS, adaptive=(True,)), dtypes=FLOAT64, contents=("normal", "relu")),
    st.sampled_from((-1.0, 3.0, 1e-3, -250.0)),
    st.sampled_from((0.0, 10.0, -0.3)),
)
def test_affine_invariance(case: Case, factor: float, shift: float) -> None:
    x = case.map.make()
    expected = info(x, case.options)
    assert_near(info(factor * x + shift, case.options), expected, 1e-7 * expected.abs().max().clamp(min=1))


@given(small_cases(options(), dtypes=FLOAT64), st.integers(1, 3))
def test_rolling_the_channels_rolls_the_map(case: Case, step: int) -> None:
    x = case.map.make()
    expected = info(x, case.options).roll(step, 1)
    assert_near(info(x.roll(step, 1), case.options), expected, 1e-10 * expected.abs().max().clamp(min=1))


@given(small_cases(options(), dtypes=FLOAT64), st.sampled_from(("rows", "columns", "transpose")))
def test_mirroring_and_transposing_commute(case: Case, how: str) -> None:
    def moved(maps: Tensor) -> Tensor:
        return maps.transpose(2, 3) if how == "transpose" else maps.flip(2 if how == "rows" else 3)

    x = case.map.make()
    expected = moved(info(x, case.options))
    assert_near(info(moved(x), case.options), expected, 1e-10 * expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_shifted_content_shifts_the_map_inside(estimator: str, mode: str) -> None:
    chosen = Options(kernel_size=5, estimator=estimator, padding_mode=mode, adaptive=False)
    scene = values((1, 3, 14, 15))
    here, there = info(scene[..., :10, :10], chosen), info(scene[..., 3:13, 4:14], chosen)
    assert torch.equal(here[..., 5:8, 6:8], there[..., 2:5, 2:4])


# --- Derivatives ---------------------------------------------------------------------------------------------------


@given(small_cases(options(), dtypes=FLOAT64, contents=tuple(name for name in CONTENTS if name != "loud")))
def test_backward_formula_is_autograd(case: Case) -> None:
    x = case.map.make().requires_grad_()
    result, scale = reference.self_information(x, case.options)
    grad = values(tuple(x.shape), seed=1)
    expected = torch.autograd.grad(result, x, grad, allow_unused=True)[0] if result.requires_grad else None
    expected = torch.zeros_like(x) if expected is None else expected
    found = reference.self_information_backward(grad, x.detach(), scale, case.options)
    assert_near(found, expected, 1e-9 * expected.abs().max().clamp(min=1))


@pytest.mark.parametrize(
    "chosen", [form for form in EVERY_FORM if form.estimator == "distance" or not form.adaptive], ids=str
)
def test_numerical_derivatives(chosen: Options) -> None:
    x = values((2, 3, 3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: info(x, chosen), x)
    assert torch.autograd.gradgradcheck(lambda x: info(x, chosen), x[:1, :, :3, :3].detach().requires_grad_())


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_adaptive_bandwidth_is_constant_in_both_derivatives(mode: str) -> None:
    x = values((1, 1, 4, 5)).requires_grad_()
    adaptive = Options(kernel_size=5, bandwidth=0.7, padding_mode=mode)
    result, scale = reference.self_information(x, adaptive)
    fixed = adaptive._replace(adaptive=False, bandwidth=math.sqrt(0.5 / scale[0].item()))
    assert not scale.requires_grad
    first = [torch.autograd.grad(y.sum(), x, create_graph=True)[0] for y in (result, info(x, fixed))]
    second = [torch.autograd.grad(grad.square().sum(), x)[0] for grad in first]
    assert_near(first[0], first[1], 1e-11)
    assert_near(second[0], second[1], 1e-10)


def test_gate_derivatives() -> None:
    inputs = [values((2, 3, 2, 3), seed=seed) for seed in range(3)]
    channel_gate, gain = values((2, 3), seed=3), torch.tensor(0.3, dtype=torch.float64)
    x, maps, base = (tensor.requires_grad_() for tensor in inputs)
    arguments = (x, maps, channel_gate.requires_grad_(), gain.requires_grad_(), base)
    assert torch.autograd.gradcheck(reference.gate, arguments)
    grad = values((2, 3, 2, 3), seed=4)
    expected = torch.autograd.grad(reference.gate(*arguments), arguments, grad)
    found = list(reference.gate_backward(grad, *(tensor.detach() for tensor in arguments), info_grad=True))
    assert found[3].shape == (2, 3)
    found[3] = found[3].sum()
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-12)
    bare = reference.gate_backward(grad, x.detach(), maps.detach(), None, None, None, info_grad=False)
    assert [tensor.numel() for tensor in bare] == [x.numel(), 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["mean", "excite"])
def test_channel_mean_derivative(name: str) -> None:
    maps, grad = values((2, 3, 4, 5)).abs().requires_grad_(), values((2, 3), seed=1)
    assert torch.autograd.gradcheck(lambda maps: reference.channel_mean(maps, name), maps)
    expected = torch.autograd.grad(reference.channel_mean(maps, name), maps, grad)[0]
    assert_near(reference.channel_mean_backward(grad, maps.detach(), name), expected, 1e-12)


# --- Precision and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chosen", EVERY_FORM, ids=str)
def test_halves_are_computed_in_float32_and_rounded_once(dtype: torch.dtype, chosen: Options) -> None:
    x = Map((2, 4, 5, 6), dtype).make()
    result, scale = reference.self_information(x, chosen)
    wide_result, wide_scale = reference.self_information(x.float(), chosen)
    assert result.dtype == dtype and scale.dtype == torch.float32
    assert torch.equal(result, wide_result.to(dtype)) and torch.equal(scale, wide_scale)
    grad = values((2, 4, 5, 6), seed=1).to(dtype)
    found = reference.self_information_backward(grad, x, scale, chosen)
    assert torch.equal(found, reference.self_information_backward(grad.float(), x.float(), scale, chosen).to(dtype))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations allocated and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        self.made += [weakref.ref(tensor) for tensor in results if isinstance(tensor, Tensor)]
        alive = [tensor for made in self.made if (tensor := made()) is not None]
        self.made = [weakref.ref(tensor) for tensor in alive]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
        self.peak = max(self.peak, sum(storages.values()))
        return result


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_no_tensor_grows_with_the_window(estimator: str, mode: str) -> None:
    """At K = 11 the forward uses fewer than 8 maps and the backward fewer than 15; unfold would use 121."""
    x, grad = values((2, 8, 32, 32)).float(), values((2, 8, 32, 32), seed=1).float()
    peaks = {}
    for kernel_size in (3, 11):
        chosen = Options(kernel_size, estimator=estimator, padding_mode=mode)
        with torch.no_grad(), LiveBytes() as forward:
            scale = reference.self_information(x, chosen)[1]
        with torch.no_grad(), LiveBytes() as backward:
            reference.self_information_backward(grad, x, scale, chosen)
        peaks[kernel_size] = [count.peak / x.nbytes for count in (forward, backward)]
    assert 1 < peaks[11][0] < 8
    assert 1 < peaks[11][1] < 15
    # From K = 3 to 11 only the padding grows, a frame of R pixels around a few maps.
    frame = ((32 + 10) ** 2 - (32 + 2) ** 2) / 32**2
    assert all(large - small < 4 * frame for small, large in zip(peaks[3], peaks[11], strict=True))
