"""Time of adding a service: the first one and the hundredth, and cookiecutter on one file.

`uv run --frozen python bench/add_service.py` prints a Markdown table.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from generation import ROOT, cookiecutter, one_file_template

ROUNDS = 9
MANY = 100
TYPES = ("poller", "subscriber", "http-api")


def add(repository: Path, name: str, kind: str = "poller") -> float:
    """Wall time of adding a service to a repository, documents included."""
    # All repositories share one environment, which is made before.
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(repository.parent / "environment")}
    command = [str(repository / "scripts/new-service.sh"), name, "--type", kind]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main() -> None:
    """Measure all in turn, so that a busy machine slows all."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one_file = one_file_template(folder)
        cookiecutter(ROOT, folder, "project_slug=few")
        few, many = folder / "few", folder / "many"
        # Its modules are compiled from now on, in both copies.
        add(few, "service-0")
        shutil.copytree(few, many)
        for number in range(1, MANY - 2):
            add(many, f"service-{number}", TYPES[number % len(TYPES)])
        for round_ in range(ROUNDS):
            output = folder / f"one-file-{round_}"
            times.setdefault("one-file template", []).append(cookiecutter(one_file, output))
            for title, original in (("at 2 services", few), (f"at {MANY} services", many)):
                repository = folder / f"{original.name}-{round_}"
                shutil.copytree(original, repository)
                times.setdefault(f"addition {title}", []).append(add(repository, "new"))
                shutil.rmtree(repository)
    medians = {title: statistics.median(values) for title, values in times.items()}
    one, first, last = medians.values()
    print("| | median s | to one file | to the first |\n|---|---:|---:|---:|")
    titles = list(medians)
    print(f"| {titles[0]} | {one:.2f} | 1.00 | |")
    print(f"| {titles[1]} | {first:.2f} | {first / one:.2f} | 1.00 |")
    print(f"| {titles[2]} | {last:.2f} | {last / one:.2f} | {last / first:.2f} |")


if __name__ == "__main__":
    main()
