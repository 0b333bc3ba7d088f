"""A repository from version 0.1 or 0.2 gets to one Compose file per service, by two updates."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.baked import ROOT, BakedProject, run
from tests.test_update import SLUG, Published, assert_nothing_is_left_open, commit, edit
from tests.test_upkeep import load
from tests.tools import available, needs

migrate_compose = load("migrate_compose")

COMPOSE = "docker-compose.yml"
OVERRIDE = "docker-compose.override.yml"
SERVICES = {"example-service": "poller", "soil-moisture": "subscriber", "attic-window": "http-api"}


def real(test: Any) -> Any:
    """Mark a test that generates and updates repositories. All of them share one worker's."""
    test = needs("git", "age-keygen", "mosquitto")(pytest.mark.timeout(900)(pytest.mark.real(test)))
    return pytest.mark.xdist_group("migration")(test)


SHARED = """\
build:
  context: .
  args:
    BASE_IMAGE: base
tmpfs: [/tmp]
cap_drop: [ALL]
env_file:
  - path: .env
    required: false
depends_on:
  mqtt:
    condition: service_healthy
networks: [internal]
"""

TEMPLATE_SERVICE = {"tmpfs": ["/tmp:size=64m"], "mem_limit": "256m", "memswap_limit": "256m"}


def extended(body: str) -> str:
    """Convert a body below `<<: *service`, and cut off the lines that every service gets."""
    result: str = migrate_compose.extend_base(
        f"<<: *service\n{body}", SHARED, TEMPLATE_SERVICE, "../../"
    )
    head = "extends:\n  file: ../../base/compose.yml\n  service: service\n"
    assert result.startswith(head)
    return result.removeprefix(head)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pids_limit: 9 # ours\n", "pids_limit: 9 # ours\n"),
        ("mem_limit: 1g # ours\n", "mem_limit: 1g # ours\nmemswap_limit: 1g\n"),
        ("build: {<<: *build, dockerfile: a/Dockerfile}\n", "build: {dockerfile: a/Dockerfile}\n"),
        ("build:\n  <<: *build\n  target: x\n", "build:\n  target: x\n"),
        ("build:\n  <<: *build\n", ""),
        (
            "build:\n  <<: *build\n  args:\n    A: b\n",
            "build:\n  args: !override\n    A: b\n",
        ),
        ("build: ./own\n", "build: !override ../../own\n"),
        ("volumes: [./shared:/app/shared:ro, data:/a]\n", "volumes: [data:/a]\n"),
        ("volumes:\n  - ./shared:/app/shared:ro\n", ""),
        (
            "volumes:\n  - './shared:/app/shared:ro'\n  - './a:/a' # b\n",
            "volumes:\n  - '../../a:/a' # b\n",
        ),
        (
            "volumes:\n  - ./shared:/app/shared\n  - .:/a\n  - ../c:/c\n  - /d:/d\n",
            "volumes:\n  - ../../shared:/app/shared\n  - ../..:/a\n  - ../../../c:/c\n  - /d:/d\n",
        ),
        ("volumes:\n  - data:/a\n", "volumes: !override\n  - data:/a\n"),
        ("env_file: own.env\n", "env_file: !override ../../own.env\n"),
        ("develop:\n  watch:\n    - path: x\n", "develop:\n  watch:\n    - path: ../../x\n"),
        ("tmpfs: [/tmp, /x]\n", "tmpfs: !override [/tmp, /x]\n"),
        ("networks: [proxy]\n", "networks: !override [proxy]\n"),
        ("cap_drop: [] # all\n", "cap_drop: !override [] # all\n"),
        (
            "depends_on:\n  mqtt:\n    condition: service_healthy\n  b:\n    condition: x\n",
            "depends_on:\n  mqtt:\n    condition: service_healthy\n  b:\n    condition: x\n",
        ),
        ("depends_on: [b]\n", "depends_on: !override [b]\n"),
    ],
)
def test_a_service_extends_the_base_with_the_same_result(before: str, after: str) -> None:
    assert extended(before) == after


def test_comments_stay_with_what_they_explain() -> None:
    text = """\
services:
  # Of a.
  a:
    # In a.
    image: a

  # Of b.
  b:
    image: b
    # At the end of b.

# Of the volumes.
volumes:
  x:
"""
    found = migrate_compose.entries(text, "services")
    assert found == {"a": (1, 5), "b": (6, 10)}
    assert migrate_compose.cut_entries(text, "services", {"b"}) == text.replace(
        "\n  # Of b.\n  b:\n    image: b\n    # At the end of b.\n", ""
    )
    rest = migrate_compose.cut_entries(text, "services", {"a", "b"})
    assert rest == "\n# Of the volumes.\nvolumes:\n  x:\n"


