"""Injection: the dry run changes nothing, proves the sites, and refuses with clear messages."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sia_layers.injection import (
    eject_sia,
    errors,
    find_sites,
    inject_sia,
    load_sia_state_dict,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)


class Plain(nn.Module):
    """A custom model that declares nothing about itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.side = nn.Conv2d(8, 8, 1)
        self.unused = nn.Conv2d(8, 8, 1)
        self.stages = nn.Sequential(self.stage(8), self.stage(16), self.stage(32))
        self.head = nn.Linear(64, 5)

    @staticmethod
    def stage(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.BatchNorm2d(2 * channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.stages(x + self.side(x)).mean((2, 3)))


class Apart(nn.Module):
    """A model whose block returns nothing that could be a map."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Sizes()

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.block(x)
        return x.reshape(len(x), -1, height * width).mean(2)


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> tuple[int, int]:
        return x.shape[2], x.shape[3]


class Reentrant(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.stages, self.stem(x), use_reentrant=True).mean((2, 3)))


EXAMPLE = torch.empty(1, 3, 32, 32)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Return everything that injection might disturb."""
    hooks = [
        (name, list(module._forward_hooks.values()), list(module._forward_pre_hooks.values()))
        for name, module in model.named_modules()
    ]
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "hooks": hooks,
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "grads": [parameter.grad for parameter in model.parameters()],
    }


def same(before: dict[str, object], model: nn.Module) -> bool:
    after = snapshot(model)
    states = before.pop("state"), after.pop("state")
    assert isinstance(states[0], dict) and isinstance(states[1], dict)
    equal = list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    return equal and before == after


def test_find_sites_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = timm.create_model("resnet18", drop_rate=0.5, drop_path_rate=0.5)
    model.layer2.eval()
    before, states = snapshot(model), (torch.get_rng_state(), random.getstate())
    assert [site.host for site in find_sites(model)] == ["layer1.1", "layer2.1", "layer3.1"]
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert same(before, model)


def test_a_failure_after_the_change_began_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Plain(), []
    before = snapshot(model)
    from sia_layers.injection import inject

    def fails_later(*args: object, attach=inject._attach) -> None:  # type: ignore[no-untyped-def]
        attach(*args)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(inject, "_attach", fails_later)
    with pytest.raises(KeyboardInterrupt):
        inject_sia(model, ["stages.0", "stages.1"], example_input=EXAMPLE)
    assert same(before, model)


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        (["stages.0.O"], errors.UnknownStageError, "no module 'stages.0.O'; did you mean .*'stages.0.0'"),
        (["stage.*"], errors.UnknownStageError, "no module matches the pattern 'stage.*'"),
        ([16], errors.UnknownStageError, "reduction 16"),
        ([], errors.UnknownStageError, "stages is empty"),
        (None, errors.NoStagesError, "name modules"),
        (["side"], errors.OffTrunkError, "'side' does not decide"),
        (["unused"], errors.FiringError, "'unused'.* does not run"),
        (["head"], errors.LayoutError, "'head' returns a tensor of shape"),
    ],
)
def test_refusals_say_what_and_why(stages: object, error: type[Exception], words: str) -> None:
    model = Plain()
    before = snapshot(model)
    for act in (find_sites, inject_sia):
        with pytest.raises(error, match=words):
            act(model, stages, example_input=EXAMPLE)
    assert issubclass(error, errors.InjectionError)
    assert same(before, model)


@pytest.mark.parametrize(
    ("model", "stages", "error", "words"),
    [
        (Apart(), ["block"], errors.OutputTypeError, "a tuple of 2"),
        (nn.Sequential(nn.LazyConv2d(4, 3)), ["0"], errors.DryRunError, "'0.weight' has no shape"),
        (Reentrant(), ["stages.0"], errors.ReentrantCheckpointError, "use_reentrant=False"),
        (nn.Sequential(torch.jit.script(nn.Conv2d(3, 3, 1))), ["0"], errors.UnsupportedModelError, "ScriptModule"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_models_that_are_refused(model: nn.Module, stages: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        inject_sia(model, stages, example_input=EXAMPLE)
    assert not sia_modules(model)


def test_a_model_that_fails_on_the_example_says_so() -> None:
    with pytest.raises(errors.DryRunError, match="example_input"):
        inject_sia(Plain(), ["stages.0"], example_input=torch.empty(1, 4, 32, 32))
    with pytest.raises(errors.NoStagesError, match="example_input"):
        inject_sia(Plain(), ["stages.0"])


def test_double_injection_and_ejecting_nothing_are_refused() -> None:
    model = inject_sia(Plain(), "stages.0", example_input=EXAMPLE)
    before = snapshot(model)
    with pytest.raises(errors.AlreadyInjectedError, match="eject_sia"):
        inject_sia(model, "stages.1", example_input=EXAMPLE)
    assert same(before, model)
    eject_sia(model)
    for act in (eject_sia, sia_state_dict, lambda model: list(sia_parameters(model))):
        with pytest.raises(errors.NotInjectedError):
            act(model)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"kernel_sise": 3}, "did you mean 'kernel_size'"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"channels": 8}, "each host"),
        ({"gain": 0.5}, "identity_init=False"),
    ],
)
def test_bad_options_change_nothing(kwargs: dict[str, object], words: str) -> None:
    model = Plain()
    before = snapshot(model)
    with pytest.raises((TypeError, ValueError), match=words):
        inject_sia(model, "stages.0", example_input=EXAMPLE, **kwargs)
    assert same(before, model)


