"""Compare the speed of self-information with the same formulas in eager and in compiled PyTorch.

``python -m benchmarks.op [--quick] [--threads N] [--maps all] [--kernel-sizes K ...] [--passes PASS ...] [--csv FILE]
[--plot FILE]``. Forward, backward and both, over windows, feature maps of real backbones, dtypes and layouts. No
figure is printed for a provider whose result does not agree with the reference in float64. ``--peers`` compares with
other libraries instead, namely those of ``benchmarks.peers`` that are installed. ``benchmarks.scaling`` measures how
the time grows.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness, maps, peers, providers, timing
from sia_layers.kernels import reference
from sia_layers.kernels.options import Options

PROVIDERS = ("unfold", "unfold compiled", "shift", "shift compiled")
TOLERANCE = 5e-6  # of the kernels in float32, absolute, for the forward
ROUGH_TOLERANCE = 1e-4  # of the providers that they are compared with, however PyTorch computes them
GRADIENT_TOLERANCE = 1e-4  # relative to the largest gradient
COLUMNS = {
    "map": "<24", "shape": "<19", "K": "2d", "S": "1d", "dtype": "<8", "layout": "<4", "pass": "<8",
    "provider": "<15", "error": "8.1e", "ms": "9.3f", "MiB": "7.1f", "times": "7.1f", "20 %": "6.1f", "80 %": "6.1f",
}  # fmt: skip
PASSES = ("forward", "backward", "both")


class Case(NamedTuple):
    """One measurement: a map, options, dtype, layout and pass."""

    name: str
    shape: tuple[int, int, int, int]
    options: Options
    dtype: str
    channels_last: bool
    direction: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("op", __doc__, "the speed-up over every other provider")
    parser.add_argument(
        "--maps", choices=("bars", "all"), default="bars", help="the two maps of the targets (%(default)s), or all"
    )
    parser.add_argument("--kernel-sizes", nargs="+", type=int, metavar="K", help="windows (3 5 7 11; quick: 3 7)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, help="passes to measure (all; quick: forward both)")
    parser.add_argument(
        "--memory", action="store_true", help="measure peak memory instead of time, each in a separate process"
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help=f"compare with {', '.join(peers.PEERS)}, if installed, and with compiled PyTorch",
    )
    given = parser.parse_args(arguments)
    if given.peers and (given.device != "cpu" or given.dtype != "float32" or given.passes or given.memory):
        parser.error(
            "--peers measures the forward in float32 on the CPU; omit --device, --dtype, --passes and --memory"
        )
    device = harness.begin(given)
    table = harness.Table(device, COLUMNS)
    for case in cases(given):
        measure(case, device, 5 if given.quick else 9, table, given.memory, given.peers)
    table.finish(given, "op")
    return 0


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases: all windows and passes for each map, and by default more dtypes and layouts for the first."""
    chosen = maps.BARS if given.maps == "bars" else maps.MAPS
    windows = given.kernel_sizes or ((3, 7) if given.quick else (3, 5, 7, 11))
    batch = 4 if given.maps == "bars" else 1
    if given.peers:
        for found, kernel_size, inter_channels in itertools.product(chosen, given.kernel_sizes or (3, 7), (5, 0)):
            options = Options(kernel_size, inter_channels=inter_channels)
            yield Case(str(found), (batch, *found.shape), options, given.dtype, False, "forward")
        return
    for found in chosen:
        for kernel_size in windows:
            for direction in given.passes or PASSES[:: 2 if given.quick else 1]:
                options = Options(kernel_size)
                yield Case(str(found), (batch, *found.shape), options, given.dtype, False, direction)
    if given.maps == "all" or given.kernel_sizes or given.passes:
        return
    shape = (batch, *chosen[0].shape)
    for kernel_size in (3,) if given.quick else (3, 7):
        others = [("float32", True), ("bfloat16", False), ("bfloat16", True), ("float16", True)]
        for dtype, channels_last in others[: 2 if given.quick else None]:
            yield Case(str(chosen[0]), shape, Options(kernel_size), dtype, channels_last, "forward")
        if not given.quick:
            options = Options(kernel_size, inter_channels=0)
            yield Case(str(chosen[0]), shape, options, given.dtype, False, "forward")