class Old:
    """A repository of an earlier release with three services, and the template of today."""

    def __init__(self, folder: Path, version: str) -> None:
        self.origin = Published(folder / "template", version)
        self.environments = folder / "environments"
        self.environments.mkdir()
        self.path = folder / SLUG
        cookiecutter = (sys.executable, "-m", "cookiecutter", "--no-input")
        run(*cookiecutter, "--output-dir", folder, self.origin.address, cwd=folder)
        project = BakedProject(self.path, environments=self.environments)
        for name, kind in SERVICES.items():
            if not project.file(f"services/{name}").exists():
                project.run("scripts/new-service.sh", name, "--type", kind)
        commit(project, "Services")
        self.origin.become_the_work_tree()

    def copy(self, parent: Path) -> BakedProject:
        shutil.copytree(self.path, parent / SLUG, symlinks=True)
        return BakedProject(parent / SLUG, environments=self.environments)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    return Old(tmp_path_factory.mktemp("old"), "0.2.0")


@pytest.fixture
def no_make(tmp_path: Path) -> dict[str, str | None]:
    """An environment whose `make` does nothing: only one test locks, lints and tests."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").symlink_to("/bin/true")
    return {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def make_it_ours(project: BakedProject) -> None:
    """Edit the Compose file in many places, and one file of every other kind."""
    dockerfile = "      dockerfile: services/example-service/Dockerfile\n"
    edit(
        project,
        COMPOSE,
        dockerfile,
        f'{dockerfile}      args: # of ours\n        FLAVOUR: "plain"\n'
        "    # The reverse proxy finds it by this label.\n    labels: [ours]\n"
        "    mem_limit: 512m\n    cap_drop: []\n    env_file:\n      - .env\n      - extra.env\n"
        "    depends_on:\n      mqtt:\n        condition: service_healthy\n"
        "      redis:\n        condition: service_started\n",
    )
    data = "      - example_service_data:/app/data\n"
    edit(project, COMPOSE, data, f"{data}      - ./config:/app/config:ro # ours\n")
    edit(project, COMPOSE, "  soil-moisture:\n", "  # In the garden.\n  soil-moisture:\n")
    data = "      - soil_moisture_data:/app/data\n"
    edit(project, COMPOSE, data, f"{data}    networks: [internal, proxy]\n")
    edit(
        project,
        COMPOSE,
        "\nvolumes:\n",
        "\n  redis:\n    image: redis:7\n    volumes: [redis_data:/data]\n"
        "    networks: [internal]\n    logging: *logging\n"
        "\n  # A second one.\n  soil-moisture-2:\n    <<: *service\n    build:\n      <<: *build\n"
        "      dockerfile: services/soil-moisture/Dockerfile\n"
        "    volumes:\n      - ./shared:/app/shared:ro\n"
        "\nvolumes:\n  redis_data:\n",
    )
    edit(
        project,
        COMPOSE,
        "    driver: bridge\n",
        "    driver: bridge\n  proxy:\n    name: reverse-proxy\n",
    )
    edit(project, COMPOSE, "    pids_limit: 64\n", "    pids_limit: 64\n    ports: [8883:8883]\n")
    edit(project, COMPOSE, "  pids_limit: 128\n", "  pids_limit: 200 # ours\n")
    project.file("extra.env").write_text("EXTRA=1\n")
    shutil.copy(project.file("docker-compose.override.example.yml"), project.file(OVERRIDE))
    level = "      LOG_LEVEL: DEBUG\n"
    edit(project, OVERRIDE, level, f'{level}      OURS: "1"\n')
    edit(project, "services/example-service/main.py", '"""', '"""Ours: ')
    project.file("shared/ours.py").write_text('"""Ours."""\n\nANSWER = 42\n')
    project.file("README.md").write_text(f"{project.read('README.md')}\n## Ours\n\nOurs.\n")
    edit(project, "pyproject.toml", '    "httpx>=', '    "tomlkit>=0.13",\n    "httpx>=')
    project.run("make", "lock")
    commit(project, "Ours")


def models(project: BakedProject) -> dict[str, Any]:
    """Return the models of Compose for production and development, without x- entries."""
    result = {}
    for kind, files in {"production": ("-f", COMPOSE), "development": ()}.items():
        shown = project.run("docker", "compose", *files, "config", "--format", "json").stdout
        model = json.loads(shown)
        for service in model["services"].values():
            # Limits of the template, and what came with it after the releases.
            for key in ("init", "memswap_limit", "cpus", "ulimits"):
                service.pop(key, None)
            for name in ("DEBUG_SERVICE", "SERVICE_VERSION"):
                service.get("environment", {}).pop(name, None)
            if "build" in service:
                service.pop("image", None)
                service["build"].pop("args", None)
                service["volumes"] = [
                    volume
                    for volume in service["volumes"]
                    if volume["target"] != "/app/infrastructure/certs"
                ]
            service["networks"].pop("egress", None)
            service["tmpfs"] = [
                re.sub(",?:?size=.*", "", item) for item in service.get("tmpfs", [])
            ]
            for key in ("volumes", "cap_drop", "ports"):
                for item in service.get(key) or []:
                    if isinstance(item, dict):
                        item.pop("bind", None)
                service[key] = sorted(service.get(key) or [], key=str)
        del model["networks"]
        # The template changes these.
        del model["services"]["influxdb"], model["services"]["mqtt"]["healthcheck"]
        result[kind] = {name: part for name, part in model.items() if name[:2] != "x-"}
    return result


def assert_moved(project: BakedProject) -> None:
    example = project.read("services/example-service/compose.yml")
    assert "    # The reverse proxy finds it by this label.\n    labels: [ours]\n" in example
    assert "      - ../../config:/app/config:ro # ours\n" in example
    assert "  # In the garden.\n  soil-moisture:\n" in project.read(
        "services/soil-moisture/compose.yml"
    )
    compose = project.yaml(COMPOSE)
    assert compose["include"] == [f"services/{name}/compose.yml" for name in SERVICES]
    assert not SERVICES.keys() & compose["services"].keys()
    assert "  # A second one.\n  soil-moisture-2:\n    extends:\n" in project.read(COMPOSE)
    assert {"redis_data", "mqtt_data"} < compose["volumes"].keys()
    assert {"internal", "egress", "proxy"} == compose["networks"].keys()
    # A published port and a service of the user's own need more than the internal network.
    assert compose["services"]["mqtt"]["networks"] == ["internal", "egress"]
    assert compose["services"]["redis"]["networks"] == ["internal", "egress"]
    assert "soil_moisture_data" not in compose["volumes"]
    assert "    pids_limit: 200 # ours\n" in project.read("base/compose.yml")
    override = project.yaml(OVERRIDE)
    assert override["include"] == [
        f"services/{name}/compose.dev.yml" for name in list(SERVICES)[1:]
    ]
    assert override["services"]["example-service"] == {
        "extends": {
            "file": "services/example-service/compose.dev.yml",
            "service": "example-service",
        },
        "environment": {"OURS": "1"},
    }
    assert '"127.0.0.1:8000:8000"' in project.read("services/attic-window/compose.dev.yml")
    assert "Attach to container" in project.read(".vscode/launch.json")


def assert_ours_stays(project: BakedProject) -> None:
    assert project.read("services/example-service/main.py").startswith('"""Ours: ')
    assert project.read("shared/ours.py").endswith("\nANSWER = 42\n")
    assert project.read("README.md").endswith("\n## Ours\n\nOurs.\n")
    assert '    "tomlkit>=0.13",\n' in project.read("pyproject.toml")
    assert 'name = "tomlkit"' in project.read("uv.lock")
    assert "\ntomlkit==" in project.read("base/requirements.txt")


