"""How the self-information of one site reaches the next one, within one forward pass and no other.

A forward pass goes through its sites one after the other in one thread, so a thread's own slot holds the maps
between them; the first site starts anew, so that what a failed pass left behind is never used.

Checkpointing runs parts of a pass again, during the backward pass and maybe after other forward passes. For it
the maps are also left at the autograd node of each site's output, where the node that asks for the recomputation
finds those of its own pass by walking back along its own graph. They go when the graph goes.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sia_layers.kernels import ops


class Passed(NamedTuple):
    """What a forward pass hands on: the grid of the patches, and the self-information of every site so far."""

    grid: tuple[int, int] | None = None
    maps: tuple[Tensor, ...] = ()


class Relay(threading.local):
    """What the sites of one model share; each thread has a slot of its own, and copies start empty."""

    def __init__(self) -> None:
        self.passed: Passed | None = None

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        return Relay, ()

    def leave(self, passed: Passed | None, output: Tensor) -> None:
        """Hand on what the next site needs; ``output`` is what it will be computed from."""
        if recomputing():
            _left_at(torch._C._current_autograd_node())[self, "again"] = passed
        else:
            self.passed = passed
        if passed is not None and not _hidden() and output.grad_fn is not None:
            _left_at(output.grad_fn)[self] = passed

    def take(self, sites: int) -> Passed | None:
        """What this forward pass has handed on, if it went through that many sites before.

        In the recomputation of a checkpoint, what it has handed on itself, or else what the pass that it is of had.
        """
        if not recomputing():
            return self.passed
        passed = _left_at(torch._C._current_autograd_node()).get((self, "again"))
        if passed is None or len(passed.maps) < sites:
            passed = self._recalled(sites)
        return passed and passed._replace(maps=passed.maps[:sites])

    def _recalled(self, sites: int) -> Passed | None:
        waiting: list[Any] = [torch._C._current_autograd_node()]
        seen: set[Any] = set()
        found: Passed | None = None
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            passed = _left_at(node).get(self)
            if passed is not None and (found is None or len(passed.maps) > len(found.maps)):
                found = passed
                if len(passed.maps) >= sites:
                    return found
            waiting.extend(following for following, _ in node.next_functions)
        return found


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as the recomputation of a checkpoint does."""
    return not _hidden() and torch._C._current_graph_task_id() != -1


def _left_at(node: Any) -> dict[Any, Any]:
    """What has been left at a node of autograd's graph."""
    left: dict[Any, Any] = node.metadata
    return left


def _hidden() -> bool:
    """Whether there is no graph of autograd to leave anything at: compilers and exporters trace one of their own."""
    return torch.compiler.is_compiling() or ops.spelt_out()


def is_proxy(value: Any) -> bool:
    """Whether torch.fx traces this value."""
    return isinstance(value, torch.fx.Proxy)
