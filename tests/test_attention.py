"""SIAttention and SIAggregation: their formulas, both code paths, gradients, and their behaviour as modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from conftest import Backend
from hypothesis import given
from hypothesis import strategies as st
from test_functional import BAD_MAPS, BAD_OPTIONS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sia_layers import SIAggregation, SIAttention, self_information
from sia_layers.kernels import backends, ops

CHANNELS = 6
SIZE = (2, CHANNELS, 5, 4)
GATES = [(True, "excite"), (True, "mean"), (True, None), (False, "excite"), (False, "mean")]
layers = st.builds(
    dict,
    gates=st.sampled_from(GATES),
    gain=st.sampled_from((None, 0.0, 0.7)),
    aggregate=st.booleans(),
    detach=st.booleans(),
    seed=st.integers(0, 99),
)


def made(gates: tuple[bool, str | None], *, seed: int = 0, **keywords: Any) -> SIAttention:
    torch.manual_seed(seed)
    spatial, channel = gates
    return SIAttention(CHANNELS, spatial=spatial, channel=channel, rd_channels=4, **keywords)


def defined(layer: SIAttention, x: Tensor, aggregate: Tensor | None = None) -> Tensor:
    """Compute the layer by its formulas, in PyTorch operations."""
    source = x if aggregate is None else x + aggregate
    info = self_information(source, backend="reference")
    info = info.detach() if layer.detach else info
    y = source * (1 + info.sigmoid()) if layer.spatial else source
    if layer.channel == "excite":
        squeezed = info.mean((2, 3))
        hidden = (squeezed @ layer.fc1.weight.flatten(1).T).relu()
        y = y * (hidden @ layer.fc2.weight.flatten(1).T).sigmoid()[..., None, None]
    elif layer.channel == "mean":
        y = y * (1 - (torch.exp(-info) + 0.1).log().mean((2, 3), keepdim=True))
    return y if layer.gain is None else x + layer.gain * (y - x)


# --- The formulas --------------------------------------------------------------------------------------------------


@given(layers)
def test_both_paths_follow_the_formula(drawn: dict[str, Any]) -> None:
    layer = made(drawn["gates"], seed=drawn["seed"], gain=drawn["gain"], detach=drawn["detach"])
    x, aggregate = torch.randn(SIZE), torch.rand(SIZE) if drawn["aggregate"] else None
    expected = defined(layer, x, aggregate)
    learning = layer(x.requires_grad_(), aggregate)
    with torch.no_grad():
        inferring = layer(x, aggregate)
    assert not inferring.requires_grad and learning.requires_grad
    torch.testing.assert_close(learning, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inferring, expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gates", GATES, ids=str)
def test_every_backend(backend: Backend, gates: tuple[bool, str | None]) -> None:
    layer = made(gates, gain=0.5, detach=False, backend=backend.name).to(backend.device)
    x, aggregate = torch.randn(1, CHANNELS, 3, 2), torch.rand(1, CHANNELS, 3, 2)
    inputs = [x.to(backend.device).requires_grad_(), aggregate.to(backend.device).requires_grad_()]
    y = layer(*inputs)
    expected = defined(layer, *inputs)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    wanted = [*inputs, *layer.parameters()]
    found, other = (torch.autograd.grad(result.square().sum(), wanted) for result in (y, expected))
    for one, two in zip(found, other, strict=True):
        torch.testing.assert_close(one, two, atol=2e-5 * max(1.0, float(two.abs().max())), rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(*inputs), expected.detach(), atol=1e-5, rtol=1e-5)


def test_attend_gives_the_map_of_the_sum_as_well() -> None:
    layer, x, aggregate = made(GATES[0]), torch.randn(SIZE), torch.rand(SIZE)
    for a in (None, aggregate):
        y, info = layer.attend(x, a)
        torch.testing.assert_close(y, layer(x, a), atol=1e-6, rtol=1e-6)
        assert torch.equal(info, self_information(x if a is None else x + a))


def test_a_gain_of_zero_is_the_identity_and_learns() -> None:
    layer, x = made(GATES[0], gain=0.0), torch.randn(SIZE, requires_grad=True)
    y = layer(x, torch.rand(SIZE))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert layer.gain is not None and layer.gain.grad is not None and layer.gain.grad != 0
    assert x.grad is not None and torch.equal(x.grad, 2 * x)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), x)


def test_a_sample_alone_and_in_a_batch() -> None:
    layer, x = made(GATES[0], gain=0.5).eval(), torch.randn(4, *SIZE[1:])
    together = layer(x)
    torch.testing.assert_close(torch.cat([layer(one[None]) for one in x]), together, atol=1e-6, rtol=1e-6)


# --- What flows back -----------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Return a list that records the names of the backend's functions in the order of their calls."""
    kernels = backends.load(backends.select(torch.zeros(1, 1, 1, 1)))
    called: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return function(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(kernels, name, noting(name, getattr(kernels, name)))
    return called


def test_detached_no_gradient_flows_through_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    called = counted(
        monkeypatch, "self_information", "self_information_backward", "channel_mean_backward", "gate_and_mean"
    )
    layer, x = made(GATES[0]), torch.randn(SIZE, requires_grad=True)
    y, info = layer.attend(x)
    grad = torch.randn(SIZE)
    y.backward(grad)
    assert called == ["self_information"] and not info.requires_grad
    gates = (y / x).detach()
    torch.testing.assert_close(x.grad, grad * gates, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_without_detach_the_map_learns_too() -> None:
    layer, x = made(GATES[0], detach=False), torch.randn(SIZE, requires_grad=True)
    y, info = layer.attend(x)
    assert info.requires_grad
    y.sum().backward()
    through = copy.deepcopy(x.grad)
    x.grad = None
    layer.detach = True
    layer(x).sum().backward()
    assert through is not None and x.grad is not None and not torch.allclose(through, x.grad)


@pytest.mark.parametrize("gates", GATES, ids=str)
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen_input"])
def test_inference_never_writes_the_map(monkeypatch: pytest.MonkeyPatch, how: str, gates: tuple[bool, str]) -> None:
    called = counted(monkeypatch, "self_information", "gate_and_mean", "channel_mean")
    monkeypatch.setattr(ops, "attend", lambda *arguments: None)
    layer, x = made(gates), torch.randn(SIZE)
    if how == "frozen_input":
        layer(x)
    else:
        with getattr(torch, how)():
            layer(x.requires_grad_())
    assert called == ["gate_and_mean"]


@pytest.mark.parametrize("gates", GATES, ids=str)
def test_only_the_layer_learns_behind_a_frozen_backbone(gates: tuple[bool, str]) -> None:
    layer, x, aggregate = made(gates, gain=0.5, detach=False), torch.randn(SIZE), torch.rand(SIZE)
    parameters = list(layer.parameters())
    found, expected = (
        torch.autograd.grad(y.square().sum(), parameters) for y in (layer(x, aggregate), defined(layer, x, aggregate))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_checkpointing_changes_nothing() -> None:
    layer, x = made(GATES[0], detach=False), torch.randn(SIZE, requires_grad=True)
    plain = torch.autograd.grad(layer(x).sum(), x)[0]
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)[0]
    assert torch.equal(plain, again)


def test_function_transforms() -> None:
    layer, x = made(GATES[0], gain=0.5), torch.randn(3, *SIZE)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(one) for one in x]), atol=1e-5, rtol=1e-5)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()  # type: ignore[no-any-return]

    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    loss(parameters, x[1]).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(per_sample[name][1], parameter.grad, atol=1e-3, rtol=1e-3)


