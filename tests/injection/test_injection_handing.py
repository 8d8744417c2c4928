"""Injection: each site's map reaches the next, however parts of the model are compiled, copied or repeated."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sia_layers.injection import (
    disable_sia,
    eject_sia,
    errors,
    find_sites,
    inject_sia,
    load_sia_state_dict,
    reset_sia_parameters,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)
from sia_layers.injection.relay import relay_of


class Breaks(nn.Module):
    """A layer that torch.compile cannot trace."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.inner(x)


class Net(nn.Module):
    """Three stages in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Tanh())
        self.c = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.Tanh())
        self.head = nn.Linear(10, 4)
        self.checkpointed: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        for name in "abc":
            stage = getattr(self, name)
            x = checkpoint(stage, x, use_reentrant=False) if name in self.checkpointed else stage(x)
        return self.head(x.mean((2, 3)))


STAGES = ["a", "b", "c"]
X = (2, 3, 12, 12)


def injected(**kwargs: object) -> Net:
    torch.manual_seed(0)
    return inject_sia(Net(), STAGES, example_input=torch.empty(X), identity_init=False, **kwargs)


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, dynamic_img_size=True, num_classes=3)
    return inject_sia(model, ["blocks.0", "blocks.1"], identity_init=False).eval()


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5, rtol=1e-3), name


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_graph_breaks_between_sites() -> None:
    model, x, y = injected(), torch.rand(X), 3 * torch.rand(X)
    expected = gradients(model, lambda: model(x).square().sum() + model(y).sin().sum())
    model.b[0], model.c[0] = Breaks(model.b[0]), Breaks(model.c[0])
    renamed = {name.replace("b.0.", "b.0.inner.").replace("c.0.", "c.0.inner."): g for name, g in expected.items()}
    compiled = torch.compile(model, backend="eager")
    agree(gradients(model, lambda: compiled(x).square().sum() + compiled(y).sin().sum()), renamed)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("parts", [("b",), ("a", "c"), ("a", "b", "c")], ids="".join)
def test_any_stages_compiled_in_place(parts: tuple[str, ...], when: str) -> None:
    x = torch.rand(X)
    expected = gradients(reference := injected(), lambda: reference(x).square().sum())
    torch.manual_seed(0)
    model = Net()
    if when == "before":
        for part in parts:
            getattr(model, part).compile(backend="eager")
    inject_sia(model, STAGES, example_input=torch.empty(X), identity_init=False)
    if when == "after":
        for part in parts:
            getattr(model, part)[-1].compile(backend="eager")  # the host itself
            getattr(model, part).compile(backend="eager")
    agree(gradients(model, lambda: model(x).square().sum()), expected)
    eject_sia(model)
    assert torch.allclose(model(x), Net.forward(eject_sia(reference), x), atol=1e-6)


def test_the_whole_model_compiles_without_a_break() -> None:
    model, x = injected(), torch.rand(X)
    expected = gradients(model, lambda: model(x).square().sum())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    agree(gradients(model, lambda: compiled(x).square().sum()), expected)


def test_the_grid_of_tokens_is_that_of_the_pass() -> None:
    """Pictures of two shapes have equally many tokens; the patches still determine the grid if compiled separately."""
    model, wide, high = vit(), torch.rand(1, 3, 32, 128), torch.rand(1, 3, 128, 32)
    with torch.no_grad():
        expected = model(wide), model(high)
        assert not torch.allclose(*expected, atol=1e-3)
        model.patch_embed.compile(backend="eager")
        for x, output in zip((wide, high), expected, strict=True):
            assert torch.allclose(model(x), output, atol=1e-5)
        model.blocks[1].compile(backend="eager")
        for x, output in zip((wide, high), expected, strict=True):
            assert torch.allclose(model(x), output, atol=1e-5)


def test_a_grid_is_never_guessed() -> None:
    model = vit()
    tokens = model._pos_embed(model.patch_embed(torch.rand(1, 3, 64, 64)))
    with torch.no_grad():
        model.blocks(tokens)  # the last patches had this grid
        with pytest.raises(errors.LayoutError, match="run the model as a whole"):
            model.blocks(tokens)  # the grid of these is unknown
        small = {"depth": 2, "embed_dim": 64, "num_heads": 2}
        fixed = inject_sia(timm.create_model("vit_tiny_patch16_224", img_size=64, **small), ["blocks.0"])
        assert fixed.blocks(tokens).shape == tokens.shape  # this model accepts no other grid


@pytest.mark.sampled(2)
@pytest.mark.parametrize("where", [("b",), ("c",), ("a", "c"), ("b", "c")], ids="".join)
def test_checkpoints_beside_compiled_stages(where: tuple[str, ...]) -> None:
    """Two forward passes before one backward pass: each recomputation finds the maps of its own pass."""
    model, x, y = injected(), torch.rand(X), 3 * torch.rand(X)

    def loss() -> Tensor:
        return model(x).square().sum() + model(y).sin().sum()

    expected = gradients(model, loss)
    for part in set("abc") - set(where):
        getattr(model, part).compile(backend="eager")
    model.checkpointed = where
    agree(gradients(model, loss), expected)


def test_a_checkpoint_around_a_compiled_stage_is_right_or_refused() -> None:
    model, x = injected(), torch.rand(X)
    expected = gradients(model, lambda: model(x).square().sum())
    model.checkpointed = ("c",)
    model.c.compile(backend="eager")
    message = ""
    try:
        agree(gradients(model, lambda: model(x).square().sum()), expected)
    except RuntimeError as refusal:
        message = str(refusal)
    assert not message or "compile the whole model" in message


def test_threads_do_not_mix_their_passes() -> None:
    model = injected().eval()
    model.b.compile(backend="eager")
    inputs = [torch.rand(X) * (1 + number) for number in range(3)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(15):
                if not torch.allclose(model(inputs[number]), expected[number], atol=1e-5):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Saved(nn.Module):
    """A module wrapped as PEFT does for modules_to_save: the original is kept, and a copy is used."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})
        self.active_adapters, self.disable_adapters = ["default"], False

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        chosen = self.original_module if self.disable_adapters else self.modules_to_save["default"]
        return chosen(x, *args, **kwargs)


