"""Every backend's kernels against the reference in float64: drawn sizes, strides, dtypes, contents and options.

The tolerances are absolute, plus half an ulp of a half dtype. Float32 rounds each operation by 6e-8 of its result: an
exponential, a logarithm and a sum of up to 121 kernels, one after another, leave an error of about 2e-6.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import pytest
import torch
from conftest import Backend, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_near
from strategies import DTYPES, LAYOUTS, Case, Map, broad_cases, laid_out, options, small_cases, values
from torch import Tensor

from sia_layers.kernels import reference
from sia_layers.kernels.cpu import library
from sia_layers.kernels.memory_format import is_channels_last
from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

pytestmark = pytest.mark.usefixtures("poison")

FORWARD = 5e-6  # of I in nats, or relative to the largest I if that is more than 1
SCALE = 5e-6  # of the scale
BACKWARD = 4e-6  # relative to the sample's largest gradient, or to the terms that cancel in it: see gradient_unit
GATE = 2e-6  # relative to the sum of absolute values

Drawn = TypeVar("Drawn")


def drawn(backend: Backend) -> Callable[..., st.SearchStrategy[Case]]:
    """Draw maps of sizes that the backend can handle quickly."""
    return small_cases if backend.interpreted else broad_cases


def for_all(
    backend: Backend, strategy: st.SearchStrategy[Drawn], check: Callable[[Backend, Drawn], None], share: float = 1.0
) -> None:
    """Check many examples, but only a few if the backend is interpreted."""
    examples = share * settings().max_examples * (0.15 if backend.interpreted else 5)

    @settings(max_examples=max(1, round(examples)))
    @given(strategy)
    def holds(case: Drawn) -> None:
        check(backend, case)

    holds()


def assert_lies_like(result: Tensor, x: Tensor) -> None:
    """Assert that the result has the shape, dtype and device of ``x``, channels_last if ``x`` is, else contiguous."""
    assert result.shape == x.shape and result.dtype == x.dtype and result.device == x.device
    last = is_channels_last(x)
    assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double().cpu()


# --- Self-information ----------------------------------------------------------------------------------------------


def check_forward(backend: Backend, case: Case) -> None:
    x = case.map.make(backend.device)
    info, scale = backend.kernels.self_information(x, case.options)
    expected, expected_scale = reference.self_information(x.double().cpu(), case.options)
    assert_lies_like(info, x)
    assert_near(info, expected, FORWARD * max(1.0, expected.abs().max().item()))
    assert scale.dtype == torch.float32
    assert_near(scale, expected_scale, SCALE * expected_scale)


def gradient_unit(grad: Tensor, scale: Tensor, chosen: Options, channels: int) -> Tensor:
    """Return the size of the terms that cancel in a sample's gradient, (N, 1, 1, 1); rounding is proportional to it.

    The density form's sum of 2 s d e, over the sum of e = exp(-s d^2), is at most about sqrt(2 s); the distance form
    adds s for every pixel of the window and every channel that it compares with.
    """
    largest = scale.amax(-1)
    if chosen.estimator == "kde":
        unit = (2 * largest[0]).sqrt() + abs(chosen.inter_weight) * (2 * largest[1]).sqrt()
    else:
        unit = largest[0] * (chosen.kernel_size**2 + abs(chosen.inter_weight) * chosen.neighbours(channels))
    return unit.reshape(-1, 1, 1, 1) * grad.abs().amax()


def check_backward(backend: Backend, drawn: tuple[Case, str]) -> None:
    case, grad_layout = drawn
    x = case.map.make(backend.device)
    grad = laid_out(values(tuple(x.shape), seed=case.map.seed + 1).to(x), grad_layout)
    scale = reference.self_information(x.double().cpu(), case.options)[1].float()
    found = backend.kernels.self_information_backward(grad, x, scale.to(x.device), case.options)
    grad, scale = grad.double().cpu(), scale.double()
    assert_lies_like(found, x)
    expected = reference.self_information_backward(grad, x.double().cpu(), scale, case.options)
    unit = gradient_unit(grad, scale, case.options, x.shape[1])
    assert_near(found, expected, BACKWARD * torch.maximum(unit, expected.abs().amax((1, 2, 3), keepdim=True)))


def check_relative_backward(backend: Backend, case: Case) -> None:
    """Check the gradient relative to its own largest value, on maps where that is as large as gradient_unit."""
    x = case.map.make(backend.device)
    grad = values(tuple(x.shape), seed=1).to(x)
    scale = reference.self_information(x, case.options)[1]
    found = backend.kernels.self_information_backward(grad, x, scale, case.options)
    expected = reference.self_information_backward(
        grad.double().cpu(), x.double().cpu(), scale.double().cpu(), case.options
    )
    assert_near(found, expected, BACKWARD * expected.abs().amax())


def check_attend(backend: Backend, drawn: tuple[Case, bool, str]) -> None:
    case, spatial, channel = drawn
    x = case.map.make(backend.device)
    gated, mean = backend.kernels.gate_and_mean(x, case.options, spatial, channel)
    truth = x.double().cpu()
    info = reference.self_information(truth, case.options)[0]
    expected, expected_mean = reference.gate_and_mean(truth, case.options, spatial, channel)
    tolerance = FORWARD * max(1.0, info.abs().max().item())
    if spatial:
        assert_lies_like(gated, x)
        assert_near(gated, expected, (tolerance + GATE) * truth.abs())
    else:
        assert gated.shape == (0,) and gated.dtype == x.dtype
    assert mean.dtype == torch.float32
    assert_near(mean, expected_mean, tolerance)


def check_everything(backend: Backend, case: Case) -> None:
    check_forward(backend, case)
    check_backward(backend, (case, case.map.layout))
    check_attend(backend, (case, True, "excite"))


def test_forward(kernel_backend: Backend) -> None:
    for_all(kernel_backend, drawn(kernel_backend)(options()), check_forward)


def test_backward_of_the_density_form(kernel_backend: Backend) -> None:
    cases = drawn(kernel_backend)(options(estimators=("kde",)))
    for_all(kernel_backend, st.tuples(cases, st.sampled_from(LAYOUTS)), check_backward, share=0.7)


def test_backward_of_the_distance_form(kernel_backend: Backend) -> None:
    # Its gradient jumps where a sum changes sign: only sums that are exact in float32 have a unique gradient.
    cases = drawn(kernel_backend)(options(estimators=("distance",)), contents=("lattice",))
    for_all(kernel_backend, st.tuples(cases, st.sampled_from(LAYOUTS)), check_backward, share=0.3)


def test_attend(kernel_backend: Backend) -> None:
    # exp(-I) in the other channel mean overflows for I far below 0, which a negative weight can cause.
    cases = drawn(kernel_backend)(options(inter_weights=(0.5, 0.0, 2.0)))
    inputs = st.tuples(cases, st.booleans(), st.sampled_from(("excite", "mean", "")))
    for_all(kernel_backend, inputs, check_attend, share=0.7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_form(kernel_backend: Backend, estimator: str, mode: str, dtype: torch.dtype) -> None:
    content = "lattice" if estimator == "distance" else "normal"
    if kernel_backend.interpreted:
        chosen = Options(3, 1.0, dtype != torch.float16, estimator, 1, 0.5, mode)
        case = Case(Map((1, 2, 3, 5), dtype, "contiguous", content), chosen)
        check_forward(kernel_backend, case)
        check_backward(kernel_backend, (case, "contiguous"))
        return
    for layout, adaptive in itertools.product(("contiguous", "channels_last"), (True, False)):
        chosen = Options(5, 1.0, adaptive, estimator, 3, 0.5, mode)
        check_everything(kernel_backend, Case(Map((2, 7, 11, 19), dtype, layout, content), chosen))


@pytest.mark.parametrize("level", library.LEVELS)
def test_every_instruction_set(level: str) -> None:
    """This covers every instruction set of the CPU, not only the widest, which it uses by default."""
    cpu = serving("cpu")
    if library.LEVELS.index(level) > library.best_level():
        pytest.skip(f"this machine has no {level}")
    with library.use_level(level):
        for_all(cpu, broad_cases(options(estimators=("kde",))), check_everything, share=0.3)
        for_all(cpu, broad_cases(options(estimators=("distance",)), contents=("lattice",)), check_everything, share=0.2)
        for_all(cpu, gates(cpu), check_gate, share=0.2)
        for_all(cpu, gates(cpu), check_gate_backward, share=0.2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_every_width_and_channel_count(kernel_backend: Backend, kernel_size: int, layout: str) -> None:
    """For every vector width, some of these have each possible tail."""
    if kernel_backend.interpreted and kernel_size > 3:
        pytest.skip("too slow for Triton's interpreter")
    sizes = (17,) if kernel_backend.interpreted else range(1, 36)
    chosen = Options(kernel_size, inter_channels=1 if kernel_backend.interpreted else 3)
    for size in sizes:
        for shape in ((1, 2, 1 + size % 4, size), (1, size, 1 + size % 3, 2 + size % 2)):
            case = Case(Map(shape, torch.float32, layout, seed=size), chosen)
            check_forward(kernel_backend, case)
            check_relative_backward(kernel_backend, case)
        if layout == "channels_last":  # halves are converted before they are compared with the channels that follow
            many = chosen._replace(inter_channels=(3, 8, 20)[size % 3])
            check_forward(kernel_backend, Case(Map((1, size, 3, 23), torch.bfloat16, layout, seed=size), many))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 2, 130, 157), (1, 160, 12, 12), (3, 40, 5, 6), (1, 1, 1, 5000), (1, 2, 3000, 1)])
def test_maps_that_are_split_among_threads(
    kernel_backend: Backend, shape: tuple[int, int, int, int], layout: str
) -> None:
    if kernel_backend.interpreted:
        pytest.skip("too large for Triton's interpreter")
    torch.set_num_threads(2)
    for chosen in (Options(3), Options(7, padding_mode="zeros")):
        case = Case(Map(shape, torch.float32, layout), chosen)
        check_everything(kernel_backend, case)
        check_relative_backward(kernel_backend, case)


# --- Channel mean and gate -----------------------------------------------------------------------------------------

INFO_CONTENTS = ("normal", "relu", "far")


def check_channel_mean(backend: Backend, drawn: tuple[Case, str]) -> None:
    case, channel = drawn
    info = case.map.make(backend.device)
    truth = info.double().cpu()
    mean = backend.kernels.channel_mean(info, channel)
    assert mean.dtype == torch.float32
    # |-log(e^-I + 0.1)| is never more than |I| + 2.4.
    assert_near(mean, reference.channel_mean(truth, channel), GATE * (truth.abs() + 2.4).mean((2, 3)))
    grad = values(tuple(mean.shape), seed=case.map.seed).to(mean)
    for each in (grad, grad.t().contiguous().t(), grad[:, :1].expand_as(grad)):
        found = backend.kernels.channel_mean_backward(each, info, channel)
        assert_lies_like(found, info)
        expected = reference.channel_mean_backward(each.double().cpu(), truth, channel)
        assert_near(found, expected, GATE * each.abs().amax().item() / info[0, 0].numel())


def test_channel_mean(kernel_backend: Backend) -> None:
    maps = drawn(kernel_backend)(st.just(Options()), contents=INFO_CONTENTS)
    inputs = st.tuples(maps, st.sampled_from(("excite", "mean")))
    for_all(kernel_backend, inputs, check_channel_mean, share=0.5)


class Gate(NamedTuple):
    """Arguments of the gate, with a layout for each map that is present; the small tensors are float32."""

    case: Case
    info: str | None
    channel_gate: str | None
    gain: bool
    base: str | None
    grad: str

    def make(self, device: torch.device) -> list[Tensor | None]:
        """Return x, info, channel_gate, gain and base."""
        x = self.case.map.make(device)
        seed, shape = self.case.map.seed, tuple(x.shape)
        info = None if self.info is None else laid_out(values(shape, seed=seed + 1).abs().to(x), self.info)
        base = None if self.base is None else laid_out(values(shape, seed=seed + 2).to(x), self.base)
        excite = values(shape[:2], seed=seed + 3).sigmoid().to(device, torch.float32)
        rows = {None: None, "rows": excite, "columns": excite.t().contiguous().t(), "one": excite[:1].expand_as(excite)}
        channel_gate = rows[self.channel_gate]
        gain = torch.tensor(0.7, device=device) if self.gain else None
        return [x, info, channel_gate, gain, base]


def check_gate(backend: Backend, gate: Gate) -> None:
    arguments = gate.make(backend.device)
    result = backend.kernels.gate(*arguments)
    x = arguments[0]
    assert x is not None
    assert_lies_like(result, x)
    truth = [wide(argument) for argument in arguments]
    magnitudes = [None if argument is None else argument.abs() for argument in truth]
    largest = magnitudes[0] * (2 if gate.info else 1)
    if gate.channel_gate:
        largest = largest * magnitudes[2][..., None, None]
    if gate.gain:
        start = magnitudes[0] if magnitudes[4] is None else magnitudes[4]
        largest = start + magnitudes[3] * (largest + start)
    assert_near(result, reference.gate(*truth), GATE * largest)


def check_gate_backward(backend: Backend, gate: Gate) -> None:
    arguments = gate.make(backend.device)
    x = arguments[0]
    assert x is not None
    grad = laid_out(values(tuple(x.shape), seed=gate.case.map.seed + 4).to(x), gate.grad)
    for info_grad in (True, False) if gate.info else (False,):
        found = backend.kernels.gate_backward(grad, *arguments, info_grad)
        wanted = (True, info_grad, gate.channel_gate, gate.gain, gate.gain and gate.base)
        truth = [wide(argument) for argument in arguments]
        expected = reference.gate_backward(grad.double().cpu(), *truth, info_grad)
        for tensor, exact, bound, needed in zip(found, expected, bounds(grad, truth), wanted, strict=True):
            if needed:
                assert_near(tensor, exact, GATE * bound)
            else:
                assert tensor.shape == (0,)
        for tensor, argument, needed in zip(found, arguments, wanted, strict=True):
            if needed and argument is not None and argument.dim() == 4:
                assert_lies_like(tensor, x)
        assert found[2].dtype == torch.float32 or not gate.channel_gate
        assert found[3].dtype == torch.float32 or not gate.gain


def bounds(grad: Tensor, truth: list[Tensor | None]) -> list[Tensor]:
    """Return the sums of absolute values behind the gradients of x, info, channel_gate, gain (per plane) and base."""
    x, info, channel_gate, gain, base = [None if argument is None else argument.abs() for argument in truth]
    assert x is not None
    grad = grad.double().cpu().abs()
    excite = torch.ones_like(x) if channel_gate is None else channel_gate[..., None, None]
    start = x if base is None else base
    slope = torch.ones(()).double() if gain is None else gain
    around = torch.zeros_like(slope) if gain is None else 1 + gain
    boost = 1.0 if info is None else 2.0
    return [
        grad * (slope * boost * excite + around),
        grad * slope * x * excite,
        (grad * slope * x * boost).sum((2, 3)),
        (grad * (x * boost * excite + start)).sum((2, 3)),
        grad * around,
    ]


def gates(backend: Backend) -> st.SearchStrategy[Gate]:
    """Draw the gate with all combinations of its arguments."""
    layout = st.sampled_from(LAYOUTS)
    cases = drawn(backend)(st.just(Options()), contents=("normal", "relu", "loud"))

    def complete(case: Case) -> st.SearchStrategy[Gate]:
        rows = st.sampled_from((None, "rows", "columns", "one"))
        return st.builds(Gate, st.just(case), st.none() | layout, rows, st.booleans(), st.none() | layout, layout)

    return cases.flatmap(complete)


def test_gate(kernel_backend: Backend) -> None:
    for_all(kernel_backend, gates(kernel_backend), check_gate, share=0.7)


def test_gate_backward(kernel_backend: Backend) -> None:
    for_all(kernel_backend, gates(kernel_backend), check_gate_backward, share=0.7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_in_every_combination(kernel_backend: Backend, dtype: torch.dtype) -> None:
    shape = (1, 2, 3, 5) if kernel_backend.interpreted else (2, 5, 9, 21)
    for info, channel_gate, gain, base in itertools.product((True, False), repeat=4):
        layouts = ["contiguous"] if kernel_backend.interpreted else ["contiguous", "channels_last", "stepped"]
        for layout in layouts:
            gate = Gate(
                Case(Map(shape, dtype, layout), Options()),
                layout if info else None,
                "rows" if channel_gate else None,
                gain,
                layout if base else None,
                layout,
            )
            check_gate(kernel_backend, gate)
            check_gate_backward(kernel_backend, gate)
