"""The installed files, and consistent versions and dependencies wherever they are named."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METADATA = importlib.metadata.metadata("sia-layers")


def project() -> dict[str, dict[str, object]]:
    """Return the contents of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_torch_is_the_only_dependency() -> None:
    hard = [line for line in importlib.metadata.requires("sia-layers") or [] if "extra ==" not in line]
    assert [re.split(r"[<>=!~; ]", line)[0] for line in hard] == ["torch"]


def test_extras() -> None:
    extras = {
        "timm",
        "vision",
        "triton",
        "viz",
        "demo",
        "onnx",
        "reproduction",
        "peers",
        "ecosystem",
        "test",
        "docs",
        "dev",
    }
    assert set(METADATA.get_all("Provides-Extra")) == extras


def test_one_version() -> None:
    version = project()["project"]["version"]
    assert METADATA["Version"] == version
    for other in ("CITATION.cff", "README.md", "docs/conf.py", "sia_layers/__init__.py"):
        assert version not in (ROOT / other).read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_types_are_announced() -> None:
    assert importlib.resources.files("sia_layers").joinpath("py.typed").is_file()


def test_kernels_is_not_a_top_level_package(tmp_path: Path) -> None:
    code = "import importlib.util as u, sys; s = u.find_spec('kernels'); print(s.origin if s else 'absent')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout
    names = METADATA.get_all("Import-Name") or importlib.metadata.distribution("sia-layers").read_text("top_level.txt")
    assert "kernels" not in re.split(r"\s+", names if isinstance(names, str) else " ".join(names))


def test_source_distribution_holds_the_c_sources() -> None:
    named = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert "recursive-include kernels/cpu/csrc *.c *.h\n" in named
    assert {path.suffix for path in (ROOT / "kernels/cpu/csrc").iterdir() if path.is_file()} == {".c", ".h"}


def test_every_c_file_is_built() -> None:
    (module,) = project()["tool"]["setuptools"]["ext-modules"]
    assert sorted(module["sources"]) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels/cpu/csrc").glob("*.c")
    )
    assert not any("fast-math" in flag for flag in module["extra-compile-args"])


def test_every_package_is_listed() -> None:
    found = {"sia_layers"}
    found |= {".".join(("sia_layers", *path.parent.parts)) for path in _below(ROOT, "kernels")}
    found |= {".".join(path.parent.parts) for path in _below(ROOT, "sia_layers") if "kernels" not in path.parts}
    assert set(project()["tool"]["setuptools"]["packages"]) == found


def _below(root: Path, folder: str) -> list[Path]:
    return [path.relative_to(root) for path in (root / folder).rglob("__init__.py")]


def test_requirements_are_pinned() -> None:
    lines = (ROOT / "requirements/constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_name(line) for line in lines if "==" in line}
    extras = project()["project"]["optional-dependencies"]
    needed = {_name(line) for lines in extras.values() for line in lines} | {"torch"}
    assert needed - {"sia-layers"} <= pinned


def test_the_floors_are_tested() -> None:
    """requirements/floors.txt holds the oldest promised version of torch and of all that the extra "test" brings."""
    lines = (ROOT / "requirements/floors.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project()["project"]["optional-dependencies"]
    promised = {"torch": project()["project"]["dependencies"][0].partition(">=")[2]}
    waiting = ["test"]
    while waiting:
        for line in extras[waiting.pop()]:
            if line.startswith("sia-layers["):
                waiting += line.removeprefix("sia-layers[").rstrip("]").split(",")
            else:
                promised[_name(line)] = line.partition(">=")[2].partition(";")[0]
    assert tested.keys() == promised.keys()
    for name, floor in promised.items():
        assert f"{tested[name]}.".startswith(f"{floor}."), name


@pytest.mark.parametrize(
    ("block", "then"),
    [
        (0, "assert scores.shape == (1, 2) and [m.shape[1] for m in maps.values()] == [32, 56, 160]"),
        (1, "assert y.shape == info.shape == x.shape and torch.equal(safe(x), x)"),
    ],
)
def test_code_in_the_readme_runs(block: int, then: str) -> None:
    pytest.importorskip("timm")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code[block] + then]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pictures_in_the_readme_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", readme)
    assert pictures
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < 400_000


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
