"""Interleaved timing, and the description of the machine that belongs to every figure."""

from __future__ import annotations

import functools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

CACHE_BYTES = 2**28  # more than the last cache of any GPU
LONG = 1.0  # seconds


class Run(NamedTuple):
    """What to time: a function, and optionally one that prepares its argument, which is not timed."""

    function: Callable[..., object]
    prepare: Callable[[], object] | None = None

    def once(self, device: torch.device) -> float:
        """Run the function once and return the seconds."""
        arguments = () if self.prepare is None else (self.prepare(),)
        if device.type == "cuda":
            torch.empty(CACHE_BYTES, dtype=torch.int8, device=device).zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.function(*arguments)
            end.record()
            torch.cuda.synchronize(device)
            return start.elapsed_time(end) / 1e3
        began = time.perf_counter()
        self.function(*arguments)
        return time.perf_counter() - began


def interleaved(
    runs: Mapping[str, Callable[[], object] | Run], rounds: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Return the seconds of every run in every round, in the order A B C A B C ..., so that machine drift cancels.

    In each round a run is first executed once without timing, so that it does not pay for what the previous run left
    in the caches. Runs of over a second, for which this hardly matters, are warmed up in the first round alone. On a
    GPU the cache is flushed before every run, and the time is that between two events.
    """
    device = torch.device("cpu") if device is None else device
    made = {name: run if isinstance(run, Run) else Run(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(rounds):
        progress(f"round {done + 1} of {rounds}")
        for name, run in made.items():
            if not seconds[name] or seconds[name][-1] < LONG:
                run.once(device)
            seconds[name].append(run.once(device))
    progress("")
    return seconds


def progress(text: str) -> None:
    """Show a line of progress that the next one replaces, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def bar_interval() -> float:
    """Return the seconds between updates of a progress bar: many if stderr is a file, where each adds a line."""
    return 0.1 if sys.stderr.isatty() else 30.0


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return the 20 %, 50 % and 80 % quantiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def ratios(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Return the quantiles of the ratio, taken round by round."""
    return quantiles([a / b for a, b in zip(slower, faster, strict=True)])


@functools.cache
def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions that the figures are measured with."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif backends.unavailable("cpu") is None:
        name = f"{_processor()}, {library.LEVELS[library.level()]}"
    else:
        name = _processor()
    return {
        "machine": name,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {version(package)}" for package in ("torch", "sia-layers")),
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
