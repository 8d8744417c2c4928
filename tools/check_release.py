"""Check whether a release is ready: ``python tools/check_release.py vX.Y.Z`` fails and prints what is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]


def missing(tag: str, root: Path = ROOT) -> list[str]:
    """Return the reasons why a tag cannot be released."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version, changelog = project["version"], (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag!r}, and pyproject.toml has version {version!r}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'")
    if "OWNER" in "".join(project.get("urls", {}).values()) or not project.get("urls"):
        found.append("[project.urls] in pyproject.toml names no repository: replace OWNER by its owner")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/check_release.py vX.Y.Z")
    sys.exit("\n".join(missing(sys.argv[1])) or 0)
