"""The private names of PyTorch that the library needs, each behind a name that says what it is for.

PyTorch may change any of them in a new release and has no public substitute. ``tests/kernels/test_private_torch.py``
exercises each one, and its failure says which one changed and what breaks in the library.

Not listed here: the dictionaries ``_parameters``, ``_buffers`` and ``_modules`` of a module, which the test covers too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

__all__ = [
    "BATCH_NORM",
    "CONVOLUTION",
    "DROPOUT",
    "HOOKS",
    "NORM",
    "FakeTensor",
    "FakeTensorMode",
    "any_global_hook",
    "any_transform",
    "call_eagerly",
    "concatenation",
    "constant_when_compiled",
    "current_node",
    "dispatch_keys",
    "dispatch_observed",
    "exporting",
    "forget_compiled_call",
    "forget_compiled_code",
    "graph_task",
    "hook_tables",
    "pytree",
]

Function = TypeVar("Function", bound=Callable[..., object])

# The base classes of torch's layers, whatever their number of axes.
CONVOLUTION: Final = nn.modules.conv._ConvNd
NORM: Final = nn.modules.batchnorm._NormBase
BATCH_NORM: Final = nn.modules.batchnorm._BatchNorm
DROPOUT: Final = nn.modules.dropout._DropoutNd
# The dictionaries in which a module keeps its hooks.
HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def constant_when_compiled(function: Function) -> Function:
    """Let torch.compile call a function while it traces, and treat the result as a constant.

    This sets the mark of torch.compiler.assume_constant_result, which would import the compiler when called here.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def exporting() -> bool:
    """Tell whether torch.export is tracing, for ONNX or for itself.

    Call this in place of torch.compiler.is_exporting, which is always True in code that torch.compile of 2.10 and
    earlier traces.
    """
    return torch.compiler.is_exporting()


def any_transform() -> bool:
    """Tell whether torch.func's transforms or forward-mode differentiation are active."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def dispatch_observed() -> bool:
    """Tell whether a dispatch mode, a function mode or the profiler observes calls of operators."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
    )


def dispatch_keys(x: Tensor) -> int:
    """Return the set of dispatch keys of a tensor, as a number."""
    return torch._C._dispatch_keys(x).raw_repr()


def current_node() -> Any:
    """Return the node of the autograd graph that the current backward pass evaluates."""
    return torch._C._current_autograd_node()


def graph_task() -> int:
    """Return the number of the backward pass that this thread evaluates; -1 outside of any."""
    return torch._C._current_graph_task_id()


def concatenation(node: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return the axis and the result's shape if a node of the autograd graph is that of torch.cat, else None."""
    if node.name() != "CatBackward0":
        return None
    shape = tuple(node._input_metadata[0].shape)
    axis = node._saved_dim  # without a sign, of 64 bits
    return (axis if axis < len(shape) else axis - 2**64 + len(shape)), shape


def is_functional(tensor: Tensor) -> bool:
    """Tell whether a tensor is a wrapper by torch.func.functionalize."""
    return torch._is_functional_tensor(tensor)


def any_global_hook() -> bool:
    """Tell whether hooks are registered for all modules."""
    return bool(nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def hook_tables(module: nn.Module) -> tuple[tuple[dict[int, Any], dict[int, bool]], ...]:
    """Return a module's forward hooks and its forward pre-hooks, each with the table of those that take keywords."""
    return (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    )


def running_eagerly() -> contextlib.AbstractContextManager[Any]:
    """Run the parts of a model that torch.compile has wrapped without it, with all of their hooks."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def call_eagerly(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module with its hooks, even if ``module.compile()`` has replaced its call."""
    return nn.Module._call_impl(module, *args, **kwargs)  # type: ignore[no-untyped-call]


def forget_compiled_code() -> None:
    """Make torch.compile trace all functions again, because it does not notice that hooks of modules come or go.

    A reset concerns the whole process, so leave it out if torch.compile has compiled nothing.
    """
    frames = sys.modules.get("torch._dynamo.convert_frame")
    if frames is not None and frames.input_codes.seen:
        torch.compiler.reset()


def forget_compiled_call(module: nn.Module) -> None:
    """Undo ``module.compile()``."""
    module.__dict__.pop("_compiled_call_impl", None)
