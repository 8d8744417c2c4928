"""Hypothesis strategies: options, and maps of every size, layout, dtype and kind of content."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from sia_layers.kernels.options import ESTIMATORS, PADDING_MODES, Options

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
LAYOUTS = (
    "contiguous",
    "channels_last",
    "transposed",
    "channels_last_transposed",
    "stepped",
    "cropped",
    "channels_last_cropped",
    "offset",
    "expanded_samples",
    "expanded_channels",
    "expanded_rows",
    "expanded_columns",
)
CONTENTS = ("normal", "lattice", "relu", "flat_planes", "far", "faint", "loud")
EDGE_SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)


class Map(NamedTuple):
    """A map to build; it prints as a call, so that a failing example can be read and repeated."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    content: str = "normal"
    seed: int = 0

    def make(self, device: torch.device | str = "cpu") -> Tensor:
        return laid_out(values(self.shape, self.content, self.seed).to(device, self.dtype), self.layout)


class Case(NamedTuple):
    """A map and the options to run on it."""

    map: Map
    options: Options


def values(shape: tuple[int, ...], content: str = "normal", seed: int = 0) -> Tensor:
    """Return a float64 map with a kind of content."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if content == "lattice":
        # Multiples of 1/64 that every dtype represents: sums of differences are exact, and so are their signs.
        return torch.randint(-192, 193, shape, generator=generator, dtype=torch.float64) / 64
    if content == "relu":
        return x.relu()
    if content == "flat_planes":
        flat = torch.rand(*shape[:2], 1, 1, generator=generator) < 0.5
        return torch.where(flat, x.new_tensor(0.7), x)
    shift, factor = {"normal": (0, 1), "far": (1000, 1), "faint": (0, 1e-3), "loud": (0, 1e3)}[content]
    return shift + factor * x


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Return the map with other strides; gaps between its elements are NaN. Expanding repeats its first slice."""
    n, c, h, w = x.shape
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "channels_last_transposed":
        return x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    if layout.startswith("expanded"):
        axis = ("samples", "channels", "rows", "columns").index(layout.removeprefix("expanded_"))
        return x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape)
    if layout == "stepped":
        place = x.new_full((n, 2 * c, 3 * h + 1, 2 * w + 1), torch.nan)[:, ::2, 1::3, 1::2]
    elif layout == "cropped":
        place = x.new_full((n, c, h + 2, w + 3), torch.nan)[:, :, 1:-1, 1:-2]
    elif layout == "channels_last_cropped":
        place = x.new_full((n, h, w + 2, c + 3), torch.nan)[:, :, 1:-1, 1:-2].permute(0, 3, 1, 2)
    else:
        assert layout == "offset", layout
        place = x.new_full((x.numel() + 1,), torch.nan)[1:].view(x.shape)
    place.copy_(x)
    return place


def options(
    kernel_sizes: tuple[int, ...] = (1, 3, 5, 7, 9, 11),
    estimators: tuple[str, ...] = ESTIMATORS,
    padding_modes: tuple[str, ...] = PADDING_MODES,
    adaptive: tuple[bool, ...] = (True, False),
    inter_weights: tuple[float, ...] = (0.5, 0.0, 1.0, 2.0, -0.25),
) -> st.SearchStrategy[Options]:
    """Draw any options; reflection only for maps larger than the radius."""
    return st.builds(
        Options,
        kernel_size=st.sampled_from(kernel_sizes),
        bandwidth=st.sampled_from((1.0, 0.25, 0.5, 1.7, 4.0)),
        adaptive=st.sampled_from(adaptive),
        estimator=st.sampled_from(estimators),
        inter_channels=st.integers(0, 7),
        inter_weight=st.sampled_from(inter_weights),
        padding_mode=st.sampled_from(padding_modes),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    drawn_options: st.SearchStrategy[Options],
    *,
    sides: st.SearchStrategy[int],
    channels: st.SearchStrategy[int],
    samples: st.SearchStrategy[int],
    largest: int = 20_000,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    layouts: tuple[str, ...] = LAYOUTS,
    contents: tuple[str, ...] = CONTENTS,
) -> Case:
    """Draw options and a matching map, with at most ``largest`` elements (but at least one sample and channel)."""
    chosen = draw(drawn_options)
    least = chosen.radius + 1 if chosen.padding_mode == "reflect" else 1
    height, width = max(least, draw(sides)), max(least, draw(sides))
    depth = min(draw(channels), max(1, largest // (height * width)))
    batch = min(draw(samples), max(1, largest // (height * width * depth)))
    made = st.builds(
        Map,
        shape=st.just((batch, depth, height, width)),
        dtype=st.sampled_from(dtypes),
        layout=st.sampled_from(layouts),
        content=st.sampled_from(contents),
        seed=st.integers(0, 2**16),
    )
    return Case(draw(made), chosen)


def small_cases(drawn_options: st.SearchStrategy[Options], **kwargs: Any) -> st.SearchStrategy[Case]:
    """Draw maps of a few pixels, for the slow oracle and interpreted kernels."""
    return cases(
        drawn_options, sides=st.integers(1, 6), channels=st.integers(1, 4), samples=st.integers(1, 2), **kwargs
    )


def broad_cases(drawn_options: st.SearchStrategy[Options], **kwargs: Any) -> st.SearchStrategy[Case]:
    """Draw maps of widths around and between vector widths, with tails."""
    sizes = st.sampled_from(EDGE_SIZES) | st.integers(1, 70)
    return cases(drawn_options, sides=sizes, channels=sizes, samples=st.integers(1, 4), **kwargs)
