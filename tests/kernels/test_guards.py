"""Counts instead of times: instructions of the C kernels under callgrind, and the peak memory of every backend."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import GIVEN_BACK
from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

needs_cpu_kernels = pytest.mark.skipif(backends.unavailable("cpu") is not None, reason="no CPU kernels here")

# Instructions per pixel for a map (2, 16, 32, 32), at most AVX2, since callgrind does not support wider vectors: a
# tenth above the counts. Examine any change that raises them; after one that lowers them, lower these figures.
INSTRUCTIONS = {
    ("forward", 3, 0, "float32"): 39,
    ("forward", 3, 0, "bfloat16"): 43,
    ("forward", 3, 0, "float16"): 41,
    ("forward", 3, 1, "float32"): 39,
    ("forward", 3, 1, "bfloat16"): 44,
    ("forward", 5, 0, "float32"): 69,
    ("forward", 7, 0, "float32"): 108,
    ("backward", 3, 0, "float32"): 89,
    ("backward", 7, 0, "float32"): 212,
}
PIXELS = 2 * 16 * 32 * 32
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that callgrind observes."""
    if shutil.which("valgrind") is None or shutil.which("gcc") is None:
        pytest.skip("valgrind and gcc, which count the instructions, are not both installed")
    if platform.machine() != "x86_64":
        pytest.skip("the instructions were counted on x86-64")
    program = tmp_path_factory.mktemp("count") / "count_driver"
    headers = HERE.parents[1] / "kernels" / "cpu" / "csrc"
    command = [
        "gcc",
        "-O1",
        "-std=gnu11",
        f"-I{headers}",
        str(HERE / "csrc" / "count_driver.c"),
        "-o",
        str(program),
        "-ldl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def instructions(driver: Path, folder: Path, *arguments: object) -> int:
    """Return the number of instructions that the program runs."""
    path = importlib.util.find_spec(library.MODULE).origin
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}", str(driver), path]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


@needs_cpu_kernels
@pytest.mark.parametrize("case", INSTRUCTIONS, ids=lambda case: "-".join(map(str, case)))
def test_instructions_of_the_c_kernels(case: tuple[str, int, int, str], driver: Path, tmp_path: Path) -> None:
    if library.load().sia_best_level() < library.LEVELS.index("avx2"):
        pytest.skip("this machine has no AVX2")
    direction, kernel_size, channels_last, dtype = case
    number = library.DTYPES.index(getattr(torch, dtype))
    arguments = (direction, kernel_size, library.LEVELS.index("avx2"), channels_last, number)
    once, twice = (instructions(driver, tmp_path, *arguments, times) for times in (1, 2))
    counted = (twice - once) / PIXELS
    assert counted <= INSTRUCTIONS[case], f"{counted:.1f} instructions a pixel"
    assert counted > INSTRUCTIONS[case] / 2, f"{counted:.1f} instructions a pixel: lower the figure"


PEAK = """
import sys
from pathlib import Path
import torch
from sia_layers.kernels import backends, ops
from sia_layers.kernels.options import Options

torch.set_num_threads(1)
backend, kernel_size = sys.argv[1], int(sys.argv[2])
options = Options(kernel_size)
ops.self_information(torch.randn(2, 8, 16, 16), options, backend)
x = torch.randn(4, 32, 128, 128)

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
info = ops.self_information(x, options, backend)
print((resident("VmHWM") - before) / (x.numel() * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory, other systems do not")
@pytest.mark.parametrize(("backend", "maps"), [("cpu", 1.1), ("reference", 7.0)])
def test_peak_memory(backend: str, maps: float) -> None:
    """The output and little else; the reference stores six maps, slightly larger for pairs, where K^2 is 49."""
    reason = backends.unavailable(backend)
    if reason is not None:
        pytest.skip(reason)
    command = [sys.executable, "-c", PEAK, backend, "7"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | GIVEN_BACK
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < maps
