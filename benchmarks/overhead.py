"""Measure the overhead of a call in addition to its kernels (Python, checks, allocation, entry to C) on a small map.

``python -m benchmarks.overhead [--quick] [--csv FILE]``. Every call is timed twice in inference mode: as it is, and
with every kernel replaced by a C function that does nothing. The smallest of many repetitions counts, because other
work on the machine only adds time.
"""

from __future__ import annotations

import ctypes
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from benchmarks import harness, timing
from sia_layers import SIAttention, self_information
from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

SHAPE: Final = (1, 160, 24, 24)
LAYERS: Final = {
    "SIAttention": {},
    "SIAttention, gain": {"gain": 0.0},
    "SIAttention, channel mean": {"channel": "mean", "gain": 0.0},
    "SIAttention, spatial": {"channel": None},
}
COLUMNS = {"call": "<26", "shape": "<13", "beyond kernels us": "18.1f", "whole us": "9.1f"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("overhead", __doc__, None)
    given = parser.parse_args(arguments)
    device = harness.begin(given)
    reason = backends.unavailable("cpu") if device.type == "cpu" else f"the device is {device}"
    if reason is not None:
        print(f"this benchmark measures the CPU backend: {reason}", file=sys.stderr)
        return 1
    table = harness.Table(device, COLUMNS)
    repetitions = 20 if given.quick else 200
    for name, call in calls(harness.DTYPES[given.dtype]).items():
        timing.progress(name)
        with torch.inference_mode():
            whole = smallest(call, repetitions)
            with without_kernels():
                beyond = smallest(call, repetitions)
        row = {"call": name, "shape": "x".join(map(str, SHAPE))}
        table.add(**row, **{"beyond kernels us": beyond * 1e6, "whole us": whole * 1e6})
    timing.progress("")
    table.finish(given, "overhead")
    return 0


def calls(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return the calls to time, by name."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    layers = {name: SIAttention(SHAPE[1], **options).eval() for name, options in LAYERS.items()}  # type: ignore[arg-type]
    made: dict[str, Callable[[], object]] = {"self_information": lambda: self_information(x)}
    return made | {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}


def smallest(call: Callable[[], object], repetitions: int) -> float:
    """Return the smallest time of a call in seconds, each measured as the mean of 20 calls in a row."""
    call()
    return min(timeit.repeat(call, number=20, repeat=repetitions)) / 20


@contextmanager
def without_kernels() -> Iterator[None]:
    """Replace every kernel of the CPU backend by a C function that does nothing, with the same arguments."""
    nothing: dict[str, Any] = {}
    for name, arguments in library.ARGUMENTS.items():
        nothing[name] = ctypes.CDLL(None)["Py_IsInitialized"]
        nothing[name].argtypes = arguments
    before = library.call
    library.call = lambda name, *arguments: nothing[name](*arguments) and None
    try:
        yield
    finally:
        library.call = before


if __name__ == "__main__":
    sys.exit(main())
