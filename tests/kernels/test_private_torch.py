"""Canaries: each private name of torch that the library uses still does what the library needs.

A failure here says which name changed and what the library can no longer do; fix ``kernels/private_torch.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sia_layers.kernels import private_torch


def constants() -> None:
    def count() -> int:
        return len(os.listdir(os.sep))  # torch.compile refuses to trace this

    marked = private_torch.constant_when_compiled(count)
    compiled = torch.compile(lambda x: x + marked(), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == count()


class Exported(nn.Module):
    """Add 1 in an exported graph alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if private_torch.exporting() else x


def exports() -> None:
    x = torch.zeros(1)
    assert not private_torch.exporting()
    assert torch.compile(Exported(), fullgraph=True, backend="eager")(x).item() == 0
    for strict in (False, True):
        assert torch.export.export(Exported(), (x,), strict=strict).module()(x).item() == 1


def transforms() -> None:
    assert not private_torch.any_transform()
    seen = []
    torch.func.vmap(lambda x: seen.append(private_torch.any_transform()) or x)(torch.zeros(2))
    with forward_ad.dual_level():
        seen.append(private_torch.any_transform())
    assert seen == [True, True] and not private_torch.any_transform()


def concatenations() -> None:
    x = torch.zeros(1, 4, 3, requires_grad=True) * 1
    for axis in (1, -2):
        node = torch.cat((x, torch.zeros(1, 2, 3)), axis).grad_fn
        assert private_torch.concatenation(node) == (1, (1, 6, 3))
        assert [part for part, _ in node.next_functions] == [x.grad_fn, None]
    assert private_torch.concatenation(x.grad_fn) is None


def observers() -> None:
    assert not private_torch.dispatch_observed()
    for observer in (TorchDispatchMode(), TorchFunctionMode(), torch.autograd.profiler.profile(use_cpu=True)):
        with observer:
            assert private_torch.dispatch_observed(), observer


def keys() -> None:
    x = torch.zeros(2)
    assert private_torch.dispatch_keys(x) == private_torch.dispatch_keys(x + 1)
    assert private_torch.dispatch_keys(x) != private_torch.dispatch_keys(x.to("meta"))
    assert private_torch.dispatch_keys(x) != private_torch.dispatch_keys(
        torch.zeros(2, dtype=torch.complex64).conj().imag
    )


class Noting(torch.autograd.Function):
    """A function that records the node and the backward pass in which its backward runs."""

    noted: tuple[Any, int]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Noting.noted = private_torch.current_node(), private_torch.graph_task()
        return grad


def backward_passes() -> None:
    x = torch.ones(1, requires_grad=True)
    y = Noting.apply(2 * x)
    assert private_torch.graph_task() == -1
    y.grad_fn.metadata["left"] = 1
    y.backward()
    node, task = Noting.noted
    assert task >= 0 and node.metadata == {"left": 1} and node.next_functions


def global_hooks() -> None:
    assert not private_torch.any_global_hook()
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert private_torch.any_global_hook()
    finally:
        handle.remove()
    assert not private_torch.any_global_hook()


def hooks_of_a_module() -> None:
    module = nn.Linear(1, 1)
    assert all(not module.__dict__[name] for name in private_torch.HOOKS)
    after = module.register_forward_hook(lambda *_: None, with_kwargs=True)
    before = module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    for handle, (hooks, with_kwargs) in zip((after, before), private_torch.hook_tables(module), strict=True):
        assert list(hooks) == list(with_kwargs) == [handle.id]
    module.register_full_backward_hook(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    assert all(module.__dict__[name] for name in private_torch.HOOKS)


def parts_of_a_module() -> None:
    module = nn.BatchNorm2d(1)
    module.add_module("child", nn.Identity())
    assert module._parameters.keys() == {"weight", "bias"}
    assert module._buffers.keys() == {"running_mean", "running_var", "num_batches_tracked"}
    assert module._modules.keys() == {"child"}


def compiled_in_place() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled")

    module = nn.ReLU()
    module.compile(backend=refuse)
    assert private_torch.call_eagerly(module, (torch.ones(1),), {}).item() == 1
    private_torch.forget_compiled_call(module)
    assert module(torch.ones(1)).item() == 1


def compiled_code() -> None:
    compiled: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    module = nn.ReLU()
    function = torch.compile(module, backend=count)
    function(torch.ones(2))
    module.register_forward_hook(lambda *_: torch.zeros(2))
    private_torch.forget_compiled_code()
    assert not function(torch.ones(2)).any() and len(compiled) == 2
    private_torch.forget_compiled_code()
    with pytest.MonkeyPatch.context() as patched:  # nothing is compiled
        patched.delattr(torch.compiler, "reset")
        private_torch.forget_compiled_code()


def bases() -> None:
    for base, kinds in {
        private_torch.CONVOLUTION: (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d),
        private_torch.BATCH_NORM: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        private_torch.NORM: (nn.BatchNorm2d, nn.InstanceNorm2d),
        private_torch.DROPOUT: (nn.Dropout, nn.Dropout2d, nn.AlphaDropout),
    }.items():
        assert all(issubclass(kind, base) for kind in kinds)


def fake_tensors() -> None:
    real = torch.ones(2, 3)
    with private_torch.FakeTensorMode(allow_non_fake_inputs=True):
        result = torch.empty(2, 3, requires_grad=True) * real
    assert result.shape == (2, 3) and type(result) is not Tensor and result.grad_fn is not None


def trees() -> None:
    tree = {"a": [torch.zeros(1), 2], "b": (3,)}
    assert private_torch.pytree.tree_leaves(tree)[1:] == [2, 3]
    assert private_torch.pytree.tree_is_leaf(2) and not private_torch.pytree.tree_is_leaf(tree)
    assert private_torch.pytree.tree_map(lambda leaf: 1, tree) == {"a": [1, 1], "b": (1,)}


@pytest.mark.parametrize(
    ("canary", "broken"),
    [
        (constants, "torch.compile would trace the probes of the backends, and break its graph at them"),
        (exports, "compiled layers would compute with the reference, or exported graphs need this library"),
        (transforms, "torch.func and forward-mode differentiation would take results of the operators for constants"),
        (observers, "modes and profilers would miss operators that bypass the dispatcher"),
        (keys, "tensor subclasses and lazy views would be handed to kernels as if they were plain tensors"),
        (backward_passes, "sites would not find the maps of their own forward pass under checkpointing"),
        (global_hooks, "layers would not be called where global hooks watch them"),
        (
            hooks_of_a_module,
            "eject_sia would leave hooks behind, or layers with hooks be computed without calling them",
        ),
        (parts_of_a_module, "inject_sia and eject_sia would not find or remove modules"),
        (compiled_in_place, "the dry run would run models compiled in place by their compiled code"),
        (compiled_code, "compiled code would run without the new hooks, or be discarded for nothing"),
        (concatenations, "tokens behind those of the patches would be taken for patches"),
        (bases, "hosts of stages would be misjudged, or the dry run change statistics"),
        (fake_tensors, "the dry run would need memory and time for real activations"),
        (trees, "tensors in nested inputs and outputs would not be found"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_canary(canary: Callable[[], None], broken: str) -> None:
    try:
        canary()
    except Exception as error:
        pytest.fail(f"{canary.__name__} of private torch changed, so that {broken}: {type(error).__name__}: {error}")
