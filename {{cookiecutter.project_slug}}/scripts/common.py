"""Functions that the scripts share: arguments, commands, and dotenv files as services read them."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
# Exit codes of commands that a shell does not find, and that `timeout` ends.
MISSING, TIMED_OUT = 127, 124
TIMEOUT_SECONDS = 300
SECRET_NAME = re.compile(r"(PASSWORD|PASSPHRASE|TOKEN|SECRET|KEY|CREDENTIAL)S?$", re.IGNORECASE)

_LINE = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(?P<value>.*)")
# Compose and Python read these values alike. They differ in a backslash, and in a `$` that single
# quotes do not protect.
_SAME_VALUE = re.compile(
    r"""(?: '[^'\\]*' | "[^"\\$]*" | [^\s'"\\$#`] (?: [^\s'"\\$#`] | [ ] | (?<=\S)\# )* )?
        (?: \s* [ ] \#.* )? \s*""",
    re.VERBOSE,
)


def show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error as Python does, but nothing for Ctrl-C."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = show_error


def make_parser(
    description: str | None, exit_codes: str, prog: str = ""
) -> argparse.ArgumentParser:
    """Return a parser whose help has the form that all scripts have, with one sentence."""
    return argparse.ArgumentParser(
        prog=prog or f"scripts/{Path(sys.argv[0]).name}",
        description=(description or "").partition("\n")[0],
        epilog=f"exit codes: {exit_codes}",
    )


def find_programs() -> dict[str, Path]:
    """Return the program of each service by its name."""
    return {path.parent.name: path for path in sorted(ROOT.glob("services/*/main.py"))}


def run(*command: str | Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository. Its exit code is MISSING or TIMED_OUT without a result."""
    return run_within(TIMEOUT_SECONDS, *command, stdin=stdin, **env)


def run_within(
    seconds: float, *command: str | Path, stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as `run` does, with another timeout."""
    try:
        return subprocess.run(
            command, cwd=ROOT, input=stdin, env={**os.environ, **env}, capture_output=True,
            encoding="utf-8", check=False, timeout=seconds,
        )  # fmt: skip
    except OSError as error:
        return subprocess.CompletedProcess(command, MISSING, "", str(error))
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, TIMED_OUT, "", str(error))


def say(*lines: str) -> None:
    """Print lines for the user."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def read_dotenv(path: Path, *, warn: bool = True) -> dict[str, str]:
    """Return the values in a dotenv file, empty if there is no such file.

    A line that Compose reads differently is named on standard error. `$` is not expanded.
    """
    if not path.is_file():
        return {}
    for line in find_ambiguous(path.read_text(encoding="utf-8")) if warn else []:
        problem = f"{path.name}: Compose and Python may read line {line} differently."
        sys.stderr.write(f"{problem} Write it as NAME='value', without ' and \\ in the value.\n")
    # A repository is set up without the package.
    from dotenv import dotenv_values  # noqa: PLC0415

    values = dotenv_values(path, encoding="utf-8", interpolate=False)
    return {name: value for name, value in values.items() if value is not None}


def find_ambiguous(text: str) -> list[int]:
    """Return the numbers of the lines that Compose and the services may read differently."""
    lines = enumerate(text.removeprefix("\ufeff").splitlines(), 1)
    return [number for number, line in lines if not _is_read_alike(line)]


def _is_read_alike(line: str) -> bool:
    if not line.strip() or line.lstrip().startswith("#"):
        return True
    match = _LINE.fullmatch(line)
    return match is not None and _SAME_VALUE.fullmatch(match["value"]) is not None
