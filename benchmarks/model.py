"""Compare bare and injected backbones: the time, memory and parameters that SIA adds to inference and training.

``python -m benchmarks.model [--quick] [--models NAME@SIZE ...] [--batches N ...] [--passes P ...]
[--threads N] [--csv FILE]``. The backbones are timm's, without pretrained weights, which do not affect the time. The
injected model is checked first: its maps against the reference, and its output, at identity, against the bare model.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks import harness, timing
from sia_layers import capture_self_information, inject_sia, sia_modules, use_backend

MODELS: Final = ("efficientnet_b4@380", "xception41@299", "resnet50@224", "convnext_tiny@224")
VARIANTS: Final[dict[str, dict[str, object] | None]] = {
    "bare": None,
    "bare again": None,
    "sia": {},
    "sia, no aggregation": {"aggregate": False},
    "sia, pooled": {"aggregate": "pooled"},
    "sia, frequency": {"domain": "frequency"},
    "sia, K = 7": {"kernel_size": 7},
}
FEW_VARIANTS: Final = ("bare", "bare again", "sia")
PASSES: Final = ("inference", "training")
TOLERANCE = 1e-4  # for the maps, which are computed from features that convolutions have rounded
COLUMNS = {
    "model": "<20", "batch": "5d", "pass": "<9", "variant": "<19", "parameters": "10d", "error": "8.1e", "ms": "9.1f",
    "added %": "7.1f", "20 %": "6.1f", "80 %": "6.1f", "MiB": "8.1f",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("model", __doc__, "the time added")
    parser.add_argument("--models", nargs="+", metavar="NAME@SIZE", help="timm models and picture heights (four)")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES, help="what to time (both)")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="batch sizes (1 and 8)")
    given = parser.parse_args(arguments)
    device = harness.begin(given)
    table = harness.Table(device, COLUMNS)
    names = given.models or (MODELS[:1] if given.quick else MODELS)
    for name in names:
        for batch in given.batches or ((1,) if given.quick else (1, 8)):
            for train in (each == "training" for each in given.passes):
                rounds = 9 if given.quick else (15 if train else 31) if batch == 1 else 5
                measure(name, batch, train, harness.DTYPES[given.dtype], device, rounds, table, given.quick)
    table.finish(given, "model")
    return 0


def measure(
    name: str, batch: int, train: bool, dtype: torch.dtype, device: torch.device, rounds: int, table: harness.Table,
    quick: bool,
) -> None:  # fmt: skip
    """Time every variant of a model, and add a row for each."""
    # The other variants add the same time per picture in every batch.
    variants = [variant for variant in VARIANTS if (batch == 1 and not quick) or variant in FEW_VARIANTS]
    models = {variant: created(name, variant).to(device, dtype).train(train) for variant in variants}
    x = pictures(name, batch, dtype, device)
    errors = {variant: checked(models["bare"], models[variant], x[:1]) for variant in variants}
    run: Callable[[nn.Module, Tensor], object] = _step if train else _inference
    runs = {variant: functools.partial(run, models[variant], x) for variant in variants if errors[variant] <= TOLERANCE}
    seconds = timing.interleaved(runs, rounds, device)
    for variant, model in models.items():
        row = {
            "model": name, "batch": batch, "pass": PASSES[train], "variant": variant,
            "parameters": sum(parameter.numel() for parameter in model.parameters()), "error": errors[variant],
        }  # fmt: skip
        if variant in seconds:
            low, middle, high = (100 * (ratio - 1) for ratio in timing.ratios(seconds[variant], seconds["bare"]))
            row |= {"ms": timing.quantiles(seconds[variant])[1] * 1e3, "added %": middle, "20 %": low, "80 %": high}
            timing.progress(f"memory of {name}, {variant}")
            arguments = (name, variant, batch, train, str(dtype).removeprefix("torch."), str(device))
            row["MiB"] = harness.peak_memory("benchmarks.model", "for_memory", arguments, device)
        else:
            row["ms"] = harness.DISAGREES
        table.add(**row)


def created(name: str, variant: str) -> nn.Module:
    """Create a variant of a model, with the same weights each time."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name.partition("@")[0])
    options = VARIANTS[variant]
    return model if options is None else inject_sia(model, **options)  # type: ignore[arg-type]


def pictures(name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a batch of pictures of the model's size, the same each time."""
    side = int(name.partition("@")[2])
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@torch.no_grad()
def checked(bare: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Return the largest error of the maps against the reference, or of the output against the bare model's."""
    training = model.training
    bare.eval(), model.eval()
    try:
        output = bare(x)
        error = ((model(x) - output).abs().max() / output.abs().max()).item()
        if sia_modules(model):
            with capture_self_information(model) as maps:
                model(x)
                found = dict(maps)
                with use_backend("reference"):
                    model(x)
            error = max([error, *((found[site] - maps[site]).abs().max().item() for site in maps)])
        return error
    finally:
        bare.train(training), model.train(training)


def for_memory(
    name: str, variant: str, batch: int, train: bool, dtype: str, device: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a warm-up on small pictures, and the run whose memory is measured."""
    model = created(name, variant).to(device, harness.DTYPES[dtype]).train(train)
    run: Callable[[nn.Module, Tensor], object] = _step if train else _inference
    x = pictures(name, batch, harness.DTYPES[dtype], torch.device(device))
    warm = pictures(f"{name.partition('@')[0]}@64", 2, harness.DTYPES[dtype], torch.device(device))
    return functools.partial(run, model, warm), functools.partial(run, model, x)


def _inference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def _step(model: nn.Module, x: Tensor) -> Iterable[Tensor]:
    """Run forward and backward for every parameter, without an optimizer, which takes the same time in each variant."""
    return torch.autograd.grad(model(x).square().mean(), list(model.parameters()))


if __name__ == "__main__":
    sys.exit(main())
