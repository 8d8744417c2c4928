"""Releases: the scripts that check one, and the single definition of each fact that it contains."""

from __future__ import annotations

import importlib.util
import re
import shutil
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"
pytestmark = pytest.mark.skipif(not TOOLS.exists(), reason="runs from a checkout, where tools/ is")


def tool(name: str) -> ModuleType:
    """Import a script of tools/ as a module."""
    pytest.importorskip("tomllib")
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Copy the files that the release check reads, with everything ready for a release."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    rewrite(tmp_path / "CHANGELOG.md", r"\] - (Unreleased|\d{4}-\d\d-\d\d)", "] - 2030-01-31")
    rewrite(tmp_path / "pyproject.toml", "OWNER", "someone")
    return tmp_path


def rewrite(file: Path, pattern: str, by: str) -> None:
    file.write_text(re.sub(pattern, by, file.read_text("utf-8"), count=0), "utf-8")


def version(root: Path) -> str:
    found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text("utf-8"), re.M)
    assert found is not None
    return found[1]


def test_a_release_that_is_ready(release: Path) -> None:
    assert tool("check_release").missing(f"v{version(release)}", release) == []


@pytest.mark.parametrize(
    ("file", "pattern", "by", "complaint"),
    [
        ("CHANGELOG.md", "2030-01-31", "Unreleased", "CHANGELOG"),
        ("pyproject.toml", "someone", "OWNER", "OWNER"),
        ("pyproject.toml", r'version = ".+"', 'version = "9.9.9"', "tag"),
    ],
)
def test_missing_requirements_are_named(release: Path, file: str, pattern: str, by: str, complaint: str) -> None:
    tag = f"v{version(release)}"
    rewrite(release / file, pattern, by)
    assert any(complaint in line for line in tool("check_release").missing(tag, release))


def test_a_wheel_with_a_foreign_name(tmp_path: Path) -> None:
    wheel = tmp_path / "sia_layers-1-cp310-abi3-any.whl"
    inside = ["py.typed", "kernels/cpu/_sia_cpu.abi3.so", "kernels/reference.py", "kernels/triton/__init__.py"]
    with zipfile.ZipFile(wheel, "w") as file:
        for name in inside:
            file.writestr(f"sia_layers/{name}", "")
    assert tool("check_wheel").problems(wheel) == []
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("kernels/__init__.py", "")
    assert tool("check_wheel").problems(wheel) == ["kernels/__init__.py lies outside sia_layers"]


def test_every_workflow_uses_the_scripts_that_ci_uses() -> None:
    workflows = "\n".join(file.read_text("utf-8") for file in (ROOT / ".github/workflows").glob("*.yml"))
    local = (ROOT / ".ci/run").read_text("utf-8")
    for script in ("tools/smoke_test.sh", "tools/check_wheel.py"):
        assert script in workflows and script in local


def test_pre_commit_tools_match_those_of_the_tests() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    constraints = (ROOT / "requirements/constraints.txt").read_text("utf-8")
    pinned = set(re.findall(r"ruff==([\d.]+)", constraints))
    assert pinned and set(re.findall(r"ruff==([\d.]+)", hooks)) == pinned
