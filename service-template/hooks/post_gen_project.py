"""Wire the new service into the repository, or take it away again."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main() -> int:
    """Run the repository's own script; it changes all files or none."""
    folder = Path.cwd()
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder.parent.parent / "scripts"))
    try:
        from wire_service import main as wire

        code: int = wire(["add", folder.name])
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