@pytest.mark.parametrize(
    ("stages", "hosts"),
    [
        ("stages.*", ["stages.0.2", "stages.1.2", "stages.2.2"]),
        (["stages.2", "stages.0"], ["stages.0.2", "stages.2.2"]),
        (["stages.1.0", "stages.1"], ["stages.1.0", "stages.1.2"]),
        ("stem", ["stem"]),
    ],
)
def test_names_and_patterns_in_the_order_of_the_forward_pass(stages: object, hosts: list[str]) -> None:
    model = Plain()
    assert [site.host for site in find_sites(model, stages, example_input=EXAMPLE)] == hosts
    inject_sia(model, stages, example_input=EXAMPLE, identity_init=False)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


def test_reductions_on_request() -> None:
    model = timm.create_model("resnet18")
    assert [site.host for site in find_sites(model, [32, 4])] == ["layer1.1", "layer4.1"]
    with pytest.raises(errors.UnknownStageError, match=r"\[2, 4, 8, 16, 32\]"):
        find_sites(model, 64)


def test_gain_and_options_reach_the_modules() -> None:
    model = inject_sia(Plain(), "stages.0", example_input=EXAMPLE, identity_init=False, gain=0.5, kernel_size=5)
    (module,) = sia_modules(model).values()
    assert module.gain is not None and module.gain.item() == 0.5 and module.options.kernel_size == 5


def test_state_dict_of_the_injected_parts() -> None:
    first = inject_sia(Plain(), "stages.*", example_input=EXAMPLE, identity_init=False)
    second = inject_sia(Plain(), "stages.*", example_input=EXAMPLE)
    # identity_init makes a parameter "gain" that the other does not have
    with pytest.raises(errors.StateDictError, match="gain"):
        load_sia_state_dict(second, sia_state_dict(first))
    third = inject_sia(Plain(), "stages.*", example_input=EXAMPLE)
    load_sia_state_dict(third, sia_state_dict(second))
    assert all(torch.equal(a, b) for a, b in zip(sia_parameters(second), sia_parameters(third), strict=True))
    assert all("sia" in name.split(".") for name in sia_state_dict(third))
    bent = {name: value[None] for name, value in sia_state_dict(second).items()}
    with pytest.raises(errors.StateDictError, match="shape"):
        load_sia_state_dict(third, bent)
    with pytest.raises(errors.StateDictError, match=r"has no 'stem\.weight'"):
        load_sia_state_dict(third, {**sia_state_dict(second), "stem.weight": torch.zeros(1)})


def test_device_dtype_and_mode_are_the_hosts() -> None:
    model = Plain().to(torch.bfloat16)
    model.stages[1].eval()
    inject_sia(model, "stages.*", example_input=EXAMPLE.to(torch.bfloat16))
    modules = sia_modules(model)
    assert all(parameter.dtype == torch.bfloat16 for parameter in sia_parameters(model))
    assert [module.training for module in modules.values()] == [True, False, True]
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    assert all(parameter.is_meta for parameter in sia_parameters(inject_sia(model)))


