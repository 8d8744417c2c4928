"""The dry run: a forward pass on fake tensors that shows what modules return and what the output depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers.injection.errors import DryRunError, ReentrantCheckpointError
from sia_layers.injection.families import entry
from sia_layers.injection.inputs import Inputs
from sia_layers.injection.protection import fake_parameters, forget_fakes, unchanged
from sia_layers.kernels.private_torch import FakeTensorMode, call_eagerly, pytree, running_eagerly

Node = Any  # a node of autograd's graph
Key = tuple[str, str]  # the name of a module, and "output" or "input"


class Firing(NamedTuple):
    """One run of a watched module.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        value: the output, or for the input side the first argument.
        nodes: the autograd node of each floating-point tensor in the value, in order.
        order: the number of earlier firings in the dry run.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    nodes: tuple[Node, ...]
    order: int


class Part(NamedTuple):
    """A module as a part of the graph: the nodes of its inputs and of its outputs over all its runs."""

    starts: frozenset[Node]
    ends: tuple[Node, ...]

    def decided_by(self, barrier: Iterable[Node]) -> bool:
        """Tell whether some output depends on the inputs through these nodes alone."""
        nodes = frozenset(barrier)
        for end in self.ends:
            seen = reachable(end, nodes)
            if not self.starts & (seen - nodes) and nodes & seen:
                return True
        return False

    def depends_on(self, nodes: Iterable[Node]) -> bool:
        """Tell whether some output depends on one of these nodes."""
        wanted = frozenset(nodes)
        return any(wanted & reachable(end, frozenset()) for end in self.ends)


class DryRun(NamedTuple):
    """The result of a dry run.

    Attributes:
        firings: the firings of each watched module and side.
        parts: each requested part by name; ``""`` is everything that ran.
        shapes: for each module whose shapes were requested, the shape and order of each output.
        makers: for each requested part, the outermost modules that produced the tensors it returned.
    """

    firings: dict[Key, list[Firing]]
    parts: dict[str, Part]
    shapes: dict[str, list[tuple[tuple[int, ...], int]]]
    makers: dict[str, list[str]]


def reachable(end: Node, barrier: frozenset[Node]) -> set[Node]:
    """Return the nodes that an output was computed from, without those behind the barrier."""
    seen: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node not in barrier:
            waiting.extend(following for following, _ in node.next_functions)
    return seen


def run(
    model: nn.Module,
    inputs: Inputs,
    watched: Iterable[Key],
    parts: Iterable[str] = (),
    shapes: Iterable[str] = (),
    features: Iterable[str] = (),
) -> DryRun:
    """Run the model once on fake tensors.

    Nothing changes: no buffers, modes, hooks or gradients of the model, and no random number generator.

    Args:
        model: any model.
        inputs: the arguments, of which only shapes, dtypes and devices matter.
        watched: names of modules whose firings to record, with ``"output"`` or ``"input"``.
        parts: names of modules to record as parts of the graph.
        shapes: names of modules whose output shapes to record.
        features: names of modules whose outputs to trace to the modules that produced them.

    Raises:
        DryRunError: the model failed.
        ReentrantCheckpointError: a part of the model uses reentrant checkpointing, which hides its graph.
    """
    asked = model, tuple(watched), tuple(parts), tuple(shapes), tuple(features)
    try:
        recorder, whole = _recorded(asked, inputs, training=False)
    except _ValuesNeededError as refusal:
        try:  # heads that turn maps into boxes in evaluation mode return the maps themselves in training mode
            recorder, whole = _recorded(asked, inputs, training=True)
        except DryRunError:
            raise DryRunError(str(refusal)) from refusal.__cause__
    ends = [end for part in (whole, *recorder.parts.values()) for end in part.ends]
    if any(node.name() == "CheckpointFunctionBackward" for end in ends for node in reachable(end, frozenset())):
        raise ReentrantCheckpointError(
            "the model uses checkpointing with use_reentrant=True, which runs its parts twice and without a graph; "
            "set use_reentrant=False"
        )
    found = {"": whole, **recorder.parts}
    return DryRun(recorder.firings, found, recorder.shapes, recorder.makers)


