"""How results lie in memory: as the input does, where that is contiguous or channels_last."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the map lies in channels_last order, and not in contiguous order as well."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_map(x: Tensor) -> Tensor:
    """An uninitialised map like ``x``: channels_last if ``x`` is, contiguous otherwise."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)
