"""Wire the new service into the repository, or take it away again."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    """Run the repository's own script; it changes all files or none."""
    folder = Path.cwd()
    # See pre_gen_project.py.
    repository = Path(os.environ.get("NEW_SERVICE_REPOSITORY", folder.parent.parent))
    is_dry_run = "--dry-run" in os.environ.get("NEW_SERVICE_OPTIONS", "").split()
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(repository / "scripts"))
    try:
        from wire_service import main as wire

        options = ["--code", str(folder), *(["--dry-run"] if is_dry_run else [])]
        code: int = wire(["add", folder.name, *options])
    except BaseException:
        # An interrupt ends cookiecutter as well, which then leaves its folder behind.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if code != 0:
        # cookiecutter takes the folder itself away, if it has made it.
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
