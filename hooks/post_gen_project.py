"""Set the new repository up, one step at a time, and report. No step can undo the rendering."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

# Exit code of the scripts: a tool or a condition is missing, and the message names it.
SKIPPED = 3
# Exported by the user for another repository or another project.
FOREIGN = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"),
    *("GIT_NAMESPACE", "GIT_PREFIX", "PYTHONSAFEPATH"),
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in FOREIGN}


class SkipError(Exception):
    """A step is not possible here. The arguments are the reason, and other commands to run."""


class StepError(Exception):
    """A step has failed. The message is the reason."""


class Step(NamedTuple):
    """A step of the plan. `loss` is what the repository lacks until `by_hand`, lines, was run."""

    title: str
    action: Callable[[], str]
    by_hand: str
    loss: str


class Outcome(NamedTuple):
    """The result of a step."""

    step: Step
    status: str
    detail: str


def plan() -> list[Step]:
    """Return the steps after the rendering. Each may be repeated."""
    name, kind = ANSWERS["first_service"], ANSWERS["first_service_type"]
    return [
        Step(
            "first service",
            add_first_service,
            f"scripts/new-service.sh {name} --type {kind}",
            f"services/{name} is not there",
        ),
        Step(
            "template record",
            record_template,
            "scripts/uv run --frozen cruft link URL",
            "make template-update does not know the template at URL",
        ),
        Step(
            "secrets",
            lambda: run_script(sys.executable, "scripts/manage_secrets.py", "init"),
            "make setup",
            "secrets cannot be encrypted",
        ),
        Step(
            "git repository",
            start_repository,
            'git init && git add --all && git commit -m "Start"',
            "nothing is committed",
        ),
        Step(
            "git hooks",
            lambda: run_script("bash", "scripts/install-hooks.sh"),
            "make setup",
            "no check runs on commit, also not the one for secrets",
        ),
    ]


def run(step: Step) -> Outcome:
    """Run a step. Nothing that goes wrong in it may end this program."""
    try:
        return Outcome(step, "done", step.action())
    except SkipError as error:
        reason, *commands = error.args
        by_hand = "\n".join(commands) or step.by_hand
        return Outcome(step._replace(by_hand=by_hand), "skipped", reason)
    except Exception as error:
        return Outcome(step, "failed", str(error) or type(error).__name__)


def run_script(*command: str) -> str:
    """Run a command and return the last line that it printed."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
        errors="replace", env={**ENVIRONMENT, "SETUP_PYTHON": sys.executable}, check=False,
    )  # fmt: skip
    said = result.stdout.strip().splitlines()
    complaints = result.stderr.strip().splitlines()
    if result.returncode == 0:
        return said[-1] if said else ""
    reason = (complaints or said or [f"exit code {result.returncode}"])[-1]
    raise (SkipError if result.returncode == SKIPPED else StepError)(reason)


# --- the first service ---------------------------------------------------------------------------


def render_first_service(config_file: str) -> list[str]:
    """Return the command that makes the first service from the repository's service template."""
    name, kind = ANSWERS["first_service"], ANSWERS["first_service_type"]
    return [
        *(sys.executable, "-m", "cookiecutter", "templates/service", "--no-input"),
        *("--output-dir", "services", "--config-file", config_file),
        *(f"service_name={name}", f"service_slug={name}", f"service_type={kind}"),
        f"_marks={ANSWERS['include_home_assistant']}",
    ]


def add_first_service() -> str:
    """Render the first service, unless it is there already."""
    service = Path("services", ANSWERS["first_service"])
    if service.exists():
        return f"{service} was there already"
    with tempfile.TemporaryDirectory() as directory:
        # Its own configuration keeps the user's defaults out and the user's replay as it is.
        config_file = Path(directory, "config.yaml")
        config = {"replay_dir": directory, "cookiecutters_dir": directory}
        config_file.write_text(json.dumps(config), encoding="utf-8")
        run_script(*render_first_service(str(config_file)))
    return str(service)


# --- git -----------------------------------------------------------------------------------------


def git(*arguments: str, directory: str | Path = ".", stdin: str = "") -> str:
    """Return the output of a git command. An error has git's own reason."""
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *arguments], input=stdin, capture_output=True, text=True,
            encoding="utf-8", errors="surrogateescape", env={**ENVIRONMENT, "LC_ALL": "C"},
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise SkipError("git is missing") from None
    if result.returncode != 0:
        raise StepError(" ".join(result.stderr.split()).removeprefix("fatal: "))
    return result.stdout.strip()


def git_or_none(*arguments: str, directory: str | Path = ".") -> str | None:
    """Return the output of a git command, or None where there is no repository or no value."""
    try:
        return git(*arguments, directory=directory)
    except StepError as error:
        if not str(error) or str(error).startswith(("not a git repository", "Needed a single")):
            return None
        raise


