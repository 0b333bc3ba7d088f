"""The model that Compose makes of all files of a generated repository."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.baked import BakedProject, run
from tests.conftest import Bake
from tests.stack import restored

# Compose needs no daemon to read its files. COMPOSE_NEWEST names the binary of another version.
COMPOSES = [
    ("docker", "compose"),
    *((binary,) for binary in [os.environ.get("COMPOSE_NEWEST")] if binary),
]
pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("docker"),
    # Two processes would make the same repositories.
    pytest.mark.xdist_group("compose"),
    pytest.mark.parametrize("compose", COMPOSES, ids=lambda compose: Path(compose[0]).name),
]
MIB = 1024**2
MOSQUITTO = "infrastructure/mosquitto/mosquitto.conf"
LOGGING = {"driver": "json-file", "options": {"max-file": "3", "max-size": "10m"}}
NO_RIGHTS: dict[str, Any] = {
    "restart": "unless-stopped",
    "cap_drop": ["ALL"],
    "cap_add": None,
    "privileged": None,
    "network_mode": None,
    "ports": None,
    "security_opt": ["no-new-privileges:true"],
    "mem_limit": str(256 * MIB),
    "memswap_limit": str(256 * MIB),
    "cpus": 1,
    "logging": LOGGING,
}
SERVICE: dict[str, Any] = {
    **NO_RIGHTS,
    "command": None,
    "init": True,
    "user": None,
    "depends_on": {"mqtt": {"condition": "service_healthy", "required": True}},
    "networks": {"internal": None, "egress": None},
    "read_only": True,
    "tmpfs": ["/tmp:size=64m"],
    "pids_limit": 128,
    "ulimits": {"nofile": 4096},
    "stop_grace_period": "10s",
}
MQTT: dict[str, Any] = {
    **NO_RIGHTS,
    "user": "1883:1883",
    "networks": {"internal": None},
    "read_only": True,
    "tmpfs": [
        "/tmp:size=16m",
        "/run/mosquitto:uid=1883,gid=1883,mode=0700,size=16m",
        "/mosquitto/log:uid=1883,gid=1883,size=16m",
    ],
    "pids_limit": 64,
    "ulimits": {"nofile": 4096},
}
INFLUXDB: dict[str, Any] = {
    **NO_RIGHTS,
    "init": True,
    "user": "1000:1000",
    "networks": {"internal": None},
    "mem_limit": str(1024 * MIB),
    "memswap_limit": str(1024 * MIB),
    "pids_limit": 256,
    "ulimits": {"nofile": 8192},
}
SERVICES = {"example-service": "poller", "gateway": "http-api", "listener": "subscriber"}


@pytest.fixture(scope="module")
def projects(
    bake: Bake, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BakedProject, BakedProject]:
    """With one service and with one of each type."""
    one = bake()
    path = tmp_path_factory.mktemp("compose") / one.path.name
    shutil.copytree(one.path, path, symlinks=True)
    several = BakedProject(path, one.answers, one.environments)
    for name in ("gateway", "listener"):
        several.run("scripts/new-service.sh", name, "--type", SERVICES[name])
    return one, several


def model(project: BakedProject, compose: tuple[str, ...], *files: str) -> dict[str, Any]:
    options = [part for file in files for part in ("-f", file)]
    # Leave the values of .env out, so that two repositories can be compared.
    done = run(*compose, *options, "config", "--format", "json", cwd=project.path)
    assert done.stderr == ""
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


PRODUCTION = ("docker-compose.yml",)
DEVELOPMENT = ("docker-compose.yml", "docker-compose.override.example.yml")


def test_the_limits_of_the_broker_fit_its_container(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    container = int(model(projects[0], compose, *PRODUCTION)["services"]["mqtt"]["mem_limit"])
    lines = [line.split() for line in projects[0].read(MOSQUITTO).splitlines()]
    limits = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    # Measured: a broker at its memory_limit of 160 MiB has 170 MB resident.
    assert limits["memory_limit"] + 64 * MIB <= container
    assert 9 * limits["max_queued_bytes"] <= limits["memory_limit"]
    assert limits["max_packet_size"] <= limits["max_queued_bytes"]
    assert limits["autosave_interval"] <= 10


def test_every_container_has_its_limits(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    for project, names in zip(projects, (["example-service"], list(SERVICES)), strict=True):
        config = model(project, compose, *PRODUCTION)
        services = config["services"]
        assert set(services) == {*names, "mqtt", "influxdb"}
        expected = {**dict.fromkeys(names, SERVICE), "mqtt": MQTT, "influxdb": INFLUXDB}
        for name, wanted in expected.items():
            assert {key: services[name].get(key) for key in wanted} == wanted, name
        for name in names:
            binds = {
                volume["target"]: volume
                for volume in services[name]["volumes"]
                if volume["type"] == "bind"
            }
            sources = {target: bind["source"] for target, bind in binds.items()}
            assert sources == {
                "/app/shared": str(project.file("shared")),
                "/app/infrastructure/certs": str(project.file("infrastructure/certs")),
            }
            assert all(bind["read_only"] for bind in binds.values())
            assert services[name]["build"]["context"] == str(project.path)
            assert services[name]["image"] == f"localhost/{project.path.name}/{name}:latest"
            assert services[name]["build"]["dockerfile"] == f"services/{name}/Dockerfile"
            assert services[name]["environment"]["DEBUG_SERVICE"] == ""
        assert config["networks"]["internal"]["internal"] is True
        assert "internal" not in config["networks"]["egress"]


def test_a_registry_and_a_tag_name_the_images(
    projects: tuple[BakedProject, BakedProject],
    compose: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGE_REGISTRY", "ghcr.io/owner/plant")
    monkeypatch.setenv("IMAGE_TAG", "1f2e")
    services = model(projects[1], compose, *PRODUCTION)["services"]
    for name in SERVICES:
        assert services[name]["image"] == f"ghcr.io/owner/plant/{name}:1f2e"
        assert services[name]["build"]["args"]["BASE_IMAGE"] == "ghcr.io/owner/plant/base:1f2e"


def test_a_service_differs_from_another_in_its_name_only(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    for files in (PRODUCTION, DEVELOPMENT):
        one, several = (model(project, compose, *files)["services"] for project in projects)
        first, second = several["example-service"], several["listener"]
        text = json.dumps(first).replace("example-service", "listener")
        assert json.loads(text.replace("example_service", "listener")) == second
        old = json.dumps(one["example-service"]).replace(str(projects[0].path), "")
        assert old == json.dumps(first).replace(str(projects[1].path), "")


def test_development_adds_live_code_and_local_ports(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    project = projects[1]
    production = model(project, compose, *PRODUCTION)["services"]
    services = model(project, compose, *DEVELOPMENT)["services"]
    changed = {"command", "develop", "environment", "ports", "volumes", "working_dir"}
    for name in SERVICES:
        before, after = production[name], services[name]
        assert {key for key in after if after[key] != before.get(key)} <= changed
        assert after["working_dir"] == "/live"
        assert after["command"][0] == "watchfiles"
        assert after["environment"] == {**before["environment"], "LOG_LEVEL": "DEBUG"}
        (live,) = [volume for volume in after["volumes"] if volume["target"] == "/live"]
        assert live["read_only"]
        assert live["source"] == str(project.file(f"services/{name}"))
        assert all(watch["action"] == "rebuild" for watch in after["develop"]["watch"])
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["target"] for port in ports} == {1883, 8000}
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    # Docker publishes nothing of a container that has the internal network alone.
    assert set(services["mqtt"]["networks"]) == {"internal", "egress"}


def test_another_port_on_this_machine_does_not_move_that_of_the_container(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    with restored(projects[1].file(".env")) as env:
        env.write_text(f"{env.read_text()}GATEWAY_HTTP_PORT='8001'\n")
        gateway = model(projects[1], compose, *DEVELOPMENT)["services"]["gateway"]
    (port,) = gateway["ports"]
    assert gateway["environment"]["GATEWAY_HTTP_PORT"] == str(port["target"])


@pytest.fixture
def override(projects: tuple[BakedProject, BakedProject]) -> Iterator[Path]:
    path = projects[1].file("docker-compose.override.yml")
    yield path
    path.unlink()


def test_an_override_of_the_user_is_merged(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...], override: Path
) -> None:
    """Services, ports and a volume of the user's own, and a private change as documented."""
    project = projects[1]
    own = {
        "services": {
            "grafana": {"image": "grafana", "networks": ["internal"], "volumes": ["own:/data"]},
            "mqtt": {"networks": ["egress"], "ports": ["1884:1883"]},
            "listener": {"mem_limit": "512m", "memswap_limit": "512m"},
        },
        "volumes": {"own": None},
    }
    override.write_text(yaml.safe_dump(own))
    services = model(project, compose)["services"]
    assert set(services) == {*SERVICES, "mqtt", "influxdb", "grafana"}
    assert services["mqtt"]["ports"][0]["published"] == "1884"
    assert services["listener"]["mem_limit"] == str(512 * MIB)
    assert services["listener"]["cap_drop"] == ["ALL"]

    section = project.read("docs/containers.md").split("## Development")[1]
    snippet = section.split("```yaml\n")[1].split("```")[0].replace("my-service", "listener")
    override.write_text(snippet)
    mine = project.file("mine.yml")
    mine.write_text("services: {listener: {environment: {LOG_LEVEL: ERROR}}}\n")
    listener = model(project, compose)["services"]["listener"]
    assert listener["environment"]["LOG_LEVEL"] == "ERROR"
    assert listener["command"][0] == "watchfiles"
    mine.unlink()


def test_limits_of_one_service_as_documented(
    projects: tuple[BakedProject, BakedProject], compose: tuple[str, ...]
) -> None:
    project = projects[1]
    snippet = project.read("docs/containers.md").split("```yaml\n")[1].split("```")[0]
    with restored(project.file("services/listener/compose.yml")) as own:
        own.write_text(own.read_text().replace("    volumes:\n", f"{snippet}    volumes:\n"))
        services = model(project, compose, *PRODUCTION)["services"]
    assert services["listener"]["mem_limit"] == str(512 * MIB)
    assert services["listener"]["memswap_limit"] == str(512 * MIB)
    assert services["gateway"]["mem_limit"] == str(256 * MIB)
