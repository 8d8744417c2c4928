"""Compare the time of self-information over dtypes, layouts and options with that of a plain float32 map.

``python -m benchmarks.variants [--quick] [--threads N] [--csv FILE]``. Each round runs every variant once, and each
ratio is taken within a round. No figure is printed for a variant that does not agree with the reference in float64.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness, maps, op, timing
from sia_layers.kernels import ops, reference
from sia_layers.kernels.options import Options

PLAIN: Final = "plain"
COLUMNS = {
    "map": "<24", "K": "2d", "variant": "<20", "error": "8.1e", "ms": "9.3f", "times plain": "11.2f",
    "20 %": "6.2f", "80 %": "6.2f",
}  # fmt: skip


class Variant(NamedTuple):
    """A dtype, a layout, and options that differ from the defaults."""

    dtype: str = "float32"
    channels_last: bool = False
    options: tuple[tuple[str, Any], ...] = ()


VARIANTS: Final = {
    PLAIN: Variant(),
    "NHWC": Variant(channels_last=True),
    "bfloat16": Variant("bfloat16"),
    "bfloat16, NHWC": Variant("bfloat16", True),
    "float16": Variant("float16"),
    "float16, NHWC": Variant("float16", True),
    "zeros": Variant(options=(("padding_mode", "zeros"),)),
    "replicate": Variant(options=(("padding_mode", "replicate"),)),
    "reflect": Variant(options=(("padding_mode", "reflect"),)),
    "fixed bandwidth": Variant(options=(("adaptive", False),)),
    "distance estimator": Variant(options=(("estimator", "distance"),)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("variants", __doc__, None)
    given = parser.parse_args(arguments)
    if given.dtype != "float32":
        parser.error("the variants have dtypes of their own; omit --dtype")
    device = harness.begin(given)
    table = harness.Table(device, COLUMNS)
    for found in maps.BARS[: 1 if given.quick else None]:
        for kernel_size in (3, 7):
            measure(str(found), (4, *found.shape), kernel_size, device, 5 if given.quick else 31, table)
    table.finish(given, "variants")
    return 0


def measure(
    name: str, shape: tuple[int, ...], kernel_size: int, device: torch.device, rounds: int, table: harness.Table
) -> None:
    """Check every variant on one map, time those that are right, and add a row for each."""
    backend = "triton" if device.type == "cuda" else "cpu"
    runs, errors = {}, {}
    for variant, (dtype, channels_last, changed) in VARIANTS.items():
        timing.progress(f"{name}, K = {kernel_size}: {variant}")
        options = Options(kernel_size)._replace(**dict(changed))
        x = maps.made(shape, harness.DTYPES[dtype], device, channels_last)
        truth = reference.self_information(x.double().cpu().contiguous(), options)[0]
        run = functools.partial(_computed, x, options, backend)
        right, errors[variant] = harness.agrees(run(), truth, op.TOLERANCE)
        if right:
            runs[variant] = run
    seconds = timing.interleaved(runs, rounds, device) if PLAIN in runs else {}
    for variant, error in errors.items():
        row: dict[str, Any] = {"map": name, "K": kernel_size, "variant": variant, "error": error}
        if variant in seconds:
            low, middle, high = timing.ratios(seconds[variant], seconds[PLAIN])
            row["ms"] = timing.quantiles(seconds[variant])[1] * 1e3
            row |= {"times plain": middle, "20 %": low, "80 %": high}
        else:
            row["ms"] = harness.DISAGREES
        table.add(**row)


def _computed(x: Tensor, options: Options, backend: str) -> Tensor:
    with torch.inference_mode():
        return ops.self_information(x, options, backend)


if __name__ == "__main__":
    sys.exit(main())
