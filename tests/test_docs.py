"""The documentation is correct: its code runs, its entries quote existing errors, and its links resolve."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sia_layers
import sia_layers.injection.errors as errors

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not (DOCS / "conf.py").exists(), reason="runs from a checkout, where docs/ is")
# Pages whose blocks build on one another; elsewhere only the blocks under one heading do.
TOGETHER = ("docs/index.md", "docs/quickstart.md")
NEEDED_TOO = {"timm.create_model": "timm", "torch.onnx.export": "onnxscript"}
# Parts that take seconds to minutes: exports to ONNX, and libraries that tests/ecosystem tests as well.
SLOW = re.compile(
    r"torch\.onnx\.export|\b(accelerate|lightning|peft|torch_pruning|torchvision|transformers|ultralytics)\b"
)


def pages() -> list[Path]:
    """Return README and every hand-written page of docs/."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
    made = DOCS / "examples", DOCS / "_build"
    return [page for page in found if page.exists() and not any(folder in page.parents for folder in made)]


# --- Code ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Code blocks that run one after another."""

    name: str
    code: str


def parts() -> Iterator[Part]:
    """Yield all Python blocks in docs/; test_packaging.py runs those in README."""
    for page in pages()[1:]:
        name, title = str(page.relative_to(ROOT)), ""
        found: dict[str, list[str]] = {}
        for heading, code in re.findall(r"^##+ (.*?)\n|^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            title = "" if name in TOGETHER else heading or title
            if code:
                found.setdefault(title, []).append(code)
        for title, blocks in found.items():
            slug = re.sub(r"\W+", "-", title.partition(":")[0]).strip("-").lower()
            yield Part(f"{name}-{slug}".strip("-"), "\n".join(blocks))


def cases() -> Iterator[Any]:
    """Yield every part as a parameter."""
    for part in parts():
        yield pytest.param(part, id=part.name, marks=[pytest.mark.slow] if SLOW.search(part.code) else [])


@pytest.mark.parametrize("part", cases())
def test_the_code_runs(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = re.findall(r"^\s*(?:import|from) (\w+)", part.code, re.M)
    needed += [library for call, library in NEEDED_TOO.items() if call in part.code]
    for library in needed:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    monkeypatch.chdir(tmp_path)
    exec(compile(part.code, f"<{part.name}>", "exec"), {"__name__": "page"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_script_for_many_processes_runs(kind: str, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    pytest.importorskip("timm")
    script = [str(DOCS / "scripts/train.py"), kind]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    # Hide the GPUs: two processes could not share one.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    gains = re.findall(r"sia: gain ([+-]\d\.\d+)", done.stdout)
    assert len(gains) == 3 and all(float(gain) != 0 for gain in gains)


# --- Errors --------------------------------------------------------------------------------------------------------


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every string in a module, with … for the values that are inserted."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield shown(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def shown(node: ast.expr) -> str:
    """Return a message with … for the values that are inserted."""
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp):
        return shown(node.left) + shown(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def trees() -> list[ast.Module]:
    """Return the syntax trees of the package's modules."""
    files = [*(ROOT / "sia_layers").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return [ast.parse(file.read_text("utf-8")) for file in files if "kernels" not in file.relative_to(ROOT).parts[1:]]


def raised() -> set[str]:
    """Return the messages of all errors that the package raises for its users."""
    calls = [node.exc for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    ours = ("AssertionError", "AttributeError", "not_injected", "refusal")  # internal, or with messages from elsewhere
    found = {
        shown(call.args[0])
        for call in calls
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.func) not in ours
    }
    return {message for message in found if re.search(r"\w{3}", message)}


def entries() -> list[str]:
    """Return the messages that docs/troubleshooting.md has entries for."""
    return re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)


def fits(entry: str, message: str) -> bool:
    """Tell whether the fixed words of an entry occur in a message, in order."""
    return re.search(".*?".join(re.escape(part.strip()) for part in entry.split("…")), message, re.S) is not None


def test_every_entry_is_in_an_error_s_words() -> None:
    known = {text for tree in trees() for text in texts(tree) if "\n" not in text}  # no docstrings
    assert [entry for entry in entries() if not any(fits(entry, text) for text in known)] == []


def test_every_error_has_an_entry() -> None:
    found = entries()
    assert [message for message in sorted(raised()) if not any(fits(entry, message) for entry in found)] == []


def test_every_class_of_errors_has_a_section() -> None:
    sections = re.findall(r"^## (\w+)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and name.endswith("Error")}
    assert classes and classes <= set(sections)


# --- Facts ---------------------------------------------------------------------------------------------------------


def test_every_variable_of_the_environment_is_listed() -> None:
    sources = [
        file.read_text("utf-8") for file in (*(ROOT / "sia_layers").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"))
    ]
    read = {
        name
        for text in sources
        for name in re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"|VARIABLE: Final = \"(\w+)\"", text)
        for name in name
        if name
    }
    page = (DOCS / "environment.md").read_text("utf-8")
    assert {"SIA_LAYERS_CPU_LEVEL", "TRITON_INTERPRET"} <= read and all(f"`{name}`" in page for name in read)


def test_the_reference_names_everything_public() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"auto(?:function|class):: (\w+)", pages))
    assert set(sia_layers.__all__) - {"__version__", "InjectionError"} <= documented


def test_links_lead_somewhere() -> None:
    broken = []
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
            place = page.parent / target
            gallery = DOCS / "gallery" / f"{Path(target).name}.py"
            made = "examples" in target and (gallery.exists() or target.endswith("examples/index"))
            if not re.match(r"\w+:", target) and not place.exists() and not made:
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []
