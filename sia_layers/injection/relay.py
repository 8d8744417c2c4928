"""Hand the self-information of one site on to the next, within one forward pass and no other.

A forward pass runs its sites one after the other in one thread, so each thread keeps what is handed on in a slot
of its own. The first site starts a new pass, so nothing that a failed pass left behind is ever used.

The slot is a plain object, because torch.compile replays what compiled code writes to a plain object and drops what
it writes to a ``threading.local``: the maps survive graph breaks and regions that are compiled apart. The relay
belongs to the hosts, not to the sites, because tools copy a site without its host (PEFT's ``modules_to_save``).

Checkpointing runs parts of a pass again, during the backward pass and perhaps after other forward passes. For that
the maps are also left at the autograd nodes of each site's input and output, where the node that asks for the
recomputation finds those of its own pass by walking back along its own graph. They are freed with the graph.
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
    """What a forward pass hands on.

    Attributes:
        grids: rows and columns of the patches (frames before them, of a video), by the module that made them.
        maps: the self-information of every site so far, (N, C, H, W), the frames of a video among the samples.
        frames: of each of the maps: how many of its samples are one video.
    """

    grids: tuple[tuple[str, Grid], ...] = ()
    maps: tuple[Tensor, ...] = ()
    frames: tuple[int, ...] = ()

    def grid_of(self, patches: str | None) -> Grid | None:
        """Return the grid of the patches that a module has made, or None."""
        for name, grid in self.grids:
            if name == patches:
                return grid
        return None

    def with_grid(self, patches: str, grid: Grid) -> Passed:
        """Return the same with the grid of the patches that a module has just made."""
        others = tuple(entry for entry in self.grids if entry[0] != patches)
        return Passed((*others, (patches, grid)), self.maps, self.frames)

    def with_map(self, info: Tensor, frames: int) -> Passed:
        """Return the same with the self-information of one more site."""
        return Passed(self.grids, (*self.maps, info), (*self.frames, frames))

    def until(self, sites: int) -> Passed:
        """Return what the first ``sites`` sites handed on."""
        return Passed(self.grids, self.maps[:sites], self.frames[:sites])


class Slot:
    """What one thread's forward pass has handed on so far."""

    def __init__(self) -> None:
        self.passed: Passed | None = None


class Relay(threading.local):
    """What the hosts of one model share; each thread has a slot of its own, and copies start empty."""

    def __init__(self) -> None:
        self.slot = Slot()

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        return Relay, ()

    def leave(self, passed: Passed | None, output: Tensor) -> None:
        """Leave ``passed`` for the next site; ``output`` is the tensor that the next site is computed from."""
        if recomputing():
            _left_at(current_node())[self, "again"] = passed
        else:
            self.slot.passed = passed
        self.remember(passed, output)

    def remember(self, passed: Passed | None, tensor: Tensor) -> None:
        """Leave ``passed`` at a tensor's node, for a recomputation of what comes after it."""
        if passed is not None and not _hidden() and tensor.grad_fn is not None:
            _left_at(tensor.grad_fn)[self] = passed

    def take(self, sites: int) -> Passed | None:
        """Return what the first ``sites`` sites of this forward pass have left, or None.

        While a checkpoint is recomputed, prefer what the recomputation itself has left; otherwise walk the autograd
        graph back to what the original pass left.
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
    """Tell whether this runs inside a backward pass, as the recomputation of a checkpoint does."""
    return not _hidden() and graph_task() != -1


def _left_at(node: Any) -> dict[Any, Any]:
    left: dict[Any, Any] = node.metadata
    return left


def _hidden() -> bool:
    """Tell whether autograd's graph is out of sight: compilers and exporters trace one of their own."""
    return torch.compiler.is_compiling() or ops.spelt_out()
