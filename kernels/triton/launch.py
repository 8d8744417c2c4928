"""Launch a kernel on the device of its tensors, or note what would be launched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sia_layers.kernels.triton.configs import ceil_div, warps

WIDEST_GRID = 2**22  # programs along the first grid axis: AMD allows 2^32 threads

Arguments = Mapping[str, Any]  # of a kernel, by name


class Kernel(NamedTuple):
    """A Triton kernel and what its launch depends on.

    Attributes:
        name: of the function.
        jit: the function as Triton compiles it.
        windowed: whether it reads a window of each pixel.
        registers: returns its ``maxnreg`` on NVIDIA for given arguments, or None for ptxas's own limit.
    """

    name: str
    jit: Any
    windowed: bool
    registers: Callable[[Arguments], int | None] | None = None


class Launch(NamedTuple):
    """One launch of a kernel: the number of programs, the outputs of each, and the arguments by name."""

    kernel: Kernel
    programs: int
    elements: int
    arguments: dict[str, Any]

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return warps(self.elements, self.kernel.windowed)

    def compile_options(self, nvidia: bool) -> dict[str, int]:
        """Return the options of the compiler."""
        limit = self.kernel.registers(self.arguments) if nvidia and self.kernel.registers is not None else None
        return {"num_warps": self.num_warps} | ({} if limit is None else {"maxnreg": limit})


_notes: ContextVar[list[Launch] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Launch nothing inside the block, and yield the list of what would have been launched."""
    notes: list[Launch] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def interpreted() -> bool:
    """Tell whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def launch(kernel: Kernel, device: torch.device, programs: int, elements: int, **arguments: Any) -> None:
    """Run a kernel, or note the launch."""
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
        kernel.jit[(columns, ceil_div(programs, columns))](**arguments, **options)


def for_target(arguments: dict[str, Any], nvidia: bool, interpreted: bool = False) -> dict[str, Any]:
    """Return the arguments with the constants that depend on the device's vendor set."""
    found = dict(arguments)
    if "NVIDIA" in found:
        found["NVIDIA"] = nvidia and not interpreted
    if "MASKED" in found:
        # A mask costs a branch on AMD.
        found["MASKED"] = found["MASKED"] and (nvidia or interpreted)
    if "UINT32" in found:
        # NVIDIA's loads cannot add an offset that differs from lane to lane.
        found["UINT32"] = found["UINT32"] and (interpreted or not nvidia)
    return found


@contextmanager
def _exact(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments for the interpreter, with float32 in place of bfloat16, which it truncates where GPUs round."""
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
    """Return the number of elements from the first to the last in memory."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
