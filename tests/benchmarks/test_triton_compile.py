"""Every Triton kernel compiled for every GPU, without one: registers, spills, exponentials, width of loads.

Each group of targets is compiled in a separate process without TRITON_INTERPRET, under which the kernels are functions
of the interpreter. The kernels are those that the dispatch would launch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton, which holds the compilers, is not installed")

NVIDIA = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
AMD = ("gfx90a", "gfx942", "gfx950", "gfx1100")
DTYPES = ("float32", "bfloat16", "float16")
INFORMATION, BACKWARD = ("self_information", "gate_and_mean"), ("self_information_backward",)
PIXELWISE = ("gate", "channel_mean")
# Vector registers: at most half of a thread's 255 on NVIDIA; AMD's compiler hoists loads into its 512, or 256 on RDNA.
REGISTERS = {"sm": 128, "gfx9": 160, "gfx1": 192}
# Width of reads and writes for a float32 map whose channels are adjacent.
WIDE_LOADS = {
    "sm_80": ("LDG.E.128", "STG.E.128"),
    "gfx942": ("global_load_dwordx2", "global_store_dwordx2"),
}

SCRIPT = """
import json, sys
import torch
from benchmarks.gpu_compile import compile_launch, launches
from sia_layers.kernels.options import Options

seen = set()
for group in json.loads(sys.argv[1]):
    options, dtype = Options(**group["options"]), getattr(torch, group["dtype"])
    found = launches(options, (2, 64, 64, 64), dtype, group["channels_last"], group["functions"])
    for target in group["targets"]:
        for launch in found:
            key = (target, launch.kernel.name, launch.num_warps, str(launch.arguments))
            if key not in seen:
                seen.add(key)
                built = compile_launch(launch, target)
                fields = ("name", "target", "num_warps", "registers", "spills", "exponentials", "instructions")
                print(json.dumps({field: getattr(built, field) for field in fields} | {"group": group}))
