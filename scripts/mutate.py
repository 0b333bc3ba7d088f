"""Plant faults in the shared library and count those that tests find.

    make mutate [ARGS="shared/retry.py shared/state.py"]

mutmut changes one expression at a time and runs the tests that reach it. The program fails below
the floor. Survivors are listed: each is a change of behaviour that no test noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cli import make_parser
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
MUTMUT = "mutmut==3.8.1"
# Percentage of the planted faults that the tests have to find.
FLOOR = 75
# Real brokers and processes take seconds for each fault, so a whole run would take days.
SLOW_MODULES = ["shared/mqtt*", "shared/service.py", "shared/diagnose.py"]
SLOW_TESTS = [
    "mqtt",
    "inbox",
    "dispatcher",
    "service",
    "diagnose",
    "signals",
    "debugger",
    "http_api",
]


def render(directory: Path) -> Path:
    """Render a repository with all clients and the tests of the library, without its setup."""
    project = Path(
        cookiecutter(str(ROOT), no_input=True, output_dir=str(directory), accept_hooks=False)
    )
    ignored = shutil.ignore_patterns(
        "__pycache__", *(f"test_{name}*.py" for name in SLOW_TESTS), "scripted_broker.py"
    )
    shutil.copytree(ROOT / "tests/library", project / "tests/library", ignore=ignored)
    return project


def configure(project: Path, modules: list[str]) -> None:
    """Add the settings of mutmut to the pyproject.toml of the repository."""
    selection = {"only_mutate": modules} if modules else {"do_not_mutate": SLOW_MODULES}
    settings = {
        "source_paths": ["shared"],
        **selection,
        "also_copy": ["."],
        "mutate_only_covered_lines": True,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-x"],
        "pytest_add_cli_args_test_selection": ["tests/library", "tests/test_shared"],
        # The log is wording, which the tests leave free.
        "do_not_mutate_patterns": [r"logger\.\w+\("],
        "process_isolation": "forkserver",
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (project / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(["", "[tool.mutmut]", *lines, ""]))


def mutmut(project: Path, *arguments: str) -> None:
    """Run mutmut in the locked environment of the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = ["scripts/uv", "run", "--frozen", "--with", MUTMUT, "mutmut", *arguments]
    subprocess.run(command, cwd=project, env=environment, check=True)


def score(project: Path) -> float:
    """Return the percentage of faults that were found, a fault that hangs included."""
    counts = json.loads((project / "mutants/mutmut-cicd-stats.json").read_text(encoding="utf-8"))
    found: int = counts["killed"] + counts["timeout"] + counts["segfault"]
    missed: int = counts["survived"] + counts["no_tests"] + counts["suspicious"]
    print(f"{found} faults found, {missed} missed")
    return 100 * found / max(found + missed, 1)


def main() -> int:
    """Command line."""
    parser = make_parser(__doc__, "0 done, 1 below the floor, 2 wrong usage")
    parser.add_argument("modules", nargs="*", help="such as shared/retry.py (default: quick ones)")
    parser.add_argument("--floor", type=float, default=FLOOR, help="percentage of faults to find")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        project = render(Path(directory))
        configure(project, options.modules)
        mutmut(project, "run")
        mutmut(project, "export-cicd-stats")
        mutmut(project, "results")
        reached = score(project)
    print(f"{reached:.1f} % of the faults are found, the floor is {options.floor:g} %")
    if reached < options.floor:
        print("Add tests that notice the survivors above.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
