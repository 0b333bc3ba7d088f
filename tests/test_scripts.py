"""Every script of a generated repository explains itself, and does nothing that was not asked."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.baked import ROOT, TEMPLATE, run
from tests.conftest import Bake
from tests.tools import path_without, slow_after_first

SCRIPTS = sorted(
    path.name for path in TEMPLATE.glob("scripts/*.sh") if not path.name.endswith("lib.sh")
)
TAKES_ANY_ARGUMENT = {"build-base.sh"}
PROGRAMS = sorted(
    path.name for path in TEMPLATE.glob("scripts/*.py") if "__main__" in path.read_text("utf-8")
)


# cli.py is a module.
OWN_PROGRAMS = sorted(path.name for path in ROOT.glob("scripts/*.[ps][yh]") if path.stem != "cli")


def assert_has_the_form(help_text: str, name: str) -> None:
    """A usage line, a sentence, the arguments and the exit codes, in 80 columns."""
    usage, sentence, *_, codes = help_text.strip().split("\n\n")
    assert re.match(rf"usage: scripts/{re.escape(name)}( |$)", usage), usage
    assert re.fullmatch(r"[A-Z].*\.", sentence, re.DOTALL), sentence
    assert codes.startswith("exit codes: "), codes
    arguments = set(re.findall(r"--[a-z]\w+|\b[A-Z]{2,}\b", usage))
    assert arguments <= set(re.findall(r"--[a-z]\w+|\b[A-Z]{2,}\b", help_text.replace(usage, "")))
    assert "\x1b" not in help_text
    assert [line for line in help_text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_shown_and_nothing_done(name: str, option: str, bake: Bake, tmp_path: Path) -> None:
    project = bake()
    before = project.run("git", "status", "--porcelain", "--ignored").stdout
    (tmp_path / "link").symlink_to(project.path)
    env = {**project.environment(), "COLUMNS": "80"}
    done = run(f"link/scripts/{name}", option, cwd=tmp_path, env=env)
    assert_has_the_form(done.stdout, name)
    assert not any(line.startswith(("#", "set ")) for line in done.stdout.splitlines())
    assert done.stderr == ""
    assert project.run("git", "status", "--porcelain", "--ignored").stdout == before


@pytest.mark.real
# new-service.sh and others stand for services.py.
@pytest.mark.parametrize("name", sorted({*PROGRAMS} - {"services.py"}))
def test_each_program_has_the_same_form_of_help(name: str, bake: Bake) -> None:
    done = bake().uv_run("python", f"scripts/{name}", "--help", env={"COLUMNS": "80"})
    assert_has_the_form(done.stdout, name)


@pytest.mark.parametrize("name", OWN_PROGRAMS)
def test_each_program_of_the_template_has_it_as_well(name: str, tmp_path: Path) -> None:
    interpreter = sys.executable if name.endswith(".py") else "bash"
    done = run(interpreter, ROOT / "scripts" / name, "--help", cwd=tmp_path, env={"COLUMNS": "80"})
    assert_has_the_form(done.stdout, name)
    assert list(tmp_path.iterdir()) == []


def test_the_lists_of_commands_fit_a_terminal(bake: Bake) -> None:
    for directory in (ROOT, bake().path):
        lines = run("make", "help", cwd=directory).stdout.splitlines()
        assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in TAKES_ANY_ARGUMENT])
def test_an_unknown_option_is_an_error_with_the_usage(name: str, bake: Bake) -> None:
    project = bake()
    before = project.run("git", "status", "--porcelain", "--ignored").stdout
    done = project.run(f"scripts/{name}", "--nonsense", check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nonsense" in done.stderr or "required" in done.stderr or "needed" in done.stderr
    assert f"usage: scripts/{name}" in done.stderr
    assert project.run("git", "status", "--porcelain", "--ignored").stdout == before


@pytest.mark.parametrize(
    "command",
    [
        ("lock.sh", "--check", "nonsense"),
        ("template-update.sh", "--check", "nonsense"),
        ("secrets-encrypt.sh", "nonsense"),
        ("remove-service.sh", "example-service", "nonsense"),
    ],
)
def test_one_argument_too_many_or_too_few(command: tuple[str, ...], bake: Bake) -> None:
    name, *arguments = command
    done = bake().run(f"scripts/{name}", *arguments, check=False)
    assert done.returncode == 2
    assert f"usage: scripts/{name}" in done.stderr


def test_cdpath_leads_no_script_elsewhere(bake: Bake, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    done = bake().run("scripts/lock.sh", "--help", env={"CDPATH": str(tmp_path)})
    assert "usage: scripts/lock.sh" in done.stdout


@pytest.mark.real
@pytest.mark.parametrize("with_pip", slow_after_first([True, False]))
def test_uv_comes_from_pypi(bake_copy: Bake, tmp_path: Path, with_pip: bool) -> None:
    """Debian's python3 has no pip."""
    project, folder = bake_copy(), tmp_path / "bin"
    path = path_without("uv", *([] if with_pip else ["python3"]), folder=folder)
    if not with_pip:
        (folder / "python3").write_text(
            f'#!/bin/sh\n[ "$1 $2" != "-m pip" ] || exit 1\nexec "{sys.executable}" "$@"\n'
        )
        (folder / "python3").chmod(0o755)
    found = re.search(r"pinned='uv==(\S+)", project.read("scripts/uv"))
    assert found
    pinned = found[1]
    # Settings for pip of other projects.
    pip = {"PIP_REQUIRE_VIRTUALENV": "1", "PIP_USER": "1", "PIP_PREFIX": "/nowhere"}
    said = project.run("scripts/uv", "--version", env={"PATH": path, **pip})
    assert said.stdout.split()[:2] == ["uv", pinned]
    assert "Installing uv" in said.stderr
    assert [path.name for path in project.file(".tools").iterdir()] == [f"uv-{pinned}"]
    assert not list(project.file(f".tools/uv-{pinned}").glob("*.whl"))
    assert project.run("scripts/uv", "--version", env={"PATH": path}).stderr == ""


@pytest.mark.real
def test_a_uv_with_another_hash_is_rejected(bake_copy: Bake, tmp_path: Path) -> None:
    project = bake_copy()
    script = project.file("scripts/uv")
    script.write_text(re.sub(r"(hash=sha256:)\w{8}", r"\g<1>00000000", script.read_text()))
    path = path_without("uv", folder=tmp_path / "bin")
    done = project.run("scripts/uv", "--version", env={"PATH": path}, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert list(project.file(".tools").iterdir()) == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("variable", "dotenv", "used"),
    [
        (None, "", "docker-compose.yml"),
        ("own.yml", "", "own.yml"),
        (None, "COMPOSE_FILE='own.yml'\n", "own.yml"),
        (None, "\ufeffexport COMPOSE_FILE = own.yml # mine\r\n", "own.yml"),
    ],
)
def test_a_deployment_takes_no_override_but_the_files_that_are_named(
    bake_copy: Bake, tmp_path: Path, variable: str | None, dotenv: str, used: str
) -> None:
    project = bake_copy()
    project.file(".env").write_text(dotenv)
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\nprintf '%s' \"$COMPOSE_FILE\" >{tmp_path}/used\nexit 1\n")
    docker.chmod(0o755)
    environment = {"COMPOSE_FILE": variable, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = project.run("scripts/deploy.sh", env=environment, check=False)
    assert "Docker does not respond" in done.stderr
    assert (tmp_path / "used").read_text() == used