def assert_notes_since(version: str, shown: str) -> None:
    """The notes of all later versions are shown, in full and without those of the old one."""
    current = BakedProject(ROOT).json("cookiecutter.json")["__template_version"]
    changelog = BakedProject(ROOT).read("CHANGELOG.md")
    later = changelog[changelog.index("## [Unreleased]") : changelog.index(f"## [{version}] - ")]
    # A section without notes is not shown.
    later = re.sub(r"^## \[Unreleased\]\n\n(?=## )", "", later)
    assert f"## [{current}] - " in later
    assert re.search(rf"from {re.escape(version)} \(\w+\) to {re.escape(current)} \(", shown)
    assert f"{later}\nUpdated these files:" in shown


def assert_two_updates_move_everything(project: BakedProject, version: str) -> None:
    make_it_ours(project)
    before = models(project) if available("docker") else {}
    first = project.run("make", "template-update", check=False)
    assert f"  {COMPOSE}\n" in first.stdout
    assert "Run make template-update again" in project.run("make", "lock", check=False).stderr
    tests = {"PYTEST_ADDOPTS": "-k 'example_service or soil_moisture or attic_window'"}
    second = project.run("make", "template-update", env=tests, timeout=600)
    assert ": example-service, soil-moisture, attic-window\n" in second.stdout
    assert_notes_since(version, second.stdout)
    assert_nothing_is_left_open(project)
    assert_moved(project)
    assert_ours_stays(project)
    for name in SERVICES:
        assert "HEALTH_PATH" in project.read(f"services/{name}/healthcheck.py")
    if before:
        after = models(project)
        assert after["production"] == before["production"]
        assert_same_but_for_live_code(before["development"], after["development"])
    commit(project, "Newer template")
    assert "nothing newer" in project.run("make", "template-update").stdout


