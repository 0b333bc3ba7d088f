"""The stack of a swarm, as `docker stack config` reads it. No daemon is needed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.baked import BakedProject, run
from tests.combinations import OPTIONS
from tests.conftest import Bake
from tests.stack import replace_in, write_env

pytestmark = [pytest.mark.real, pytest.mark.needs("docker")]

SERVICE = "example-service"
PASSWORD = 'p $HOME ${X} $$ #no "q" = ü'
# Other programs than the settings of a service read these from the environment.
FOR_OTHERS = {
    "TZ": "Europe/Berlin",
    "SSL_CERT_FILE": "infrastructure/certs/ca.crt",
    "FORWARDED_ALLOW_IPS": "10.0.0.0/8",
}


class Converter:
    """Runs the pipeline of a deployment up to the command that needs a swarm."""

    def __init__(self, project: BakedProject, directory: Path) -> None:
        self.project, self.directory = project, directory
        directory.mkdir()

    def extend(self, **services: dict[str, Any]) -> None:
        override = {"services": services, "volumes": {"own": None}}
        self.project.file("docker-compose.override.yml").write_text(json.dumps(override))

    def convert(self) -> tuple[int, str, str]:
        compose = self.project.run("docker", "compose", "config", "--format", "json").stdout
        command = ("python", "scripts/stack.py", str(self.directory))
        done = self.project.uv_run("--quiet", *command, stdin=compose, check=False)
        return done.returncode, done.stdout, done.stderr

    def stack(self) -> dict[str, Any]:
        """Return the model that Docker reads. It names an option that a swarm ignores on stderr."""
        code, stack, problems = self.convert()
        assert (code, problems) == (0, "")
        done = run("docker", "stack", "config", "--compose-file", "-", stdin=stack)
        assert done.stderr == ""
        loaded: dict[str, Any] = yaml.safe_load(done.stdout)
        return loaded

    def content(self, name: str) -> bytes:
        (path,) = self.directory.glob(f"{name}-*")
        return path.read_bytes()


@pytest.fixture
def converter(bake_copy: Bake, tmp_path: Path) -> Converter:
    return Converter(bake_copy(include_influxdb=False), tmp_path / "files")


@pytest.mark.parametrize("answers", OPTIONS)
def test_a_stack_keeps_what_compose_promises(
    bake_copy: Bake, tmp_path: Path, answers: dict[str, Any]
) -> None:
    project = bake_copy(**answers)
    own = {"SERVICE_VERSION": "1.2", "INFLUX_TOKEN": "12345678"}
    write_env(project, MQTT_PASSWORD=PASSWORD, **own, **FOR_OTHERS)
    converter = Converter(project, tmp_path / "files")
    stack = converter.stack()
    services = stack["services"]
    assert set(services) == {
        SERVICE,
        "mqtt",
        *(["influxdb"] if answers["include_influxdb"] else []),
    }
    for name, service in services.items():
        limits = service["deploy"]["resources"]["limits"]
        assert set(limits) == {"cpus", "memory", "pids"}
        assert service["cap_drop"] == ["ALL"]
        assert service["deploy"]["update_config"]["failure_action"] == "rollback"
        assert service["deploy"]["update_config"]["order"] == "stop-first"
        assert service["deploy"]["placement"]["constraints"] == ["node.labels.state == true"]
        assert "ports" not in service
        assert PASSWORD not in json.dumps(service), name
        assert "12345678" not in json.dumps(service), name
    service, mqtt = services[SERVICE], services["mqtt"]
    assert service["environment"] == {
        "DEBUG_SERVICE": "",
        "INSTANCE": "{{.Task.Slot}}",
        "PYTHONPATH": "/app:/app/shared.zip",
        **FOR_OTHERS,
    }
    assert {mount["target"]: mount["type"] for mount in service["volumes"]} == {
        "/tmp": "tmpfs",
        "/app/data": "volume",
    }
    sizes = {
        mount["target"]: mount["tmpfs"]["size"]
        for mount in mqtt["volumes"]
        if mount["type"] == "tmpfs"
    }
    assert sizes == dict.fromkeys(("/tmp", "/run/mosquitto", "/mosquitto/log"), 16 * 1024**2)
    assert stack["networks"]["internal"]["internal"] is True
    (secret,) = service["secrets"]
    assert (secret["target"], secret["uid"], secret["mode"]) == ("/app/.env", "10001", 0o400)
    program = "import dotenv; print(dotenv.dotenv_values(interpolate=False)['MQTT_PASSWORD'])"
    project.file(".env").write_bytes(converter.content("env"))
    assert project.uv_run("python", "-c", program).stdout == f"{PASSWORD}\n"
    assert converter.content("MQTT_PASSWORD").decode() == PASSWORD
    (name,) = {config["source"] for config in service["configs"] if "shared" in config["target"]}
    with zipfile.ZipFile(tmp_path / "files" / name) as archive:
        tracked = project.run("git", "ls-files", "shared").stdout.split()
        assert set(archive.namelist()) == {name for name in tracked if name.endswith(".py")}


@pytest.mark.needs("kubernetes-validate")
def test_the_manifests_for_kubernetes_are_valid(bake: Bake, tmp_path: Path) -> None:
    page = bake().read("docs/kubernetes.md")
    manifests = tmp_path / "manifests.yml"
    manifests.write_text(page.split("```yaml\n")[1].split("```")[0])
    done = run("kubernetes-validate", "--strict", manifests)
    assert done.stdout.count(" passed for resource ") == 3


def test_a_change_renames_what_holds_it_and_nothing_else(converter: Converter) -> None:
    write_env(converter.project, MQTT_PASSWORD="one")
    before = converter.stack()
    assert converter.stack() == before
    with converter.project.file("infrastructure/mosquitto/mosquitto.conf").open("a") as config:
        config.write("max_connections 100\n")
    changed = converter.stack()
    assert changed["services"][SERVICE] == before["services"][SERVICE]
    assert changed["services"]["mqtt"]["configs"] != before["services"]["mqtt"]["configs"]
    with converter.project.file("shared/errors.py").open("a") as module:
        module.write("# changed\n")
    write_env(converter.project, MQTT_PASSWORD="two")
    last = converter.stack()
    for kind, target in (("configs", "/app/shared.zip"), ("secrets", "/app/.env")):
        names = {
            use["source"]
            for stack in (changed, last)
            for use in stack["services"][SERVICE][kind]
            if use["target"] == target
        }
        assert len(names) == 2


def test_a_service_without_state_has_replicas(converter: Converter) -> None:
    compose = converter.project.file(f"services/{SERVICE}/compose.yml")
    text = compose.read_text()
    compose.write_text(text.replace("    volumes:", "    deploy: {replicas: 3}\n    volumes:"))
    code, _, problems = converter.convert()
    assert code == 1
    assert problems.startswith(f"services.{SERVICE}.deploy.replicas: a volume is on one node.")
    replace_in(compose, "replicas: 3", "replicas: 3, labels: {stateless: 'true'}")
    service = converter.stack()["services"][SERVICE]
    assert service["deploy"]["replicas"] == 3
    assert "placement" not in service["deploy"]
    assert {mount["target"]: mount["type"] for mount in service["volumes"]} == {"/tmp": "tmpfs"}
    assert service["environment"]["DATA_DIR"] == "/tmp"
    assert service["environment"]["MQTT_CLIENT_ID"] == "{service}-{{.Task.Slot}}"
    replace_in(compose, "replicas: 3", "mode: global")
    service = converter.stack()["services"][SERVICE]
    assert service["environment"]["MQTT_CLIENT_ID"] == "{service}-{{.Node.ID}}"
    assert "INSTANCE" not in service["environment"]


REJECTED: list[tuple[dict[str, Any], str]] = [
    ({"ports": ["127.0.0.1:8000:8000"]}, ".ports: 8000: a swarm opens one port on all addresses"),
    ({"ports": ["8000-8099:8000"]}, ".ports: 8000-8099: a swarm opens one port on all addresses"),
    ({"volumes": ["/srv/data:/data"]}, ".volumes: other nodes do not have /srv/data"),
    ({"volumes": ["./infrastructure:/data"]}, ".volumes: other nodes do not have"),
    ({"privileged": True}, ".privileged: not possible in a swarm"),
    ({"network_mode": "host"}, ".network_mode: not possible in a swarm"),
    ({"devices": ["/dev/ttyUSB0:/dev/ttyUSB0"]}, ".devices: not possible in a swarm"),
    ({"security_opt": ["seccomp=strict.json"]}, ".security_opt: not possible in a swarm"),
    ({"build": "base", "image": None}, ".image: missing"),
    ({"environment": {"DB_PASSWORD": "x"}}, ".environment: secrets need an entrypoint"),
    ({"environment": {"API_CREDENTIALS": "x"}}, ".environment: secrets need an entrypoint"),
    ({"command": "run --password ${MQTT_PASSWORD}"}, ": the value of MQTT_PASSWORD would be in"),
    (
        {"volumes": ["own:/data"], "deploy": {"mode": "global"}},
        ".deploy.replicas: a volume is on one node",
    ),
]


def test_nothing_is_dropped_or_exposed_in_silence(converter: Converter) -> None:
    write_env(converter.project, MQTT_PASSWORD="a-long-$password")
    services, expected = {}, []
    for number, (entry, problem) in enumerate(REJECTED):
        service = {"image": "own", **entry}
        services[f"own{number:02}"] = {key: value for key, value in service.items() if value}
        expected.append(f"services.own{number:02}{problem}")
    converter.extend(**services)
    code, stack, problems = converter.convert()
    assert (code, stack) == (1, "")
    *lines, fix = problems.splitlines()
    assert fix == "Change these lines, or run the services on one host: docs/swarm.md"
    assert "write {target: 8000, published: NUMBER, mode: host}" in problems
    for line, problem in zip(sorted(lines), expected, strict=True):
        assert line.startswith(problem)


def test_other_entries_are_taken_along(converter: Converter) -> None:
    project = converter.project
    project.file("infrastructure/tls").mkdir()
    project.file("infrastructure/tls/server.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    project.file("infrastructure/tls/server.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    converter.extend(
        own={
            "image": "own",
            "user": "999:999",
            "entrypoint": ["/entry"],
            "command": ["serve"],
            "ports": [{"target": 80, "published": "8080", "mode": "host"}],
            "environment": {"DB_PASSWORD": "with $$ and 'quote'"},
            "volumes": ["./infrastructure/tls:/tls:ro", "own:/data"],
            "deploy": {"placement": {"constraints": ["node.hostname == attic"]}},
        }
    )
    own = converter.stack()["services"]["own"]
    assert own["ports"] == [{"mode": "host", "target": 80, "published": 8080, "protocol": "tcp"}]
    assert own["deploy"]["placement"]["constraints"] == ["node.hostname == attic"]
    assert "endpoint_mode" not in own["deploy"]
    assert own["entrypoint"][-1] == "/entry"
    assert 'export DB_PASSWORD="$(cat /run/secrets/DB_PASSWORD)"' in own["entrypoint"][2]
    assert converter.content("DB_PASSWORD") == b"with $ and 'quote'"
    (config,) = own["configs"]
    assert config["target"] == "/tls/server.crt"
    targets = {secret["target"]: secret["uid"] for secret in own["secrets"]}
    assert targets == {"/tls/server.key": "999", "/run/secrets/DB_PASSWORD": "999"}


def test_a_service_with_its_own_account_gets_no_other(converter: Converter) -> None:
    """As docs/secrets.md shows."""
    write_env(converter.project, MQTT_PASSWORD="ours", METER_PASSWORD="of the meter")
    compose = converter.project.file(f"services/{SERVICE}/compose.yml")
    lines = "    env_file: !reset []\n    environment: {MQTT_PASSWORD: '${METER_PASSWORD}'}\n"
    compose.write_text(compose.read_text().replace("    volumes:", f"{lines}    volumes:"))
    service = converter.stack()["services"][SERVICE]
    assert [secret["target"] for secret in service["secrets"]] == ["/run/secrets/MQTT_PASSWORD"]
    assert service["environment"]["MQTT_PASSWORD_FILE"] == "/run/secrets/MQTT_PASSWORD"
    assert service["secrets"][0]["source"].startswith("MQTT_PASSWORD-")
