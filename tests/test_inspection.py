"""Capture and profile: the right maps, the right numbers, and an unchanged model."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from sia_layers import average_self_information, self_information
from sia_layers.injection import errors, inject_sia
from sia_layers.inspection import capture_self_information, profile_self_information


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Conv2d(8, 12, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny()


def test_capture_gives_the_map_at_every_site() -> None:
    model, x = tiny().eval(), torch.rand(2, 3, 16, 16)
    inject_sia(model, ["a", "b"], example_input=x, aggregate=False)
    with torch.no_grad():
        expected = {"a.2.sia": self_information(model.a[1](model.a[0](x)).relu())}
        before = model(x)
        with capture_self_information(model) as maps:
            assert maps == {}
            assert torch.equal(model(x), before)
            assert list(maps) == ["a.2.sia", "b.sia"]
            assert torch.allclose(maps["a.2.sia"], expected["a.2.sia"], atol=1e-6)
            model(x[:1])
            assert all(len(info) == 1 for info in maps.values())
        maps.clear()
        model(x)
    assert maps == {}


def test_capture_ends_with_an_exception_and_needs_sia() -> None:
    model = inject_sia(tiny(), ["a"], example_input=torch.empty(1, 3, 16, 16))
    with pytest.raises(ZeroDivisionError), capture_self_information(model):
        1 / 0  # noqa: B018
    assert all(getattr(module, "capture", None) is None for module in model.modules())
    with pytest.raises(errors.NotInjectedError), capture_self_information(tiny()):
        pass


def test_capture_in_training_keeps_no_graph() -> None:
    model = inject_sia(tiny(), ["a", "b"], example_input=torch.empty(1, 3, 16, 16), detach=False, identity_init=False)
    with capture_self_information(model) as maps:
        model(torch.rand(2, 3, 16, 16)).sum().backward()
    assert len(maps) == 2 and not any(info.requires_grad for info in maps.values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_profile_is_the_mean_and_deviation_over_all_pictures(reduction: str) -> None:
    model, pictures = tiny().train(), torch.rand(7, 3, 16, 16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(pictures[:4], torch.zeros(4)), [pictures[4:]]]
    profiles = profile_self_information(model, batches, ["b", "a"], reduction=reduction, kernel_size=5, progress=False)
    assert list(profiles) == ["b", "a"] and model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        values = average_self_information(model.eval().a(pictures), kernel_size=5, reduction=reduction).double()
    assert profiles["a"].pictures == 7
    assert profiles["a"].mean == pytest.approx(values.mean().item(), rel=1e-5)
    assert profiles["a"].std == pytest.approx(values.std(correction=0).item(), rel=1e-3)


@pytest.mark.parametrize("name", ["resnet10t", "mambaout_femto", "vit_tiny_patch16_224"])
def test_profile_of_models_that_declare_their_stages(name: str) -> None:
    extra = {"img_size": (32, 64)} if "vit" in name else {}
    model, x = timm.create_model(name, **extra), torch.rand(2, 3, 32, 64)
    bare = profile_self_information(model, [x], progress=False)
    injected = profile_self_information(inject_sia(model, example_input=x), [x], progress=False)
    assert len(bare) == 3 and all(profile.pictures == 2 and profile.mean > 0 for profile in bare.values())
    assert bare == injected


def test_profile_refuses() -> None:
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(errors.UnknownStageError, match="did you mean"):
        profile_self_information(tiny(), [x], ["a.3"], progress=False)
    with pytest.raises(errors.NoStagesError, match=r"name modules, as in layers=\['layer1', 'layer2'\]$"):
        profile_self_information(tiny(), [x], progress=False)
    with pytest.raises(errors.UnknownStageError, match="layers is empty"):
        profile_self_information(tiny(), [x], [], progress=False)
    with pytest.raises(ValueError, match="no picture"):
        profile_self_information(tiny(), [], ["a"], progress=False)
    with pytest.raises(TypeError, match="kernel_size"):
        profile_self_information(tiny(), [x], ["a"], progress=False, kernel_sise=5)
    with pytest.raises(TypeError, match=r"no argument 'stages'; it takes model, .*, key, layout, .*, backend"):
        profile_self_information(tiny(), [x], stages=["a"], progress=False)
    with pytest.raises(errors.DryRunError, match=r"batch must hold a picture.*uint8; pass pictures as the model"):
        profile_self_information(tiny(), [(x * 255).byte()], ["a"], progress=False)
    with pytest.raises(errors.DryRunError, match=r"of shape \(3, 16, 16\): .*; batches must hold .*\[x\]$"):
        profile_self_information(tiny(), x, ["a"], progress=False)
    model = tiny()
    with pytest.raises(errors.DryRunError, match="to have 3 channels"):
        profile_self_information(model, [torch.rand(1, 5, 16, 16)], ["a"], progress=False)
    assert not any(module._forward_hooks for module in model.modules()) and model.training


def test_a_profile_over_nan_is_nan() -> None:
    profile = profile_self_information(tiny(), [torch.full((2, 3, 16, 16), float("nan"))], ["a"], progress=False)["a"]
    assert math.isnan(profile.mean) and math.isnan(profile.std) and profile.pictures == 2


@pytest.mark.slow
def test_profile_in_two_processes_is_that_of_one(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    script = f"""
        import sys, torch, torch.distributed as dist
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_inspection import tiny
        from sia_layers.inspection import profile_self_information
        torch.manual_seed(1)
        pictures, rank = torch.rand(5, 3, 16, 16), int(sys.argv[1])
        whole = profile_self_information(tiny(), [pictures], ["a", "b"], progress=False)
        dist.init_process_group("gloo", init_method="file://{tmp_path / "store"}", rank=rank, world_size=2)
        batches = [pictures[:3], pictures[3:4]] if rank == 0 else [pictures[4:]]
        shared = profile_self_information(tiny(), batches, ["a", "b"], progress=False)
        for name, profile in whole.items():
            assert shared[name].pictures == 5, shared
            assert abs(shared[name].mean - profile.mean) < 1e-6 and abs(shared[name].std - profile.std) < 1e-6
        dist.barrier()
        dist.destroy_process_group()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in running:
        _, written = process.communicate(timeout=120)
        assert process.returncode == 0, written


