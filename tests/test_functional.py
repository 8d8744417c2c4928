"""The functions and their module: what they return and what they refuse. (test_reference.py tests the values.)"""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from conftest import Backend
from hypothesis import given, settings
from strategies import Case, options, small_cases
from torch import Tensor

from sia_layers import SelfInformation, average_self_information, self_information
from sia_layers.kernels import reference

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number .*, got 4"),
    ({"kernel_size": -3}, ValueError, "kernel_size must be .*, got -3"),
    ({"kernel_size": 3.0}, TypeError, "kernel_size must be an int, got float 3.0"),
    ({"kernel_size": True}, TypeError, "kernel_size must be an int, got bool True"),
    ({"bandwidth": 0.0}, ValueError, "bandwidth must be greater than 0, got 0.0"),
    ({"bandwidth": -1}, ValueError, "bandwidth must be greater than 0, got -1"),
    ({"bandwidth": 1e300}, ValueError, r"bandwidth must be at most 1e\+18 in magnitude, got 1e\+300"),
    ({"inter_weight": -1e39}, ValueError, r"inter_weight must be at most 1e\+18 in magnitude, got -1e\+39"),
    ({"bandwidth": math.nan}, ValueError, "bandwidth must be finite, got nan"),
    ({"bandwidth": "1"}, TypeError, "bandwidth must be a number, got str '1'"),
    ({"adaptive": 1}, TypeError, "adaptive must be True or False, got int 1"),
    ({"estimator": "gauss"}, ValueError, "estimator must be one of 'kde', 'distance', got 'gauss'"),
    ({"inter_channels": -1}, ValueError, r"inter_channels must be 0 \(off\) or more, got -1"),
    ({"inter_weight": math.inf}, ValueError, "inter_weight must be finite, got inf"),
    ({"padding_mode": "circular"}, ValueError, "padding_mode must be one of 'exclude', .*, got 'circular'"),
    ({"backend": "cuda"}, ValueError, "backend must be one of .*, got 'cuda'"),
    ({"backend": 0}, TypeError, "backend must be one of .*, got 0"),
]
BAD_MAPS: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(3, 8, 8), ValueError, r"x must have 4 dimensions \(N, C, H, W\), got shape \(3, 8, 8\)"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.int64), TypeError, r"x must be of a floating dtype .*, got torch.int64"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.complex64), TypeError, "got torch.complex64"),
    ([[1.0]], TypeError, "x must be a torch.Tensor, got list"),
]


@settings(max_examples=25)
@given(small_cases(options()))
def test_the_function_is_the_reference(case: Case) -> None:
    x = case.map.make()
    expected = reference.self_information(x, case.options)[0]
    keywords = case.options._asdict()
    assert torch.equal(self_information(x, **keywords, backend="reference"), expected)
    assert torch.equal(SelfInformation(**keywords, backend="reference")(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_shape_dtype_and_memory_format_are_kept(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.rand(2, 6, 5, 7).to(dtype).contiguous(memory_format=memory_format)
    info = self_information(x)
    assert info.shape == x.shape and info.dtype == dtype and info.stride() == x.stride()
    average = average_self_information(x)
    assert average.shape == (2,) and average.dtype == dtype


# --- The average of a layer ----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(small_cases(options(), dtypes=(torch.float32,)))
def test_average_follows_its_formula(case: Case) -> None:
    x = case.map.make()
    keywords = case.options._asdict()
    info = self_information(x.double(), **keywords)
    expected = info.mean((2, 3)).sum(1)
    close = {"atol": 1e-5 * max(1.0, float(info.abs().max())) * x.shape[1], "rtol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(average_self_information(x, **keywords, reduction="sum"), expected, **close)
    torch.testing.assert_close(average_self_information(x, **keywords), expected / x.shape[1], **close)


def test_average_is_the_same_with_and_without_a_gradient(backend: Backend) -> None:
    x = torch.rand(2, 3, 5, 4, device=backend.device, requires_grad=True)
    learning = average_self_information(x, backend=backend.name)
    plain = average_self_information(x.detach(), backend=backend.name)
    torch.testing.assert_close(learning.detach(), plain, atol=1e-6, rtol=1e-6)
    assert not plain.requires_grad
    gradient = torch.autograd.grad(learning.sum(), x)[0]
    expected = torch.autograd.grad(self_information(x, backend=backend.name).sum() / (3 * 20), x)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_average_of_halves_is_that_of_the_unrounded_map() -> None:
    x = torch.rand(1, 64, 16, 16).bfloat16()
    expected = average_self_information(x.float(), reduction="sum").bfloat16()
    assert torch.equal(average_self_information(x, reduction="sum"), expected)


def test_an_empty_batch_has_no_average() -> None:
    assert average_self_information(torch.zeros(0, 3, 8, 8)).shape == (0,)


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keywords", "error", "message"), BAD_OPTIONS, ids=str)
def test_bad_options(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    x = torch.zeros(1, 1, 8, 8)
    for function in (self_information, average_self_information):
        with pytest.raises(error, match=message):
            function(x, **keywords)
    with pytest.raises(error, match=message):
        SelfInformation(**keywords)


@pytest.mark.parametrize(("x", "error", "message"), BAD_MAPS, ids=lambda value: type(value).__name__)
def test_bad_maps(x: Any, error: type[Exception], message: str) -> None:
    for function in (self_information, average_self_information, SelfInformation()):
        with pytest.raises(error, match=message):
            function(x)


def test_reflection_of_a_map_smaller_than_the_window() -> None:
    for function in (self_information, average_self_information):
        with pytest.raises(ValueError, match=r"'reflect' with kernel_size=7 needs a map larger than 3 .*, got 8x3"):
            function(torch.zeros(1, 1, 8, 3), 7, padding_mode="reflect")


def test_bad_reduction() -> None:
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'none'"):
        average_self_information(torch.zeros(1, 1, 8, 8), reduction="none")


def test_an_unknown_keyword_suggests_the_nearest() -> None:
    with pytest.raises(TypeError, match="SelfInformation has no argument 'kernelsize'; did you mean 'kernel_size'"):
        SelfInformation(kernelsize=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="SelfInformation has no argument 'qqq'; it takes kernel_size, bandwidth, "):
        SelfInformation(qqq=3)  # type: ignore[call-arg]


# --- The module ----------------------------------------------------------------------------------------------------


def test_module_is_copied_and_pickled() -> None:
    module, x = SelfInformation(5, estimator="distance", backend="reference"), torch.rand(1, 2, 6, 6)
    for copy in (deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copy) == repr(module) == "SelfInformation(kernel_size=5, estimator='distance', backend='reference')"
        assert torch.equal(copy(x), module(x))
    assert not module.state_dict()


def test_gradient_reaches_the_input(backend: Backend) -> None:
    x: Tensor = torch.rand(1, 2, 4, 3, device=backend.device, requires_grad=True)
    SelfInformation(backend=backend.name)(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and x.grad.isfinite().all()
