"""The public interface: names and signatures as in api.txt, and an import that loads torch and nothing else.

After a deliberate change, regenerate api.txt: python tests/test_api.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import sia_layers

FILE = Path(__file__).with_name("api.txt")
MODULES = ("sia_layers", "sia_layers.functional", "sia_layers.injection")


def described(name: str, value: object) -> Iterator[str]:
    """Yield a line for a name, and one for every public method that a class adds to its base."""
    if inspect.isclass(value) and issubclass(value, Exception):
        yield f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    elif inspect.isclass(value):
        # The types of a named tuple are wrapped, in a way that changes with Python's version.
        yield f"class {name}" + re.sub(r"ForwardRef\((.+?)\)", r"\1", str(inspect.signature(value)))
        for method, function in vars(value).items():
            if not method.startswith("_") and inspect.isfunction(function):
                yield f"    {method}{inspect.signature(function)}"
    elif callable(value):
        yield f"{name}{inspect.signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def public_names(module: object) -> list[str]:
    """Return the names that a module lists as public or, without a list, the functions and classes that it defines."""
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__  # type: ignore[attr-defined]
    ]
    return sorted(getattr(module, "__all__", defined))


def surface() -> str:
    lines = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in public_names(module):
            lines += described(f"{name}.{public}", getattr(module, public))
    return "\n".join(lines) + "\n"


def test_names_and_signatures_are_as_agreed() -> None:
    assert surface() == FILE.read_text(), "if the change is meant, run: python tests/test_api.py"


def test_public_names_are_documented() -> None:
    for name in set(sia_layers.__all__) - {"__version__"}:
        value = getattr(sia_layers, name)
        assert value.__doc__, name
        if inspect.isclass(value) and issubclass(value, nn.Module):
            assert all(
                function.__doc__
                for key, function in vars(value).items()
                if inspect.isfunction(function) and key[0] != "_"
            )


LEAN = """
import sys, torch
before = set(sys.modules)
import sia_layers
sia_layers.SIAttention(8, gain=0.0)
if {call}:
    sia_layers.SIAttention(8)(torch.zeros(1, 8, 4, 4))
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert new == {{"sia_layers"}}, new
heavy = {{"triton", "timm", "torchvision", "matplotlib", "PIL", "skimage", "torch._dynamo"}} & set(sys.modules)
assert not heavy, heavy
assert not torch.cuda.is_initialized()
"""


@pytest.mark.parametrize("call", [False, True], ids=["import", "call"])
def test_import_is_lean_and_silent(call: bool) -> None:
    code = LEAN.format(call=call)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


if __name__ == "__main__":
    FILE.write_text(surface())
