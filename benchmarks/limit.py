"""Measure how close the CPU kernel comes to the limit of the machine.

``python -m benchmarks.limit [--quick] [--csv FILE] [--plot FILE]``. A run measures, on one thread, the time of a
vector's multiply-add and of its exponential on registers (benchmarks/limit.c, with the kernels' own exponential), the
speed of copying memory, and the kernel itself. It counts the operations that the formulas need if each pair of pixels
is computed once. The limit is the longer of arithmetic and memory traffic; every addition and multiplication counts as
a multiply-add.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch

from benchmarks import harness, maps, timing
from sia_layers.kernels import cpu, reference
from sia_layers.kernels.cpu import library
from sia_layers.kernels.options import Options

SOURCES: Final = Path(__file__).resolve().parents[1] / "kernels/cpu/csrc"
# Floats per vector and the compiler's flags, by the kernels' instruction set.
FLAGS: Final = {
    "avx512": (16, [f"-m{name}" for name in ("avx512f", "avx512dq", "avx512bw", "avx512vl", "fma", "f16c")]),
    "avx2": (8, ["-mavx2", "-mfma", "-mf16c"]),
    "baseline": (4, []),
}
MAP: Final = (4, 32, 64, 64)
# Operations of a pair without the exponential: squares take a difference and a multiply-add; densities take a
# difference, two products and a sum at each end that they are added to.
SQUARE, DENSITY_OF_BOTH, DENSITY_OF_ONE = 2, 5, 4
FINISHING: Final = 2 * 11 + 4  # of a pixel: two logarithms of 11 operations, their differences, the weight, the sum
COPIED: Final = 2**26  # floats: more than the caches hold
COLUMNS = {
    "K": "2d", "S": "1d", "exponentials": "12.1f", "operations": "10.1f", "ns/exp": "6.3f", "ns/fma": "6.3f",
    "GB/s": "5.1f", "limit ms": "8.3f", "arithmetic": "10.3f",
    "memory": "7.3f", "kernel ms": "9.3f", "error": "8.1e", "of limit %": "10.1f", "20 %": "6.1f", "80 %": "6.1f",
}  # fmt: skip


class Rates(NamedTuple):
    """Seconds of one vector's multiply-add and exponential, of one byte copied, and floats of a vector."""

    multiply_add: float
    exponential: float
    byte: float
    floats: int


class Work(NamedTuple):
    """The work that a map needs: exponentials, other operations, and bytes read and written."""

    exponentials: int
    operations: int
    bytes: int

    def seconds(self, rates: Rates) -> tuple[float, float]:
        """Return the seconds of arithmetic and of memory traffic."""
        vectors = self.exponentials * rates.exponential + self.operations * rates.multiply_add
        return vectors / rates.floats, self.bytes * rates.byte


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    given = harness.parser("limit", __doc__, "the share of the limit").parse_args(arguments)
    if given.device != "cpu" or given.threads != 1 or given.dtype != "float32":
        raise SystemExit("limit measures one thread of the CPU in float32; omit --device, --threads and --dtype")
    device = harness.begin(given)
    with tempfile.TemporaryDirectory() as folder:
        harness_of_c = built(Path(folder))
        table = harness.Table(device, COLUMNS)
        for kernel_size in (3, 7) if given.quick else (3, 5, 7, 11):
            for inter_channels in (5, 0):
                measure(
                    Options(kernel_size, inter_channels=inter_channels), harness_of_c, 9 if given.quick else 25, table
                )
    table.finish(given, "limit")
    return 0


def built(folder: Path) -> ctypes.CDLL:
    """Compile limit.c for the instruction set that the kernels use, and load it.

    Raises:
        SystemExit: there is no C compiler.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit("no C compiler was found; install one, or set CC to its path")
    floats, flags = FLAGS[library.LEVELS[library.level()]]
    path = folder / "limit.so"
    command = [
        compiler,
        "-O3",
        "-std=gnu11",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        f"-I{SOURCES}",
        f"-DVL={floats}",
    ]
    subprocess.run([*command, *flags, str(Path(__file__).with_name("limit.c")), "-o", str(path), "-lm"], check=True)
    made = ctypes.CDLL(str(path))
    for name in ("multiply_add", "exponential", "copy"):
        getattr(made, name).restype = ctypes.c_double
    return made


def rates_of(made: ctypes.CDLL, memory: tuple[torch.Tensor, torch.Tensor], rounds: int = 20000) -> Rates:
    """Measure the current rates of the machine."""
    source, target = (ctypes.c_void_p(tensor.data_ptr()) for tensor in memory)
    count = ctypes.c_int64(rounds)
    return Rates(
        made.multiply_add(count),
        made.exponential(count),
        made.copy(source, target, ctypes.c_int64(memory[0].numel())),
        made.vector_length(),
    )


def work_of(shape: tuple[int, int, int, int], options: Options) -> Work:
    """Count the work of the formulas inside the borders: bandwidth and density of each pair once, then logarithms."""
    n, c, h, w = shape
    radius, planes = options.radius, n * c
    pairs = sum(
        max(0, h - down) * max(0, w - abs(right))
        for down in range(radius + 1)
        for right in range(-radius, radius + 1)
        if (down, right) > (0, 0)
    )
    across = h * w * options.neighbours(c)
    operations = pairs * (SQUARE + DENSITY_OF_BOTH) + across * (SQUARE + DENSITY_OF_ONE) + h * w * FINISHING
    return Work(planes * (pairs + across), planes * operations, 2 * 4 * planes * h * w)


def measure(options: Options, made: ctypes.CDLL, rounds: int, table: harness.Table) -> None:
    """Measure the rates and the kernel in alternation, and add a row of medians."""
    x = maps.made(MAP, torch.float32, torch.device("cpu"))
    memory = torch.ones(COPIED), torch.ones(COPIED)
    truth = reference.self_information(x.double(), options)[0]
    right, error = harness.agrees(cpu.self_information(x, options)[0], truth, 5e-6)
    if not right:
        table.add(K=options.kernel_size, S=options.inter_channels, error=error)
        return
    work, rates, fractions, limits, parts, taken = work_of(MAP, options), [], [], [], [], []
    for _ in range(rounds):
        run = timing.Run(functools.partial(cpu.self_information, x, options))
        run.once(x.device)
        taken.append(statistics.median(run.once(x.device) for _ in range(5)))
        rates.append(rates_of(made, memory))
        parts.append(work.seconds(rates[-1]))
        limits.append(max(parts[-1]))
        fractions.append(100 * limits[-1] / taken[-1])
    low, middle, high = timing.quantiles(fractions)
    pixels = x.numel()
    arithmetic, moved = (statistics.median(part) * 1e3 for part in zip(*parts, strict=True))
    values = {
        "K": options.kernel_size, "S": options.inter_channels, "exponentials": work.exponentials / pixels,
        "operations": work.operations / pixels,
        "ns/exp": statistics.median(rate.exponential for rate in rates) * 1e9,
        "ns/fma": statistics.median(rate.multiply_add for rate in rates) * 1e9,
        "GB/s": 2e-9 / statistics.median(rate.byte for rate in rates),
        "limit ms": statistics.median(limits) * 1e3, "arithmetic": arithmetic,
        "memory": moved, "kernel ms": statistics.median(taken) * 1e3, "error": error, "of limit %": middle,
        "20 %": low, "80 %": high,
    }  # fmt: skip
    table.add(**values)


if __name__ == "__main__":
    sys.exit(main())
