"""The operators: the checks of torch.library, gradients of first and second order, and other transforms."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Backend, every_case, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, LAYOUTS, Map, laid_out
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sia_layers.kernels import ops, reference
from sia_layers.kernels.options import Options

SIZE = (2, 3, 5, 4)
CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
NEAR = 2e-5  # of second derivatives of numbers around 1, in float32
FORMS = (
    Options(),
    Options(estimator="distance", padding_mode="reflect", inter_channels=1),
    Options(1, inter_channels=0),
)
GATES = [given for given in itertools.product((True, False), repeat=4) if any(given[:3])]


def sample(*size: int, dtype: torch.dtype = torch.float32, grad: bool = False, device: Any = None) -> Tensor:
    return torch.randn(size, dtype=dtype, device=device, requires_grad=grad)


def gate_inputs(
    present: tuple[bool, ...], dtype: torch.dtype = torch.float32, grad: bool = True, device: Any = None
) -> list[Tensor | None]:
    """Return x, and those of info, channel_gate, gain and base that are present."""
    sizes = (SIZE, SIZE, SIZE[:2], (1,), SIZE)
    return [
        sample(*size, dtype=dtype, grad=grad, device=device) if here else None
        for size, here in zip(sizes, (True, *present), strict=True)
    ]


@pytest.fixture
def fast_backend(backend: Backend) -> Backend:
    """Return every backend in turn that compiles its kernels."""
    if backend.interpreted:
        pytest.skip("interpreted: only test_interpreted_operators, as it is slow")
    return backend


@pytest.fixture
def calls(fast_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of each function of the backend."""
    counted: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counted[name] += 1
            return function(*arguments)

        return call

    for name in ("self_information", "channel_mean", "gate", "gate_and_mean"):
        for full in (name, f"{name}_backward"):
            if hasattr(fast_backend.kernels, full):
                monkeypatch.setattr(fast_backend.kernels, full, counting(full, getattr(fast_backend.kernels, full)))
    return counted


