"""Edits and debugging in containers."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.baked import run
from tests.conftest import Bake
from tests.debug_adapter import DebugAdapter
from tests.stack import Stack, restored, stack_of, until

pytestmark = [
    pytest.mark.real,
    pytest.mark.docker,
    pytest.mark.xdist_group("docker"),
    pytest.mark.timeout(900),
]

SERVICES = {
    "example-service": "poller",
    "one": "subscriber",
    "two": "http-api",
    "three": "poller",
    "four": "subscriber",
}
EDITS = 12
# COMPOSE_NEWEST names the binary of another version.
COMPOSES = [
    ("docker", "compose"),
    *((binary,) for binary in [os.environ.get("COMPOSE_NEWEST")] if binary),
]


@pytest.fixture(scope="module")
def stack(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Five services, with the override as a developer has it, but the broker on a free port."""
    original = bake(include_home_assistant=False, include_influxdb=False)
    env = {"EXAMPLE_SERVICE_POLL_INTERVAL_SECONDS": "1", "MQTT_PASSWORD": "x"}
    with stack_of(original, tmp_path_factory.mktemp("development"), **env) as stack:
        for name, kind in list(SERVICES.items())[1:]:
            stack.run("scripts/new-service.sh", name, "--type", kind)
        example = stack.project.read("docker-compose.override.example.yml")
        assert '"127.0.0.1:1883:1883"' in example
        override = example.replace("127.0.0.1:1883:", "127.0.0.1::")
        stack.project.file("docker-compose.override.yml").write_text(override)
        yield stack


@pytest.mark.parametrize("compose", COMPOSES, ids=lambda compose: Path(compose[0]).name)
def test_every_edit_is_live_in_all_services(stack: Stack, compose: tuple[str, ...]) -> None:
    stack.up("--build")
    assert re.fullmatch(r"127\.0\.0\.1:80\d\d\n", stack.compose("port", "two", "8000"))
    project = stack.project
    with (
        restored(project.file("shared/log.py")) as library,
        restored(project.file("services/one/main.py")) as main,
        restored(project.file("services/one/requirements.txt")) as requirements,
        restored(project.file("services/one/Dockerfile")) as dockerfile,
        stack.process(*compose, "watch") as watch,
        stack.process("docker", "compose", "logs", "--follow", "--tail", "0") as logs,
    ):
        watch.wait_for("[Ww]atch enabled")
        before = stack.ids()
        code = library.read_text()
        for number in range(EDITS):
            library.write_text(f"{code}\nprint('{compose[0]} edit {number}.', flush=True)\n")
            logs.wait_for(*(rf"^{name}-1 .*edit {number}\." for name in SERVICES))
        main.write_text(f"print('Its own code.', flush=True)\n{main.read_text()}")
        logs.wait_for(r"^one-1 .*Its own code\.")
        assert stack.ids() == before

        for path in (requirements, dockerfile):
            old = stack.ids()
            path.write_text(f"{path.read_text()}\n# {compose[0]} edited {path.name}.\n")
            until(lambda: stack.ids().get("one", old["one"]) != old["one"], path.name)  # noqa: B023
            assert {**stack.ids(), "one": ""} == {**old, "one": ""}
        until(lambda: stack.is_healthy("one"), "the service with a new image")
        assert watch.interrupt() in (0, 130)
    assert "won't be monitored" not in "".join(watch.lines)
    assert all(stack.is_healthy(name) for name in SERVICES)


def test_diagnose_uses_the_container_of_the_service_or_a_new_one(stack: Stack) -> None:
    stack.up("--build")
    command = ("make", "--silent", "diagnose", "SERVICE=one", "ARGS=--json")
    passed = {"config": "PASS", "data": "PASS", "mqtt": "PASS"}
    before = stack.ids()
    for is_running in (True, False):
        if not is_running:
            stack.compose("stop", "one")
        done = stack.run(*command)
        assert {step["step"]: step["status"] for step in json.loads(done.stdout)} == passed
        assert ("one does not run" in done.stderr) is not is_running
        assert stack.ids() == before


def test_a_ca_certificate_is_named_once_for_all_services(stack: Stack) -> None:
    """In development too, where another directory is the working directory."""
    path = "infrastructure/certs/ca.crt"
    stack.project.file(path).touch()
    with restored(stack.project.file(".env")) as env:
        env.write_text(f"{env.read_text()}MQTT_TLS_CA_FILE='{path}'\n")
        stack.up("--build")
        code = "from shared.config import Settings; print(Settings(mqtt_tls=True).mqtt_tls_ca_file)"
        for name in ("one", "two"):
            assert stack.exec(name, "python", "-c", code).strip() == f"/app/{path}"


def reachable(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_debug_starts_one_service_that_waits_for_the_editor(stack: Stack) -> None:
    project = stack.project
    main = project.file("services/example-service/main.py")
    lines = main.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if '"reading_published"' in text)
    text = project.read(".vscode/launch.json")
    text = text.replace("${workspaceFolder}", str(project.path))
    entry: dict[str, Any] = json.loads(text.replace("${input:service}", "example-service"))[
        "configurations"
    ][0]
    stack.compose("down")
    with stack.process("make", "debug", "SERVICE=example-service") as debug:
        debug.wait_for("debugger_waiting")
        form = '{{.Label "com.docker.compose.service"}}'
        project_filter = f"label=com.docker.compose.project={stack.name}"
        running = run("docker", "ps", "--filter", project_filter, "--format", form).stdout.split()
        assert sorted(running) == ["example-service", "mqtt"]
        # Every host with Docker has this address.
        form = "{{(index .IPAM.Config 0).Gateway}}"
        gateway = run("docker", "network", "inspect", "bridge", "--format", form).stdout.strip()
        assert not reachable(gateway, 5678)
        with DebugAdapter(**entry["connect"]) as adapter:
            adapter.stop_at(main, line, entry)
            debug.wait_for("reading_published")
        debug.interrupt()
    until(lambda: "example-service" not in stack.ids(), "the container is removed")
