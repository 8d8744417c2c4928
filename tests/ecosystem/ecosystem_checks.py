"""The guarantees of injection for a model of any library, checked on one forward pass, one step and one ejection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sia_layers import SIAttention
from sia_layers.injection import disable_sia, eject_sia, inject_sia, sia_modules, sia_parameters


def tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output of any kind, such as one of transformers' ModelOutputs."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if hasattr(output, "values") else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def shape_of(model: nn.Module) -> list[Any]:
    """Return what ejection must restore: keys, modules, hooks and modes."""
    modules = [
        (name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in model.named_modules()
    ]
    return [list(model.state_dict()), modules]


def difference(ours: Any, theirs: Any) -> float:
    """Return the largest absolute difference between two outputs."""
    pairs = zip(tensors(ours), tensors(theirs), strict=True)
    return max((one.detach().float() - other.detach().float()).abs().max().item() for one, other in pairs)


def summed(output: Any) -> Tensor:
    """Return a loss to which every value of an output contributes, even if a norm comes last."""
    return torch.stack([(tensor * torch.rand_like(tensor)).sum() for tensor in tensors(output)]).sum()


def check(model: nn.Module, call: Callable[[], Any], **options: Any) -> dict[str, SIAttention]:
    """Inject, compare, train for one step, and eject; return the sites.

    Args:
        model: model in evaluation mode.
        call: function that runs the model.
        options: options of inject_sia.
    """
    with torch.no_grad():
        plain = call()
    before = shape_of(model)  # after a first pass, in which transformers adds its own hooks
    assert inject_sia(model, **options) is model
    sites = sia_modules(model)
    runs = dict.fromkeys(sites, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    handles = [site.register_forward_hook(count(name)) for name, site in sites.items()]
    with torch.no_grad():
        assert difference(call(), plain) == 0, "injection changed the model"
    for handle in handles:
        handle.remove()
    assert set(runs.values()) == {1}, runs
    optimizer = torch.optim.SGD(sia_parameters(model), 1.0)
    summed(call()).backward()
    for name, site in sites.items():
        assert site.gain is not None and site.gain.grad is not None and site.gain.grad.abs().sum() > 0, name
        site.gain.grad = 0.1 * site.gain.grad.sign()
    optimizer.step()
    model.zero_grad()
    with torch.no_grad():
        assert difference(call(), plain) > 0
        with disable_sia(model):
            assert difference(call(), plain) == 0
    eject_sia(model)
    assert shape_of(model) == before
    with torch.no_grad():
        assert difference(call(), plain) == 0
    return sites


def channels(sites: dict[str, SIAttention]) -> list[int]:
    """Return the channels of each site."""
    return [site.channels for site in sites.values()]


def kinds(sites: dict[str, Any]) -> set[str]:
    """Return the layouts of the sites."""
    return {site.layout.kind for site in sites.values()}
