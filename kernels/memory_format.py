"""The memory format of results: channels_last if the input is, contiguous otherwise."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Tell whether a map is channels_last, and not contiguous as well, as a map of one channel is."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_map(x: Tensor) -> Tensor:
    """Return an uninitialised map like ``x``: channels_last if ``x`` is, contiguous otherwise."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)