# --- What torch.library asks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "layout"), [(FORMS[0], "stepped"), (FORMS[1], "channels_last"), (FORMS[2], "contiguous")], ids=str
)
def test_opcheck_of_self_information(fast_backend: Backend, form: Options, layout: str) -> None:
    x = laid_out(sample(*SIZE, device=fast_backend.device), layout).requires_grad_()
    grad = laid_out(sample(*SIZE, device=fast_backend.device), "transposed").requires_grad_()
    with torch.no_grad():
        scale = fast_backend.kernels.self_information(x, form)[1]
    opcheck(torch.ops.sia_layers.self_information.default, (x, *form, fast_backend.name))
    # The compiler's trace of the second derivative takes seconds for every neighbour, and is the same on all backends.
    utils = CHECKS if fast_backend.name == "cpu" or every_case() else CHECKS[:-1]
    few = form if every_case() else form._replace(kernel_size=1, inter_channels=1)
    backward = torch.ops.sia_layers.self_information_backward.default
    opcheck(backward, (grad, x, scale, *few, fast_backend.name), test_utils=utils)
    for spatial, channel in ((True, "mean"), (False, "excite"), (True, "")):
        opcheck(torch.ops.sia_layers.gate_and_mean.default, (x.detach(), *form, spatial, channel, fast_backend.name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck_in_every_dtype(fast_backend: Backend, dtype: torch.dtype) -> None:
    x = sample(*SIZE, dtype=dtype, grad=True, device=fast_backend.device)
    opcheck(torch.ops.sia_layers.self_information.default, (x, *Options(), fast_backend.name))
    opcheck(torch.ops.sia_layers.channel_mean.default, (x, "mean", fast_backend.name))
    opcheck(torch.ops.sia_layers.gate.default, (x, x.detach(), None, None, None, fast_backend.name))


@pytest.mark.parametrize("channel", ["excite", "mean"])
def test_opcheck_of_channel_mean(fast_backend: Backend, channel: str) -> None:
    info, grad = (sample(*size, grad=True, device=fast_backend.device) for size in (SIZE, SIZE[:2]))
    opcheck(torch.ops.sia_layers.channel_mean.default, (info, channel, fast_backend.name))
    opcheck(torch.ops.sia_layers.channel_mean_backward.default, (grad, info, channel, fast_backend.name))


@pytest.mark.parametrize("present", [(True,) * 4, (True, False, False, False), (False, True, True, False)], ids=str)
def test_opcheck_of_gate(fast_backend: Backend, present: tuple[bool, ...]) -> None:
    tensors = gate_inputs(present, device=fast_backend.device)
    opcheck(torch.ops.sia_layers.gate.default, (*tensors, fast_backend.name))
    grad = sample(*SIZE, grad=True, device=fast_backend.device)
    opcheck(torch.ops.sia_layers.gate_backward.default, (grad, *tensors, present[0], fast_backend.name))


def test_interpreted_operators() -> None:
    backend = serving("triton")
    if not backend.interpreted:
        pytest.skip("Triton compiles here, and the tests above are of it")
    x, grad = (sample(1, 2, 3, 2, grad=True) for _ in range(2))
    planes, options = sample(1, 2, grad=True), Options()
    scale = reference.self_information(x.detach(), options)[1]
    name = backend.name
    for operator, arguments in {
        "self_information": (x, *options, name),
        "self_information_backward": (grad, x, scale, *options, name),
        "gate_and_mean": (x.detach(), *options, True, "mean", name),
        "channel_mean": (x, "excite", name),
        "channel_mean_backward": (planes, x, "excite", name),
        "gate": (x, grad, planes, sample(grad=True), x, name),
        "gate_backward": (grad, x, grad, planes, sample(grad=True), grad, True, name),
    }.items():
        overload = getattr(torch.ops.sia_layers, operator).default
        opcheck(overload, arguments, test_utils=CHECKS[:-1])


# --- Forward: the wrapper is the backend's function ---------------------------------------------------------------


@settings(max_examples=20)
@given(layout=st.sampled_from(LAYOUTS), dtype=st.sampled_from((*DTYPES, torch.float64)), form=st.sampled_from(FORMS))
def test_reference_results_have_the_strides_of_every_backend(layout: str, dtype: torch.dtype, form: Options) -> None:
    x = Map((2, 3, 6, 5), layout=layout).make().to(dtype)
    x = x if x.dtype == dtype else laid_out(x, layout)
    info = ops.self_information(x, form, "reference")
    expected = reference.self_information(x, form)[0]
    assert info.dtype == dtype and torch.equal(info, expected)
    assert info.is_contiguous() or info.is_contiguous(memory_format=torch.channels_last)


def test_mixed_dtypes_meet_in_that_of_the_map(fast_backend: Backend) -> None:
    x, info, channel_gate, gain, base = gate_inputs((True,) * 4, device=fast_backend.device)
    assert x is not None and info is not None
    mixed = ops.gate(
        x.bfloat16(),
        info,
        channel_gate.half(),
        gain.double(),
        base.half(),
        fast_backend.name,  # type: ignore[union-attr]
    )
    expected = reference.gate(x, info, channel_gate, gain, base)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(fast_backend: Backend, dtype: torch.dtype) -> None:
    x = sample(*SIZE, grad=True, device=fast_backend.device)
    outside = ops.gate(x, ops.self_information(x, Options(), fast_backend.name), backend=fast_backend.name)
    with torch.autocast(fast_backend.device.type, dtype):
        inside = ops.gate(x, ops.self_information(x, Options(), fast_backend.name), backend=fast_backend.name)
        mean = ops.channel_mean(inside, "excite", fast_backend.name)
    assert inside.dtype == mean.dtype == torch.float32 and torch.equal(inside, outside)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (inside, outside)))


