"""A generated repository, as the tests look at it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from tests.tools import find_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "{{cookiecutter.project_slug}}"
SERVICE_TEMPLATE = ROOT / "service-template"

# Made by git, uv, the interpreter and tools, so these are no part of the rendered files.
CACHES = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
NOT_RENDERED = {".git", ".venv", ".tools", *CACHES}
# Each pytest deletes old directories of its user, and two that delete the same one both fail.
OTHER_PYTESTS = tempfile.TemporaryDirectory(prefix="pytest-of-bakes-")


def user_environment(env: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without the test suite's own virtual environment."""
    result = dict(os.environ, PYTEST_DEBUG_TEMPROOT=OTHER_PYTESTS.name)
    result.pop("VIRTUAL_ENV", None)
    own_bin = str(Path(sys.executable).parent)
    result["PATH"] = os.pathsep.join(
        entry for entry in result["PATH"].split(os.pathsep) if entry != own_bin
    )
    for name, value in (env or {}).items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    check: bool = True,
    stdin: str | bytes = "",
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a command. A failure under `check` shows all its output.

    `env` overrides the environment, and None removes a variable. Commands of the test suite's own
    environment are not found.
    """
    raw = subprocess.run(
        command,
        cwd=cwd,
        env=user_environment(env),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=timeout,
    )
    done = subprocess.CompletedProcess(
        command, raw.returncode, *(out.decode(errors="replace") for out in (raw.stdout, raw.stderr))
    )
    if check and done.returncode != 0:
        shown = " ".join(map(str, command))
        raise AssertionError(
            f"{shown}: exit {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
        )
    return done


def source_files(folder: Path) -> list[Path]:
    """The files of a template or a part of one, sorted, without what tools left behind."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not NOT_RENDERED & set(path.relative_to(folder).parts)
    )


def publish(target: Path) -> None:
    """Copy the work tree, without what git ignores, into a repository that is its own remote."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    building = target.with_name(f"{target.name}.new")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, building / name, follow_symlinks=False)
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "Template"],
        ["remote", "add", "origin", str(target)],
    ):
        run("git", *command, cwd=building)
    building.rename(target)


@dataclass(frozen=True)
class BakedProject:
    """One generated repository. `environments` holds the uv environments that bakes share."""

    path: Path
    answers: Mapping[str, Any] = field(default_factory=dict)
    environments: Path | None = None

    def file(self, name: str) -> Path:
        return self.path / name

    def files(self, pattern: str = "*") -> list[str]:
        """Rendered files whose path matches, sorted, relative, with forward slashes."""
        return sorted(
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob(pattern)
            if path.is_file() and not NOT_RENDERED & set(path.relative_to(self.path).parts)
        )

    def text_files(self) -> list[str]:
        """All rendered files but pictures."""
        return [name for name in self.files() if not name.endswith(".png")]

    def read(self, name: str) -> str:
        with self.file(name).open(encoding="utf-8", newline="") as stream:
            return stream.read()

    def yaml(self, name: str) -> Any:
        return yaml.safe_load(self.read(name))

    def toml(self, name: str) -> dict[str, Any]:
        return tomllib.loads(self.read(name))

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def load(self, name: str) -> Any:
        """Parse a file by its name and first line, or return its text if they name no format.

        Raises when it cannot be parsed.
        """
        text = self.read(name)
        suffix = Path(name).suffix
        if suffix == ".py" or text.startswith("#!/usr/bin/env python3"):
            return ast.parse(text, name)
        if suffix in {".yml", ".yaml"}:
            return list(yaml.safe_load_all(text))
        if suffix == ".toml" or name == "uv.lock":
            return tomllib.loads(text)
        if suffix == ".json":
            return json.loads(text)
        if suffix == ".sh" or text.startswith("#!"):
            run("bash" if "bash" in text.splitlines()[0] else "sh", "-n", self.file(name))
        return text

    def environment(self, python: str | None = None) -> dict[str, str | None]:
        """Variables that give uv the shared environment of a Python version (`3.12`).

        If `version` is None, take the one that the repository names if it is here, else 3.13. The
        first caller installs it and the others wait, because two installations would collide.
        """
        if self.environments is None:
            return {}
        wanted = python or self.read(".python-version").strip()
        interpreter = find_python(wanted)
        if interpreter is None and python is None:
            wanted, interpreter = "3.13", find_python("3.13")
        kind = "influxdb" if "influxdb-client" in self.read("pyproject.toml") else "core"
        place = self.environments / f"{kind}-{wanted}"
        variables: dict[str, str | None] = {
            "UV_PYTHON": str(interpreter or wanted),
            "UV_PROJECT_ENVIRONMENT": str(place),
        }
        ready = Path(f"{place}.ready")
        with FileLock(f"{place}.lock"):
            if not ready.exists():
                sync = ("uv", "sync", "--frozen", "--quiet", "--compile-bytecode")
                run(*sync, cwd=self.path, env=variables)
                ready.touch()
        return variables

    def run(
        self,
        *command: str | Path,
        env: Mapping[str, str | None] | None = None,
        python: str | None = None,
        check: bool = True,
        stdin: str | bytes = "",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the repository, as its user would."""
        merged = {**self.environment(python), **(env or {})}
        return run(*command, cwd=self.path, env=merged, check=check, stdin=stdin, timeout=timeout)

    def uv_run(
        self, *command: str | Path, python: str | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the locked environment of the repository."""
        return self.run("uv", "run", "--frozen", *command, python=python, **options)
