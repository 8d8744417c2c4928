"""Injection: what programs do with a model: replicas, parametrisations, torch.func, saved graphs, mixed dtypes."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sia_layers.injection import eject_sia, errors, inject_sia, sia_config, sia_modules, sia_parameters

X = (2, 3, 64, 64)


def resnet(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return inject_sia(timm.create_model("test_resnet", num_classes=3), example_input=torch.empty(X), **kwargs)


def replica(module: nn.Module) -> nn.Module:
    """Copy a module as nn.DataParallel does, with parameters and buffers as plain attributes."""
    copied = module._replicate_for_data_parallel()
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        setattr(copied, name, None if tensor is None else tensor.clone())
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else replica(child)
    return copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_a_replica_of_data_parallel(training: bool, dtype: torch.dtype) -> None:
    model, x = resnet().train(training).to(dtype), torch.rand(X).to(dtype)
    with torch.set_grad_enabled(training):
        assert torch.equal(replica(copy.deepcopy(model))(x), copy.deepcopy(model)(x))


def test_a_gain_that_is_parametrized_or_pruned() -> None:
    for change in (
        lambda site: parametrize.register_parametrization(site, "gain", nn.Tanh()),
        lambda site: prune.identity(site, "gain"),
    ):
        model, x = resnet().eval(), torch.rand(X)
        with torch.no_grad():
            expected = model(x)
        for site in sia_modules(model).values():
            change(site)
        assert torch.allclose(model(x), expected, atol=1e-6)  # with a gradient
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("aggregate", [True, "pooled", False])
def test_vmap_over_an_ensemble(aggregate: bool | str) -> None:
    models = [resnet(aggregate=aggregate, identity_init=False).eval() for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.add_(0.01)
    params, buffers = torch.func.stack_module_state(models)
    x = torch.rand(X)

    def one(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(models[0], (params, buffers), (x,))
        return result

    with torch.no_grad():
        found, expected = torch.vmap(one)(params, buffers), torch.stack([model(x) for model in models])
    assert torch.allclose(found, expected, atol=1e-5)


def test_ejection_from_a_traced_model_is_refused_and_changes_nothing() -> None:
    model, x = resnet(identity_init=False).eval(), torch.rand(X)
    traced = torch.fx.symbolic_trace(model)
    with pytest.raises(errors.UnsupportedModelError, match="its graph calls the sites; eject SIA from the original"):
        eject_sia(traced)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))


def test_a_shared_parameter_is_listed_once() -> None:
    model = resnet()
    sites = list(sia_modules(model).values())
    for site in sites[1:]:
        site.gain = sites[0].gain
    listed = list(sia_parameters(model))
    assert len(listed) == len({id(parameter) for parameter in listed})
    assert sum(parameter is sites[0].gain for parameter in listed) == 1


def test_stored_configurations_do_not_differ_in_length() -> None:
    """torch.distributed.checkpoint refuses to load a tensor of another size."""
    states = [resnet(**options).state_dict() for options in ({}, {"kernel_size": 11, "backend": "reference"})]
    (name,) = (name for name in states[0] if name.endswith("_extra_state"))
    assert states[0][name].shape == states[1][name].shape and not torch.equal(states[0][name], states[1][name])


def test_a_distributed_checkpoint_loads_into_another_configuration(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    from torch.distributed import checkpoint

    saved, model = resnet(identity_init=False, gain=0.5), resnet(kernel_size=5)
    checkpoint.save(saved.state_dict(), checkpoint_id=tmp_path)
    state = model.state_dict()
    checkpoint.load(state, checkpoint_id=tmp_path)
    with pytest.warns(UserWarning, match="kernel_size"):
        model.load_state_dict(state)
    gains = [module.gain.item() for module in sia_modules(model).values()]
    assert gains == [0.5] * 3


def test_a_traced_model_is_saved_and_loaded() -> None:
    model, x, file = resnet(identity_init=False).eval(), torch.rand(X), io.BytesIO()
    torch.save(torch.fx.symbolic_trace(model), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), atol=1e-6)


@pytest.mark.parametrize("aggregate", [True, "pooled", False])
def test_sia_in_float32_in_a_half_precision_model(aggregate: bool | str) -> None:
    model = resnet(aggregate=aggregate, identity_init=False).bfloat16()
    for site in sia_modules(model).values():
        site.float()
    x = torch.rand(X).bfloat16()
    assert model(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert model.eval()(x).dtype == torch.bfloat16


NUMBERS = {
    "kernel_size": np.int64(5),
    "bandwidth": np.float64(0.5),
    "inter_weight": np.float32(0.25),
    "inter_channels": torch.tensor(3),
    "rd_channels": np.int32(4),
}


def test_options_that_are_numbers_of_other_libraries_are_saved_as_pythons() -> None:
    model = resnet(**NUMBERS, aggregate=np.False_)
    config = sia_config(model)
    assert {name: type(value) for name, value in config.items() if name in NUMBERS} == {
        "kernel_size": int, "bandwidth": float, "inter_weight": float, "inter_channels": int, "rd_channels": int,
    }  # fmt: skip
    file = io.BytesIO()
    torch.save({"sia": config, "model": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["sia"] == config == json.loads(json.dumps(config))
    resnet(**config).load_state_dict(saved["model"])
