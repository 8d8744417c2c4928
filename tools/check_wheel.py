"""Check the contents of a wheel: ``python tools/check_wheel.py WHEEL`` lists them, and fails if they are wrong."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def problems(wheel: Path) -> list[str]:
    """Return the problems of a wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    found = [f"{name} lies outside sia_layers" for name in names if not name.startswith(("sia_layers/", "sia_layers-"))]
    for part in ("/py.typed", "/kernels/cpu/_sia_cpu.", "/kernels/reference.py", "/kernels/triton/__init__.py"):
        if not any(part in name for name in names):
            found.append(f"no {part}")
    if "-cp310-abi3-" not in wheel.name:
        found.append("the wheel does not serve every Python from 3.10 on")
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    print(path.name, *sorted(zipfile.ZipFile(path).namelist()), sep="\n  ")
    sys.exit("; ".join(problems(path)) or 0)
