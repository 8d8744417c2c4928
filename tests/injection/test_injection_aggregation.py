"""Injection: the maps passed between sites belong to one forward pass, whatever happens around it."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sia_layers.injection import eject_sia, inject_sia, sia_modules, sia_parameters
from sia_layers.injection.module import InjectedSIAttention
from sia_layers.injection.relay import relay_of


class Net(nn.Module):
    """Three stages, checkpointed separately or together."""

    def __init__(self, regions: str = "none") -> None:
        super().__init__()
        self.regions = regions
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())
        self.b = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Tanh())
        self.c = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.Tanh())
        self.head = nn.Linear(16, 4)

    def tail(self, x: Tensor) -> Tensor:
        return self.c(self.b(x)).exp()  # the layers after a site in its region are recomputed from the site's output

    def trunk(self, x: Tensor) -> Tensor:
        return self.tail(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.regions == "each":
            for block in (self.a, self.b, self.c):
                x = checkpoint(block, x, use_reentrant=False)
            x = x.exp()
        elif self.regions == "tail":
            x = checkpoint(self.tail, self.a(x), use_reentrant=False)
        elif self.regions == "all":
            x = checkpoint(self.trunk, x, use_reentrant=False)
        else:
            x = self.trunk(x)
        return self.head(x.mean((2, 3)))


class Same(nn.Module):
    """A module whose output can be its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()) for _ in "abc")
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.a, self.b, self.c):
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


REGIONS = ("none", "each", "tail", "all")


def injected(regions: str = "none", **kwargs: object) -> Net:
    torch.manual_seed(0)
    model = inject_sia(Net(), "[abc]", example_input=torch.empty(2, 3, 16, 16), identity_init=False, **kwargs)
    model.regions = regions
    return model


def gradients(model: nn.Module, losses: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    losses().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_later_site_aggregates_all_earlier_ones() -> None:
    model = injected()
    modules = list(sia_modules(model).values())
    taken = [module.aggregation.in_channels if module.aggregation else [] for module in modules]
    assert taken == [[], [8], [8, 12]]
    assert all(module.aggregation is None for module in sia_modules(injected(aggregate=False)).values())


def test_the_aggregate_combines_its_parts() -> None:
    model = injected().eval()
    first, second, third = sia_modules(model).values()
    x = torch.rand(2, 3, 16, 16)
    a, info_a = first.attend(model.a[0](model.stem(x)).tanh())
    b = model.b[0](a).tanh()
    b, info_b = second.attend(b, second.aggregation([info_a], b.shape[2:]))
    c = model.c[0](b).tanh()
    c, _ = third.attend(c, third.aggregation([info_a, info_b], c.shape[2:]))
    assert torch.allclose(model(x), model.head(c.exp().mean((2, 3))), atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("regions", REGIONS[1:])
def test_two_forwards_before_one_backward(regions: str, detach: bool) -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(3, 3, 24, 20) * 5  # different batch size and resolution
    plain, checkpointed = injected(detach=detach), injected(regions, detach=detach)
    expected = gradients(plain, lambda: plain(x).square().sum() + plain(y).cos().sum())
    found = gradients(checkpointed, lambda: checkpointed(x).square().sum() + checkpointed(y).cos().sum())
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4), name
    # A test that could not distinguish the passes would prove nothing.
    weight = next(name for name in expected if "c.1.sia.aggregation.projections.0.0" in name)
    swapped = gradients(plain, lambda: plain(x).square().sum() + plain(x).cos().sum())
    assert not torch.allclose(swapped[weight], expected[weight], atol=1e-5, rtol=1e-4)


def test_two_passes_in_one_checkpoint() -> None:
    model, x, y = injected(), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16) * 5

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return model(x).square().sum() + model(y).cos().sum()

    expected = gradients(model, lambda: loss(x, y))
    found = gradients(model, lambda: checkpoint(loss, x, y, use_reentrant=False))
    assert all(torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-4) for name, gradient in expected.items())


def test_a_pass_on_the_output_of_another_pass() -> None:
    model = inject_sia(Same(), "[abc]", example_input=torch.empty(2, 3, 8, 8), identity_init=False)
    x = torch.rand(2, 3, 8, 8)
    found = []
    for model.checkpointed in (False, True):
        found.append(gradients(model, lambda: model(model(x)).square().sum()))
    assert all(torch.allclose(found[1][name], gradient, atol=1e-5) for name, gradient in found[0].items())


def test_other_passes_between_a_forward_and_its_backward_do_not_matter() -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16) * 7
    model = injected("all").eval()
    expected = gradients(model, lambda: model(x).square().sum())
    loss = model(x).square().sum()
    with torch.no_grad():
        model(y)
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


def test_recomputing_a_pass_twice() -> None:
    model, x = injected("each"), torch.rand(2, 3, 16, 16)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in once:
            assert torch.allclose(parameter.grad, 2 * once[name], atol=1e-5), name


