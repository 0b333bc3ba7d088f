"""What is generated passes its own tests and every linter, as it comes, for all options."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.baked import BakedProject, run
from tests.combinations import COMBINATIONS, OPTIONS
from tests.conftest import Bake
from tests.tools import needs

pytestmark = pytest.mark.real


@needs("git")
@pytest.mark.parametrize("answers", COMBINATIONS)
def test_all_checks_pass_as_generated(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """`make lint`: the repository's own hooks, on all files, leaving every byte as it was."""
    project = bake_copy(**answers)
    project.run("make", "lint")
    assert project.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_python_is_clean_under_its_own_rules(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    project.uv_run("ruff", "check", "--no-cache", "--no-fix")
    project.uv_run("ruff", "format", "--no-cache", "--check")


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_workflows_are_clean_under_zizmor(bake: Bake, answers: dict[str, Any]) -> None:
    zizmor = Path(sys.executable).with_name("zizmor")
    run(zizmor, "--offline", "--pedantic", bake(**answers).file(".github"))


@needs("actionlint")
@pytest.mark.parametrize("answers", OPTIONS)
def test_workflows_are_clean_under_actionlint(bake: Bake, answers: dict[str, Any]) -> None:
    workflows = sorted(bake(**answers).path.glob(".github/workflows/*.yml"))
    assert workflows
    run("actionlint", *workflows)


@pytest.mark.parametrize("answers", OPTIONS)
def test_shell_is_clean_under_shellcheck(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    scripts = [name for name in project.files() if is_shell(project, name)]
    assert scripts
    project.uv_run("shellcheck", "--external-sources", *scripts)


def is_shell(project: BakedProject, name: str) -> bool:
    first_line = project.read(name).partition("\n")[0]
    return first_line.startswith("#!") and first_line.endswith(("sh", "bash"))


@pytest.mark.parametrize("answers", COMBINATIONS)
def test_dockerfiles_are_clean_under_hadolint(bake: Bake, answers: dict[str, Any]) -> None:
    project = bake(**answers)
    files = [name for name in project.files("Dockerfile*") if "templates" not in name]
    assert len(files) >= 2
    project.uv_run("hadolint", *files)


@pytest.mark.docker
@pytest.mark.parametrize("answers", COMBINATIONS)
def test_compose_accepts_both_files(bake_copy: Bake, answers: dict[str, Any]) -> None:
    project = bake_copy(**answers)
    example = project.read(".env.example")
    project.file(".env").write_text(example, encoding="utf-8")
    override = project.read("docker-compose.override.example.yml")
    plain = project.run("docker", "compose", "config", "--quiet")
    assert plain.stderr == ""
    project.file("docker-compose.override.yml").write_text(override, encoding="utf-8")
    assert project.run("docker", "compose", "config", "--quiet").stderr == ""


@needs("git", "python3.13", "mosquitto")
@pytest.mark.parametrize("answers", OPTIONS)
def test_own_tests_pass(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """`make test`, in a fresh copy, with nothing edited."""
    project = bake_copy(**answers)
    done = project.run("make", "test", python="3.13", timeout=550)
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert project.run("git", "status", "--porcelain").stdout == ""


@needs("python3.13")
@pytest.mark.parametrize("answers", COMBINATIONS)
def test_own_tests_of_the_first_service_pass(bake_copy: Bake, answers: dict[str, Any]) -> None:
    project = bake_copy(**answers)
    test = "tests/test_example_service.py"
    done = project.uv_run("pytest", "-p", "no:cacheprovider", test, python="3.13")
    assert " passed" in done.stdout


@needs("python3.12")
@pytest.mark.parametrize("answers", OPTIONS[::3])
def test_own_tests_pass_on_the_oldest_python(bake_copy: Bake, answers: dict[str, Any]) -> None:
    project = bake_copy(**answers, python_version="3.12")
    done = project.uv_run("pytest", "-p", "no:cacheprovider", python="3.12", timeout=550)
    assert " passed" in done.stdout


@needs("python3.13")
def test_own_tests_pass_with_the_embedded_broker_alone(bake_copy: Bake) -> None:
    """As on a machine without Mosquitto, with warnings as errors and asyncio's debug mode."""
    project = bake_copy()
    env = {"TEST_BROKER": "embedded", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error"}
    done = project.uv_run("pytest", "-p", "no:cacheprovider", env=env, python="3.13", timeout=550)
    assert " passed" in done.stdout


@pytest.mark.docker
@pytest.mark.parametrize("answers", OPTIONS[::3])
def test_own_tests_pass_on_the_newest_python(bake: Bake, answers: dict[str, Any]) -> None:
    """Python 3.14 is had as a container: the locked versions, from the export with hashes."""
    project = bake(**answers, python_version="3.14")
    requirements = project.run(
        *("uv", "export", "--frozen", "--all-groups", "--no-emit-project", "--quiet"),
    ).stdout
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(project.path, arcname="repo", filter=without_own_state)
        data = requirements.encode()
        info = tarfile.TarInfo("requirements.txt")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    script = (
        "set -e; cd /tmp; tar -xf -; python -m venv venv; "
        "venv/bin/pip install --quiet --disable-pip-version-check --require-hashes"
        " -r requirements.txt; cd repo; PATH=/tmp/venv/bin:$PATH; "
        "python -V; python -m pytest -p no:cacheprovider"
    )
    done = run(
        *("docker", "run", "--rm", "--interactive", "--init", "python:3.14-slim"),
        *("sh", "-c", script),
        stdin=archive.getvalue(),
        timeout=580,
    )
    assert done.stdout.startswith("Python 3.14.")
    assert " passed" in done.stdout


def without_own_state(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    private = {".git", ".sops", ".venv", "__pycache__", ".env"}
    return None if private & set(Path(member.name).parts) else member
