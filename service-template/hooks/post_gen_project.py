"""Place the test of the new service, and let the repository add the service to its lists."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

NAME = "{{ cookiecutter.service_slug }}"


def main() -> int:
    """Leave everything to scripts/new-service.sh, unless it is what renders this."""
    if "SERVICE_REPOSITORY" in os.environ:
        return 0
    repository = Path.cwd().parent.parent
    entry = f"services/{NAME}/compose.yml"
    if entry in (repository / "docker-compose.yml").read_text(encoding="utf-8"):
        # The first service: a new repository names it already.
        Path("test_service.py").rename(repository / f"tests/test_{NAME.replace('-', '_')}.py")
        return 0
    return subprocess.run(["bash", "scripts/new-service.sh", NAME], cwd=repository).returncode


if __name__ == "__main__":
    raise SystemExit(main())