"""


class Group(NamedTuple):
    """Kernels that are compiled together."""

    targets: tuple[str, ...]
    functions: tuple[str, ...]
    kernel_size: int = 3
    dtype: str = "float32"
    channels_last: bool = False
    inter_channels: int = 5
    estimator: str = "kde"
    padding_mode: str = "exclude"

    def request(self) -> dict[str, Any]:
        names = ("kernel_size", "inter_channels", "estimator", "padding_mode")
        options = {name: getattr(self, name) for name in names}
        return {name: value for name, value in self._asdict().items() if name not in names} | {"options": options}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    Compiler.folder = tmp_path_factory.mktemp("triton")


class Compiler:
    """Compile groups in a fresh process."""

    folder = Path()

    @staticmethod
    @cache
    def run(*groups: Group) -> list[dict[str, Any]]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
        command = [sys.executable, "-c", SCRIPT, json.dumps([group.request() for group in groups])]
        environment["TRITON_CACHE_DIR"] = str(Compiler.folder)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]


def assert_no_spills(kernels: list[dict[str, Any]], names: set[str]) -> None:
    assert {kernel["name"] for kernel in kernels} == names
    for kernel in kernels:
        assert kernel["spills"] == 0 and kernel["registers"] >= 8, figures(kernel)


def assert_fits(kernels: list[dict[str, Any]], names: set[str]) -> None:
    assert_no_spills(kernels, names)
    for kernel in kernels:
        limit = next(most for prefix, most in REGISTERS.items() if kernel["target"].startswith(prefix))
        assert kernel["registers"] <= limit, figures(kernel)


def figures(kernel: dict[str, Any]) -> dict[str, Any]:
    return {name: kernel[name] for name in ("name", "target", "registers", "spills", "group")}


def assert_no_atomics(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        found = [name for name in kernel["instructions"] if name.startswith(("RED.", "ATOM")) or "_atomic_" in name]
        assert not found, (kernel["name"], kernel["target"], found)


def count(kernel: dict[str, Any], *prefixes: str) -> int:
    return sum(times for name, times in kernel["instructions"].items() if name.startswith(prefixes))


@pytest.mark.slow
@pytest.mark.parametrize("targets", [NVIDIA[:4], NVIDIA[4:], AMD], ids=["sm_7x-8x", "sm_9x-12x", "gfx"])
def test_forward_for_every_target(targets: tuple[str, ...]) -> None:
    groups = [
        Group(targets, ("self_information",), kernel_size, channels_last=channels_last)
        for kernel_size in (3, 7)
        for channels_last in (False, True)
    ]
    kernels = Compiler.run(*groups)
    assert {kernel["target"] for kernel in kernels} == set(targets)
    assert_fits(kernels, {"spread", "finish", "information"})
    assert_no_atomics(kernels)


@pytest.mark.slow
def test_ptxas_spills_without_explicit_register_limits() -> None:
    groups = [
        Group(("sm_90",), ("self_information",), 5, "float32", channels_last=True),
        Group(("sm_90",), BACKWARD, 5, "bfloat16", channels_last=True),
        Group(("sm_80",), BACKWARD, 5, "float32", channels_last=True, estimator="distance"),
    ]
    assert_no_spills(Compiler.run(*groups), {"spread", "distances", "finish", "information", "shares", "gather"})


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", ["gfx942", "sm_90"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_kernel(target: str, channels_last: bool) -> None:
    groups = [
        Group((target,), INFORMATION + BACKWARD + PIXELWISE, channels_last=channels_last),
        Group((target,), BACKWARD, 7, channels_last=channels_last),
        Group((target,), INFORMATION + BACKWARD, estimator="distance", channels_last=channels_last),
    ]
    kernels = Compiler.run(*groups)
    windowed = {"spread", "distances", "finish", "information", "shares", "gather"}
    assert_fits(kernels, windowed | {"gate", "gate_backward", "channel_mean", "channel_mean_backward"})
    assert_no_atomics(kernels)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_75", "gfx90a"])
def test_half_dtypes_on_the_oldest(target: str) -> None:
    groups = [
        Group((target,), ("self_information", *BACKWARD), dtype=dtype, channels_last=channels_last)
        for dtype in ("bfloat16", "float16")
        for channels_last in (False, True)
    ]
    assert_no_spills(Compiler.run(*groups), {"spread", "finish", "information", "shares", "gather"})


@pytest.mark.slow
def test_every_padding_mode_and_large_windows() -> None:
    functions, names = ("self_information", *BACKWARD), {"spread", "finish", "information", "shares", "gather"}
    assert_fits(Compiler.run(Group(("sm_86", "gfx1100"), functions, 15)), names)
    # The kernel that counts how often two windows contain a pair takes more than half the registers, and fits.
    groups = [Group(("sm_86",), functions, 5, padding_mode=mode) for mode in ("zeros", "replicate", "reflect")]
    assert_no_spills(Compiler.run(*groups), names)


@pytest.mark.slow  # by default, test_gpu_report counts the exponentials
@pytest.mark.parametrize("channels_last", [False, True])
def test_exponentials_and_loads_per_output(channels_last: bool) -> None:
    intra = Group(("sm_80", "gfx942"), ("self_information",), channels_last=channels_last, inter_channels=0)
    kernels = [kernel for kernel in Compiler.run(intra) if kernel["name"] == "information"]
    assert len(kernels) == 2
    for kernel in kernels:
        # K = 3 is straight-line code: every instruction in it runs once.
        assert kernel["exponentials"] == 8
        outputs = count(kernel, "MUFU.EX2", "v_exp_f32") / 8
        # The scale is one more load, and NCHW has one coalesced column per lane. channels_last: as many channels at
        # once as a thread has outputs: sixteen bytes, or eight where a warp has 64 threads for the same tile.
        if channels_last:
            loads, stores = WIDE_LOADS[kernel["target"]]
            at_once = min(4.0, outputs)
            assert 0 <= count(kernel, loads) - 9 * outputs / at_once <= 1
            assert count(kernel, stores) == outputs / at_once
        else:
            assert 9 * outputs <= count(kernel, "LDG", "global_load") <= 9 * outputs + 1
            assert count(kernel, "STG", "global_store") == outputs


@pytest.mark.sampled(1)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gates_load_sixteen_bytes_at_once(channels_last: bool) -> None:
    kernels = Compiler.run(Group(("sm_80", "gfx942"), ("gate",), channels_last=channels_last))
    assert {kernel["name"] for kernel in kernels if kernel["target"] == "sm_80"} >= {"gate", "gate_backward"}
    for kernel in kernels:
        if kernel["name"].startswith("gate"):
            loaded, stored = (2, 1) if kernel["name"] == "gate" else (3, 2)
            times = count(kernel, "STG.E.128", "global_store_dwordx4") // stored
            assert times >= 1
            assert count(kernel, "STG") + count(kernel, "global_store") >= times * stored
            # Each output's share of every map; the channel gates may be loaded in the same way.
            assert count(kernel, "LDG.E.128", "global_load_dwordx4") >= times * loaded


@pytest.mark.slow
@pytest.mark.parametrize("target", [*NVIDIA, *AMD])
def test_everything_everywhere(target: str) -> None:
    """This covers what the others omit; ``benchmarks.gpu_report`` combines every window, dtype and estimator."""
    functions = INFORMATION + BACKWARD + PIXELWISE
    groups = [Group((target,), functions, 5, dtype, dtype != "float32") for dtype in DTYPES]
    groups += [Group((target,), BACKWARD, 5, "float32", True, estimator="distance")]
    kernels = Compiler.run(*groups)
    assert_no_spills(kernels, {kernel["name"] for kernel in kernels})
