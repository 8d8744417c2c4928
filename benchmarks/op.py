"""Speed of the CPU kernel against the same formulas in eager and in compiled PyTorch, side by side.

Run as ``python -m benchmarks.op [--quick] [--threads N] [--csv FILE]``. No figure is printed for a provider whose
result does not agree with the reference in float64.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import providers, timing
from sia_layers.kernels import cpu, reference
from sia_layers.kernels.options import Options

SHAPES = ((4, 32, 64, 64), (4, 160, 16, 16))
KERNEL_SIZES = (7, 3)
TOLERANCE = 5e-6  # of the kernels, absolute
ROUGH_TOLERANCE = 1e-4  # of what they are measured against, in float32 by whatever route PyTorch takes
FIELDS = (
    "shape",
    "kernel_size",
    "inter_channels",
    "threads",
    "provider",
    "error",
    "ms",
    "ratio",
    "ratio_20",
    "ratio_80",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 25")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch and for the kernels (default 1)")
    parser.add_argument("--csv", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(timing.machine(), "\n", sep="")
    print(
        "(N, C, H, W)         K  terms        provider          error   median ms   times as long as cpu [20 %, 80 %]"
    )
    rows = []
    for shape in SHAPES:
        for kernel_size in KERNEL_SIZES:
            for inter_channels in (5, 0):
                rows += measure(
                    shape, Options(kernel_size, inter_channels=inter_channels), 5 if arguments.quick else 25
                )
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


@torch.no_grad()
def measure(shape: tuple[int, int, int, int], options: Options, rounds: int) -> list[dict[str, object]]:
    """Check and time every provider on one shape; print a line for each."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    truth = reference.self_information(x.double(), options)[0]
    torch.compiler.reset()
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "unfold": functools.partial(providers.unfold, options=options),
        "unfold compiled": torch.compile(functools.partial(providers.unfold, options=options), dynamic=False),
        "shift": functools.partial(providers.shift_and_add, options=options),
        "shift compiled": torch.compile(functools.partial(providers.shift_and_add, options=options), dynamic=False),
        "cpu": lambda x: cpu.self_information(x, options)[0],
    }
    errors = {name: (function(x) - truth).abs().max().item() for name, function in functions.items()}
    right = [name for name, error in errors.items() if error <= (TOLERANCE if name == "cpu" else ROUGH_TOLERANCE)]
    seconds = timing.interleaved({name: functools.partial(functions[name], x) for name in right}, rounds)
    rows = []
    terms = "intra, inter" if options.inter_channels else "intra"
    for name in functions:
        head = f"{shape!s:<20} {options.kernel_size}  {terms:<12} {name:<16} {errors[name]:.1e}"
        if name not in right or "cpu" not in right:
            print(f"{head}   disagrees with the reference: not timed")
            continue
        ms = timing.quantiles(seconds[name])[1] * 1e3
        low, ratio, high = timing.ratios(seconds[name], seconds["cpu"])
        print(f"{head}   {ms:9.3f}   {ratio:6.1f}  [{low:.1f}, {high:.1f}]", flush=True)
        values = (shape, options.kernel_size, options.inter_channels, torch.get_num_threads())
        rows.append(dict(zip(FIELDS, (*values, name, errors[name], ms, ratio, low, high), strict=True)))
    return rows


if __name__ == "__main__":
    main()
