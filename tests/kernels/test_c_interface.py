"""The C sources and their loader: no warnings, self-contained headers, and no library of another version."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sia_layers.kernels import backends
from sia_layers.kernels.cpu import library

SOURCES = Path(__file__).parents[2] / "kernels" / "cpu" / "csrc"
STRICT = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
STRUCTURES = {"map": library.Map, "options": library.MapOptions, "layout": library.DenseMap, "layer": library.Layer}

needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or not SOURCES.exists(), reason="gcc and the C sources are not both at hand"
)


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return done.stdout


@pytest.fixture
def stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Build a C source as a library that the loader finds instead of the real one."""
    path = tmp_path / "_sia_cpu.abi3.so"
    found = importlib.machinery.ModuleSpec(library.MODULE, None, origin=str(path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    library.load.cache_clear()
    yield tmp_path / "library.c"
    monkeypatch.undo()
    library.load.cache_clear()


@needs_gcc
@pytest.mark.parametrize("header", sorted(SOURCES.glob("*.h")), ids=lambda path: path.name)
def test_each_header_is_self_contained(header: Path) -> None:
    run(*STRICT, "-fsyntax-only", "-x", "c", header)


@needs_gcc
def test_the_sources_compile_without_warnings() -> None:
    """This build is not optimised; the sanitizers' build also checks warnings with optimisation."""
    for source in sorted(SOURCES.glob("*.c")):
        run(*STRICT, "-fsyntax-only", source)


@needs_gcc
def test_python_declares_the_structures_as_c_does(tmp_path: Path) -> None:
    """This compares each field's name, offset and size, and the version of the interface."""
    lines = ['printf("%d\\n", SIA_ABI);']
    for name, structure in STRUCTURES.items():
        for field, _ in structure._fields_:
            member = f"sia_{name}, {field}"
            lines.append(f'printf("%zu %zu\\n", offsetof({member}), sizeof(((sia_{name} *)0)->{field}));')
    source, program = tmp_path / "places.c", tmp_path / "places"
    headers = '#include "sia_cpu.h"\n#include <stddef.h>\n#include <stdio.h>\n'
    source.write_text(headers + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n")
    run(*STRICT, f"-I{SOURCES}", source, "-o", program)
    abi, *places = run(program).splitlines()
    assert int(abi) == library.ABI
    declared = [
        f"{getattr(structure, field).offset} {getattr(structure, field).size}"
        for structure in STRUCTURES.values()
        for field, _ in structure._fields_
    ]
    assert places == declared


@needs_gcc
@pytest.mark.parametrize(
    "body",
    [
        "int sia_best_level(void) { return 0; }",
        "int sia_abi(int *sizes) { sizes[0] = %d; sizes[1] = %d; sizes[2] = %d; return ABI - 1; }",
        "int sia_abi(int *sizes) { sizes[0] = %d; sizes[1] = %d + 8; sizes[2] = %d; return ABI; }",
    ],
    ids=["no number", "another number", "another size"],
)
def test_a_stale_library_is_refused(stale: Path, body: str) -> None:
    sizes = iter(ctypes.sizeof(structure) for structure in STRUCTURES.values())
    stale.write_text(re.sub("%d", lambda match: str(next(sizes)), body))
    run(*STRICT, f"-DABI={library.ABI}", "-shared", "-fPIC", stale, "-o", stale.with_name("_sia_cpu.abi3.so"))
    found = library.load()
    assert isinstance(found, str)
    assert "_sia_cpu.abi3.so was built from the sources of another version" in found and "reinstall sia-layers" in found
    reason = backends.unavailable("cpu")
    assert reason is not None and "reinstall sia-layers" in reason
