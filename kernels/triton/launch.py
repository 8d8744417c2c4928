"""Launching a kernel, on the device that its tensors are on; or noting down what would be launched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sia_layers.kernels.triton.configs import DISTANCE_REGISTERS, MOST_REGISTERS, ceil_div, warps

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
        return warps(self.elements, windowed="K" in self.arguments)

    def compile_options(self, nvidia: bool) -> dict[str, int]:
        """What the compiler is told beside the arguments."""
        options = {"num_warps": self.num_warps}
        return options | {"maxnreg": self._most_registers} if nvidia and self._most_registers else options

    @property
    def _most_registers(self) -> int | None:
        """What ptxas may take for a thread; None leaves it to ptxas."""
        given, name = self.arguments, self.kernel.__name__
        if name == "distances" or given.get("DISTANCE"):
            return DISTANCE_REGISTERS
        return (
            MOST_REGISTERS.get((name, given["K"], given["x"].dtype))
            if given.get("CHANNELS_LAST") and "K" in given
            else None
        )


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
    nvidia = torch.version.cuda is not None
    options = planned.compile_options(nvidia and not interpreted())
    arguments = for_target(arguments, nvidia, interpreted())
    columns = min(programs, WIDEST_GRID)
    with _on(device), _exact(arguments) if interpreted() else nullcontext(arguments) as arguments:
        kernel[(columns, ceil_div(programs, columns))](**arguments, **options)


def for_target(arguments: dict[str, Any], nvidia: bool, interpreted: bool = False) -> dict[str, Any]:
    """The arguments with those constants set that depend on whose device it is."""
    found = dict(arguments)
    if "NVIDIA" in found:
        found["NVIDIA"] = nvidia and not interpreted
    if "MASKED" in found:
        # On AMD a mask is a branch.
        found["MASKED"] = found["MASKED"] and (nvidia or interpreted)
    if "NARROW" in found:
        # NVIDIA's loads add no offset of a lane's own.
        found["NARROW"] = found["NARROW"] and (interpreted or not nvidia)
    return found


@contextmanager
def _exact(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments for the interpreter, with float32 in place of bfloat16: it would truncate where GPUs round."""
    halves = {
        name: value.data.as_strided((_span(value),), (1,))
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype == torch.bfloat16
    }
    wide = {name: half.float() for name, half in halves.items()}
    maps = {name: flat.as_strided(arguments[name].shape, arguments[name].stride()) for name, flat in wide.items()}
    yield arguments | maps
    for name, half in halves.items():
        half.copy_(wide[name])


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
