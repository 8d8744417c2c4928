"""Report the cost of the Triton kernels on GPUs, without needing one: registers, instructions and bounds.

``python -m benchmarks.gpu_report [--quick] [--targets sm_90 ...] [--csv FILE] [--plot FILE] [--page FILE]`` compiles
the kernels that the dispatch would launch for a map of SHAPE, counts the instructions per output in the machine code,
each as often as its loops run, and divides them by the published rates of ``benchmarks.gpu_rates``. Triton's cache
makes a second run short, and lets a stopped run continue.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from benchmarks import gpu_tables, harness, timing
from benchmarks.gpu_code import Counts, Loop, count, parse, resolve
from benchmarks.gpu_compile import TARGETS, Compiled, compile_launch, launches
from benchmarks.gpu_rates import A100, B200, DEVICES, H100, MI300X, Device
from sia_layers.kernels.options import Options
from sia_layers.kernels.triton.configs import ceil_div
from sia_layers.kernels.triton.launch import Launch

SHAPE: Final = (2, 64, 64, 64)
KERNEL_SIZES: Final = (3, 5, 7)
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
FUNCTIONS: Final = ("self_information", "gate_and_mean", "self_information_backward", "gate", "channel_mean")
PAGE_DEVICES: Final = (A100, H100, B200, MI300X)
QUICK_TARGETS: Final = ("sm_80", "sm_90", "sm_100", "gfx942")
KINDS: Final = ("exponential", "special", "float32", "packed float32", "alu", "product", "scalar", "control", "load",
                "store", "local", "shared")  # fmt: skip
UNKNOWN: Final = """\
Only a run on a GPU can show the following, not counts and published rates: how much of the load latency the resident
warps hide; how often a load hits a cache, and so how many bytes come from memory; the cost of a load that straddles two
cache lines, as NCHW's shifted loads do; the clock under load; conflicts of banks and register ports; the time of a
launch, and the tail of the last programs. The bound is the time of the busiest pipe without any stalls.
"""


class Case(NamedTuple):
    """Kernels that are compiled together."""

    function: str
    kernel_size: int
    dtype: torch.dtype = torch.float32
    channels_last: bool = False


@dataclass(frozen=True)
class Row:
    """One kernel for one target."""

    case: Case
    built: Compiled

    @property
    def label(self) -> str:
        """Name of the kernel, and its variant."""
        arguments = self.built.launch.arguments
        return f"{self.built.name}, gated" if arguments.get("gated") is not None else self.built.name

    @cached_property
    def counts(self) -> Counts | None:
        """Counts per output; None if the loops could not be resolved, or the kernel has no output per pixel."""
        launch = self.built.launch
        expected = expectation(launch)
        if expected is None:
            return None
        try:
            code = parse(self.built.assembly, self.built.target.startswith("gfx"))
        except ValueError:
            return None
        outputs = self.built.outputs_per_thread * tiles(launch)
        for fewer in (False, True):
            ways = [count(code, trips).over(outputs) for trips in resolve(code, loops(launch), fewer)]
            found = [counts for counts in ways if expected.met(counts)]
            if found:
                return found[0] if all(counts == found[0] for counts in found) else None
        return None

    @cached_property
    def once(self) -> Counts | None:
        """Counts per output of a tile if every loop ran once, that is, of the instructions in the code."""
        try:
            code = parse(self.built.assembly, self.built.target.startswith("gfx"))
        except ValueError:
            return None
        return count(code).over(self.built.outputs_per_thread)

    @property
    def compulsory(self) -> int:
        """Bytes per output if each map is read or written once."""
        maps = [value for value in self.built.launch.arguments.values() if isinstance(value, Tensor)]
        return sum(value.element_size() for value in maps if value.shape == torch.Size(SHAPE))


class Expectation(NamedTuple):
    """What a kernel must do for each output, to check that its loops were resolved correctly."""

    window: int = 0  # exponentials of the window
    others: int = 0  # exponentials of the channels and the gates
    values: int | None = None  # values of ``size`` bytes to load; None if some loads are not per pixel
    size: int = 4

    def met(self, counts: Counts) -> bool:
        """Tell whether the counts are as expected."""
        loaded = self.values is None or math.isclose(counts.loaded, self.values * self.size)
        return loaded and math.isclose(counts.kinds["exponential"], self.window + self.others)


def expectation(launch: Launch) -> Expectation | None:
    """Return what the formula needs for one output; None for kernels whose outputs are partial sums, not pixels."""
    given = launch.arguments
    name, window, channels = launch.kernel.name, given.get("K", 1) ** 2 - 1, given.get("S", 0)
    distance = given.get("DISTANCE", name == "distances")
    if name == "finish":
        return None
    if name == "spread":
        return Expectation(values=1 + window // 2 + channels, size=given["x"].element_size())
    if name == "distances":
        values = 1 + window + channels + (given["grad"] is not None)
        return Expectation(values=values, size=given["x"].element_size())
    extra = (given.get("gated") is not None) + (given.get("MEAN") == "mean")
    if name == "information":
        return Expectation(0, extra) if distance else Expectation(window, channels + extra)
    if distance:
        return Expectation()
    if name == "shares":
        return Expectation(window * (given["intra"] is not None), channels * (given["inter"] is not None))
    if name == "gather":
        return Expectation(window, 2 * channels)
    return Expectation(0, extra + (name.startswith("gate") and given["info"] is not None))


def loops(launch: Launch) -> tuple[Loop, ...]:
    """Return the loops of a kernel's source, outermost first; the compiler may unroll some."""
    given, name = launch.arguments, launch.kernel.name
    size, channels = given.get("K", 1), given.get("S", 0)
    if name == "spread":
        inner = (Loop(size // 2), Loop(channels))
        return Loop(tiles(launch), inner), Loop(0, inner)  # the second only if there are infinities
    inner = (Loop(size if name == "gather" and given["DISTANCE"] else size - 1), Loop(channels))
    return (Loop(tiles(launch), inner),) if name == "distances" else inner if "K" in given else ()


def tiles(launch: Launch) -> int:
    """Return the number of tiles of one program."""
    given = launch.arguments
    if launch.kernel.name not in ("spread", "distances"):
        return 1
    return min(int(given["PER"]), ceil_div(given["H"], given["TH"]) * ceil_div(given["W"], given["TW"]))


def bounds(row: Row, device: Device) -> dict[str, float]:
    """Return the picoseconds per output on each pipe, for all multiprocessors together.

    Raises:
        ValueError: the loops of the row were not resolved, or the row is for another target.
    """
    counts = row.counts
    if counts is None or row.built.target != device.target:
        raise ValueError(f"{row.label} for {row.built.target} has no bound on {device.name}")
    kinds = counts.kinds
    special = kinds["exponential"] + kinds["special"]
    flops = kinds["float32"] + 2 * kinds["packed float32"]
    moved = kinds["load"] + kinds["store"] + kinds["shared"] + kinds["local"]
    cycles = {
        "special": special / device.special,
        "load/store": max(moved / device.addresses, (counts.loaded + counts.stored) / device.cache_bytes),
    }
    if device.vendor == "nvidia":
        # Integer products use the float32 pipe, at no more per cycle than the ALU executes.
        cycles["float32"] = flops / device.float32 + kinds["product"] / min(device.float32, device.alu)
        cycles["alu"] = kinds["alu"] / device.alu
    else:
        slow = (special + kinds["product"]) * device.alu / device.special
        cycles["float32"] = flops / device.float32
        cycles["alu"] = (kinds["alu"] + kinds["float32"] + kinds["packed float32"] + slow) / device.alu
    if device.issue is not None:
        cycles["issue"] = counts.total / device.issue
    rate = device.multiprocessors * device.clock / 1e12
    times = {pipe: number / rate for pipe, number in cycles.items()}
    return times | {"memory": row.compulsory / device.memory * 1e12}


def cases(quick: bool) -> list[Case]:
    """Return all cases, or if quick those of float32 with the smallest and the largest window."""
    return [
        Case(function, size, dtype, channels_last)
        for dtype in (DTYPES[:1] if quick else DTYPES)
        for channels_last in (False, True)
        for function in FUNCTIONS
        # The other functions have no window.
        for size in ((3,) if function in FUNCTIONS[3:] else (3, 7) if quick else KERNEL_SIZES)
    ]


def measure(targets: Sequence[str], chosen: Sequence[Case]) -> Iterator[Row]:
    """Compile every distinct kernel of the cases for every target, and yield a row for each."""
    for number, target in enumerate(targets):
        seen: set[tuple[str, int, str]] = set()
        for done, case in enumerate(chosen):
            timing.progress(f"{target} ({number + 1} of {len(targets)}): case {done + 1} of {len(chosen)}")
            options = Options(kernel_size=case.kernel_size)
            for launch in launches(options, SHAPE, case.dtype, case.channels_last, (case.function,)):
                key = (launch.kernel.name, launch.num_warps, str(launch.arguments))
                if key not in seen:
                    seen.add(key)
                    yield Row(case, compile_launch(launch, target))
    timing.progress("")


def settings() -> dict[str, str]:
    """Return what belongs to every row: the map, the versions, the commit and the date."""
    machine = timing.machine(torch.device("cpu"))
    return {
        "map": "x".join(str(size) for size in SHAPE), "S": str(Options().inter_channels),
        "versions": ", ".join(f"{package} {version(package)}" for package in ("triton", "torch", "sia-layers")),
        "commit": machine["commit"], "date": machine["date"],
    }  # fmt: skip


def record(row: Row) -> dict[str, str]:
    """Return a row for the CSV file: counts per output, and picoseconds per output if a device has the target."""
    built, case, counts, expected = row.built, row.case, row.counts, expectation(row.built.launch)
    found: dict[str, object] = {
        "target": built.target, "kernel": row.label,
        "K": case.kernel_size if "K" in built.launch.arguments else "",
        "dtype": str(case.dtype).removeprefix("torch."), "layout": "NHWC" if case.channels_last else "NCHW",
        "registers": built.registers, "spills": built.spills, "shared bytes": built.shared, "warps": built.num_warps,
        "resolved": "" if expected is None else counts is not None, "compulsory bytes": row.compulsory,
    }  # fmt: skip
    figures: dict[str, float] = {}
    if counts is not None and expected is not None:
        # The exponentials of the window are those that the other terms do not need.
        figures["intra exponentials"] = counts.kinds["exponential"] - expected.others
        figures |= {"loaded bytes": counts.loaded, "stored bytes": counts.stored, "instructions": counts.total}
        figures |= {kind: counts.kinds[kind] for kind in KINDS}
        for device in DEVICES:
            if device.target == built.target:
                figures |= {f"{pipe} ps": time for pipe, time in bounds(row, device).items()}
    return {name: str(value) for name, value in found.items()} | {
        name: f"{value:.4g}" for name, value in figures.items()
    }


def records(targets: Sequence[str] = TARGETS, quick: bool = False) -> list[dict[str, str]]:
    """Compile and count; return the rows of every target, with the settings."""
    return [record(row) | settings() for row in measure(targets, cases(quick))]


def report(rows: Sequence[Mapping[str, str]]) -> str:
    """Format the tables of :func:`records` in Markdown, with their limits and the sources of the rates."""
    sources = [f"- {device.name}: {source}" for device in DEVICES for source in device.sources]
    parts = [gpu_tables.tables(rows).strip(), UNKNOWN.strip(), "Rates from:\n\n" + "\n".join(sources)]
    return "\n\n".join(parts) + "\n"


def filled(page: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Insert the tables of the devices of the page between its marks."""
    return gpu_tables.filled(page, rows, PAGE_DEVICES)


def faults(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """List the faults: spilled registers, more than K^2 - 1 exponentials for a window, loops that are not resolved."""
    found = []
    for row in rows:
        name = ", ".join(row[part] for part in ("target", "kernel", "K", "dtype", "layout") if row[part])
        if int(row["spills"]):
            found.append(f"{name}: {row['spills']} registers spill")
        if row["resolved"] == "False":
            found.append(f"{name}: the loops were not resolved, or do not compute what the formula needs")
        if row["K"] and float(row.get("intra exponentials") or 0) > int(row["K"]) ** 2 - 1:
            found.append(f"{name}: {row['intra exponentials']} exponentials per output for the window")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; the exit code is 0 if there is no fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help=f"only float32 and K = 3 and 7; targets {', '.join(QUICK_TARGETS)}")
    add("--targets", nargs="+", choices=TARGETS, metavar="TARGET", help=f"some of {', '.join(TARGETS)}")
    add("--csv", type=Path, metavar="FILE", help="also write every row to this file")
    add("--plot", type=Path, metavar="FILE", help="draw the bound that every pipe sets")
    add("--page", type=Path, metavar="FILE", help="insert the tables between the marks of this page")
    given = parser.parse_args(arguments)
    rows = records(given.targets or (QUICK_TARGETS if given.quick else TARGETS), given.quick)
    print(report(rows))
    if given.csv is not None:
        harness.write(given.csv, rows)
        print(f"written: {given.csv}")
    if given.plot is not None:
        gpu_tables.plot(rows, given.plot)
    if given.page is not None:
        given.page.write_text(filled(given.page.read_text(), rows))
    found = faults(rows)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
