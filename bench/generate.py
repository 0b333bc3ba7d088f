"""Time of a whole `cookiecutter --no-input`, as a ratio to one on a one-file template.

`make bench` or `uv run --frozen python bench/generate.py` prints a Markdown table.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from generation import ROOT, cookiecutter, one_file_template

ROUNDS = 9


def main() -> None:
    """Measure both in turn, so that a busy machine slows both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        templates = {"one file": one_file_template(folder), "this template": ROOT}
        times: dict[str, list[float]] = {title: [] for title in templates}
        for round_ in range(ROUNDS):
            for title, template in templates.items():
                output = folder / f"{round_}-{title.replace(' ', '-')}"
                times[title].append(cookiecutter(template, output))
    base = statistics.median(times["one file"])
    print("| template | median s | ratio |\n|---|---:|---:|")
    for title, values in times.items():
        median = statistics.median(values)
        print(f"| {title} | {median:.2f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
