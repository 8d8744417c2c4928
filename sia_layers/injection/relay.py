"""Pass the self-information of each site on to the next, within one forward pass only.

A forward pass runs its sites one after the other in one thread, so each thread keeps the maps in a slot of its own.
The first site starts a new pass, so the maps that a failed pass left behind are never used.

The slot is a plain object. torch.compile replays what compiled code writes to a plain object but drops what it writes
to a ``threading.local``, so the maps survive graph breaks and regions that are compiled separately. The relay belongs
to the hosts and not to the sites, because some tools copy a site without its host (PEFT's ``modules_to_save``).

Checkpointing recomputes parts of a pass during the backward pass, possibly after other forward passes. So the maps
are also left at the autograd nodes of each site's input and output. A recomputation walks back along the graph from
the node that triggers it, and finds the maps of its own pass there. They are freed with the graph.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sia_layers.injection.layouts import Grid
from sia_layers.injection.names import RELAY
from sia_layers.kernels import ops
from sia_layers.kernels.private_torch import current_node, graph_task


class Passed(NamedTuple):
    """What a forward pass passes on from site to site.

    Attributes:
        grids: the grid of the patches, by the module that made them.
        maps: the self-information (N, C, H, W) of every site so far; the frames of a video are samples.
        frames: for each map, the number of samples that form one video.
    """

    grids: tuple[tuple[str, Grid], ...] = ()
    maps: tuple[Tensor, ...] = ()
    frames: tuple[int, ...] = ()

    def grid_of(self, patches: str | None) -> Grid | None:
        """Return the grid of the patches of a module; None if it is unknown."""
        for name, grid in self.grids:
            if name == patches:
                return grid
        return None

    def with_grid(self, patches: str, grid: Grid) -> Passed:
        """Return a copy with the grid of the patches of a module."""
        others = tuple(entry for entry in self.grids if entry[0] != patches)
        return Passed((*others, (patches, grid)), self.maps, self.frames)

    def with_map(self, info: Tensor, frames: int) -> Passed:
        """Return a copy with the self-information of one more site."""
        return Passed(self.grids, (*self.maps, info), (*self.frames, frames))

    def until(self, sites: int) -> Passed:
        """Return a copy with the maps of the first ``sites`` sites alone."""
        return Passed(self.grids, self.maps[:sites], self.frames[:sites])


class Slot:
    """What the forward pass of one thread has passed on so far."""

    def __init__(self) -> None:
        self.passed: Passed | None = None


class Relay(threading.local):
    """What the hosts of a model share. Each thread has a slot of its own, and copies and pickles start empty."""

    def __init__(self) -> None:
        self.slot = Slot()

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        return Relay, ()

    def __fx_create_arg__(self, tracer: torch.fx.Tracer) -> torch.fx.Node:
        """Return the node of this relay in a graph that torch.fx traces again, as it does to load a saved one."""
        name = next(name for name, module in tracer.root.named_modules() if getattr(module, RELAY, None) is self)
        return tracer.create_node("get_attr", f"{name}.{RELAY}", (), {})

    def leave(self, passed: Passed | None, output: Tensor) -> None:
        """Leave ``passed`` for the next site, which depends on the tensor ``output``."""
        if recomputing():
            _left_at(current_node())[self, "again"] = passed
        else:
            self.slot.passed = passed
        self.remember(passed, output)

    def remember(self, passed: Passed | None, tensor: Tensor) -> None:
        """Leave ``passed`` at the autograd node of a tensor, for recomputations of what follows it."""
        if passed is not None and not _hidden() and tensor.grad_fn is not None:
            _left_at(tensor.grad_fn)[self] = passed

    def take(self, sites: int) -> Passed | None:
        """Return what the first ``sites`` sites of this forward pass have left, or None.

        While a checkpoint is being recomputed, prefer what the recomputation itself has left; otherwise walk the
        autograd graph back to what the original pass left.
        """
        if not recomputing():
            return self.slot.passed
        passed = _left_at(current_node()).get((self, "again"))
        if passed is None or len(passed.maps) < sites:
            passed = self._recalled(sites)
        return passed and passed.until(sites)

    def _recalled(self, sites: int) -> Passed | None:
        waiting: list[Any] = [current_node()]
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


def relay_of(module: nn.Module) -> Relay:
    """Return the relay of a host, or of a module that makes patches."""
    relay: Relay = getattr(module, RELAY)
    return relay


def recomputing() -> bool:
    """Tell whether this code runs inside a backward pass, as the recomputation of a checkpoint does."""
    return not _hidden() and graph_task() != -1


def _left_at(node: Any) -> dict[Any, Any]:
    left: dict[Any, Any] = node.metadata
    return left


def _hidden() -> bool:
    """Tell whether autograd's graph is not accessible, because a compiler or exporter traces a graph of its own."""
    return torch.compiler.is_compiling() or ops.inlined()