# --- Dtypes and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregated", [True, False])
@pytest.mark.parametrize("gates", GATES, ids=str)
@pytest.mark.parametrize("module", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype(dtype: torch.dtype, module: torch.dtype, gates: tuple[bool, str], aggregated: bool) -> None:
    layer = made(gates, gain=0.5).to(module)
    x = torch.randn(SIZE, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    aggregate = torch.rand(SIZE) if aggregated else None
    expected = defined(layer.float(), x.float(), aggregate).detach()
    layer.to(module)
    y, info = layer.attend(x, aggregate)
    y.sum().backward()
    with torch.no_grad():
        results = (y, info, x.grad, layer(x, aggregate))
    for result in results:
        assert result is not None and result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
    for result in (y, results[-1]):
        torch.testing.assert_close(result.float(), expected, atol=0.1, rtol=0.05)
        if torch.finfo(dtype).eps < 1e-6 and torch.finfo(module).eps < 1e-6:
            torch.testing.assert_close(result.float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
            self.first, self.second = made(GATES[0], gain=0.5, detach=False), made(GATES[0], detach=False)
            self.aggregation = SIAggregation([CHANNELS], CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            y, info = self.first.attend(self.conv(x))
            return self.second(y, self.aggregation([info], y.shape[2:]))  # type: ignore[no-any-return]

    net, x = Net(), torch.randn(2, 3, 5, 4)
    with torch.autocast("cpu", dtype):
        y = net(x)
        with torch.no_grad():
            inferring = net(x)
    assert y.dtype == inferring.dtype == dtype
    torch.testing.assert_close(y, inferring, atol=0.05, rtol=0.05)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    torch.testing.assert_close(y.float(), net(x), atol=0.3, rtol=0.1)


# --- As a module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [partial(made, GATES[0], gain=0.5), partial(SIAggregation, [4, 6], CHANNELS)])
def test_copies(make: Callable[[], nn.Module]) -> None:
    module = make().eval()
    arguments: tuple[Any, ...] = (torch.randn(SIZE),)
    if isinstance(module, SIAggregation):
        arguments = ([torch.rand(2, 4, 9, 8), torch.rand(2, 6, 5, 4)], (5, 4))
    fresh = make().eval()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert repr(other) == repr(module) and torch.equal(other(*arguments), module(*arguments))


def test_names_of_the_parameters() -> None:
    assert list(made(GATES[0], gain=0.5).state_dict()) == ["gain", "fc1.weight", "fc2.weight"]
    assert list(made(GATES[1]).state_dict()) == []
    assert made(GATES[1]).gain is None


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("parameter", [False, True])
def test_checkpoints_whose_gain_has_no_dimension(assign: bool, parameter: bool) -> None:
    """Earlier versions saved them so; strict loading accepts them and does not change the caller's dict."""
    model = nn.Sequential(made(GATES[0], gain=0.5), copy.deepcopy(made(GATES[1], gain=0.5)).requires_grad_(False))
    model = pickle.loads(pickle.dumps(model))
    old: dict[str, Tensor] = {**model.state_dict(), "0.gain": torch.tensor(0.25), "1.gain": torch.tensor(0.75)}
    if parameter:
        old = {name: nn.Parameter(value) for name, value in old.items()}
    model.load_state_dict(old, assign=assign)
    for layer, expected in zip(model, (0.25, 0.75), strict=True):
        assert isinstance(layer.gain, nn.Parameter) and layer.gain.shape == (1,) and layer.gain == expected
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, True, False]
    assert old["0.gain"].shape == ()
    model(torch.randn(SIZE)).sum().backward()
    assert model[0].gain.grad.shape == (1,)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.gain"):
        model.load_state_dict({**old, "0.gain": torch.zeros(2)})


def test_sharding_takes_every_parameter() -> None:
    """FSDP refuses parameters without dimensions."""
    modules = nn.ModuleList([made(GATES[0], gain=0.0), SIAggregation([3], CHANNELS)])
    assert all(parameter.dim() for parameter in modules.parameters())


def test_skip_init_and_meta() -> None:
    torch.manual_seed(0)
    layer = nn.utils.skip_init(SIAttention, 32, gain=0.5)
    layer.reset_parameters()
    assert layer.gain == 0.5 and layer(torch.randn(1, 32, 4, 4)).isfinite().all()
    empty = SIAttention(32, gain=0.5, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in empty.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(1, 32, 4, 4, device="meta")
    assert empty(x).shape == x.shape and SIAggregation([32], 8, device="meta")([x], (2, 2)).shape == (1, 8, 2, 2)
    with torch.device("meta"):
        assert SIAttention(32).fc1.weight.is_meta
    layer = empty.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.gain == 0.5 and layer.fc1.weight.isfinite().all() and layer.fc1.weight.std() > 0


def test_reset_parameters_starts_anew() -> None:
    layer = made(GATES[0], gain=0.25)
    torch.manual_seed(7)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(3)
    torch.manual_seed(7)
    layer.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in layer.state_dict().items())


def test_the_repr_of_a_layer() -> None:
    layer = SIAttention(8, 5, bandwidth=0.5, padding_mode="reflect", channel=None, detach=False, gain=0.1)
    assert repr(layer) == (
        "SIAttention(channels=8, kernel_size=5, bandwidth=0.5, padding_mode='reflect', channel=None, "
        "detach=False, gain=0.1)"
    )


def test_layers_of_a_kind_can_be_given() -> None:
    layer = SIAttention(8, act_layer=partial(nn.LeakyReLU, 0.5), gate_layer=nn.Hardsigmoid)
    assert isinstance(layer.act, nn.LeakyReLU) and isinstance(layer.gate, nn.Hardsigmoid)
    for name in ("act_layer", "gate_layer"):
        for wrong in ("relu", nn.GELU(), torch.relu, nn.Linear, dict):
            with pytest.raises(TypeError, match=f"{name} must be a class of modules, such as torch.nn.ReLU, got "):
                SIAttention(8, **{name: wrong})  # type: ignore[arg-type]


# --- What is refused -----------------------------------------------------------------------------------------------

BAD_LAYERS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
    ({"channels": -4}, ValueError, "channels must be at least 1, got -4"),
    ({"channels": 4.5}, TypeError, "channels must be an int, got float 4.5"),
    ({"spatial": None}, TypeError, "spatial must be True or False, got NoneType None"),
    ({"channel": "se"}, ValueError, "channel must be one of 'excite', 'mean', got 'se'"),
    ({"spatial": False, "channel": None}, ValueError, "leaves nothing to gate"),
    ({"kernel_size": 1, "inter_channels": 0}, ValueError, "compares a pixel with nothing"),
    ({"kernel_size": 1, "inter_weight": 0.0}, ValueError, "compares a pixel with nothing"),
    ({"rd_ratio": 0}, ValueError, "rd_ratio must be greater than 0, got 0"),
    ({"rd_channels": 0}, ValueError, "rd_channels must be at least 1, got 0"),
    ({"rd_divisor": 0}, ValueError, "rd_divisor must be at least 1, got 0"),
    ({"detach": "no"}, TypeError, "detach must be True or False, got str 'no'"),
    ({"gain": "0"}, TypeError, "gain must be a number, got str '0'"),
    ({"gain": float("nan")}, ValueError, "gain must be finite, got nan"),
    ({"kernelsize": 3}, TypeError, "SIAttention has no argument 'kernelsize'; did you mean 'kernel_size'"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), [*BAD_LAYERS, *BAD_OPTIONS], ids=str)
def test_bad_arguments(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SIAttention(**{"channels": 8, **keywords})


@pytest.mark.parametrize(("x", "error", "message"), BAD_MAPS, ids=lambda value: type(value).__name__)
def test_bad_maps(x: Any, error: type[Exception], message: str) -> None:
    layer = made(GATES[0])
    for call in (layer, layer.attend):
        with pytest.raises(error, match=message):
            call(x)
        with pytest.raises(error, match=message.replace("x must", "aggregate must")):
            call(torch.zeros(SIZE), x)


def test_maps_that_do_not_match() -> None:
    layer = made(GATES[1])
    with pytest.raises(ValueError, match=r"x must have 6 channels, .*, got shape \(2, 5, 4, 4\)"):
        layer(torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"aggregate must be of the shape of x, \(2, 6, 5, 4\), got \(2, 6, 4, 4\)"):
        layer(torch.zeros(SIZE), torch.zeros(2, 6, 4, 4))


# --- In the place of timm's layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [1, 4, 8])
@pytest.mark.parametrize("ratio", [1 / 16, 0.25, 1 / 3, 2.0])
def test_hidden_width_is_timms(ratio: float, divisor: int) -> None:
    helpers = pytest.importorskip("timm.layers.helpers")
    for channels in (1, 7, 8, 24, 100, 257):
        width = SIAttention(channels, rd_ratio=ratio, rd_divisor=divisor).fc1.out_channels
        assert width == helpers.make_divisible(channels * ratio, divisor, round_limit=0.0)
    assert SIAttention(8, rd_ratio=ratio, rd_channels=3, rd_divisor=divisor).fc1.out_channels == 3


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "layer", [SIAttention, partial(SIAttention, kernel_size=5, gain=0.0)], ids=["class", "partial"]
)
@pytest.mark.parametrize(
    ("name", "slot", "count"),
    [
        ("resnet18", "block_args", 8),
        ("regnetz_b16", "attn_layer", 22),
        ("nf_regnet_b0", "attn_layer", 16),
        ("efficientnet_b0", "se_layer", 16),
        ("ese_vovnet19b_dw", "attn", 4),
    ],
)
def test_timm_slots(name: str, slot: str, count: int, layer: Any) -> None:
    timm = pytest.importorskip("timm")
    keywords = {slot: {"attn_layer": layer} if slot == "block_args" else layer}
    model = timm.create_model(name, num_classes=2, **keywords)
    placed = [module for module in model.modules() if isinstance(module, SIAttention)]
    assert len(placed) == count
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    if layer is SIAttention:
        assert all(parameter.grad is not None for module in placed for parameter in module.parameters())
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(("name", "slot"), [("resnet18", "block_args"), ("efficientnet_b0", "se_layer")])
def test_an_identity_at_the_start_keeps_timms_predictions(name: str, slot: str) -> None:
    timm = pytest.importorskip("timm")
    layer = partial(SIAttention, gain=0.0)
    plain = timm.create_model(name, num_classes=2, **({} if slot == "block_args" else {slot: nn.Identity}))
    model = timm.create_model(name, num_classes=2, **{slot: {"attn_layer": layer} if slot == "block_args" else layer})
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.endswith((".gain", ".fc1.weight", ".fc2.weight")) for key in missing)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))


def test_wrappers_are_used_by_the_module() -> None:
    """The module's maps are those of the functions, for each gate."""
    layer, x = made((True, "mean")), torch.randn(SIZE)
    y, info = layer.attend(x)
    mean = ops.channel_mean(info, "mean")
    assert torch.equal(y, ops.gate(x, info, 1 + mean))


def test_half_precision_keeps_its_largest_numbers_at_a_gain_of_zero() -> None:
    layer = SIAttention(4, gain=0.0).half().eval()
    x = torch.full((1, 4, 5, 5), 60000.0, dtype=torch.float16)
    x[..., 2, 2] = -60000.0
    with torch.no_grad():
        assert torch.equal(layer(x), x)
