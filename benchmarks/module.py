"""Compare SIAttention with timm's attention layers: forward, training step, parameters and memory.

``python -m benchmarks.module [--quick] [--threads N] [--csv FILE]``. SIAttention with K = 3 runs as published, as the
spatial gate alone, and on the coefficients of a DCT or a wavelet (FrequencySIAttention); ``I`` is the self-information
alone; timm's layers run with their defaults. Our layers are checked against their own reference first; timm's layers
have no reference to check against.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks import harness, maps, timing
from sia_layers import FrequencySIAttention, SIAttention, frequency_self_information, self_information

TIMMS: Final = ("se", "eca", "cbam", "gc", "nl", "sk")


class Information(nn.Module):
    """A function of a map and a backend as a layer, so that it can be timed beside the others."""

    def __init__(self, function: Callable[..., Tensor], channels: int, backend: str | None = None) -> None:
        super().__init__()
        self.function = functools.partial(function, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """Return the self-information of a map."""
        return self.function(x)


# Each is called with the number of channels and the backend.
OURS: Final[dict[str, Callable[..., nn.Module]]] = {
    "sia": SIAttention,
    "sia, spatial": functools.partial(SIAttention, channel=None),
    "sia, K = 7": functools.partial(SIAttention, kernel_size=7),
    "sia, grad of I": functools.partial(SIAttention, detach=False),
    "sia, dct": FrequencySIAttention,
    "sia, haar": functools.partial(FrequencySIAttention, transform="haar"),
    "I": functools.partial(Information, self_information),
    "I, dct": functools.partial(Information, frequency_self_information),
}
TOLERANCE = 2e-5  # relative to the largest value: a layer adds the rounding of its convolutions
COLUMNS = {
    "map": "<24", "shape": "<19", "layer": "<15", "parameters": "10d", "error": "8.1e", "forward ms": "10.3f",
    "times sia": "9.2f", "training ms": "11.3f", "times": "7.2f", "forward MiB": "11.1f", "training MiB": "12.1f",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: measure, print, and write the files that the arguments name."""
    parser = harness.parser("module", __doc__, "times beside SIAttention")
    given = parser.parse_args(arguments)
    device = harness.begin(given)
    dtype = harness.DTYPES[given.dtype]
    table = harness.Table(device, COLUMNS)
    chosen = maps.BARS if given.quick else [found for found in maps.MAPS if found.size != 380]
    for found in chosen:
        memory = found in maps.BARS and not given.quick
        measure(str(found), (4, *found.shape), dtype, device, 5 if given.quick else 9, table, memory)
    table.finish(given, "module")
    return 0


def measure(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, rounds: int,
    table: harness.Table, memory: bool,
) -> None:  # fmt: skip
    """Time every layer on one map, and add a row for each."""
    x = maps.made(shape, dtype, device)
    layers = {layer: created(layer, shape[1]).to(device, dtype) for layer in (*OURS, *TIMMS)}
    errors = {layer: _error(layer, shape[1], x) for layer in OURS}
    right = [layer for layer in layers if errors.get(layer, 0.0) <= TOLERANCE]
    forward = {layer: timing.Run(functools.partial(_inference, layers[layer].eval(), x)) for layer in right}
    seconds = timing.interleaved(forward, rounds, device)
    training = {layer: timing.Run(functools.partial(_step, layers[layer].train(), x)) for layer in right}
    steps = timing.interleaved(training, rounds, device)
    for layer, module in layers.items():
        parameters = sum(parameter.numel() for parameter in module.parameters())
        row = {"map": name, "shape": "x".join(map(str, shape)), "layer": layer, "parameters": parameters}
        row |= {"error": errors[layer]} if layer in errors else {}
        if layer in right:
            row |= {"forward ms": timing.quantiles(seconds[layer])[1] * 1e3}
            row |= {"training ms": timing.quantiles(steps[layer])[1] * 1e3}
            if "sia" in right:
                row |= {"times sia": timing.ratios(seconds[layer], seconds["sia"])[1]}
                row |= {"times": timing.ratios(steps[layer], steps["sia"])[1]}
            for column, train in (("forward MiB", False), ("training MiB", True)) if memory else ():
                timing.progress(f"memory of {layer}")
                arguments = (layer, shape, str(dtype).removeprefix("torch."), str(device), train)
                row[column] = harness.peak_memory("benchmarks.module", "for_memory", arguments, device)
        else:
            row["forward ms"] = harness.DISAGREES
        table.add(**row)


def created(layer: str, channels: int, backend: str | None = None) -> nn.Module:
    """Create a layer by name, with the same weights each time."""
    torch.manual_seed(0)
    if layer in OURS:
        return OURS[layer](channels, backend=backend)
    from timm.layers import create_attn

    made = create_attn(layer, channels)
    assert isinstance(made, nn.Module)
    return made


def for_memory(
    layer: str, shape: Sequence[int], dtype: str, device: str, train: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a warm-up on a small map, and the run whose memory is measured."""
    module = created(layer, shape[1]).to(device, harness.DTYPES[dtype]).train(train)
    run: Callable[[nn.Module, Tensor], object] = _step if train else _inference
    small, large = (
        maps.made(tuple(size), harness.DTYPES[dtype], torch.device(device)) for size in ((2, shape[1], 8, 8), shape)
    )
    return functools.partial(run, module, small), functools.partial(run, module, large)


def _error(layer: str, channels: int, x: Tensor) -> float:
    """Return the largest error of one of our layers against its float64 reference, relative to the largest value."""
    exact = created(layer, channels, "reference").double()
    with torch.no_grad():
        truth = exact(x.double().cpu())
        found = created(layer, channels).to(x.device, x.dtype)(x)
    return ((found.double().cpu() - truth).abs().max() / truth.abs().max()).item()


def _inference(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)  # type: ignore[no-any-return]


def _step(module: nn.Module, x: Tensor) -> Iterable[Tensor]:
    """Run forward and backward, also for the map, as inside a network."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(module(x).sum(), [x, *module.parameters()])


if __name__ == "__main__":
    sys.exit(main())
