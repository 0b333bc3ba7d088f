"""Generated repositories pass their own tests and every linter, as they come, for all options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.baked import BakedProject, run
from tests.combinations import COMBINATIONS, REPRESENTATIVES, combinations
from tests.conftest import Bake
from tests.tools import needs, slow_after_first

pytestmark = pytest.mark.real


@pytest.fixture
def projects(bake: Bake) -> list[BakedProject]:
    """One repository for each set of answers."""
    return [bake(**answers) for answers in combinations()]


@needs("git")
@pytest.mark.xdist_group("mypy")
@pytest.mark.parametrize("answers", slow_after_first(REPRESENTATIVES))
def test_all_checks_pass_as_generated(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """`make lint` runs the repository's own hooks on all files and leaves every byte as it was."""
    project = bake_copy(**answers)
    project.run("make", "lint")
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_python_is_clean_under_its_own_rules(projects: list[BakedProject]) -> None:
    """ruff takes the rules of each file from the pyproject.toml of its repository."""
    paths = [project.path for project in projects]
    projects[0].uv_run("ruff", "check", "--no-cache", "--no-fix", *paths)
    projects[0].uv_run("ruff", "format", "--no-cache", "--check", *paths)


def test_workflows_are_clean_under_zizmor(projects: list[BakedProject]) -> None:
    zizmor = Path(sys.executable).with_name("zizmor")
    run(zizmor, "--offline", "--pedantic", *(project.file(".github") for project in projects))


@needs("actionlint")
def test_workflows_are_clean_under_actionlint(projects: list[BakedProject]) -> None:
    found = [path for each in projects for path in each.path.glob(".github/workflows/*.yml")]
    assert len(found) >= len(projects)
    run("actionlint", *found)


def test_dockerfiles_are_clean_under_hadolint(projects: list[BakedProject]) -> None:
    found = [
        project.file(name)
        for project in projects
        for name in project.files("Dockerfile*")
        if "templates" not in name
    ]
    assert len(found) >= 2 * len(projects)
    projects[0].uv_run("hadolint", *found)


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
@pytest.mark.parametrize("answers", slow_after_first(REPRESENTATIVES))
def test_own_tests_pass(bake_copy: Bake, answers: dict[str, Any]) -> None:
    """`make test` in a fresh copy, with nothing edited."""
    project = bake_copy(**answers)
    done = project.run("make", "test", python="3.13")
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert project.run("git", "status", "--porcelain").stdout == ""


@needs("python3.13")
def test_own_tests_of_one_service_pass(bake_copy: Bake) -> None:
    done = bake_copy().run("make", "test", "SERVICE=example-service", python="3.13")
    assert "tests/test_example_service.py" in done.stdout
    assert "test_patterns" not in done.stdout


@needs("python3.13")
def test_own_tests_name_a_service_whose_name_differs_from_its_directory(bake_copy: Bake) -> None:
    project = bake_copy()
    main = project.file("services/example-service/main.py")
    main.write_text(main.read_text().replace('"example-service"', '"example-servise"'))
    done = project.run("make", "test", "SERVICE=example-service", python="3.13", check=False)
    assert "services/example-service/main.py: name must be 'example-service'" in done.stdout


@pytest.mark.slow
@needs("python3.12")
def test_own_tests_pass_on_the_oldest_python(bake_copy: Bake) -> None:
    project = bake_copy(python_version="3.12")
    done = project.uv_run("pytest", "-p", "no:cacheprovider", python="3.12")
    assert " passed" in done.stdout


@pytest.mark.slow
@needs("python3.13")
def test_own_tests_pass_with_the_embedded_broker_alone(bake_copy: Bake) -> None:
    """As on a machine without Mosquitto, with warnings as errors and asyncio's debug mode."""
    env = {"TEST_BROKER": "embedded", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "error"}
    done = bake_copy().uv_run("pytest", "-p", "no:cacheprovider", env=env, python="3.13")
    assert " passed" in done.stdout
