"""Injection: which module of a stage is the host, and models and arguments that look like what they are not."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import UserDict, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules

from sia_layers.injection import eject_sia, errors, find_sites, inject_sia, sia_config, sia_modules

EXAMPLE = torch.empty(1, 3, 32, 32)


def through(module: nn.Module, x: Tensor) -> Tensor:
    for child in module.children():
        x = child(x)
    return x


class Block(nn.Module):
    """A convolution and its activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Looping(Block):
    """A block that runs its children in a method of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.all_of(x)

    def all_of(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class Handing(Block):
    """A block that has a function run its children."""

    def forward(self, x: Tensor) -> Tensor:
        return through(self, x)


class Looking(Block):
    """A block that looks at its modules, and does not run them."""

    def forward(self, x: Tensor) -> Tensor:
        assert any(isinstance(module, nn.ReLU) for module in self.modules())
        return super().forward(x)


class Net(nn.Module):
    """Two blocks and a head."""

    def __init__(self, kind: type[Block] = Block, told: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.a, self.b, self.head, self.told = kind(3), kind(6), nn.Linear(12, 2), told

    def forward(self, x: Tensor) -> Any:
        return self.told(self.head(self.b(self.a(x)).mean((2, 3))))


def injected(model: nn.Module, *stages: str, **options: Any) -> nn.Module:
    return inject_sia(model, **{"stages": list(stages) or ["a", "b"], "example_input": EXAMPLE, **options})


# Hosts


@pytest.mark.parametrize(("kind", "hosts"), [(Looping, ["a.act", "b.act"]), (Looking, ["a", "b"])])
def test_a_block_that_runs_its_children_is_told_from_one_that_looks_at_them(
    kind: type[Block], hosts: list[str]
) -> None:
    model = injected(Net(kind), aggregate=False, identity_init=False).eval()
    assert list(sia_modules(model)) == [f"{host}.sia" for host in hosts]
    ran: list[str] = []
    for name, site in sia_modules(model).items():
        site.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(torch.rand(2, 3, 32, 32))
    assert ran == list(sia_modules(model))
    assert not any("sia" in vars(module)["_modules"] for module in eject_sia(model).modules())


def test_a_block_whose_children_a_function_runs_is_refused() -> None:
    model = Net(Handing)
    with pytest.raises(errors.FiringError, match="'a' runs 1 times in a forward pass, and its new module 'sia' 2"):
        injected(model, aggregate=False)
    assert not sia_modules(model)
    assert list(sia_modules(injected(model, "a.act"))) == ["a.act.sia"]


def test_a_layer_of_torchs_transformer_is_its_own_host() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1)

    sites = find_sites(Encoder(), ["encoder.layers.0"], example_input=EXAMPLE)
    assert [(site.host, site.layout.grid) for site in sites] == [("encoder.layers.0", (4, 4))]


def test_fusing_after_injection_says_to_fuse_first() -> None:
    model = injected(Net(), "a.act").eval()
    fuse_modules(model.a, ["conv", "act"], inplace=True)
    with pytest.raises(errors.NotInjectedError, match="fuse first, and inject afterwards"):
        model(torch.rand(1, 3, 32, 32))


# Tokens


class Tokens(nn.Module):
    """A vision transformer whose class token comes first or last."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.patches, self.cls_token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.block, self.head, self.last = nn.Linear(8, 8), nn.Linear(8, 2), last

    def forward(self, x: Tensor) -> Tensor:
        patches, token = self.patches(x).flatten(2).transpose(1, 2), self.cls_token.expand(len(x), -1, -1)
        joined = torch.cat((patches, token) if self.last else (token, patches), 1)
        return self.head(self.block(joined).mean(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_class_token_behind_the_patches_is_refused(frozen: bool) -> None:
    for last in (False, True):
        model = Tokens(last)
        model.cls_token.requires_grad_(not frozen)
        if last:
            with pytest.raises(errors.LayoutError, match="65 tokens, the last of which do not come from the picture"):
                injected(model, "block")
        else:
            (site,) = sia_modules(injected(model, "block")).values()
            assert (site.place.layout.grid, site.place.layout.prefixes) == ((8, 8), (1, 0))


def test_a_wrong_grid_is_refused() -> None:
    with pytest.raises(errors.LayoutError, match=r"do not match grid=\(8, 7\) with 1 prefix tokens"):
        injected(Tokens(False), "block", grid=(8, 7))
    (site,) = sia_modules(injected(Tokens(False), "block", grid=(8, 7), prefix_tokens=9)).values()
    assert site.place.layout.prefixes == (9,)
    model = injected(Tokens(False), "block", grid=(13, 5), prefix_tokens=0)
    assert sia_config(model)["prefix_tokens"] == 0  # not left out like a default: inferring it again would give 1
    assert list(sia_modules(injected(Tokens(False), **sia_config(model)))) == ["block.sia"]
    for given in ({"grid": (8, 8)}, {"prefix_tokens": 0}):
        with pytest.raises(errors.LayoutError, match="no stage returns any"):
            injected(Net(), **given)


# Several injections


def test_parts_that_were_injected_separately() -> None:
    model = nn.ModuleDict({"rgb": injected(Net(), kernel_size=5), "noise": injected(Net(), kernel_size=7)})
    with pytest.raises(errors.ConfigError, match=r"2 injections.*'rgb.a' and 'noise.a'; call sia_config on each"):
        sia_config(model)
    assert [sia_config(part)["kernel_size"] for part in model.values()] == [5, 7]
    assert not sia_modules(eject_sia(copy.deepcopy(model)))
    with pytest.raises(errors.InjectionError, match="some of the sites"):
        eject_sia(model["rgb"].a)
    assert len(sia_modules(model)) == 4


# Outputs and arguments


@dataclasses.dataclass(slots=True)
class Slots:
    scores: Tensor


@pytest.mark.parametrize("told", [Slots, lambda x: deque([x]), lambda x: {x}, lambda x: UserDict(x=x)])
def test_outputs_of_every_form(told: Callable[[Tensor], Any]) -> None:
    assert len(sia_modules(injected(Net(told=told)))) == 2


def test_an_output_without_tensors_says_so() -> None:
    with pytest.raises(errors.OffTrunkError, match="no tensor was found in the model's output"):
        injected(Net(told=lambda x: (part for part in x)))


@pytest.mark.parametrize("kind", [defaultdict, UserDict])
def test_hosts_that_return_mappings(kind: type) -> None:
    class Mapped(Block):
        def forward(self, x: Tensor) -> Any:
            found = defaultdict(list) if kind is defaultdict else UserDict()
            found["map"] = super().forward(x)
            return found

    class Taking(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x)["map"]).mean((2, 3)))

    model = Taking()
    model.a = Mapped(3)
    if kind is UserDict:
        with pytest.raises(errors.OutputTypeError, match="returns a UserDict"):
            injected(model, "a")
    else:
        assert injected(model, "a")(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_an_example_of_the_wrong_form_is_not_taken_for_values() -> None:
    with pytest.raises(errors.DryRunError, match="pass an example_input that it takes"):
        injected(Net(), example_input=[EXAMPLE])


def test_options_that_do_not_suit_the_maps_are_told_from_wrong_inputs() -> None:
    with pytest.raises(errors.DryRunError, match=r"SIA cannot gate a map of this Net: .*reflect") as refused:
        injected(Net(), padding_mode="reflect", kernel_size=17)
    assert "example_input" not in str(refused.value)


@pytest.mark.parametrize("gain", [torch.tensor([0.5]), nn.Parameter(torch.tensor(0.5)), Fraction(1, 2)])
def test_numbers_of_every_kind_are_stored_as_numbers(gain: Any) -> None:
    config = sia_config(injected(Net(), gain=gain, identity_init=False))
    assert json.loads(json.dumps(config))["gain"] == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"identity_init": "no"}, "identity_init must be True or False, got str 'no'"),
        ({"identity_init": None}, "identity_init must be True or False"),
        ({"aggregate": [1]}, "aggregate must be True, False or 'pooled'"),
        ({"grid": 16}, r"grid must be \(rows, columns\)"),
        ({"stages": 2.5}, "stages must hold names"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        inject_sia(Net(), **{"stages": ["a"], "example_input": EXAMPLE, **options})