@pytest.mark.parametrize(
    ("name", "size"),
    [("info", (2, 3, 5, 5)), ("channel_gate", (2, 1)), ("gain", (2,)), ("gain", (1, 1)), ("base", (1, 3, 5, 4))],
)
def test_gate_refuses_other_shapes(name: str, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be of shape"):
        ops.gate(sample(*SIZE), **{name: sample(*size)})


def test_gate_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match=r"gain must be of shape .* on cpu, .* on meta"):
        ops.gate(sample(*SIZE), gain=torch.ones((), device="meta"))


def test_a_gain_with_and_without_a_dimension_is_equivalent(fast_backend: Backend) -> None:
    x, info, _, gain, base = gate_inputs((True,) * 4, device=fast_backend.device)
    assert x is not None and gain is not None
    found = []
    for shape in ((1,), ()):
        number = gain.detach().reshape(shape).requires_grad_()
        y = ops.gate(x, info, None, number, base, fast_backend.name)
        first = torch.autograd.grad(y.square().sum(), number, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), number)[0]
        assert first.shape == second.shape == shape
        opcheck(torch.ops.sia_layers.gate.default, (x, info, None, number, base, fast_backend.name))
        found.append((y, first.reshape(1), second.reshape(1)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


# --- Round the dispatcher ------------------------------------------------------------------------------------------


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the operators that are called through the dispatcher rather than directly."""
    called: list[str] = []

    class Noting:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            called.append(name)
            return getattr(torch.ops.sia_layers, name)  # type: ignore[no-any-return]

    monkeypatch.setattr(ops, "OPERATORS", Noting())
    return called


def all_of(x: Tensor, gain: Tensor) -> list[Tensor]:
    info = ops.self_information(x, Options())
    gated, mean = ops.gate_and_mean(x.detach(), Options(), True, "excite")
    return [info, ops.channel_mean(info, "mean"), gated, mean, ops.gate(x, info, mean, gain, x)]


def test_plain_calls_bypass_the_dispatcher(dispatched: list[str]) -> None:
    x, gain = sample(*SIZE), torch.nn.Parameter(torch.ones(1))
    with torch.no_grad():
        directly = all_of(x, gain)
        assert dispatched == []
        with torch.inference_mode():
            for one, other in zip(directly, all_of(sample(*SIZE).copy_(x), gain), strict=True):
                assert torch.equal(one, other)
        assert dispatched == []
        with torch.autograd.profiler.profile(use_cpu=True) as profile:
            for one, other in zip(directly, all_of(x, gain), strict=True):
                assert torch.equal(one, other) and one.stride() == other.stride()
    assert sorted(dispatched) == ["channel_mean", "gate", "gate_and_mean", "self_information"]
    assert "sia_layers::gate" in {event.name for event in profile.function_events}


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Calling(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Watching, Calling])
def test_modes_see_every_operator(mode: type[Watching]) -> None:
    with torch.no_grad(), mode() as watching:
        all_of(sample(*SIZE), torch.ones(1))
    for name in ("self_information", "channel_mean", "gate_and_mean", "gate"):
        assert any(f"sia_layers.{name}" in seen for seen in watching.seen)


def test_tensors_other_than_plain_ones_are_dispatched(dispatched: list[str]) -> None:
    """These are tensors with gradients, subclasses, shapes without data, and lazily negated or conjugated ones."""

    class Named(Tensor):
        pass

    x = sample(*SIZE)
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg()
    assert torch.equal(
        ops.self_information(negative, Options()), ops.self_information(negative.resolve_neg(), Options())
    )
    ops.self_information(x.as_subclass(Named), Options())
    ops.self_information(torch.empty(SIZE, device="meta"), Options())
    assert dispatched == ["self_information"] * 3
    gain = torch.ones(1, requires_grad=True)
    assert ops.gate(x, gain=gain).requires_grad and ops.self_information(x.requires_grad_(), Options()).requires_grad
    assert dispatched[3:] == ["gate", "self_information"]
    plain = sample(*SIZE)
    with FakeTensorMode() as fake:
        assert isinstance(ops.self_information(fake.from_tensor(plain), Options()), FakeTensor)


# --- First derivatives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, Options(adaptive=False)], ids=str)
def test_gradients_are_the_references(fast_backend: Backend, form: Options) -> None:
    x = sample(*SIZE, grad=True, device=fast_backend.device)
    grad = laid_out(sample(*SIZE, device=fast_backend.device), "transposed")
    found = torch.autograd.grad(ops.self_information(x, form, fast_backend.name), x, grad)[0]
    double = x.detach().double().cpu()
    scale = reference.self_information(double, form)[1]
    expected = reference.self_information_backward(grad.double().cpu(), double, scale, form)
    torch.testing.assert_close(found.double().cpu(), expected, atol=NEAR, rtol=NEAR)


def test_expanded_gradients(fast_backend: Backend) -> None:
    """The gradient of sum() has no memory of its own: its strides are 0."""
    x = sample(*SIZE, grad=True, device=fast_backend.device)
    info = ops.self_information(x, Options(), fast_backend.name)
    mean = ops.channel_mean(info, "mean", fast_backend.name)
    y = ops.gate(x, info, mean, backend=fast_backend.name)
    expanded = x.new_ones(()).expand(SIZE)
    first, second = (
        torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in (expanded, expanded.contiguous())
    )
    assert torch.equal(first, second)


def test_gradients_that_nobody_wants_are_not_computed(fast_backend: Backend, calls: Counter[str]) -> None:
    x, info, channel_gate, gain, base = gate_inputs((True,) * 4, grad=False, device=fast_backend.device)
    assert channel_gate is not None and x is not None and info is not None
    ops.self_information(x, Options(), fast_backend.name)
    y = ops.gate(x, info, channel_gate.requires_grad_(), gain, base, fast_backend.name)
    y.sum().backward()
    assert channel_gate.grad is not None
    assert calls["self_information"] == calls["gate_backward"] == 1
    assert calls["self_information_backward"] == calls["channel_mean_backward"] == 0


def test_gradient_of_a_constant_part_is_left_out(fast_backend: Backend, calls: Counter[str]) -> None:
    x = sample(*SIZE, grad=True, device=fast_backend.device)
    info = ops.self_information(x, Options(), fast_backend.name)
    ops.gate(x, info.detach(), backend=fast_backend.name).sum().backward()
    assert calls["self_information_backward"] == 0
    scaled = torch.ops.sia_layers.self_information(x, *Options(), fast_backend.name)
    assert scaled[0].requires_grad and not scaled[1].requires_grad


def test_attend_has_no_gradient(fast_backend: Backend) -> None:
    x = sample(*SIZE, grad=True, device=fast_backend.device)
    gated, mean = ops.gate_and_mean(x, Options(), True, "excite", fast_backend.name)
    with pytest.raises(RuntimeError, match="gate_and_mean is for inference and has no gradient"):
        (gated.sum() + mean.sum()).backward()


# --- Second derivatives --------------------------------------------------------------------------------------------


def second_order(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of a function, and the gradient of its norm."""
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    return first, torch.autograd.grad(first.square().sum(), x)[0]


@pytest.mark.parametrize("form", [Options(), Options(adaptive=False), Options(padding_mode="replicate")], ids=str)
def test_double_backward(fast_backend: Backend, form: Options) -> None:
    """A gradient penalty through the kernels equals that through the plain reference."""

    def through(x: Tensor, name: str | None) -> Tensor:
        if name is None:
            info = reference.self_information(x, form)[0]
            return reference.gate(x, info, reference.channel_mean(info, "mean"), x.mean(), x.square())
        info = ops.self_information(x, form, name)
        return ops.gate(x, info, ops.channel_mean(info, "mean", name), x.mean(), x.square(), name)

    x = sample(*SIZE, device=fast_backend.device)
    found = second_order(lambda x: through(x, fast_backend.name), x.requires_grad_())
    expected = second_order(lambda x: through(x, None), x.detach().double().cpu().requires_grad_())
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu() - other).abs().max() < NEAR * other.abs().max()


@pytest.mark.parametrize(
    "form",
    [
        Options(adaptive=False),
        Options(adaptive=False, padding_mode="reflect"),
        Options(estimator="distance"),
        Options(estimator="distance", adaptive=False, padding_mode="zeros"),
        Options(1, inter_channels=0),
    ],
    ids=str,
)
def test_numerical_derivatives(form: Options) -> None:
    x = sample(1, 3, 4, 4, dtype=torch.float64, grad=True)
    assert gradcheck(lambda x: ops.self_information(x, form, "reference"), x)
    assert gradgradcheck(lambda x: ops.self_information(x, form, "reference"), x)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("present", GATES, ids=str)
def test_numerical_derivatives_of_gate(present: tuple[bool, ...]) -> None:
    tensors = gate_inputs(present, torch.float64)
    assert gradcheck(lambda *tensors: ops.gate(*tensors, backend="reference"), tensors)
    assert gradgradcheck(lambda *tensors: ops.gate(*tensors, backend="reference"), tensors, fast_mode=True)


@pytest.mark.parametrize("channel", ["excite", "mean"])
def test_numerical_derivatives_of_channel_mean(channel: str) -> None:
    info = sample(*SIZE, dtype=torch.float64, grad=True)
    assert gradcheck(lambda info: ops.channel_mean(info, channel, "reference"), info)
    assert gradgradcheck(lambda info: ops.channel_mean(info, channel, "reference"), info)


def test_third_derivative_is_not_lost() -> None:
    def third(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.linspace(-1, 1, 32, dtype=torch.float64).square().reshape(1, 2, 4, 4).requires_grad_()
        value = function(x)
        for _ in range(2):
            (value,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        return torch.autograd.grad(value.square().sum(), x)[0]

    found = third(lambda x: ops.self_information(x, Options(), "reference"))
    torch.testing.assert_close(found, third(lambda x: reference.self_information(x, Options())[0]))


# --- torch.func and forward mode: these go to the reference --------------------------------------------------------


@pytest.mark.parametrize("function", [ops.self_information, reference.self_information], ids=["op", "plain"])
def test_function_transforms(function: Callable[..., Any]) -> None:
    def info(x: Tensor) -> Tensor:
        result = function(x, Options())
        return result if isinstance(result, Tensor) else result[0]

    x = sample(3, *SIZE)
    each = torch.stack([info(one) for one in x])
    torch.testing.assert_close(torch.vmap(info)(x), each)
    one = x[0].clone().requires_grad_()
    gradient = torch.autograd.grad(info(one).square().sum(), one)[0]
    torch.testing.assert_close(torch.func.grad(lambda x: info(x).square().sum())(x[0]), gradient, atol=NEAR, rtol=NEAR)
    tangent = torch.func.jvp(lambda x: info(x).square().sum(), (x[0],), (x[0],))[1]
    torch.testing.assert_close(tangent, (gradient * x[0]).sum(), atol=1e-3, rtol=1e-4)


def test_forward_mode() -> None:
    x, direction = sample(*SIZE, dtype=torch.float64), sample(*SIZE, dtype=torch.float64)
    with forward_ad.dual_level():
        info = ops.self_information(forward_ad.make_dual(x, direction), Options(adaptive=False))
        tangent = forward_ad.unpack_dual(info).tangent
    step = 1e-6
    ahead, behind = (ops.self_information(x + s * direction, Options(adaptive=False)) for s in (step, -step))
    assert tangent is not None
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), atol=1e-7, rtol=1e-6)
