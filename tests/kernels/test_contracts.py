"""Facts that are defined once and relied on in several places: the contract of backends and the option defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sia_layers
from sia_layers.kernels import backends, reference
from sia_layers.kernels.contract import Backend
from sia_layers.kernels.options import ESTIMATORS, Options

CONTRACT = {
    name: function for name, function in vars(Backend).items() if inspect.isfunction(function) and name[0] != "_"
}


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_backend_fulfils_the_contract(name: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    backend = backends.load(name)
    assert len(CONTRACT) == 9
    for function, promised in CONTRACT.items():
        _, *parameters = inspect.signature(promised).parameters
        assert list(inspect.signature(getattr(backend, function)).parameters) == parameters, function


def test_the_reference_serves_everything() -> None:
    assert reference.unavailable() is None
    assert reference.refuses(torch.zeros(1, 1, 1, 1, dtype=torch.float64)) is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (0, 3, 4, 5), (2, 3, 0, 5)], ids=str)
def test_shape_of_the_scale(estimator: str, size: tuple[int, ...]) -> None:
    for adaptive in (True, False):
        options = Options(estimator=estimator, adaptive=adaptive)
        assert reference.self_information(torch.rand(size), options)[1].shape == options.scale_shape(torch.empty(size))


@pytest.mark.parametrize(
    "function",
    [
        Options.checked,
        sia_layers.self_information,
        sia_layers.average_self_information,
        sia_layers.frequency_self_information,
        sia_layers.SelfInformation,
        sia_layers.SIAttention,
    ],
    ids=lambda function: function.__qualname__,
)
def test_defaults_of_the_options_agree(function: Callable[..., Any]) -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert {name: defaults[name] for name in Options._fields} == Options._field_defaults


def test_defaults_reach_the_layers() -> None:
    for module in (sia_layers.SelfInformation(), sia_layers.SIAttention(2), sia_layers.FrequencySIAttention(2)):
        assert module.options == Options()


def test_kernels_with_a_window_are_marked() -> None:
    pytest.importorskip("triton")
    from sia_layers.kernels.triton import backward, forward, pixelwise
    from sia_layers.kernels.triton.launch import Kernel

    found = [kernel for part in (forward, backward, pixelwise) for kernel in vars(part).values()]
    kernels = {kernel.name: kernel for kernel in found if isinstance(kernel, Kernel)}
    assert len(kernels) == 10
    for kernel in kernels.values():
        assert kernel.windowed == ("K" in kernel.jit.arg_names), kernel.name


def test_register_limits() -> None:
    pytest.importorskip("triton")
    from sia_layers.kernels.triton import backward, forward

    x = torch.zeros(1)
    dense = {"DISTANCE": False, "CHANNELS_LAST": True, "K": 5, "x": x}
    for kernel, arguments, limit in (
        (forward.information, dense, 96),
        (forward.information, dense | {"CHANNELS_LAST": False}, None),
        (forward.information, dense | {"DISTANCE": True}, 255),
        (forward.distances, {}, 255),
        (forward.spread, {}, None),
        (backward.gather, dense, None),
        (backward.gather, dense | {"x": x.bfloat16()}, 128),
        (backward.shares, dense | {"DISTANCE": True}, 255),
    ):
        assert (kernel.registers and kernel.registers(arguments)) == limit, (kernel.name, arguments)
