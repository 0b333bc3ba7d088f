"""From a new repository to services of all three types that talk in containers, as a user would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.baked import BakedProject
from tests.conftest import Bake, Cookiecutter
from tests.stack import remove_images
from tests.tools import needs

pytestmark = [
    pytest.mark.real,
    pytest.mark.docker,
    pytest.mark.xdist_group("docker"),
    pytest.mark.timeout(1500),
]

PATIENCE_SECONDS = 60
# Within the container of the HTTP API: no port of this machine is needed.
ASK = """
import sys, urllib.request
path, body = sys.argv[1:]
request = urllib.request.Request(
    "http://127.0.0.1:8000" + path, body.encode() or None, {"Content-Type": "application/json"}
)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


@pytest.fixture
def repository(bake_copy: Bake) -> Iterator[BakedProject]:
    project = bake_copy(project_slug="services-in-docker", include_influxdb=False)
    yield project
    project.run("docker", "compose", "down", "--volumes", "--remove-orphans")
    remove_images("localhost/services-in-docker")


def ask(project: BakedProject, path: str, **body: Any) -> Any:
    done = project.run(
        *("docker", "compose", "exec", "-T", "gateway", "python", "-c", ASK),
        *(path, json.dumps(body) if body else ""),
    )
    return json.loads(done.stdout)


def command(project: BakedProject, service: str, name: str) -> Any:
    """Return the reply to a command that comes in over HTTP and goes on over MQTT."""
    return ask(project, f"/api/v1/services/{service}/commands", command=name)


def volumes(project: BakedProject) -> list[str]:
    listed = ("docker", "volume", "ls", "--quiet", "--filter", "name=services-in-docker_")
    return project.run(*listed).stdout.split()


def retained(project: BakedProject) -> set[str]:
    """Services whose availability the broker retains."""
    shell = "XDG_CONFIG_HOME=/run/mosquitto/.config mosquitto_sub -h 127.0.0.1 -F %t -W 3"
    command = f"{shell} --retained-only -t '+/+/availability'"
    inside = ("docker", "compose", "exec", "-T", "mqtt", "sh", "-c", command)
    # It ends with the exit code of a timeout.
    topics = project.run(*inside, check=False).stdout.split()
    return {topic.split("/")[1] for topic in topics}


@needs("git", "python3.13")
def test_services_come_talk_and_go(repository: BakedProject, cookiecutter: Cookiecutter) -> None:
    repository.run("scripts/new-service.sh", "listener", "--type", "subscriber")
    repository.run("scripts/new-service.sh", "gateway", "--type", "http-api")
    done = cookiecutter(
        output=repository.path / "services",
        template=repository.file("templates/service"),
        service_name="Soil Moisture",
    )
    assert done.returncode == 0, done.stderr
    done = repository.run("make", "up", timeout=580)
    assert "Run make watch to see messages" in done.stdout

    assert ask(repository, "/api/v1/status")["status"] == "online"
    for poller in ("example-service", "soil-moisture"):
        reply = command(repository, poller, "refresh")
        assert reply["status"] == "ok"
        assert isinstance(reply["result"]["value"], float)
    # The subscriber has the readings of the pollers as well.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not command(repository, "listener", "statistics")["result"]["readings"]:
        assert time.monotonic() < deadline

    assert "services-in-docker_listener_data" in volumes(repository)
    said = repository.run("scripts/remove-service.sh", "listener", "--yes").stdout
    assert "docker volume ls --filter label=com.docker.compose.volume=listener_data" in said
    assert "services-in-docker_listener_data" in volumes(repository)
    assert retained(repository) == {"example-service", "gateway", "soil-moisture"}
    said = repository.run("scripts/rename-service.sh", "soil-moisture", "moisture").stdout
    assert retained(repository) == {"example-service", "gateway"}
    assert "The broker may keep" not in said
    assert " passed" in repository.run("make", "test", python="3.13", timeout=550).stdout
    repository.run("git", "add", "--all")
    repository.run("make", "lint", timeout=550)
    repository.run("make", "up", timeout=580)
    running = set(repository.run("docker", "compose", "ps", "--services").stdout.split())
    assert {"example-service", "gateway", "moisture"} <= running
    assert "listener" not in running
    assert command(repository, "moisture", "refresh")["status"] == "ok"
    # CI does not ask a service that no list includes.
    lists = repository.file("docker-compose.yml")
    lists.write_text(lists.read_text().replace("  - services/gateway/compose.yml\n", ""))
    steps = repository.yaml(".github/workflows/ci.yml")["jobs"]["containers"]["steps"]
    (diagnose,) = [step["run"] for step in steps if step.get("name") == "Diagnose every service"]
    checked = repository.run("bash", "-e", "-c", diagnose).stdout
    assert checked.count(" mqtt ") == 2
    repository.run("make", "down")
    assert not repository.run("docker", "compose", "ps", "--all", "--quiet").stdout
