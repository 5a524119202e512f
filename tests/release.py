"""Check that a version can be released: `make release-check`. Builds all of it, and does all but the upload."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SECTION = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>\d{4}-\d\d-\d\d)$", re.MULTILINE)


def versions() -> dict[str, str]:
    """Return the version of each distribution."""
    found = (tomllib.loads(path.read_text())["project"] for path in sorted(ROOT.glob("omniq-*/pyproject.toml")))
    return {project["name"]: project["version"] for project in found}


def problems(version: str | None, changelog: str, given: dict[str, str]) -> list[str]:
    """Return what keeps a version from being released.

    :param version: the one that was tagged; None: what the distributions say.
    :param changelog: the text of CHANGELOG.md.
    :param given: the version of each distribution.
    """
    found = []
    wanted = version or next(iter(given.values()))
    found += [f"{name} has version {own}, not {wanted}" for name, own in given.items() if own != wanted]
    dated = [section["version"] for section in _SECTION.finditer(changelog)]
    if wanted not in dated:
        found.append(f"CHANGELOG.md has no section '## [{wanted}] - YYYY-MM-DD'")
    elif dated[0] != wanted:
        found.append(f"the latest section of CHANGELOG.md is that of {dated[0]}, not of {wanted}")
    return found


def main(version: str | None) -> int:
    """Check, build and test; return the exit code."""
    found = problems(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), versions())
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    if changed.stdout:
        found.append("there are changes that are not committed: what is built would not be what is tagged")
    for problem in found:
        print(f"release-check: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None))
