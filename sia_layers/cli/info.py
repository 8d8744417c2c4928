"""``python -m sia_layers info``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform

import torch

from sia_layers.cli.common import Parser, refusing
from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

PACKAGES = ("sia-layers", "torch", "triton", "timm", "torchvision", "pillow", "matplotlib", "scikit-image")


def add(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the command."""
    about = "Print versions and devices, and which backends can run here and why the others cannot."
    command = commands.add_parser("info", help="versions, devices and backends", description=about)
    command.set_defaults(run=run, prog=command.prog)


def run(given: argparse.Namespace) -> None:
    """Print versions, devices and backends."""
    print(f"python       {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            print(f"{package:13}{importlib.metadata.version(package)}")
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    print(f"{'cpu':13}{os.cpu_count()} cores, {capability}; torch uses {threads} threads")
    for index in range(torch.cuda.device_count()):
        print(f"{f'cuda:{index}':13}{torch.cuda.get_device_name(index)}")
    print()
    with refusing(ValueError):
        for backend in backends.BACKENDS:
            reason = backends.unavailable(backend)
            print(f"{backend:13}{'available' if reason is None else f'not available: {reason}'}")
        if backends.unavailable("cpu") is None:
            print(f"{'':13}the cpu backend computes with {library.LEVELS[library.level()]}")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(f"\nfor a float32 map on {device}")
        print(backends.explain_backend(torch.empty(1, 3, 8, 8, device=device)))
