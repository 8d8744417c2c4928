"""Launching a kernel, on the device that its tensors are on; or noting down what would be launched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from sia_layers.kernels.triton.configs import ceil_div, warps

WIDEST_GRID = 2**22  # programs along the first grid axis: AMD allows 2^32 threads


class Launch(NamedTuple):
    """One launch of a kernel: how many programs, of how many outputs each, and the arguments by name."""

    kernel: Any
    programs: int
    elements: int
    arguments: dict[str, Any]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return warps(self.kernel.__name__, self.arguments.get("K"), self.elements)


_notes: ContextVar[list[Launch] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Launch nothing within, and give the list of what would have been launched."""
    notes: list[Launch] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, as TRITON_INTERPRET=1 asks it to."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def launch(kernel: Any, device: torch.device, programs: int, elements: int, **arguments: Any) -> None:
    """Run a kernel, or note it down."""
    planned = Launch(kernel, programs, elements, arguments)
    notes = _notes.get()
    if notes is not None:
        notes.append(planned)
        return
    if "NVIDIA" in arguments:
        arguments["NVIDIA"] = torch.version.cuda is not None and not interpreted()
    columns = min(programs, WIDEST_GRID)
    with _on(device):
        kernel[(columns, ceil_div(programs, columns))](**arguments, num_warps=planned.num_warps)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
