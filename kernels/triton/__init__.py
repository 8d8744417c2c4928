"""Triton backend: fused kernels for CUDA and ROCm devices.

Triton and the kernels are imported when one of the functions is first used. If TRITON_INTERPRET=1 is set, Triton's
interpreter runs the kernels on CPU tensors instead, slowly, for tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sia_layers.kernels.private_torch import constant_when_compiled
from sia_layers.kernels.triton.launch import interpreted

if TYPE_CHECKING:
    from sia_layers.kernels.triton.dispatch import (
        channel_mean,
        channel_mean_backward,
        gate,
        gate_and_mean,
        gate_backward,
        self_information,
        self_information_backward,
    )

__all__ = [
    "channel_mean",
    "channel_mean_backward",
    "gate",
    "gate_and_mean",
    "gate_backward",
    "refuses",
    "self_information",
    "self_information_backward",
    "unavailable",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (7, 5)
MOST_PLANES = 2**30


def unavailable() -> str | None:
    """Return why the backend cannot run in this process; None if it can. Import Triton only if there is a device."""
    if not interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device is available (torch.cuda.is_available() is False)"
    try:
        importlib.import_module("triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return "triton is not installed: pip install 'sia-layers[triton]'"
        return f"importing triton failed: {error}"
    except Exception as error:  # a broken installation may raise anything
        return f"importing triton failed: {type(error).__name__}: {error}"
    return None


def refuses(x: Tensor) -> str | None:
    """Return why the backend cannot serve this tensor; None if it can."""
    if x.dtype not in DTYPES:
        return f"it serves float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if x.dim() >= 2 and x.shape[0] * x.shape[1] >= MOST_PLANES:
        return f"it serves at most {MOST_PLANES - 1} planes, not {x.shape[0] * x.shape[1]}"
    if x.device.type == "cuda":
        return _too_old(x.device.index)
    if x.device.type == "cpu" and interpreted():
        return None
    return f"it serves tensors on a CUDA or ROCm device, not on {x.device.type}"


@constant_when_compiled
def _too_old(device: int) -> str | None:
    """Return why Triton does not support this GPU; None if it does."""
    found = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or found >= OLDEST_CAPABILITY:
        return None
    oldest, present = (".".join(map(str, capability)) for capability in (OLDEST_CAPABILITY, found))
    return f"it needs compute capability {oldest} or newer, and cuda:{device} has {present}"


constant_when_compiled(interpreted)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("sia_layers.kernels.triton.dispatch"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
