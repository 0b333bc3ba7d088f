"""The deep tests of the shared library (tests/library), run in generated repositories."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.baked import ROOT, BakedProject, run
from tests.conftest import Bake
from tests.tools import needs

pytestmark = pytest.mark.real

EVERYTHING = {"first_service_type": "http-api"}
NOTHING = {"include_home_assistant": False, "include_influxdb": False}
# Tests of the modules that differ when one of two clients is chosen.
DIFFERING = "diagnose or config or test_service.py or home_assistant or discovery or influx"
MIN_COVERAGE = 97


def add_library_tests(project: BakedProject) -> None:
    """Copy tests/library into a repository, without the tests of modules that it lacks."""
    tested = {
        "home_assistant.py": "shared/home_assistant.py",
        "discovery.py": "shared/discovery.py",
        "influx.py": "shared/influx.py",
        "http_api.py": "services/example-service/server.py",
    }

    def unused(_directory: str, names: list[str]) -> set[str]:
        return {"__pycache__"} | {
            name
            for name in names
            for ending, module in tested.items()
            if name.endswith(ending) and not project.file(module).exists()
        }

    shutil.copytree(ROOT / "tests/library", project.file("tests/library"), ignore=unused)


def run_library_tests(
    project: BakedProject, python: str, *arguments: str, env: dict[str, str] | None = None
) -> None:
    """Run tests/library in a repository, on four processes, since its tests wait a lot."""
    options = ["-p", "no:cacheprovider", "--durations=10", "-n", "4", "--dist", "loadfile"]
    # Those have tests of their own.
    options += ["--ignore=tests/library/test_foreign_brokers.py", "-m", "not home_assistant"]
    done = project.uv_run(
        *("pytest", "tests/library", *options, *arguments),
        python=python,
        env=env or {},
        timeout=550,
    )
    summary = done.stdout.splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
    print(done.stdout)


@needs("python3.13", "mosquitto")
def test_library_tests_pass(bake_copy: Bake) -> None:
    project = bake_copy(**EVERYTHING)
    add_library_tests(project)
    run_library_tests(project, "3.13")


@pytest.mark.slow
@needs("python3.13", "mosquitto")
def test_library_tests_cover_the_library(bake_copy: Bake) -> None:
    """Measure apart, because branch coverage makes the tests half as expensive again."""
    project = bake_copy(**EVERYTHING)
    add_library_tests(project)
    coverage = ["--cov=shared", "--cov-branch", "--cov-report=", f"--cov-fail-under={MIN_COVERAGE}"]
    run_library_tests(project, "3.13", *coverage)


@pytest.mark.slow
@needs("python3.12", "mosquitto")
def test_library_tests_pass_on_the_oldest_python_without_clients(bake_copy: Bake) -> None:
    project = bake_copy(**NOTHING, python_version="3.12")
    add_library_tests(project)
    run_library_tests(project, "3.12")


@pytest.mark.slow
@needs("python3.13", "mosquitto")
@pytest.mark.parametrize("left_out", NOTHING)
def test_library_tests_pass_with_one_of_two_clients(bake_copy: Bake, left_out: str) -> None:
    project = bake_copy(**{left_out: False})
    add_library_tests(project)
    run_library_tests(project, "3.13", "-k", DIFFERING)


BROKERS = {
    "aedes": "aedes --port {port}",
    "mochi": "mochi -tcp 127.0.0.1:{port} -ws 127.0.0.1:0 -info 127.0.0.1:0",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in BROKERS])
def test_brokers_of_other_projects(bake_copy: Bake, name: str) -> None:
    project = bake_copy(**NOTHING)
    add_library_tests(project)
    done = project.uv_run(
        *("pytest", "-p", "no:cacheprovider", "tests/library/test_foreign_brokers.py"),
        env={"FOREIGN_BROKER": BROKERS[name]},
        timeout=120,
    )
    assert "3 passed" in done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.docker
def test_library_tests_pass_with_the_newest_mosquitto(bake_copy: Bake, tmp_path: Path) -> None:
    """Its program and libraries come out of the image, because tests stop, kill and freeze it."""
    image = tmp_path / "image"
    image.mkdir()
    container = run("docker", "create", "eclipse-mosquitto:2.1").stdout.strip()
    try:
        script = 'docker export "$1" | tar -x -C "$2" usr lib lib64'
        run("sh", "-c", script, "sh", container, image)
    finally:
        run("docker", "rm", container)
    program = tmp_path / "bin/mosquitto"
    program.parent.mkdir()
    libraries = ":".join(str(image / path) for path in ("usr/lib/x86_64-linux-gnu", "usr/lib"))
    (loader,) = (image / "lib64").glob("ld-linux-*.so.2")
    program.write_text(
        f'#!/bin/sh\nexec {loader} --library-path {libraries} {image}/usr/sbin/mosquitto "$@"\n'
    )
    program.chmod(0o755)
    assert "version 2.1" in run(program, "-h", check=False).stdout
    project = bake_copy(**NOTHING)
    add_library_tests(project)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    run_library_tests(project, "3.13", "-m", "mosquitto", env={"PATH": path})


def test_library_tests_are_clean_under_ruff(bake_copy: Bake) -> None:
    """With the rules of the repository."""
    project = bake_copy(**EVERYTHING)
    add_library_tests(project)
    project.uv_run("ruff", "check", "--no-cache", "--no-fix", "tests/library")
    project.uv_run("ruff", "format", "--no-cache", "--check", "tests/library")


# The one test after the other finds the cache of mypy: see test_matrix.py.
@pytest.mark.slow
@pytest.mark.xdist_group("mypy")
def test_library_tests_are_clean_under_mypy(bake_copy: Bake) -> None:
    project = bake_copy(**EVERYTHING)
    add_library_tests(project)
    project.uv_run("mypy", "shared", "tests")


SECOND_ENDPOINT = '''

@router.get("/name")
async def read_name(service: Service) -> str:
    """Name of this service."""
    return service.name
'''


@pytest.mark.slow
def test_a_second_endpoint_breaks_no_test_and_no_rule(bake_copy: Bake) -> None:
    project = bake_copy(**EVERYTHING)
    with project.file("services/example-service/api.py").open("a", encoding="utf-8") as api:
        api.write(SECOND_ENDPOINT)
    project.uv_run("ruff", "check", "--no-cache", "--no-fix", "services")
    project.uv_run("pytest", "-p", "no:cacheprovider", "tests/test_example_service.py")


@pytest.mark.slow
@pytest.mark.docker
def test_all_tests_pass_on_the_newest_python(bake_copy: Bake) -> None:
    """Python 3.14 comes as a container. The locked versions come from the export with hashes."""
    project = bake_copy(**EVERYTHING, python_version="3.14")
    add_library_tests(project)
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
    # Some tests need Mosquitto, which this image lacks.
    script = (
        "set -e; cd /tmp; tar -xf -; python -m venv venv; "
        "venv/bin/pip install --quiet --disable-pip-version-check --require-hashes"
        " -r requirements.txt; cd repo; PATH=/tmp/venv/bin:$PATH; "
        "python -V; python -m pytest -p no:cacheprovider -n 2"
        " -m 'not mosquitto and not home_assistant'"
        " --ignore tests/library/test_foreign_brokers.py"
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
    return None if private & set(member.name.split("/")) else member