def test_an_exception_in_the_middle_leaves_nothing_that_a_later_pass_uses() -> None:
    model, x = injected().eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        model_b, model.b = model.b, nn.Sequential(nn.Conv2d(9, 12, 1))
        with pytest.raises(RuntimeError):
            model(x * 3)
        model.b = model_b
        assert torch.equal(model(x), expected)


def test_batch_size_and_resolution_may_change_from_call_to_call() -> None:
    model = injected().eval()
    with torch.no_grad():
        for shape in ((1, 3, 16, 16), (4, 3, 20, 12), (2, 3, 33, 31), (1, 3, 16, 16)):
            x = torch.rand(shape)
            together, alone = model(x), torch.cat([model(one[None]) for one in x])
            assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("grad", [True, False])
def test_no_map_outlives_its_pass(grad: bool) -> None:
    model, seen = injected(), []
    for module in sia_modules(model).values():
        attend = module.attend

        def noting(*args: object, attend: Callable[..., tuple[Tensor, Tensor]] = attend) -> tuple[Tensor, Tensor]:
            gated, info = attend(*args)
            seen.append(weakref.ref(info))
            return gated, info

        module.attend = noting  # type: ignore[method-assign]
    with torch.set_grad_enabled(grad):
        output = model(torch.rand(2, 3, 16, 16))
        if grad:
            output.sum().backward()
    del output
    gc.collect()
    assert len(seen) == 2 and not any(reference() is not None for reference in seen)


def test_a_pass_that_starts_midway_is_an_error() -> None:
    model = injected()
    with pytest.raises(RuntimeError, match="run the model from its input on"):
        model.b(torch.rand(2, 8, 16, 16))


def test_threads_do_not_interfere() -> None:
    model = injected().eval()
    inputs = [torch.rand(2, 3, 16, 16) * (index + 1) for index in range(6)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    results: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            results[index] = [model(inputs[index]) for _ in range(8)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in results.items():
        assert all(torch.equal(output, expected[index]) for output in outputs)


def test_replicas_of_data_parallel_share_no_maps() -> None:
    model = injected().eval()
    # replicate() itself needs devices; these are the shallow copies that it makes of every module.
    replicas = [_replica(model), _replica(model)]
    inputs = [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16) * 4]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    results: list[Tensor | None] = [None, None]

    def work(index: int) -> None:
        with torch.no_grad():
            results[index] = replicas[index](inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, wanted) for result, wanted in zip(results, expected, strict=True))


def _replica(model: nn.Module) -> nn.Module:
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        replica._parameters = dict(module._parameters)
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copies[child]
    return copies[model]


def test_copies_share_nothing_and_carry_no_maps() -> None:
    model, x = injected(), torch.rand(2, 3, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    hosts = [[m.get_submodule(name.removesuffix(".sia")) for name in sia_modules(m)] for m in (model, twin)]
    relays = [{id(relay_of(host)) for host in found} for found in hosts]
    assert len(relays[0]) == len(relays[1]) == 1 and relays[0] != relays[1]
    eject_sia(twin)
    assert sia_modules(model) and not sia_modules(twin)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    tensors = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert buffer.tell() < 2 * tensors + 60_000
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), model(x))


def test_a_copy_within_a_pass_starts_empty() -> None:
    model, x = injected().eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        model.a(model.stem(x))
        twin = copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="from its input on"):
            twin.b(torch.rand(2, 8, 16, 16))
        assert torch.equal(twin(x), model(x))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_timms_own_checkpointing(name: str) -> None:
    torch.manual_seed(0)
    size = 64
    extra = {"img_size": size} if "vit" in name else {}
    model = timm.create_model(name, num_classes=4, **extra).eval()
    inject_sia(model, identity_init=False, example_input=torch.empty(1, 3, size, size))
    x, y = torch.rand(2, 3, size, size), torch.rand(1, 3, size, size) * 3
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        found.append(gradients(model, lambda: model(x).square().sum() + model(y).sin().sum()))
    assert all(name in found[0] for name, parameter in model.named_parameters() if ".sia." in name)
    for key, gradient in found[0].items():
        assert torch.allclose(found[1][key], gradient, atol=1e-4, rtol=1e-3), key


def test_checkpointed_before_injection() -> None:
    model = timm.create_model("resnet18")
    model.set_grad_checkpointing()
    assert list(sia_modules(inject_sia(model))) == ["layer1.1.sia", "layer2.1.sia", "layer3.1.sia"]


def test_frozen_backbone() -> None:
    model, x = injected("each"), torch.rand(2, 3, 16, 16)
    model.requires_grad_(False)
    for parameter in sia_parameters(model):
        parameter.requires_grad_()
    found = gradients(model, lambda: model(x).square().sum() + model(2 * x).sum())
    model.regions = "none"
    expected = gradients(model, lambda: model(x).square().sum() + model(2 * x).sum())
    assert found.keys() == expected.keys() and len(found) > 5
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
    assert all(isinstance(module, InjectedSIAttention) for module in sia_modules(model).values())
