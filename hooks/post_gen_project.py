"""Set the new repository up, one step at a time, and report. No step can undo the rendering."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

# Exit code of the scripts: a tool or a condition is missing, and the message says which.
SKIPPED = 3


class Step(NamedTuple):
    """A step of the plan: what it is called, what runs, and how to run it by hand."""

    title: str
    command: list[str]
    by_hand: str
    stdin: str = ""


class Outcome(NamedTuple):
    """What became of a step."""

    title: str
    status: str
    detail: str


def render_first_service(config_file: str) -> Step:
    """The step that makes the first service from the repository's own service template."""
    name, kind = ANSWERS["first_service"], ANSWERS["first_service_type"]
    command = [
        *(sys.executable, "-m", "cookiecutter", "templates/service", "--no-input"),
        *("--output-dir", "services", "--config-file", config_file),
        *(f"service_name={name}", f"service_slug={name}", f"service_type={kind}"),
    ]
    return Step("first service", command, f"scripts/new-service.sh {name} --type {kind}")


def plan() -> list[Step]:
    """The steps after the first service: idempotent scripts of the repository."""
    return [
        Step(
            "template record",
            [sys.executable, "scripts/record_template.py"],
            "scripts/uv run --frozen cruft link URL, with the address of the template",
            stdin=json.dumps(ANSWERS),
        ),
        Step("secrets", [sys.executable, "scripts/manage_secrets.py", "init"], "make setup"),
        Step("git repository", ["bash", "scripts/init-git.sh"], "scripts/init-git.sh"),
        Step("git hooks", ["bash", "scripts/install-hooks.sh"], "scripts/install-hooks.sh"),
    ]


def run(step: Step) -> Outcome:
    """Run a step; whatever happens becomes an outcome."""
    environment = {**os.environ, "SETUP_PYTHON": sys.executable}
    try:
        result = subprocess.run(
            step.command, input=step.stdin, capture_output=True, text=True, encoding="utf-8",
            errors="replace", env=environment, check=False,
        )  # fmt: skip
    except OSError as error:
        return Outcome(step.title, "failed", f"{error}; by hand: {step.by_hand}")
    said = result.stdout.strip().splitlines()
    complaints = result.stderr.strip().splitlines()
    if result.returncode == 0:
        return Outcome(step.title, "done", said[-1] if said else "")
    why = (complaints or said or [f"exit code {result.returncode}"])[-1]
    if result.returncode == SKIPPED:
        return Outcome(step.title, "skipped", f"{why}; then: {step.by_hand}")
    return Outcome(step.title, "failed", f"{why}; by hand: {step.by_hand}")


def add_first_service() -> Outcome:
    """Render the first service, unless it is there already."""
    name = ANSWERS["first_service"]
    if Path("services", name).exists():
        return Outcome("first service", "done", f"services/{name} was there already")
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Its own configuration keeps the user's defaults out and the user's replay as it is.
            config_file = Path(folder, "config.yaml")
            config_file.write_text(
                json.dumps({"replay_dir": folder, "cookiecutters_dir": folder}), encoding="utf-8"
            )
            outcome = run(render_first_service(str(config_file)))
    except OSError as error:
        return Outcome(
            "first service", "failed", f"{error}; by hand: scripts/new-service.sh {name}"
        )
    return outcome._replace(detail=f"services/{name}") if outcome.status == "done" else outcome


def report(outcomes: list[Outcome]) -> None:
    """One table for all steps, and the way on."""
    slug = ANSWERS["project_slug"]
    width = max(len(outcome.title) for outcome in outcomes)
    rows = [
        f"  {title:<{width}}  {status:<7}  {detail}".rstrip() for title, status, detail in outcomes
    ]
    show(f"\n{slug} is in {Path.cwd()}\n", *rows)
    run_service = f"make run SERVICE={ANSWERS['first_service']}"
    show(f"\nNext:\n\n  cd {way_here()}\n  make test\n  {run_service}\n")


def way_here() -> str:
    """What to give to `cd`: from the user's folder if the shell tells which it is, else in full."""
    here = Path.cwd()
    start = Path(os.environ.get("PWD", ""))
    if start.is_absolute() and start.is_dir():
        way = os.path.relpath(here, start)
        # A link in either path could lead elsewhere.
        if (start / way).is_dir() and (start / way).samefile(here):
            return shlex.quote(way if not way.startswith("-") else f"./{way}")
    return shlex.quote(str(here))


def show(*lines: str) -> None:
    """Print. A terminal without the letters or a closed pipe must not cost the repository."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    text = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> int:
    """Run the plan. Always 0: any other exit code makes cookiecutter delete the repository."""
    if "_output_dir" not in ANSWERS:
        # Only cookiecutter sets it. cruft renders on create and on every update, and compares:
        # a key or a .git would break the update.
        outcome = add_first_service()
        if outcome.status != "done":
            print(f"{outcome.title}: {outcome.detail}", file=sys.stderr)
        print(
            "Rendered for cruft. `make setup` gives a new repository its keys, git and git hooks."
        )
        return 0
    report([add_first_service(), *(run(step) for step in plan())])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