@pytest.mark.parametrize("part", ["", "a"])
def test_a_model_compiled_in_place_is_profiled_eagerly(part: str) -> None:
    """A graph that was compiled before does not run hooks that are added later."""
    model, batches = tiny().eval(), [torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16)]
    expected = profile_self_information(model, batches, ["a.0", "b"], progress=False)
    model.get_submodule(part).compile(backend="eager")
    with torch.no_grad():
        model(batches[0])
    assert profile_self_information(model, batches, ["a.0", "b"], progress=False) == expected
    assert expected["a.0"].pictures == 3


def test_the_default_device_does_not_matter() -> None:
    model, x = tiny(), torch.rand(2, 3, 16, 16)
    with torch.device("meta"):
        assert profile_self_information(model, [x], ["a"], progress=False)["a"].pictures == 2


def test_a_batch_may_be_a_list_of_pictures() -> None:
    class Detector(Tiny):
        def forward(self, pictures: list[Tensor]) -> Tensor:
            return super().forward(torch.stack(pictures))

    pictures = list(torch.rand(3, 3, 16, 16))
    for batch in (pictures, (pictures, [{"boxes": torch.rand(1, 4)}] * 3)):
        assert profile_self_information(Detector(), [batch], ["a"], progress=False)["a"].pictures == 3


def test_pictures_without_a_channel_axis_beside_their_masks_are_not_taken_for_a_list() -> None:
    class Grey(Tiny):
        def forward(self, pictures: Tensor) -> Tensor:
            return super().forward(pictures[:, None].expand(-1, 3, -1, -1))

    batch = [torch.rand(2, 16, 16), torch.rand(2, 16, 16)]
    assert profile_self_information(Grey(), [batch], ["a"], progress=False)["a"].pictures == 2
