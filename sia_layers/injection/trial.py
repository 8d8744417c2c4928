"""The dry run: a forward pass on fake tensors that tells what the sites give and whether they lie on the trunk."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from sia_layers.injection.errors import DryRunError, ReentrantCheckpointError

Node = Any  # of autograd's graph


class Firing(NamedTuple):
    """One run of a watched module.

    Attributes:
        inputs: the positional arguments of its forward.
        output: what it gave, or for the input side of a module what it was given.
        node: where that output begins in autograd's graph; None if it has no gradient.
        order: how many watched modules ran before.
    """

    inputs: tuple[Any, ...]
    output: Any
    node: Node
    order: int


class Trial(NamedTuple):
    """What a dry run found.

    Attributes:
        firings: of each watched module and side.
        outputs: where each tensor of the model's output ends in autograd's graph.
        start: where the model's input is in it.
    """

    firings: dict[tuple[str, str], list[Firing]]
    outputs: list[Node]
    start: Node

    def decides(self, node: Node) -> bool:
        """Whether some output of the model depends on its input through this node alone."""
        for output in self.outputs:
            without = reachable(output, node)
            if self.start not in without and node in without:
                return True
        return False


def reachable(output: Node, barrier: Node) -> set[Node]:
    """The nodes that an output was computed from, as far as they are not behind the barrier."""
    seen: set[Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node is not barrier:
            waiting.extend(following for following, _ in node.next_functions)
    return seen


def run(model: nn.Module, inputs: tuple[Any, ...], watched: Sequence[tuple[str, str]]) -> Trial:
    """Run the model once on fake tensors.

    Nothing of the model changes: no statistics, modes, hooks or gradients, nor any generator of random numbers.

    Args:
        model: any model.
        inputs: the positional arguments of its forward; shapes, dtypes and devices count.
        watched: names of modules with ``"output"`` or ``"input"``.

    Raises:
        DryRunError: the model failed.
        ReentrantCheckpointError: part of it hides its graph.
    """
    firings: dict[tuple[str, str], list[Firing]] = {key: [] for key in watched}
    handles, count = [], [0]

    def noted(key: tuple[str, str], arguments: tuple[Any, ...], value: Any) -> Any:
        first = value[0] if isinstance(value, tuple) and value else value
        node = None
        if isinstance(first, Tensor) and first.is_floating_point():
            first = first * 1  # a node of its own, whatever is done to the tensor in place
            node = first.grad_fn
            value = (first, *value[1:]) if isinstance(value, tuple) else first
        firings[key].append(Firing(arguments, value, node, count[0]))
        count[0] += 1
        return value

    def after(key: tuple[str, str]) -> Callable[..., Any]:
        return lambda module, arguments, output: noted(key, arguments, output)

    def before(key: tuple[str, str]) -> Callable[..., Any]:
        return lambda module, arguments: (noted(key, arguments, arguments[0]), *arguments[1:])

    modules = dict(model.named_modules(remove_duplicate=False))
    try:
        for key in watched:
            module = modules[key[0]]
            if key[1] == "output":
                handles.append(module.register_forward_hook(after(key), prepend=True))
            else:
                handles.append(module.register_forward_pre_hook(before(key)))
        outputs, start = _forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if any(node.name() == "CheckpointFunctionBackward" for end in outputs for node in reachable(end, None)):
        raise ReentrantCheckpointError(
            "the model is checkpointed with use_reentrant=True, whose parts run twice and without a graph; "
            "checkpoint with use_reentrant=False"
        )
    return Trial(firings, outputs, start)


def _forward(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Node], Node]:
    tensors = [*model.parameters(), *model.buffers()]
    on_meta = bool(tensors) and all(tensor.is_meta for tensor in tensors)
    with _unchanged(model), torch.inference_mode(False), torch.enable_grad():
        mode = contextlib.nullcontext() if on_meta else FakeTensorMode(allow_non_fake_inputs=True)
        with mode:

            def stand_in(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                device = "meta" if on_meta else value.device
                fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                return fake.requires_grad_() if fake.is_floating_point() else fake

            fakes = pytree.tree_map(stand_in, inputs)
            leaf = next((fake for fake in pytree.tree_leaves(fakes) if isinstance(fake, Tensor)), None)
            if leaf is None or not leaf.requires_grad:
                raise DryRunError("example_input must be a floating tensor, or a tuple that begins with one")
            first = leaf * 1  # models may work on their input in place, which a leaf does not allow
            fakes = pytree.tree_map(lambda value: first if value is leaf else value, fakes)
            try:
                with torch.random.fork_rng(devices=[]):
                    output = nn.Module._call_impl(entry(model), *fakes)  # type: ignore[no-untyped-call]
            except Exception as error:
                raise DryRunError(_why(model, inputs, error)) from error
    return [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None], first.grad_fn


def _why(model: nn.Module, inputs: tuple[Any, ...], error: Exception) -> str:
    """Why a dry run failed, in a line."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if kind.startswith(("DataDependent", "DynamicOutputShape")):
        return (
            f"the forward of {type(model).__name__} depends on values ({lines[0] if lines else kind}), and the dry run "
            "has none; inject into the part of the model that does not, such as its backbone"
        )
    shapes = ", ".join(str(tuple(value.shape)) for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor))
    return (
        f"{type(model).__name__} failed on an input of shape {shapes}: {kind}: {lines[0] if lines else ''}; "
        "give an example_input that it takes"
    )


def entry(model: nn.Module) -> nn.Module:
    """What the dry run runs: of torchvision's detectors and segmenters the backbone alone."""
    backbone = model._modules.get("backbone")
    headed = type(model).__module__.startswith(("torchvision.models.detection.", "torchvision.models.segmentation."))
    return backbone if headed and backbone is not None else model


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in _tensors(value)]
    return (
        [tensor for value in vars(output).values() for tensor in _tensors(value)] if hasattr(output, "__dict__") else []
    )


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, and leave modules, their modes and caches, and Python's random numbers as they were."""
    before = [(module, _contents(module.__dict__)) for module in model.modules()]
    state = random.getstate()
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, contents in before:
            _restore(module.__dict__, contents)
        random.setstate(state)


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """A module's attributes, and of those that may be filled in a forward pass (caches, buffers) what they hold."""
    kinds = (dict, list, set)
    return {name: (value, value.copy() if isinstance(value, kinds) else None) for name, value in attributes.items()}


def _restore(attributes: dict[str, Any], contents: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in attributes if name not in contents]:
        del attributes[name]
    for name, (value, held) in contents.items():
        if isinstance(value, list):
            value[:] = held
        elif held is not None:
            value.clear()
            value.update(held)
        attributes[name] = value
