"""Injection: the state of the sites: initialisation, configuration, saving, loading, and use by other tools."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from sia_layers import SIAttention, capture_self_information
from sia_layers.injection import (
    disable_sia,
    errors,
    inject_sia,
    load_sia_state_dict,
    reset_sia_parameters,
    sia_config,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)
from sia_layers.injection.config import Config, config_in

X = (2, 3, 64, 64)


def resnet(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return inject_sia(timm.create_model("test_resnet", num_classes=3), example_input=torch.empty(X), **kwargs)


CONFIGURED = {
    "aggregate": False,
    "identity_init": False,
    "kernel_size": 5,
    "bandwidth": 0.5,
    "act_layer": nn.GELU,
    "channel": "excite",
}


def test_the_configuration_gives_the_same_model_again() -> None:
    model = resnet(**CONFIGURED)
    config = json.loads(json.dumps(sia_config(model)))
    assert config["act_layer"] == "GELU" and "channel" not in config and len(config["stages"]) == 3
    again = timm.create_model("test_resnet", num_classes=3)
    inject_sia(again, example_input=torch.empty(X), **config)
    assert sia_config(again) == config
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(X)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_the_configuration_travels_with_the_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = resnet(kernel_size=5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for state in (torch.load(tmp_path / "model.pt", weights_only=True), load_file(tmp_path / "model.safetensors")):
        assert config_in(state) == sia_config(model)
        assert config_in({f"module.{name}": value for name, value in state.items()}) == sia_config(model)
    assert config_in(timm.create_model("test_resnet").state_dict()) is None
    averaged = {name: 0.5 * value.float() for name, value in model.state_dict().items()}
    assert config_in(averaged) is None  # averaging checkpoints makes it unreadable, but does no harm
    model.load_state_dict(averaged, strict=True)
    assert sia_config(model)["kernel_size"] == 5


def test_state_dicts_from_before_the_configuration_load_strictly() -> None:
    model = resnet()
    old = {name: value for name, value in model.state_dict().items() if not name.endswith("_extra_state")}
    assert len(old) == len(model.state_dict()) - 1
    for name in [name for name in old if name.endswith(".gain")]:
        old[name] = torch.tensor(0.25)  # earlier gains had the shape ()
    model.load_state_dict(old, strict=True)
    assert [module.gain.item() for module in sia_modules(model).values()] == [0.25] * 3
    load_sia_state_dict(model, {name: value * 2 for name, value in old.items() if ".sia." in name})
    assert [module.gain.item() for module in sia_modules(model).values()] == [0.5] * 3
    assert all(parameter.dim() > 0 for parameter in sia_parameters(model))


def test_weights_of_another_configuration_are_loaded_with_a_warning() -> None:
    plain, other = resnet(), resnet(kernel_size=5, act_layer=nn.GELU, allow_bypass=True)
    with pytest.warns(UserWarning, match="act_layer='GELU' for 'ReLU', allow_bypass=True for False, kernel_size=5 for"):
        plain.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match="allow_bypass=False for True, kernel_size=3 for 5"):
        other.load_state_dict(plain.state_dict())


def test_the_configuration_is_a_copy() -> None:
    model = resnet()
    sia_config(model)["stages"].append("layer4")
    assert sia_config(model)["stages"] == ["layer1", "layer2", "layer3"]


def test_arrays_for_tensors_are_refused_by_name() -> None:
    model = resnet()
    arrays = {name: value.numpy() for name, value in sia_state_dict(model).items()}
    with pytest.raises(TypeError, match=r"'layer1\.0\.sia\.\w+' must be a torch\.Tensor, got ndarray; convert it"):
        load_sia_state_dict(model, arrays)


def test_a_configuration_that_cannot_be_followed_is_refused() -> None:
    model = timm.create_model("test_resnet")
    with pytest.raises(errors.ConfigError, match=r"version 99.*install a newer one"):
        inject_sia(model, version=99)

    class Mine(nn.ReLU):
        pass

    config = sia_config(inject_sia(model, act_layer=Mine))
    with pytest.raises(errors.ConfigError, match=r"Mine.*pass the class itself"):
        inject_sia(timm.create_model("test_resnet"), **config)
    inject_sia(timm.create_model("test_resnet"), **{**config, "act_layer": Mine})
    with pytest.raises(ValueError, match="aggregate must be True, False or 'pooled', got 'some'"):
        inject_sia(timm.create_model("test_resnet"), aggregate="some")


@pytest.mark.parametrize("state", [None, 3, torch.zeros(3), torch.tensor([255, 0], dtype=torch.uint8)])
def test_an_invalid_configuration_counts_as_none(state: object) -> None:
    assert Config.from_tensor(state) is None


def junk(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*sia_parameters(model), *(b for m in sia_modules(model).values() for b in m.buffers())):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)


def test_parameters_that_a_loader_left_uninitialised_are_reset() -> None:
    model, x = resnet(), torch.rand(X)
    bare = timm.create_model("test_resnet", num_classes=3)
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if ".sia." not in name})
    missing = model.load_state_dict(bare.state_dict(), strict=False).missing_keys
    junk(model)
    reset_sia_parameters(model, missing)
    assert torch.equal(model.eval()(x), bare.eval()(x))
    assert all(torch.isfinite(parameter).all() for parameter in sia_parameters(model))
    names = [name for name in missing if name.endswith(("1.sia.gain", "fc1.weight"))]
    kept = {name: value.clone() for name, value in model.state_dict().items() if name not in names}
    reset_sia_parameters(model, names)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    changed = [name for name in names if name.endswith("fc1.weight")]
    assert changed and all(
        not torch.equal(model.state_dict()[name], bare.state_dict().get(name, Tensor())) for name in changed
    )
    junk(model)
    reset_sia_parameters(model)
    assert all(torch.isfinite(value).all() for value in sia_state_dict(model).values() if value.is_floating_point())
    with pytest.raises(errors.NotInjectedError):
        reset_sia_parameters(bare)


def test_built_on_meta_and_filled_in() -> None:
    """This is how from_pretrained and accelerate build models."""
    with torch.device("meta"):
        model = inject_sia(timm.create_model("test_resnet", num_classes=3))
    bare = timm.create_model("test_resnet", num_classes=3)
    model.to_empty(device="cpu")
    result = model.load_state_dict(bare.state_dict(), strict=False)
    reset_sia_parameters(model, result.missing_keys)
    x = torch.rand(X)
    assert torch.equal(model.eval()(x), bare.eval()(x))


def test_a_gain_that_was_never_initialised_is_found_when_it_is_loaded() -> None:
    model = resnet()
    state = sia_state_dict(model)
    name = next(name for name in state if name.endswith("gain"))
    with pytest.raises(errors.StateDictError, match=r"gain' is not finite.*reset_sia_parameters"):
        load_sia_state_dict(model, {**state, name: torch.full_like(state[name], float("nan"))})
    assert all(torch.isfinite(parameter).all() for parameter in sia_parameters(model))


def test_weight_decay_leaves_the_gain_alone_in_timms_groups() -> None:
    from timm.optim import param_groups_weight_decay

    model = resnet()
    decayed = next(group["params"] for group in param_groups_weight_decay(model, 0.1) if group["weight_decay"])
    gains = {id(module.gain) for module in sia_modules(model).values()}
    assert gains and not gains & {id(parameter) for parameter in decayed}


def test_full_backward_hooks_on_every_module() -> None:
    model, calls = resnet(identity_init=False), []
    parts = [part for module in sia_modules(model).values() for part in module.modules()]
    for part in parts:
        part.register_full_backward_hook(lambda module, *grads: calls.append(module))
    model(torch.rand(X)).sum().backward()
    assert {type(module) for module in calls} >= {type(module) for module in sia_modules(model).values()}


def test_one_process_of_fully_sharded_data_parallel() -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, expected = torch.rand(X), resnet()(torch.zeros(X))
        mesh = init_device_mesh("cpu", (1,))
        model = fully_shard(resnet(), mesh=mesh)
        assert torch.allclose(model(torch.zeros(X)), expected, atol=1e-5)
        model(x).square().sum().backward()
        assert all(parameter.grad is not None for name, parameter in model.named_parameters() if name.endswith("gain"))
        older = FullyShardedDataParallel(resnet(), device_id=torch.device("cpu"), use_orig_params=True)
        assert torch.allclose(older(torch.zeros(X)), expected, atol=1e-5)
        older(x).square().sum().backward()
    finally:
        dist.destroy_process_group()


def test_scripting_is_refused_with_what_works() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace\(model, example\), torch\.export"):
        torch.jit.script(resnet())


def test_the_state_survives_copies_and_pickling() -> None:
    model = resnet(kernel_size=5)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert sia_config(twin) == sia_config(model)
        assert all(isinstance(module, SIAttention) for module in sia_modules(twin).values())
        assert list(twin.state_dict()) == list(model.state_dict())


def test_copies_and_pickles_start_enabled_and_uncaptured() -> None:
    model, x = resnet(identity_init=False).eval(), torch.rand(X)
    expected = model(x)
    buffer = io.BytesIO()
    with capture_self_information(model) as maps:
        model(x)
        with disable_sia(model):
            torch.save(model, buffer)
            buffer.seek(0)
            twins = copy.deepcopy(model), torch.load(buffer, weights_only=False)
            assert not torch.equal(model(x), expected)
        before = dict(maps)
        assert all(torch.equal(twin(x), expected) for twin in twins)
        assert all(maps[name] is value for name, value in before.items()) and len(maps) == 3