class _ValuesNeededError(DryRunError):
    """Raised if the forward pass depends on values, which fake tensors do not have."""


def _recorded(asked: tuple[Any, ...], inputs: Inputs, training: bool) -> tuple[_Recorder, Part]:
    recorder = _Recorder(*asked)
    try:
        recorder.attach()
        return recorder, _forward(asked[0], inputs, recorder, training)
    finally:
        recorder.remove()


class _Recorder:
    """Hooks that record what a dry run is to find."""

    def __init__(
        self,
        model: nn.Module,
        watched: Iterable[Key],
        parts: Iterable[str],
        shapes: Iterable[str],
        features: Iterable[str],
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.firings: dict[Key, list[Firing]] = {key: [] for key in watched}
        self.part_names, self.feature_names = [name for name in parts if name], list(features)
        self.parts = {name: Part(frozenset(), ()) for name in self.part_names}
        self.shapes: dict[str, list[tuple[tuple[int, ...], int]]] = {name: [] for name in shapes}
        self.makers: dict[str, list[str]] = {}
        self.given: list[tuple[str, Tensor]] = []
        self.handles: list[Any] = []
        self.count = 0

    def attach(self) -> None:
        for name in self.part_names:
            self._before(name, self._part_begins(name))
        for name, side in self.firings:
            if side == "output":
                self._after(name, self._fired((name, side)))
            else:
                self._before(name, self._given((name, side)))
        for name in self.shapes:
            self._after(name, self._shaped(name))
        for name in self.part_names:
            self._after(name, self._part_ends(name), prepend=False)
        for scope in self.feature_names:
            for name in self.modules:
                if name != scope and (not scope or name.startswith(f"{scope}.")):
                    self._after(name, self._made(name), prepend=False)
            self._after(scope, self._traced(scope), prepend=False)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def complete(self) -> bool:
        """Tell whether every part has run, so that a later failure does no harm."""
        return bool(self.part_names) and all(part.ends for part in self.parts.values())

    def _after(self, name: str, hook: Callable[..., Any], prepend: bool = True) -> None:
        module = self.modules[name]
        self.handles.append(module.register_forward_hook(hook, prepend=prepend, with_kwargs=True))

    def _before(self, name: str, hook: Callable[..., Any]) -> None:
        self.handles.append(self.modules[name].register_forward_pre_hook(hook, with_kwargs=True))

    def _fired(self, key: Key) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return self._note(key, args, kwargs, output)

        return hook

    def _given(self, key: Key) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (self._note(key, args, kwargs, args[0]), *args[1:]), kwargs

        return hook

    def _note(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        value, nodes = _with_nodes(value)
        self.firings[key].append(Firing(args, kwargs, value, nodes, self.count))
        self.count += 1
        return value

    def _part_begins(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            (args, kwargs), nodes = _with_nodes((args, kwargs))
            part = self.parts[name]
            self.parts[name] = part._replace(starts=part.starts | frozenset(nodes))
            return args, kwargs

        return hook

    def _part_ends(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            part = self.parts[name]
            self.parts[name] = part._replace(ends=(*part.ends, *_ends(output)))

        return hook

    def _shaped(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if isinstance(output, Tensor):
                self.shapes[name].append((tuple(output.shape), self.count))

        return hook

    def _made(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            passes_on = any(output is argument for argument in args) and not getattr(module, "inplace", False)
            if isinstance(output, Tensor) and not passes_on:
                self.given.append((name, output))

        return hook

    def _traced(self, scope: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            by_id = {id(tensor): name for name, tensor in self.given}  # outer modules come last and take precedence
            self.makers[scope] = [by_id[id(tensor)] for tensor in _tensors(output) if id(tensor) in by_id]

        return hook


def _with_nodes(value: Any) -> tuple[Any, tuple[Node, ...]]:
    """Give every floating-point tensor an autograd node of its own, which later in-place operations do not change."""
    nodes: list[Node] = []

    def marked(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        leaf = leaf * 1
        nodes.append(leaf.grad_fn)
        return leaf

    return pytree.tree_map(marked, value), tuple(nodes)


def _forward(model: nn.Module, inputs: Inputs, recorder: _Recorder, training: bool) -> Part:
    tensors = [*model.parameters(), *model.buffers()]
    _refuse_lazy(model)
    on_meta = bool(tensors) and all(tensor.is_meta for tensor in tensors)
    picture = inputs.picture
    starts: list[Node] = []
    with contextlib.ExitStack() as stack:
        stack.callback(forget_fakes, model)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(unchanged(model, training))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(running_eagerly())
        mode = contextlib.nullcontext() if on_meta else FakeTensorMode(allow_non_fake_inputs=True)
        stack.enter_context(mode)

        def stand_in(tensor: Tensor) -> Tensor:
            device = "meta" if on_meta else tensor.device
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if not fake.is_floating_point():
                return fake
            fake = fake.requires_grad_() * 1  # models may change their input in place, which a leaf does not allow
            if tensor is picture:
                starts.append(fake.grad_fn)
            return fake

        fakes = inputs.mapped(stand_in)
        if not on_meta:
            fake_parameters(model)
        try:
            with torch.random.fork_rng(devices=[]):
                part = model.get_submodule(entry(model))
                output = call_eagerly(part, fakes.args, fakes.kwargs)
        except Exception as error:
            if recorder.complete() and _depends_on_values(error):
                return Part(frozenset(starts), ())
            refusal = _ValuesNeededError if _depends_on_values(error) else DryRunError
            raise refusal(_why(model, inputs, error)) from error
    return Part(frozenset(starts), tuple(_ends(output)))


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise DryRunError(
                f"{name!r} has no shape before the first forward pass (it belongs to a lazy module); run the model "
                "once on a real input before injecting"
            )


def _depends_on_values(error: Exception) -> bool:
    """Tell whether a forward pass failed because fake tensors have no values."""
    kind, text = type(error).__name__, str(error)
    return kind.startswith(("DataDependent", "DynamicOutputShape", "GuardOnDataDependent")) or (
        "FakeTensor" in text and "invalid combination of arguments" not in text
    )


def _why(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """Say in one line why a dry run failed."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    hooked = _hooked_module(model, error)
    if hooked is not None:
        return (
            f"a hook on {hooked!r} failed in a dry run, where tensors have no values ({kind}: "
            f"{lines[0] if lines else ''}); remove it, inject, and register it again"
        )
    if _depends_on_values(error):
        return (
            f"the forward pass of {type(model).__name__} depends on values ({lines[0] if lines else kind}), which a "
            "dry run does not have; inject into a part of the model that does not, such as its backbone"
        )
    if _in_a_layer(error):
        return f"SIA cannot gate a map of this {type(model).__name__}: {kind}: {lines[0] if lines else ''}"
    return (
        f"{type(model).__name__} failed on an input of shape {inputs.described()}: {kind}: "
        f"{lines[0] if lines else ''}; {inputs.advice}"
    )


def _in_a_layer(error: Exception) -> bool:
    """Tell whether an error comes from an attention layer itself, and not from the model around it."""
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "sia_layers.attention" in modules or "sia_layers.frequency" in modules


def _hooked_module(model: nn.Module, error: Exception) -> str | None:
    """Return the name of the module whose forward hook raised an error; None if no hook of others did."""
    failed = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    for name, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            ours = str(getattr(hook, "__module__", "")).startswith("sia_layers.")
            if not ours and getattr(hook, "__code__", None) in failed:
                return str(name)
    return None


def _ends(output: Any) -> list[Node]:
    return [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        values: Iterable[Any] = output.values()
    elif isinstance(output, (list, tuple, set, frozenset, deque)):
        values = output
    elif dataclasses.is_dataclass(output):
        values = [getattr(output, field.name, None) for field in dataclasses.fields(output)]
    else:
        values = vars(output).values() if hasattr(output, "__dict__") else []
    return [tensor for value in list(values) for tensor in _tensors(value)]
