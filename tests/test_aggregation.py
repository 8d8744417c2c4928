"""Aggregation: the formula, and pooling like torch's own adaptive pooling, for all sizes."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured
from torch.profiler import ProfilerActivity, profile

from sia_layers import SIAggregation, SIAttention
from sia_layers.aggregation import FORMS, _pooled_by_index, max_pool_to

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes, sizes, st.booleans())
def test_pooling_equals_torchs_own(height: int, width: int, rows: int, columns: int, channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(2, 3, height, width, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    expected = F.adaptive_max_pool2d(x, (rows, columns))
    assert torch.equal(max_pool_to(x, (rows, columns)), expected)
    assert torch.equal(_pooled_by_index(x, (rows, columns)), expected)


def test_the_gradient_flows_to_the_maximum() -> None:
    x = torch.randn(2, 3, 19, 25, dtype=torch.float64, requires_grad=True)
    for size in ((10, 7), (19, 5)):
        grad = torch.randn(2, 3, *size, dtype=torch.float64)
        (expected,) = torch.autograd.grad(F.adaptive_max_pool2d(x, size), x, grad)
        for pool in (max_pool_to, _pooled_by_index):
            torch.testing.assert_close(torch.autograd.grad(pool(x, size), x, grad)[0], expected)


@pytest.mark.parametrize("pool", [max_pool_to, _pooled_by_index])
@pytest.mark.parametrize("size", [(5, 5), (3, 3)], ids=str)
def test_nan_and_infinities_stay(pool: Callable[..., Tensor], size: tuple[int, int]) -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 0, 0], x[..., 4, 4], x[..., 8, 8] = torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(pool(x, size), F.adaptive_max_pool2d(x, size), equal_nan=True)
    assert pool(torch.full((1, 1, 9, 9), -torch.inf), size).eq(-torch.inf).all()


def test_half_dtypes() -> None:
    x = torch.randn(1, 2, 9, 9).bfloat16()
    assert torch.equal(max_pool_to(x, (5, 5)), F.adaptive_max_pool2d(x, (5, 5)))


def made(form: str = "published", channels: int = 4) -> SIAggregation:
    """Return an aggregation of two maps whose batch norms have seen other maps, with factors of either sign."""
    torch.manual_seed(0)
    module = SIAggregation([3, 5], channels, form=form)
    for projection in module.projections:
        norm: Any = projection[1]  # type: ignore[index]
        for tensor, low, high in (
            (norm.running_mean, -1, 1), (norm.running_var, 0.5, 2), (norm.weight, -1, 1), (norm.bias, -1, 1)
        ):  # fmt: skip
            nn.init.uniform_(tensor, low, high)
    return module


def windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """Apply adaptive max-pooling window by window."""
    pooled = x.new_empty(*x.shape[:2], rows, columns)
    for i, j in itertools.product(range(rows), range(columns)):
        (top, bottom), (left, right) = (
            (k * length // parts, -(-(k + 1) * length // parts))
            for k, length, parts in ((i, x.shape[2], rows), (j, x.shape[3], columns))
        )
        pooled[:, :, i, j] = x[:, :, top:bottom, left:right].amax((2, 3))
    return pooled


def defined(module: SIAggregation, infos: list[Tensor], rows: int, columns: int) -> Tensor:
    """Compute the aggregation by its formula."""
    total = torch.zeros(())
    for info, (conv, norm, _) in zip(infos, module.projections, strict=True):  # type: ignore[misc]
        mapped = windows(info, rows, columns) if module.form == "pooled" else info
        mapped = torch.einsum("nchw,dc->ndhw", mapped, conv.weight.flatten(1))  # type: ignore[has-type]
        mean, variance = norm.running_mean, norm.running_var  # type: ignore[has-type]
        if module.training:
            mean, variance = mapped.mean((0, 2, 3)), mapped.var((0, 2, 3), correction=0)
        mean, variance, weight, bias = (
            tensor[:, None, None]
            for tensor in (mean, variance, norm.weight, norm.bias)  # type: ignore[has-type]
        )
        mapped = ((mapped - mean) / (variance + norm.eps).sqrt() * weight + bias).relu()  # type: ignore[has-type]
        total = total + (mapped if module.form == "pooled" else windows(mapped, rows, columns))
    return total


def infos_of(size: tuple[int, int] = (12, 9)) -> list[Tensor]:
    return [torch.rand(2, 3, *size), torch.rand(2, 5, 6, 4).contiguous(memory_format=torch.channels_last)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(3, 4), (6, 2), (5, 3), (7, 5)], ids=str)
def test_aggregation_follows_its_formula(form: str, training: bool, size: tuple[int, int]) -> None:
    module, infos = made(form).train(training).double(), [info.double() for info in infos_of()]
    expected = defined(module, infos, *size)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(expected.square().sum(), parameters)
    found = module(infos, size)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found.square().sum(), parameters), gradients, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(module(infos, size), expected)


def test_training_updates_the_statistics_of_the_large_map() -> None:
    module, infos = made().train(), infos_of()
    module(infos, (3, 4))
    for info, (conv, norm, _), (_, alone, _) in zip(infos, module.projections, made().projections, strict=True):  # type: ignore[misc]
        alone(conv(info))  # type: ignore[has-type]
        torch.testing.assert_close(norm.running_mean, alone.running_mean)  # type: ignore[has-type]
        torch.testing.assert_close(norm.running_var, alone.running_var)  # type: ignore[has-type]
        assert norm.num_batches_tracked == 1  # type: ignore[has-type]


def test_both_forms_have_the_same_parameters() -> None:
    published, pooled = made("published"), made("pooled")
    pooled.load_state_dict(published.state_dict())
    assert list(published.state_dict())[:2] == ["projections.0.0.weight", "projections.0.1.weight"]
    assert repr(pooled).startswith("SIAggregation(\n  in_channels=[3, 5], channels=4, form='pooled'\n")
    assert "form" not in repr(published)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_every_kind_fire_on_every_module(form: str, training: bool) -> None:
    """Full backward hooks allow no in-place operation, and modules with hooks are always called."""
    module, infos, fired = made(form).train(training), infos_of(), Counter[tuple[str, str]]()
    infos = [info.requires_grad_() for info in infos]
    expected = module(infos, (3, 4))

    def noting(kind: str, name: str) -> Callable[..., None]:
        return lambda *arguments: fired.update([(kind, name)])

    for name, child in module.named_modules():
        child.register_forward_pre_hook(noting("before", name))
        child.register_forward_hook(noting("after", name))
        child.register_full_backward_pre_hook(noting("backward before", name))
        child.register_full_backward_hook(noting("backward", name))
    found = module(infos, (3, 4))
    found.square().sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    called = {name for name, child in module.named_modules() if not isinstance(child, nn.ModuleList)}
    for kind in ("before", "after", "backward before", "backward"):
        assert {name for this, name in fired if this == kind} == called
    assert set(fired.values()) == {1}


def test_modules_that_tools_put_in_or_change_are_called() -> None:
    """The results of adapters, fused and quantised modules, pruning masks and instance attributes count."""
    infos = infos_of()

    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    def subclass(projection: Any) -> None:
        projection[0].__class__ = Doubled

    def instance_forward(projection: Any) -> None:
        original = projection[0].forward
        projection[0].forward = lambda x: 2 * original(x)

    def fuse(projection: Any) -> None:
        projection[0] = nn.utils.fuse_conv_bn_eval(projection[0], projection[1])
        projection[1] = nn.Identity()

    def prune(projection: Any) -> None:
        l1_unstructured(projection[0], "weight", 0.5)  # type: ignore[no-untyped-call]

    def synchronise(projection: Any) -> None:
        projection[1] = nn.SyncBatchNorm.convert_sync_batchnorm(projection[1])

    for change in (subclass, instance_forward, fuse, prune, synchronise):
        module = made().eval()
        for projection in module.projections:
            change(projection)
        found = module(infos, (3, 4))
        expected = sum(
            windows(projection[2](projection[1](projection[0](info))), 3, 4)  # type: ignore[index]
            for projection, info in zip(module.projections, infos, strict=True)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_modules(form: str, dtype: torch.dtype) -> None:
    module, infos = made(form).eval().to(dtype), [info.to(dtype) for info in infos_of()]
    found = module(infos, (3, 4))
    expected = made(form).eval()([info.float() for info in infos], (3, 4))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


def test_no_memory_beyond_the_convolution_in_evaluation() -> None:
    """No other tensor of the large size is allocated."""
    module, info = SIAggregation([8], 64).eval(), torch.rand(1, 8, 64, 64)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        module([info], (16, 16))
    taken = [event.self_cpu_memory_usage for event in profiled.events() if event.self_cpu_memory_usage > 0]
    assert sum(taken) < 1.5 * 64 * 64 * 64 * 4


def test_aggregation_learns_from_the_later_layer() -> None:
    torch.manual_seed(0)
    early, late = SIAttention(4, detach=False), SIAttention(6)
    module = SIAggregation([4], 6)
    x = torch.randn(2, 4, 10, 8, requires_grad=True)
    _, info = early.attend(x)
    late(torch.randn(2, 6, 5, 4), module([info], (5, 4))).square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 4), ValueError, r"in_channels must hold an int for each earlier map, got \[\]"),
        ((3, 4), TypeError, "in_channels must be a sequence with an int for each earlier map, got 3"),
        (([3, 0], 4), ValueError, r"in_channels\[1\] must be at least 1, got 0"),
        (([3], 0), ValueError, "channels must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_aggregation(arguments: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SIAggregation(*arguments)


def test_bad_maps_of_aggregation() -> None:
    module = SIAggregation([3, 5], 4)
    good = [torch.rand(1, 3, 4, 4), torch.rand(1, 5, 4, 4)]
    for infos, message in (
        (good[:1], r"infos must hold a map for each of in_channels=\[3, 5\], got 1 maps"),
        (good[::-1], r"infos\[0\] must have 3 channels, got shape \(1, 5, 4, 4\)"),
        ([good[0], good[1][0]], r"infos\[1\] must have 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            module(infos, (2, 2))
    with pytest.raises(ValueError, match=r"size must be the height and the width of the later map, got \(2, 2, 2\)"):
        module(good, (2, 2, 2))
    with pytest.raises(ValueError, match="form must be one of 'published', 'pooled', got 'cheap'"):
        SIAggregation([3], 4, form="cheap")
    with pytest.raises(TypeError, match="SIAggregation has no argument 'channel'; did you mean 'channels'"):
        SIAggregation([3], channel=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("form", ["published", "pooled"])
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_every_device_pools_maps_of_every_size(form: str, size: tuple[int, int]) -> None:
    layer = SIAggregation([4], 6, form=form, device="meta").eval()
    assert layer([torch.empty(2, 4, 8, 8, device="meta")], size=size).shape == (2, 6, *size)


def test_the_size_of_an_aggregate_must_be_a_pair() -> None:
    for size in (4, (4,)):
        with pytest.raises(ValueError, match=f"size must be the height and the width .*, got {re.escape(str(size))}"):
            SIAggregation([4], 4)([torch.rand(1, 4, 8, 8)], size)