def start_repository() -> str:
    """Make a git repository with one first commit."""
    if not Path(".git").exists():
        if outer := git_or_none("rev-parse", "--show-toplevel"):
            raise SkipError(f"this directory is inside the git repository {outer}, which keeps it")
        git("init", "--quiet")
        # `git init --initial-branch` came with git 2.28.
        git("symbolic-ref", "HEAD", "refs/heads/main")
    if git_or_none("rev-parse", "--verify", "HEAD"):
        return f"already a repository, on branch {git('rev-parse', '--abbrev-ref', 'HEAD')}"
    stage()
    try:
        for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            git("var", name)
    except StepError:
        raise SkipError(
            "initialised and staged, not committed: git has no user.name and no user.email",
            'git config --global user.name "Your Name"',
            "git config --global user.email you@example.com",
            'git commit -m "Start"',
        ) from None
    # Hooks and signing would ask for tools and passwords that a first commit need not have.
    without_hooks = ("-c", f"core.hooksPath={os.devnull}")
    message = "Start the repository from its template"
    git(*without_hooks, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message", message)
    return f"branch main, first commit {git('rev-parse', '--short', 'HEAD')}"


def stage() -> None:
    """Stage the files that the .gitignore of this repository leaves in, with the modes they need.

    The ignore rules of this machine would leave some out, and its file system may have no modes.
    """
    listed = git("ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
    git("update-index", "-z", "--add", "--stdin", stdin=listed)
    names = [name for name in git("ls-files", "-z").split("\0") if name]
    scripts = [name for name in names if Path(name).read_bytes().startswith(b"#!")]
    git("update-index", "--chmod=+x", "-z", "--stdin", stdin="\0".join(scripts))


# --- the record of the template ------------------------------------------------------------------


def record_template() -> str:
    """Write .cruft.json, by which this repository knows the template that it came from."""
    record = Path(".cruft.json")
    if record.exists():
        return ".cruft.json was there already"
    # Relative to the directory in which cookiecutter was called, not to this one.
    template = Path(os.environ.get("PWD", "/"), ANSWERS["_repo_dir"])
    if not (template / "cookiecutter.json").is_file():
        raise SkipError(f"the template is not in {template}")
    if git_or_none("rev-parse", "--show-prefix", directory=template) != "":
        raise SkipError("the template is not a git repository of its own")
    # As configured: `git remote get-url` would apply the user's url.*.insteadOf.
    address = git_or_none("config", "--get", "remote.origin.url", directory=template)
    if not address:
        raise SkipError("the template's git repository has no remote `origin`")
    # Untracked files are not looked at: every editor leaves some.
    if git("status", "--porcelain", "--untracked-files=no", directory=template):
        raise SkipError("the template has changes that are not committed")
    commit = git("rev-parse", "HEAD", directory=template)
    # The record is committed, and may be published.
    address = re.sub(r"^(https?://)[^/@]*@", r"\1", address)
    # In this order cruft writes them on an update. The other entries are about this run.
    names = json.loads((template / "cookiecutter.json").read_text(encoding="utf-8"))
    answers = {name: escape(ANSWERS[name]) for name in names if name in ANSWERS}
    content = {
        "template": address,
        "commit": commit,
        "checkout": None,
        "context": {"cookiecutter": {**answers, "_template": address}},
        "directory": None,
    }
    record.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"{address} at {commit[:8]}"


def escape(value: Any) -> Any:
    """Return a text that Jinja renders to `value`, because an update renders answers once more."""
    if not isinstance(value, str) or not re.search(r"[{][%#{]", value):
        return value
    # The braces are not written here as they are, since this file is rendered as well.
    return "{" * 2 + json.dumps(value, ensure_ascii=False) + "}" * 2


# --- the report ----------------------------------------------------------------------------------


def report(outcomes: list[Outcome]) -> None:
    """Print one table for all steps, what is missing, and the way on."""
    width = max(len(outcome.step.title) for outcome in outcomes)
    rows = [
        fill(f"  {step.title:<{width}}  {status:<7}  {detail}".rstrip(), indent=width + 13)
        for step, status, detail in outcomes
    ]
    show(f"\n{ANSWERS['project_slug']} is in {Path.cwd()}\n", *rows)
    if missing := [outcome.step for outcome in outcomes if outcome.status != "done"]:
        show("\nStill to do:\n")
        for step in missing:
            show(fill(f"  {step.title}: until then {step.loss}. Run:", indent=4))
            show(textwrap.indent(step.by_hand, " " * 6))
    run_service = f"make run SERVICE={ANSWERS['first_service']}"
    show(f"\nNext:\n\n  cd {way_here()}\n  make test\n  {run_service}\n")


def fill(text: str, indent: int) -> str:
    """Return a text in the width of the terminal, indented after its first line."""
    return textwrap.fill(
        text,
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def way_here() -> str:
    """Return what to give to `cd`: relative to the user's directory if the shell names it."""
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
    """Run the plan. Return 0 for cookiecutter, which would delete the repository otherwise."""
    if "_output_dir" in ANSWERS:
        report([run(step) for step in plan()])
        return 0
    # cruft, which does not set it, renders on create and on every update, and compares: a key or
    # a .git would break the update.
    if not Path("templates/service").is_dir():
        problem = "The template was cloned without symbolic links: unset core.symlinks"
        print(problem, file=sys.stderr)
        return 1
    outcome = run(plan()[0])
    if outcome.status != "done":
        print(f"{outcome.step.title}: {outcome.detail}", file=sys.stderr)
    print("Rendered by cruft. Only a new repository needs `git init` and `make setup` next.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