def test_a_copied_site_takes_the_place_of_the_original() -> None:
    model, x = injected().eval(), torch.rand(X)
    expected = model(x)
    for name in list(sia_modules(model)):
        host = model.get_submodule(name.removesuffix(".sia"))
        host.sia = Saved(host.sia)
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert list(sia_modules(model)) == [f"{s}.1.sia.modules_to_save.default" for s in STAGES]
    assert all(name.startswith(tuple(sia_modules(model))) for name in sia_state_dict(model))
    with torch.no_grad():
        for parameter in sia_parameters(model):
            parameter.add_(0.5)
    assert not torch.allclose(model(x), expected, atol=1e-3)
    model.b[1].sia.disable_adapters = True
    assert list(sia_modules(model))[1] == "b.1.sia.original_module"
    eject_sia(model)
    assert not any("sia" in name for name, _ in model.named_modules())


class Siamese(nn.Module):
    def __init__(self, backbone: nn.Module, interleaved: bool = False) -> None:
        super().__init__()
        self.backbone, self.interleaved = backbone, interleaved

    def forward(self, x: Tensor) -> Tensor:
        first, second = x, x.flip(3)
        if not self.interleaved:
            return self.backbone(first) - self.backbone(second)
        for stage in (self.backbone.a, self.backbone.b, self.backbone.c):
            first, second = stage(first), stage(second)
        return self.backbone.head((first - second).mean((2, 3)))


def test_a_backbone_may_run_twice() -> None:
    model, x = Siamese(Net()), torch.rand(X)
    inject_sia(model, ["backbone.a", "backbone.c"], example_input=x, identity_init=False)
    inner = copy.deepcopy(model.backbone)
    assert torch.allclose(model(x), inner(x) - inner(x.flip(3)), atol=1e-6)
    expected = gradients(model, lambda: model(x).square().sum())
    model.backbone.checkpointed = ("a", "b", "c")
    agree(gradients(model, lambda: model(x).square().sum()), expected)