def measure(
    case: Case, device: torch.device, rounds: int, table: harness.Table, memory: bool, beside_peers: bool = False
) -> None:
    """Check every provider on one case, time it or measure its memory, and add a row for each."""
    torch.compiler.reset()
    ours = "triton" if device.type == "cuda" else "cpu"
    x = maps.made(case.shape, harness.DTYPES[case.dtype], device, case.channels_last)
    x.requires_grad_(case.direction != "forward")
    truth = _truth(x, case)
    names = ("shift compiled", ours) if beside_peers else (*PROVIDERS, ours)
    functions = {name: providers.created(name, case.options) for name in names}
    if beside_peers:
        functions |= {name: peers.created(name, case.options, case.shape) for name in peers.installed()}
    runs, errors = {}, {}
    for name, function in functions.items():
        timing.progress(f"{case.name}, K = {case.options.kernel_size}, {case.direction}: {name}")
        expected = peers.bilateral(x, case.options) if name == "opencv" else truth
        right, errors[name] = _checked(function, x, case, expected, TOLERANCE if name == ours else ROUGH_TOLERANCE)
        if right:
            runs[name] = run_of(function, x, case.direction)
    seconds = timing.interleaved(runs, rounds, device) if ours in runs and not memory else {}
    for name in functions:
        row: dict[str, Any] = {
            "map": case.name, "shape": "x".join(map(str, case.shape)), "K": case.options.kernel_size,
            "S": case.options.inter_channels, "dtype": case.dtype, "layout": "NHWC" if case.channels_last else "NCHW",
            "pass": case.direction, "provider": name, "error": errors[name],
        }  # fmt: skip
        if name in seconds:
            low, middle, high = timing.ratios(seconds[name], seconds[ours])
            row |= {"ms": timing.quantiles(seconds[name])[1] * 1e3, "times": middle, "20 %": low, "80 %": high}
        elif name in runs and memory:
            timing.progress(f"memory of {name}")
            arguments = (name, case._replace(options=case.options._asdict()), str(device))  # type: ignore[arg-type]
            row["MiB"] = harness.peak_memory("benchmarks.op", "for_memory", arguments, device)
        else:
            row["ms"] = harness.DISAGREES
        table.add(**row)


def run_of(function: Callable[[Tensor], Tensor], x: Tensor, direction: str) -> timing.Run:
    """Return the function to time for a provider."""
    if direction == "forward":
        return timing.Run(functools.partial(_without_gradients, function, x))
    grad = torch.ones_like(x)
    if direction == "backward":
        return timing.Run(lambda y: torch.autograd.grad(y, x, grad), lambda: function(x))
    return timing.Run(lambda: torch.autograd.grad(function(x), x, grad))


def for_memory(name: str, fields: Sequence[Any], device: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a warm-up of the same code on a small map, and the run whose memory is measured."""
    case = Case(*fields)._replace(shape=tuple(fields[1]), options=Options(**fields[2]))
    function = providers.created(name, case.options)
    runs = []
    # Compiled code is specialised on one shape, so it must warm up on the map itself.
    for shape in (case.shape if "compiled" in name else (1, 8, 16, 16), case.shape):
        x = maps.made(tuple(shape), harness.DTYPES[case.dtype], torch.device(device), case.channels_last)
        x.requires_grad_(case.direction != "forward")
        runs.append(run_of(function, x, "both" if case.direction == "backward" else case.direction))
    warm, run = runs
    return lambda: warm.once(torch.device("cpu")), run.function


def _without_gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x)


def _truth(x: Tensor, case: Case) -> Tensor:
    exact = x.detach().double().cpu().contiguous()
    info, scale = reference.self_information(exact, case.options)
    if case.direction == "forward":
        return info
    return reference.self_information_backward(torch.ones_like(exact), exact, scale, case.options)


def _checked(
    function: Callable[[Tensor], Tensor], x: Tensor, case: Case, truth: Tensor, tolerance: float
) -> tuple[bool, float]:
    if case.direction == "forward":
        return harness.agrees(_without_gradients(function, x), truth, tolerance)
    (grad,) = torch.autograd.grad(function(x), x, torch.ones_like(x))
    return harness.agrees(grad, truth, GRADIENT_TOLERANCE * truth.abs().max().item())


if __name__ == "__main__":
    sys.exit(main())
