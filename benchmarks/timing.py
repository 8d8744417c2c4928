"""Interleaved timing, and what must be said of the machine beside every figure."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from sia_layers.kernels.cpu import library


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round. Rounds go A B C A B C ..., so that drift of a shared machine cancels.

    In each round a run goes once unmeasured first, so that it does not pay for what the one before left in the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(rounds):
        print(f"\r  round {done + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    return seconds


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def ratios(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Quantiles of the ratio, round by round."""
    return quantiles([a / b for a, b in zip(slower, faster, strict=True)])


def machine() -> str:
    """Processor, instruction set, versions, threads, date and commit, on a few lines."""
    level = library.LEVELS[library.level()]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "sia-layers"))
    return (
        f"{_processor()}; kernels for {level}; {torch.get_num_threads()} thread(s)\n"
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}\n"
        f"{date.today().isoformat()}, commit {_commit()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