def assert_same_but_for_live_code(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Development differs where it was meant to: restarts by watchfiles, and one port to debug."""
    for model in (before, after):
        for name in SERVICES:
            service = model["services"][name]
            service["ports"] = [port for port in service["ports"] if port["target"] != 5678]
            del service["command"], service["develop"]
    assert after == before


@real
@pytest.mark.slow
def test_two_updates_move_every_service(old: Old, tmp_path: Path) -> None:
    assert_two_updates_move_everything(old.copy(tmp_path), "0.2.0")


@real
@pytest.mark.slow
def test_two_updates_move_every_service_of_the_first_release(tmp_path: Path) -> None:
    old = Old(tmp_path, "0.1.0")
    project = BakedProject(old.path, environments=old.environments)
    assert_two_updates_move_everything(project, "0.1.0")


@real
@pytest.mark.slow
def test_an_update_without_conflicts_asks_for_the_second_one(
    old: Old, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    """With the first service alone the release finds nothing to settle, and goes on to lock."""
    project = old.copy(tmp_path)
    for name in ("soil-moisture", "attic-window"):
        project.run("scripts/remove-service.sh", name, "--yes", "--keep-code")
    commit(project, "One service")
    first = project.run("make", "template-update", check=False)
    assert first.returncode != 0
    assert "compose.yml is missing. Run make template-update again" in first.stderr
    project.run("scripts/template-update.sh", env=no_make)
    assert project.yaml(COMPOSE)["include"] == ["services/example-service/compose.yml"]
    assert project.run("make", "lock").returncode == 0
    # A service that was removed with its code kept can come back.
    project.run("scripts/new-service.sh", "attic-window")
    assert "services/attic-window/compose.yml" in project.yaml(COMPOSE)["include"]


def state(project: BakedProject) -> tuple[str, dict[str, bytes]]:
    files = {name: project.file(name).read_bytes() for name in project.files()}
    return project.run("git", "status", "--porcelain").stdout, files


@real
@pytest.mark.slow
def test_what_cannot_be_moved_is_listed_and_nothing_is_changed(
    old: Old, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    project = old.copy(tmp_path)
    shutil.copy(project.file("docker-compose.override.example.yml"), project.file(OVERRIDE))
    edit(project, COMPOSE, "x-logging:", "x-limits: &limits\n  mem_limit: 1g\n\nx-logging:")
    edit(project, COMPOSE, "    <<: *service\n", "    <<: [*service, *limits]\n")
    edit(project, COMPOSE, "test: [CMD, influx, ping]", "test: [CMD, influx, ping, --ours]")
    edit(project, COMPOSE, "  networks: [internal]\n", "  networks: [internal, proxy]\n")
    commit(project, "Ours")
    project.run("make", "template-update", check=False)
    before = state(project)
    second = project.run("scripts/template-update.sh", env=no_make, check=False)
    assert second.returncode == 1
    assert state(project) == before
    assert "Traceback" not in second.stderr
    listed = [line for line in second.stderr.splitlines() if line.startswith("  - ")][:3]
    assert "you and the template have changed services.service.networks" in listed[0]
    assert "example-service: an anchor of docker-compose.yml cannot be used" in listed[1]
    assert "you and the template have changed services.influxdb.healthcheck.test" in listed[2]

    # Each is moved by hand, as the message says.
    edit(project, "base/compose.yml", "[internal, egress]", "[internal, egress, proxy]")
    by_hand = "services:\n  example-service:\n    image: ours\n"
    project.file("services/example-service/compose.yml").write_text(by_hand)
    project.run("git", "checkout", "--theirs", COMPOSE)
    project.run("scripts/template-update.sh", env=no_make)
    assert project.read("services/example-service/compose.yml") == by_hand
    assert "[internal, egress, proxy]" in project.read("base/compose.yml")
    assert project.file("services/attic-window/compose.yml").exists()
    assert len(project.yaml(COMPOSE)["include"]) == 3


@real
@pytest.mark.slow
def test_a_repository_without_the_history_of_its_template_is_moved_as_well(
    old: Old, tmp_path: Path, no_make: dict[str, str | None]
) -> None:
    """git cannot merge where it does not know the base, and the release leaves .rej files."""
    project = old.copy(tmp_path)
    make_it_ours(project)
    shutil.rmtree(project.file(".git"))
    project.run("git", "init", "--quiet")
    commit(project, "All at once")
    project.run("make", "template-update", check=False)
    assert f"{COMPOSE}.rej" in project.files("*.rej")
    # Committed too early.
    commit(project, "Halfway")
    project.run("scripts/template-update.sh", env=no_make, check=False)
    assert not {f"{COMPOSE}.rej", ".vscode/launch.json.rej"} & set(project.files("*.rej"))
    assert_moved(project)
