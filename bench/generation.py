"""Code shared by the measurements of cookiecutter."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def one_file_template(folder: Path) -> Path:
    """A template of one file without hooks: the least that cookiecutter can do."""
    template = folder / "one-file"
    (template / "{{cookiecutter.project_slug}}").mkdir(parents=True)
    (template / "cookiecutter.json").write_text(json.dumps({"project_slug": "one-file"}))
    (template / "{{cookiecutter.project_slug}}" / "README.md").write_text(
        "{{ cookiecutter.project_slug }}\n"
    )
    return template


def cookiecutter(template: Path, output: Path, *answers: str) -> float:
    """Wall time of one generation in a fresh process, in seconds."""
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(output)]
    start = time.perf_counter()
    subprocess.run([*command, str(template), *answers], check=True, capture_output=True)
    return time.perf_counter() - start
