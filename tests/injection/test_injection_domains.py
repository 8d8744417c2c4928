"""Injection in the frequency domain, alone and after the spatial one."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from sia_layers import FrequencySIAttention, capture_self_information
from sia_layers.injection import (
    eject_sia,
    errors,
    inject_sia,
    load_sia_state_dict,
    sia_config,
    sia_modules,
    sia_parameters,
    sia_state_dict,
)

X = (2, 3, 64, 96)


def bare(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **({"img_size": X[2:]} if "vit" in name else {})).eval()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("domain", ["frequency", "both"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_injection_starts_as_the_identity_and_ejection_restores_the_model(name: str, domain: str) -> None:
    model, x = bare(name), torch.rand(X)
    before, keys = model(x), list(model.state_dict())
    inject_sia(model, domain=domain, block=4, example_input=torch.empty(X), aggregate=name == "test_resnet")
    sites = sia_modules(model)
    assert len(sites) == 3 and torch.equal(model(x), before)
    frequency = [part for site in sites.values() for part in site.modules() if isinstance(part, FrequencySIAttention)]
    assert len(frequency) == 3 and all(part.block == 4 for part in frequency)
    optimizer = torch.optim.SGD(sia_parameters(model), 0.1)
    model.train()(x).square().sum().backward()
    optimizer.step()
    gains = [part.gain for site in sites.values() for part in site.modules() if getattr(part, "gain", None) is not None]
    assert len(gains) == 3 * (1 + (domain == "both")) and all(gain.item() != 0 for gain in gains)
    eject_sia(model)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("domain", ["frequency", "both"])
def test_saved_loaded_and_captured(domain: str) -> None:
    model, x = bare(), torch.rand(X)
    inject_sia(model, domain=domain, transform="haar", identity_init=False, example_input=torch.empty(X))
    config = sia_config(model)
    assert config["domain"] == domain and config["transform"] == "haar"
    other = inject_sia(bare(), example_input=torch.empty(X), **config)
    load_sia_state_dict(other, sia_state_dict(model))
    with torch.no_grad():
        assert torch.equal(other(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
        assert not torch.allclose(model(x), bare()(x), atol=1e-3)
        with capture_self_information(model) as maps:
            model(x)
    scale = 2 if domain == "frequency" else 1  # of blocks, their mean over the sub-bands
    channels = [site.channels for site in sia_modules(model).values()]
    assert [info.shape[1] for info in maps.values()] == channels
    assert next(iter(maps.values())).shape[2:] == (16 // scale, 24 // scale)


def test_options_of_another_domain_and_unknown_domains_are_refused() -> None:
    model = bare()
    with pytest.raises(TypeError, match="no argument 'block'"):
        inject_sia(model, block=4, example_input=torch.empty(X))
    with pytest.raises(ValueError, match="domain must be one of 'spatial', 'frequency', 'both'"):
        inject_sia(model, domain="wavelet", example_input=torch.empty(X))
    with pytest.raises(ValueError, match="block must be"):
        inject_sia(model, domain="both", block=5, example_input=torch.empty(X))
    assert not sia_modules(model) and issubclass(errors.InjectionError, Exception)