class Twins(Siamese):
    """A model with a second name for its backbone."""

    def __init__(self) -> None:
        super().__init__(inject_sia(Net(), STAGES, example_input=torch.empty(X)))
        self.twin = self.backbone


def test_a_backbone_with_two_names_counts_once() -> None:
    model = Twins()
    assert list(sia_modules(model)) == [f"backbone.{stage}.1.sia" for stage in STAGES]
    assert list(sia_parameters(model)) == [p for name, p in model.named_parameters() if ".sia." in name]
    state = sia_state_dict(model)
    assert list(state) == [name for name in model.state_dict() if ".sia." in name] and any("twin" in n for n in state)
    load_sia_state_dict(model, state)
    gain = sia_modules(model)["backbone.a.1.sia"].gain
    assert gain is not None and gain.item() == 0.0
    for missing, expected in (("backbone.",), 0.5), (("twin.",), 0.5), (("backbone.", "twin."), 0.0):
        gain.data.fill_(0.5)  # a loader has filled it in, unless it lists it under both names
        reset_sia_parameters(model, [name for name in state if name.startswith(missing)])
        assert gain.item() == expected


def test_two_names_of_one_module_are_not_two_stages() -> None:
    model = Siamese(Net())
    model.twin = model.backbone
    for act in (find_sites, inject_sia):
        with pytest.raises(errors.InjectionError, match=r"'backbone\.a' and 'twin\.a' .*two names, 'backbone"):
            act(model, ["backbone.a", "backbone.b", "twin.a"], example_input=torch.empty(X))
    inject_sia(model, ["twin.a", "backbone.b"], example_input=torch.empty(X))
    assert list(sia_modules(model)) == ["backbone.a.1.sia", "backbone.b.1.sia"]


def test_sites_that_run_unequally_or_out_of_turn_are_refused() -> None:
    with pytest.raises(errors.FiringError, match=r"not in turn.*finish one run of the backbone"):
        inject_sia(Siamese(Net(), interleaved=True), ["backbone.a", "backbone.b"], example_input=torch.empty(X))

    class Uneven(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.c(self.b(self.a(x) + self.a(x.flip(3)))).mean((2, 3)))

    with pytest.raises(errors.FiringError, match=r"runs 2 times .* and 'b\.1' 1 times; .*leave one of them out"):
        inject_sia(Uneven(), STAGES, example_input=torch.empty(X))
    assert [site.host for site in find_sites(Uneven(), "a", example_input=torch.empty(X))] == ["a.1"]


def test_disabling_restores_the_bare_model_temporarily() -> None:
    torch.manual_seed(0)
    bare, model, x = Net(), injected(), torch.rand(X)
    with torch.no_grad():
        assert not torch.allclose(model(x), bare(x), atol=1e-3)
        compiled = torch.compile(model, backend="eager")
        for run in (model, compiled):
            gated = run(x)
            with disable_sia(model):
                assert torch.equal(run(x), bare(x)) or torch.allclose(run(x), bare(x), atol=1e-6)
                with disable_sia(model):
                    pass
                assert torch.allclose(run(x), bare(x), atol=1e-6)
            assert torch.equal(run(x), gated)
    with pytest.raises(ZeroDivisionError), disable_sia(model):
        1 / 0  # noqa: B018
    assert all(module.enabled for module in sia_modules(model).values())


def test_no_state_is_left_after_a_pass() -> None:
    model, x = injected(), torch.rand(X)
    relay = relay_of(model.a[1])
    model.a(x)
    assert relay.slot.passed is not None and len(relay.slot.passed.maps) == 1
    model(x)
    assert relay.slot.passed is None
    assert relay_of(copy.deepcopy(model).b[1]).slot.passed is None
