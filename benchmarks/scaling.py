"""Measure how the time of self-information grows with pixels, channels, batch, window and threads.

``python -m benchmarks.scaling [--quick] [--csv FILE] [--plot FILE]``. One axis is varied at a time, from a map of
efficientnet_b4 at its first site; the slope is that of the logarithms, fitted by least squares: 1 means proportional.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Final

import torch

from benchmarks import harness, maps, providers, timing
from sia_layers.kernels import reference
from sia_layers.kernels.options import Options

BASE: Final = (4, 32, 64, 64)
BASE_KERNEL_SIZE: Final = 7
AXES: Final[dict[str, tuple[int, ...]]] = {
    "pixels": (16, 32, 64, 128, 256),  # rows and columns each
    "channels": (8, 16, 32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32),
    "K": (3, 5, 7, 9, 11, 15),
    "threads": tuple(2**power for power in range(int(math.log2(os.cpu_count() or 1)) + 1)),
}
COLUMNS = {"axis": "<8", "size": "7d", "provider": "<9", "error": "8.1e", "ms": "10.3f", "slope": "6.2f"}
TOLERANCE = {"cpu": 5e-6, "triton": 5e-6, "shift": 1e-4}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("scaling", __doc__, "time over each axis")
    given = parser.parse_args(arguments)
    device = harness.begin(given)
    table = harness.Table(device, COLUMNS)
    names = ("triton" if device.type == "cuda" else "cpu", "shift")
    for axis, every in AXES.items():
        if axis == "threads" and device.type != "cpu":
            continue
        # The largest sizes take most of the time.
        sizes = every[:-1] if given.quick and len(every) > 3 else every
        times: dict[str, list[float]] = {name: [] for name in names}
        for size in sizes:
            measured = measure(axis, size, names, harness.DTYPES[given.dtype], device, 3 if given.quick else 9)
            for name, (error, seconds) in measured.items():
                times[name].append(seconds)
                slopes = {"slope": slope(sizes, times[name])} if size == sizes[-1] and len(sizes) > 1 else {}
                table.add(axis=axis, size=size, provider=name, error=error, ms=seconds * 1e3, **slopes)
    table.finish(given, "scaling")
    return 0


def measure(
    axis: str, size: int, names: Sequence[str], dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the error and the median seconds of each provider that agrees with the reference."""
    n, c, h, w = BASE
    shape = {"pixels": (n, c, size, size), "channels": (n, size, h, w), "batch": (size, c, h, w)}.get(axis, BASE)
    options = Options(size if axis == "K" else BASE_KERNEL_SIZE)
    threads = torch.get_num_threads()
    timing.progress(f"{axis} {size}")
    x = maps.made(shape, dtype, device)
    part = x[:1, :, : 4 * options.kernel_size, : 4 * options.kernel_size]
    truth = reference.self_information(part.double().cpu(), options)[0]
    found = {}
    try:
        torch.set_num_threads(size if axis == "threads" else threads)
        functions = {name: providers.created(name, options) for name in names}
        with torch.no_grad():
            checks = {
                name: harness.agrees(function(part), truth, TOLERANCE[name]) for name, function in functions.items()
            }
            runs = {name: functools.partial(functions[name], x) for name, (right, _) in checks.items() if right}
            seconds = timing.interleaved(runs, rounds, device)
        found = {name: (checks[name][1], statistics.median(values)) for name, values in seconds.items()}
    finally:
        torch.set_num_threads(threads)
    return found


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit the slope of the logarithm of the time over the logarithm of the size."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(time) for time in seconds]).slope


if __name__ == "__main__":
    sys.exit(main())
