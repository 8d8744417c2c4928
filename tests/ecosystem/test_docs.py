"""Every block of code in docs/ecosystem.md runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
BLOCKS = re.findall(r"^## (.*?)\n|^```python\n(.*?)^```", PAGE.read_text() if PAGE.exists() else "", re.M | re.S)


def named_blocks() -> list[object]:
    title, found = "", []
    for heading, code in BLOCKS:
        title = heading or title
        if code:
            found.append(pytest.param(code, id=f"{title.split(':')[0].split(',')[0]}-{len(found)}".replace(" ", "-")))
    return found


@pytest.mark.parametrize("code", named_blocks())
def test_a_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in re.findall(r"^(?:import|from) (\w+)", code, re.M):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    torch.set_num_threads(threads)


def test_the_page_has_blocks() -> None:
    if not PAGE.exists():
        pytest.skip("runs from a checkout, where docs/ is")
    assert len(named_blocks()) >= 8
