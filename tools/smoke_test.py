"""Test an installed sia-layers: ``python smoke_test.py BACKEND...`` names the backends that must be available.

Run it outside a checkout. It needs only torch, and fails if a wrong module is imported or a result is wrong.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
from pathlib import Path

import torch

import sia_layers
from sia_layers import SIAttention, available_backends, explain_backend, self_information

expected = tuple(sys.argv[1:])
assert "site-packages" in Path(sia_layers.__file__).parts, f"{sia_layers.__file__} is no installed package"
tops = {file.parts[0] for file in importlib.metadata.files("sia-layers") or []}
assert "kernels" not in tops, f"a top-level name that is not ours is installed: {tops}"
assert not {"triton", "timm", "matplotlib", "PIL"} & set(sys.modules), "importing sia_layers imports an extra"
found = tuple(name for name in available_backends() if name != "triton")
assert found == expected, f"expected the backends {expected}, found:\n{explain_backend(torch.zeros(1, 1, 8, 8))}"

for backend in expected:
    constant = self_information(torch.ones(1, 2, 6, 5), 3, backend=backend)
    assert torch.equal(constant, torch.zeros_like(constant)), (backend, constant)
    # A lone pixel among equal ones, with a bandwidth so small that nothing else counts: -log(1/9) at the pixel.
    lone = torch.zeros(1, 1, 5, 5)
    lone[..., 2, 2] = 1
    info = self_information(lone, 3, bandwidth=1e-3, adaptive=False, backend=backend)
    assert math.isclose(info[0, 0, 2, 2].item(), math.log(9), rel_tol=1e-5), (backend, info)
    layer, x = SIAttention(8, detach=False, backend=backend), torch.rand(2, 8, 7, 9, requires_grad=True)
    layer(x).square().mean().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all(), backend

print(f"sia-layers {sia_layers.__version__} computes with {', '.join(expected)}, torch {torch.__version__}")
