"""Print the changelog's section of a version.

scripts/release_notes.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cli import make_parser

ROOT = Path(__file__).resolve().parent.parent


def notes(changelog: str, version: str) -> str:
    """Return the section of a version.

    Raises:
        ValueError: The section is missing or empty.
    """
    pattern = rf"^## \[{re.escape(version)}\].*?\n(.*?)(?=^## \[|^\[|\Z)"
    found = re.search(pattern, changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found.group(1).strip():
        raise ValueError(f"CHANGELOG.md has no notes for {version}")
    return found.group(1).strip() + "\n"


def main() -> int:
    """Run the command line. Reject a version that the project or the template does not name."""
    parser = make_parser(__doc__)
    parser.add_argument("version", help="with or without a v before it")
    version = parser.parse_args().version.removeprefix("v")
    for name, line in (
        ("pyproject.toml", f'version = "{version}"'),
        ("cookiecutter.json", f'"__template_version": "{version}"'),
    ):
        if line not in (ROOT / name).read_text(encoding="utf-8"):
            print(f"{name} does not name the version {version}", file=sys.stderr)
            return 1
    try:
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
