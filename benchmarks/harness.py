"""Shared parts of the benchmarks: options, the table of results, and peak memory in a fresh process."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DISAGREES = "disagrees with the reference: not timed"  # in the place of a time

# Settings of glibc: return freed memory to the system, so that the memory of the warm-up is not counted for the run.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def parser(name: str, doc: str | None, plot: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; ``plot`` says what --plot draws, if anything."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").partition("\n")[0])
    add = made.add_argument
    add("--quick", action="store_true", help="fewer cases and rounds")
    add("--device", default="cpu", metavar="D", help="device, as torch names it (%(default)s)")
    add("--threads", type=int, default=1, metavar="N", help="threads of torch and of the kernels (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the maps (%(default)s)")
    add("--csv", type=Path, metavar="FILE", help="also write the figures to this file")
    if plot is not None:
        add("--plot", type=Path, metavar="FILE", help=f"draw {plot}")
    return made


def begin(given: argparse.Namespace) -> torch.device:
    """Set the number of threads, print the machine, and return the device."""
    if given.threads < 1:
        raise SystemExit(f"--threads must be 1 or more, got {given.threads}")
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print("\n".join(f"{key}: {value}" for key, value in timing.machine(device).items()), end="\n\n", flush=True)
    return device


class Table:
    """A table whose rows are printed at once and written at the end, with the machine beside each.

    Args:
        device: device of the measurements.
        columns: the format of each column, by name.
    """

    def __init__(self, device: torch.device, columns: Mapping[str, str]) -> None:
        self.device, self.columns = device, columns
        self.rows: list[dict[str, Any]] = []
        self.widths = {name: max(len(name), int(re.findall(r"\d+", form)[0])) for name, form in columns.items()}
        print("  ".join(f"{name:{self._aligned(name)}}" for name in columns), flush=True)

    def add(self, **values: Any) -> None:
        """Print a row; columns without a value stay empty."""
        self.rows.append(values)
        cells = []
        for name, form in self.columns.items():
            value = values.get(name, "")
            text = f"{value:{form}}" if isinstance(value, (int, float)) else str(value)
            cells.append(f"{text.strip():{self._aligned(name)}}")
        timing.progress("")
        print("  ".join(cells).rstrip(), flush=True)

    def finish(self, given: argparse.Namespace, name: str) -> None:
        """Write and draw the files that the arguments name.

        Args:
            given: the parsed arguments.
            name: name of the benchmark, which determines the plot.
        """
        if given.csv is not None:
            self.write(given.csv)
        if getattr(given, "plot", None) is not None:
            from benchmarks import plots  # and Matplotlib

            plots.DRAWN[name](self.rows, given.plot)
            print(f"drawn: {given.plot}")

    def write(self, path: Path) -> None:
        """Write the rows as CSV, with the machine beside each."""
        write(path, [{**row, **timing.machine(self.device)} for row in self.rows])
        print(f"\nwritten: {path}")

    def _aligned(self, name: str) -> str:
        return f"{'<' if self.columns[name].startswith('<') else '>'}{self.widths[name]}"


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all; create its folder if necessary.

    Args:
        path: path of the file.
        write: function that writes the file to the path that it receives, which is next to ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, completely or not at all."""

    def written(part: Path) -> None:
        with part.open("w", newline="") as file:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace(path, written)


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file that :func:`write` wrote."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def as_numbers(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Convert the cells of rows to numbers where possible."""
    return [{name: _as_number(cell) for name, cell in row.items()} for row in rows]


def _as_number(cell: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


def agrees(found: Tensor, truth: Tensor, tolerance: float) -> tuple[bool, float]:
    """Tell whether a result is within a tolerance of the truth, plus an ulp for half dtypes, and return the error."""
    error = (found.detach().double().cpu() - truth.detach().double().cpu()).abs()
    ulp = torch.finfo(found.dtype).eps * truth.detach().double().cpu().abs() if found.dtype != torch.float32 else 0.0
    right = found.shape == truth.shape and bool((error <= tolerance + ulp).all())
    return right, error.max().item()


def peak_memory(module: str, function: str, arguments: Sequence[Any], device: torch.device) -> float:
    """Measure the peak memory in MiB of a function: of the allocator on a GPU, of a fresh process on a CPU.

    Args:
        module: module that contains the function.
        function: name of a function of the arguments that returns two functions without arguments: one that warms up
            and one that is measured.
        arguments: arguments of the function, which must be JSON.
        device: device that the function runs on.
    """
    command = [sys.executable, "-c", _MEASURE, module, function, json.dumps(list(arguments)), str(device)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **GIVEN_BACK})
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"{module}.{function}{tuple(arguments)} failed: {lines[-1] if lines else done.returncode}")
    return float(done.stdout.splitlines()[-1])


# Linux reports the peak resident set since the last reset; elsewhere, use the peak of the whole process.
_MEASURE = """
import importlib, json, sys
from pathlib import Path
import torch

module, function, arguments, device = sys.argv[1:]
torch.set_num_threads(1)
warm_up, run = getattr(importlib.import_module(module), function)(*json.loads(arguments))
warm_up()
if device.startswith("cuda"):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    print((torch.cuda.max_memory_allocated() - before) / 2**20)
else:
    def resident(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    print(max(0.0, resident("VmHWM") - before))
"""