class Remembers(Plain):
    """A model that fills caches of every kind when it runs, as attention biases are cached in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}
        self.seen: list[int] = []
        self.register_buffer("bias", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.cache.setdefault("bias", self.stem.weight.mean())
        self.seen.append(len(x))
        self.bias = self.cache["bias"].detach()
        self.last = x
        return super().forward(x) + self.bias


def test_no_fake_tensor_stays_in_the_model() -> None:
    model, x = Remembers().eval(), torch.rand(2, 3, 32, 32)
    inject_sia(model, "stages.1", example_input=EXAMPLE)
    assert model.cache == {} and model.seen == [] and model.bias is None and not hasattr(model, "last")
    with torch.no_grad():
        assert type(model(x)) is Tensor


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224", "efficientformer_l1", "efficientvit_m0"])
def test_models_that_cache_in_evaluation_mode(name: str) -> None:
    model = timm.create_model(name).eval()
    twin, x = timm.create_model(name).eval(), torch.rand(1, 3, 224, 224)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(inject_sia(model)(x), twin(x))


@functools.lru_cache
def ramp(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height)[:, None] * torch.linspace(0, 1, width)


@functools.cache
def pair(size: tuple[int, ...]) -> list[Tensor]:
    return [torch.ones(size), torch.zeros(size)]


@functools.cache
def named(size: tuple[int, ...]) -> dict[str, Any]:
    held: dict[str, Any] = {"nested": ({"scale": torch.ones(size)},)}
    held["itself"] = held
    return held


class Cached(Plain):
    """A model whose functions keep their results."""

    def forward(self, x: Tensor) -> Tensor:
        one, zero = pair(x.shape[2:])
        scale = named(x.shape[2:])["nested"][0]["scale"]
        return super().forward(x * one * scale + ramp(*x.shape[2:]) + zero)


def test_no_fake_tensor_stays_in_a_cache_of_functools() -> None:
    model, x = Cached().eval(), torch.rand(2, 3, 32, 32)
    kept = ramp(3, 5)
    inject_sia(model, "stages.1", example_input=x)
    assert type(model(x)) is Tensor and type(ramp(3, 5)) is Tensor
    assert torch.equal(ramp(3, 5), kept)


class Counting(Plain):
    """A model that changes its buffers in place, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("center", torch.ones(2))
        self.alias = nn.Module()
        self.alias.register_buffer("center", self.center)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.center.mul_(0.9)
        return super().forward(x) * self.alias.center.sum()


def test_buffers_that_the_forward_pass_changes_are_unchanged() -> None:
    model = Counting()
    inject_sia(model, "stages.1", example_input=EXAMPLE)
    assert model.steps == 0 and torch.equal(model.center, torch.ones(2))
    assert model.alias.center is model.center
    model(torch.rand(2, 3, 32, 32))
    assert model.steps == 1


class Remembering(Plain):
    """A model that keeps its parameters in other places as well, and looks at one of them in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 1)
        self.tied, self.kept = nn.Linear(2, 2), nn.Linear(2, 2)
        self.tied.weight = self.kept.weight
        self.kept.bias.shard = 0  # another library's mark
        self.known = {id(parameter) for parameter in self.parameters()}
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [(id(self.kept.bias) in self.known, self.tied.weight is self.kept.weight)]
        return super().forward(x) * self.rnn(torch.ones(1, 1, 1))[0].sum()


def test_a_dry_run_leaves_every_parameter_in_its_place() -> None:
    model = Remembering()
    before, flat = dict(model.named_parameters(remove_duplicate=False)), list(model.rnn._flat_weights)
    seen: list[tuple[bool, bool]] = []
    model.rnn.register_forward_hook(lambda *_: seen.extend(model.seen))
    inject_sia(model, "stages.1", example_input=EXAMPLE)
    assert seen and set(seen) == {(True, True)}
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(one is other for one, other in zip(model.rnn._flat_weights, flat, strict=True))
    model(EXAMPLE).sum().backward()
    assert all(parameter.grad is not None for parameter in model.rnn.parameters())


def test_a_hook_that_needs_values_is_named() -> None:
    model, seen = Plain(), []
    handle = model.side.register_forward_hook(lambda module, args, output: seen.append(output.mean().item()))
    with pytest.raises(errors.DryRunError, match="a hook on 'side' failed in a dry run"):
        inject_sia(model, "stages.1", example_input=EXAMPLE)
    handle.remove()
    inject_sia(model, "stages.1", example_input=EXAMPLE)


def test_injecting_in_inference_mode_gives_parameters_that_train() -> None:
    model = Plain()
    with torch.inference_mode():
        inject_sia(model, "stages.1", example_input=EXAMPLE, identity_init=False)
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in sia_parameters(model))


class Picky(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean().item() < 1 else x


def test_a_forward_that_depends_on_values_says_so() -> None:
    with pytest.raises(errors.DryRunError, match="depends on values"):
        inject_sia(Picky(), "stages.1", example_input=EXAMPLE)
