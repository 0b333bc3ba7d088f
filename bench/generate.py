"""Time of a whole `cookiecutter --no-input`, as a ratio to one on a one-file template.

Run with `make bench` or `uv run --frozen python bench/generate.py`; prints a Markdown table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 9


def one_file_template(folder: Path) -> Path:
    """A template of one file without hooks: the least that cookiecutter can do."""
    template = folder / "one-file"
    (template / "{{cookiecutter.project_slug}}").mkdir(parents=True)
    (template / "cookiecutter.json").write_text(json.dumps({"project_slug": "one-file"}))
    (template / "{{cookiecutter.project_slug}}" / "README.md").write_text(
        "{{ cookiecutter.project_slug }}\n"
    )
    return template


def seconds(template: Path, output: Path) -> float:
    """Wall time of one generation in a fresh process."""
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "-o", str(output), str(template)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turn, so that a busy machine slows both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = {"one file": one_file_template(folder), "this template": ROOT}
        times: dict[str, list[float]] = {title: [] for title in templates}
        for round_ in range(ROUNDS):
            for title, template in templates.items():
                times[title].append(
                    seconds(template, folder / f"{round_}-{title.replace(' ', '-')}")
                )
    base = statistics.median(times["one file"])
    print("| template | median s | ratio |\n|---|---:|---:|")
    for title, values in times.items():
        median = statistics.median(values)
        print(f"| {title} | {median:.2f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
