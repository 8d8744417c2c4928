"""The C kernels under the compiler's sanitizers, over random shapes; a driver in C, built here, calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels" / "cpu" / "csrc"
STRICT = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-Og", "-g1", "-std=gnu11", "-fno-omit-frame-pointer", "-pthread", f"-I{KERNELS}", *STRICT]
# The driver counts the kernels' allocations and makes some fail.
COUNTED = [f"-D{name}=tested_{name}" for name in ("malloc", "calloc", "free")]
ROUNDS = [("address,undefined,float-cast-overflow", 20_000), ("thread", 5_000)]
ENVIRONMENT = {
    # Its leak check needs ptrace, which containers forbid; the driver counts instead. 255: NaN in every dtype.
    "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def compiled(flags: list[str], *arguments: str | Path) -> None:
    done = subprocess.run(["gcc", *flags, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def works(flags: list[str], folder: Path) -> bool:
    """Tell whether gcc supports the sanitizer and its programs run here."""
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    command = ["gcc", *flags, str(folder / "probe.c"), "-o", str(folder / "probe")]
    return (
        not subprocess.run(command, capture_output=True).returncode and not subprocess.run(folder / "probe").returncode
    )


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizer", "rounds"), ROUNDS)
def test_kernels_under_sanitizers(sanitizer: str, rounds: int, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    if not (KERNELS / "sia_cpu.h").exists():
        pytest.skip("the sources of the C kernels are not beside the tests")
    flags = [*FLAGS, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    if not works(flags, tmp_path):
        pytest.skip(f"gcc cannot build or run a program with -fsanitize={sanitizer}")
    objects = [tmp_path / f"{source.stem}.o" for source in sorted(KERNELS.glob("*.c"))]
    for built in objects:
        compiled([*flags, *COUNTED], "-c", KERNELS / f"{built.stem}.c", "-o", built)
    driver = tmp_path / "sanitize_driver"
    compiled(flags, HERE / "csrc" / "sanitize_driver.c", *objects, "-lm", "-o", driver)
    command = [str(driver), "1", str(rounds)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:6000]
    assert done.stdout == f"{rounds} rounds\n"
