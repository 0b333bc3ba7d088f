"""The three types of services in containers beside each other: they talk, and one leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.baked import BakedProject
from tests.conftest import Bake

pytestmark = [pytest.mark.real, pytest.mark.docker]

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
    project.run("docker", "compose", "down", "--volumes", "--remove-orphans", "--rmi", "local")
    project.run("docker", "image", "rm", "services-in-docker-base")


def ask(project: BakedProject, path: str, **body: Any) -> Any:
    done = project.run(
        *("docker", "compose", "exec", "-T", "gateway", "python", "-c", ASK),
        *(path, json.dumps(body) if body else ""),
    )
    return json.loads(done.stdout)


def command(project: BakedProject, service: str, name: str) -> Any:
    """What a service answers to a command that came in over HTTP and went on over MQTT."""
    return ask(project, f"/api/v1/services/{service}/commands", command=name)


def test_three_types_exchange_messages(repository: BakedProject) -> None:
    repository.run("scripts/new-service.sh", "watch", "--type", "subscriber")
    repository.run("scripts/new-service.sh", "gateway", "--type", "http-api")
    repository.run("make", "up", timeout=580)

    assert ask(repository, "/api/v1/status")["status"] == "online"
    answer = command(repository, "example-service", "refresh")
    assert answer["status"] == "ok"
    assert isinstance(answer["result"]["value"], float)
    # What the poller read has gone to the subscriber as well.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not command(repository, "watch", "statistics")["result"]["readings"]:
        assert time.monotonic() < deadline

    volumes = ("docker", "volume", "ls", "--quiet", "--filter", "name=services-in-docker_")
    assert "services-in-docker_gateway_data" in repository.run(*volumes).stdout.split()
    repository.run("scripts/remove-service.sh", "gateway", "--delete-data", "--yes")
    assert "services-in-docker_gateway_data" not in repository.run(*volumes).stdout.split()
    assert "services-in-docker_watch_data" in repository.run(*volumes).stdout.split()
    repository.run("docker", "compose", "up", "--detach", "--wait", timeout=300)
    running = repository.run("docker", "compose", "ps", "--services").stdout.split()
    assert set(running) == {"mqtt", "example-service", "watch"}
