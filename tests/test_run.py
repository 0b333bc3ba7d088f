"""`make run`, `make debug ... HOST=1` and the container targets of a machine without Docker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.baked import BakedProject, run, user_environment
from tests.conftest import Bake
from tests.debug_adapter import DebugAdapter
from tests.ports import free_port, is_listening
from tests.stack import background, replace_in, restored, until, write_env
from tests.tools import needs, path_without

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
SERVICE = "example-service"
NAMES = (SERVICE, "gateway", "listener")


def is_running(process_id: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, 0)
        return True
    return False


@pytest.fixture(scope="module")
def project(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    """Three services, one of each type."""
    original = bake(include_home_assistant=False, include_influxdb=False)
    path = tmp_path_factory.mktemp("run") / original.path.name
    shutil.copytree(original.path, path, symlinks=True)
    project = BakedProject(path, original.answers, original.environments)
    project.run("scripts/new-service.sh", "listener", "--type", "subscriber")
    project.run("scripts/new-service.sh", "gateway", "--type", "http-api")
    # Only `make debug` waits for a debugger.
    write_env(project, GATEWAY_HTTP_PORT=str(free_port()), DEBUG_SERVICE=SERVICE)
    return project


def start(project: BakedProject, *options: str, **env: str) -> Any:
    """Run scripts/run.py as the Makefile does: make itself would report Ctrl-C as a failure."""
    command = ("uv", "run", "--frozen", "--quiet", "python", "scripts/run.py", *options)
    environment = user_environment({**project.environment(), **env})
    return background(*command, cwd=project.path, env=environment)


def test_a_broker_that_is_starting_ends_with_the_program(
    project: BakedProject, tmp_path: Path
) -> None:
    broker, process_id = tmp_path / "mosquitto", tmp_path / "pid"
    broker.write_text(f"#!/bin/sh\necho $$ >{process_id}\nexec sleep 300\n")
    broker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    with start(project, "run", SERVICE, MQTT_PORT=str(free_port()), PATH=path) as output:
        until(lambda: process_id.exists() and process_id.read_text() != "", "broker")
        os.killpg(output.process.pid, signal.SIGTERM)
        assert output.process.wait(timeout=60) == 128 + signal.SIGTERM
    until(lambda: not is_running(int(process_id.read_text())), "end of the broker")


def test_three_services_share_a_broker_that_ends_last(project: BakedProject) -> None:
    port = free_port()
    with start(project, "run", *NAMES, MQTT_PORT=str(port)) as output:
        output.wait_for(rf"Started mosquitto on port {port}|Started python\S* on port {port}")
        output.wait_for(*(f"mqtt_connected.*{name}|{name}.*mqtt_connected" for name in NAMES))
        assert is_listening(port)
        sent = project.run(
            *("make", "--silent", "send", f"SERVICE={SERVICE}", "COMMAND=refresh"),
            env={"MQTT_PORT": str(port)},
        )
        assert json.loads(sent.stdout)["status"] == "ok"
        assert output.interrupt() == 0
        # Each has said that it is offline, which needs the broker.
        output.wait_for(*(f"service_stopped.*{name}|{name}.*service_stopped" for name in NAMES))
    said = "".join(output.lines)
    assert "Traceback" not in said
    assert not is_listening(port)
    broker = project.read(".data/broker.log")
    if "mosquitto" in broker:
        for name in NAMES:
            assert re.search(rf"Client \S*{name}\S* .*disconnected", broker), broker
        assert not re.search(r"Client (?!<unknown>).* closed its connection", broker), broker


def test_late_signals_do_not_change_the_exit_code(project: BakedProject) -> None:
    environment = project.environment()
    python = Path(str(environment["UV_PROJECT_ENVIRONMENT"])) / "bin/python"
    env = user_environment({**environment, "MQTT_PORT": str(free_port())})
    command = (python, "scripts/run.py", "run", SERVICE)
    with background(*command, cwd=project.path, env=env) as output:
        output.wait_for("mqtt_connected")

        def has_ended() -> bool:
            output.process.send_signal(signal.SIGTERM)
            return output.process.poll() is not None

        until(has_ended, "end of the program", seconds=0.001)
        assert output.process.returncode == 0


def test_ctrl_c_ends_a_service_that_does_not_stop(bake_copy: Bake) -> None:
    project = bake_copy()
    main = project.file(f"services/{SERVICE}/main.py")
    shutdown = """
    async def shutdown(self) -> None:
        while True:
            pass


if __name__"""
    replace_in(main, "\n\nif __name__", shutdown)
    with start(project, "run", SERVICE, MQTT_PORT=str(free_port())) as output:
        output.wait_for("mqtt_connected")
        os.killpg(output.process.pid, signal.SIGINT)
        output.wait_for("service_stopping")

        def has_ended() -> bool:
            os.killpg(output.process.pid, signal.SIGINT)
            return output.process.poll() is not None

        until(has_ended, "end of the service")
        assert output.process.returncode == 128 + signal.SIGINT


@needs("mosquitto", "mosquitto_sub")
def test_a_broker_of_the_user_is_left_alone(project: BakedProject) -> None:
    port = free_port()
    listen = ("mosquitto_sub", "-p", str(port), "-t", f"{project.path.name}/+/availability")
    with subprocess.Popen(["mosquitto", "-p", str(port)], stderr=subprocess.DEVNULL) as broker:
        try:
            until(lambda: is_listening(port), "broker")
            with start(project, "run", SERVICE, MQTT_PORT=str(port)) as output:
                output.wait_for("mqtt_connected")
                assert output.interrupt() == 0
            assert "Started" not in "".join(output.lines)
            assert f"Using the broker on 127.0.0.1:{port}." in "".join(output.lines)
            assert broker.poll() is None
            (status,) = run(*listen, "-C", "1", "-W", "10").stdout.splitlines()
            assert json.loads(status)["status"] == "offline"
        finally:
            broker.terminate()


def test_a_broker_that_does_not_start_shows_its_log(project: BakedProject, tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho 'Error: Permission denied'\nexit 1\n")
    program.chmod(0o755)
    env = {"MQTT_PORT": str(free_port()), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = project.uv_run("python", "scripts/run.py", "run", SERVICE, env=env, check=False)
    assert done.returncode == 2
    assert f"{program} did not start: Error: Permission denied" in done.stderr


def test_an_env_file_of_an_editor_on_windows_is_read(bake_copy: Bake) -> None:
    project, port = bake_copy(), free_port()
    text = f"\ufeffexport MQTT_PORT = {port} # mine\r\n\texport  MQTT_TLS=true\r\n"
    project.file(".env").write_text(text)
    done = project.uv_run("python", "scripts/run.py", "run", SERVICE, check=False)
    assert f"MQTT_TLS is on and no broker listens on port {port}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["run", SERVICE], {"MQTT_TLS": "true"}, "MQTT_TLS is on and no broker listens on port"),
        (["run"], {}, "Set SERVICE to one of: example-service, gateway, listener"),
        (
            ["run", "../services/listener"],
            {},
            "Unknown service ../services/listener. Set SERVICE to one of",
        ),
        (["debug", SERVICE, "listener"], {}, "Set SERVICE to only one service."),
        (["diagnose", SERVICE, "listener"], {}, "Set SERVICE to only one service."),
    ],
)
def test_a_missing_condition_is_named(
    project: BakedProject, arguments: list[str], env: dict[str, str], message: str
) -> None:
    command = ("python", "scripts/run.py", *arguments)
    done = project.uv_run(*command, env={"MQTT_PORT": str(free_port()), **env}, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_send_without_a_command_shows_one(project: BakedProject) -> None:
    done = project.run("make", "--silent", "send", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Run: make send SERVICE=name COMMAND=refresh\n")


def test_send_passes_its_arguments_as_they_are(project: BakedProject) -> None:
    fields = """{"text": "it's \\"$(id)\\" `id`"}"""
    # make itself expands a dollar sign.
    arguments = f"ARGS={fields.replace('$', '$$')}"
    send = ("make", "--silent", "send", "SERVICE=lamp", "COMMAND=say", arguments)
    assert project.run(*send, "UV=printf '%s\\n'").stdout.splitlines()[-1] == fields


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("test SERVICE=nobody", "Set SERVICE to one of: example-service gateway listener"),
        ("new-service", "Run: make new-service NAME=name TYPE=poller"),
        ("remove-service", "Run: make remove-service NAME=name"),
        ("rename-service NAME=listener", "Run: make rename-service NAME=name TO=new-name"),
        ("add-package SERVICE=listener", "Run: make add-package SERVICE=name PACKAGE=name"),
        ("remove-service NAME=a", "Unknown service a. Known services: example-service, gateway, "),
        ("rename-service NAME=a TO=b", "Unknown service a. Known services: example-service, gat"),
        ("add-package SERVICE=a PACKAGE=b", "Unknown service a. Known services: example-servic"),
        ("remove-service NAME=listener", "There is no terminal to ask on. Run: scripts/remove-"),
    ],
)
def test_a_wrong_argument_of_make_gives_a_message_first(
    project: BakedProject, target: str, message: str
) -> None:
    done = project.run("make", "--silent", *target.split(), check=False)
    assert done.stderr.startswith(message), done.stderr
    assert (done.returncode, done.stdout) == (2, "")
    assert project.file("services/listener/main.py").exists()


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """A PATH with a Docker that has one old container and logs its calls."""
    program = tmp_path / "docker"
    program.write_text(
        f"#!/bin/sh\necho $* >>{tmp_path}/calls\n"
        f'case "$*" in *" ps "*) echo c1 ;; inspect*) cat {tmp_path}/container ;; esac\n'
    )
    (tmp_path / "container").write_text("2020-01-01T00:00:00.123456789Z healthy\n")
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize("target", ["run", "diagnose", "watch"])
def test_a_port_that_is_no_number_is_rejected(project: BakedProject, target: str) -> None:
    make = ("make", "--silent", target, f"SERVICE={SERVICE}", "HOST=1")
    done = project.run(*make, env={"MQTT_PORT": "abc"}, check=False)
    assert done.stderr.splitlines()[-2] == "MQTT_PORT must be a number, not 'abc'."
    assert done.returncode == 2


def test_debug_without_a_service_builds_nothing(
    project: BakedProject, docker: dict[str, str], tmp_path: Path
) -> None:
    done = project.run("make", "--silent", "debug", env=docker, check=False)
    assert done.stderr.startswith("Set SERVICE to one of: ")
    assert "build" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ("2020-01-01T00:00:00.1Z healthy", f".env is newer than the container of {SERVICE}"),
        # One that ends and starts again would take the checks with it.
        ("2199-01-01T00:00:00.1Z starting", f"{SERVICE} is starting"),
        ("2199-01-01T00:00:00.1Z unhealthy", f"{SERVICE} is unhealthy"),
    ],
)
def test_diagnose_uses_a_new_container_when_the_other_one_is_not_good(
    project: BakedProject, docker: dict[str, str], tmp_path: Path, container: str, reason: str
) -> None:
    (tmp_path / "container").write_text(container)
    done = project.run("make", "--silent", "diagnose", f"SERVICE={SERVICE}", env=docker)
    assert f"{reason}, so a new container is used." in done.stderr.splitlines()
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last == f"compose run --rm --no-deps {SERVICE} python diagnose.py"


@pytest.mark.parametrize("health", ["", " healthy"])
def test_diagnose_uses_the_container_that_runs(
    project: BakedProject, docker: dict[str, str], tmp_path: Path, health: str
) -> None:
    (tmp_path / "container").write_text(f"2199-01-01T00:00:00.123456789Z{health}")
    project.run("make", "--silent", "diagnose", f"SERVICE={SERVICE}", env=docker)
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last == f"compose exec {SERVICE} python diagnose.py"


def test_watch_uses_a_container_whose_account_reads_everything(
    project: BakedProject, docker: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "docker"
    program.write_text(program.read_text().replace("echo c1", "printf 'gateway\\nlistener\\n'"))
    compose = project.file("services/gateway/compose.yml")
    env = {**docker, "MQTT_PORT": str(free_port())}
    with restored(compose):
        compose.write_text(f"{compose.read_text()}    environment:\n      MQTT_USERNAME: gateway\n")
        project.run("make", "--silent", "watch", env=env)
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last.endswith(" listener python -m shared.console watch")


def test_without_a_broker_here_or_in_containers_watch_says_how_to_start_one(
    project: BakedProject,
) -> None:
    port = free_port()
    env = {"MQTT_PORT": str(port)}
    done = project.uv_run("python", "scripts/run.py", "console", "watch", env=env, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"No broker listens on 127.0.0.1:{port}, and no service runs in a container. "
        "Run: make run SERVICE=name, or make up"
    ]


def test_send_to_an_unknown_service_names_those_of_the_repository(project: BakedProject) -> None:
    env = {"MQTT_PORT": str(free_port())}
    command = ("make", "--silent", "send", "SERVICE=nobody", "COMMAND=refresh")
    done = project.run(*command, env=env, check=False)
    first, second, *_ = done.stderr.splitlines()
    assert re.fullmatch(rf"nobody is not a service of this repository: .*\b{SERVICE}\b.*", first)
    assert second.startswith("No broker listens on ")
    known = ("make", "--silent", "send", f"SERVICE={SERVICE}", "COMMAND=refresh")
    assert "is not a service" not in project.run(*known, env=env, check=False).stderr


def test_diagnose_on_the_host_runs_the_checks_of_one_service(project: BakedProject) -> None:
    options = ("SERVICE=listener", "HOST=1", "ARGS=--json --step data --step mqtt")
    env = {"MQTT_PORT": str(free_port())}
    done = project.run("make", "--silent", "diagnose", *options, env=env, check=False)
    results = {result["step"]: result for result in json.loads(done.stdout)}
    assert {step: result["status"] for step, result in results.items()} == {
        "config": "PASS",
        "data": "PASS",
        "mqtt": "FAIL",
    }
    assert results["data"]["detail"] == f"{project.file('.data/listener')} is writable"
    assert done.stderr.startswith("Checking what listener needs.")
    assert f"No broker listens on 127.0.0.1:{env['MQTT_PORT']}" in done.stderr
    assert "Run: make run SERVICE=listener" in done.stderr
    assert done.returncode != 0


def own_addresses() -> Iterator[str]:
    """The address of this machine on its network, where it has one."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # Sends nothing. The address is reserved for documents.
        probe.connect(("192.0.2.1", 9))
        yield probe.getsockname()[0]


# The port of the debugger is the same for everyone: see test_docker_development.py.
@pytest.mark.xdist_group("docker")
def test_debug_on_the_host_waits_for_the_editor(project: BakedProject) -> None:
    main = project.file(f"services/{SERVICE}/main.py")
    lines = main.read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if '"reading_published"' in text)
    entry = project.json(".vscode/launch.json")["configurations"][1]
    env = {
        "MQTT_PORT": str(free_port()),
        "EXAMPLE_SERVICE_POLL_INTERVAL_SECONDS": "1",
        "HEALTH_MAX_AGE_SECONDS": "1",
    }
    with start(project, "debug", SERVICE, **env) as output:
        output.wait_for("debugger_waiting")
        assert not any(is_listening(5678, address) for address in own_addresses())
        with DebugAdapter(**entry["connect"]) as adapter:
            # The watchdog would end a blocked process after the maximum age and two looks of 1 s.
            adapter.stop_at(main, line, entry, seconds=4)
            output.wait_for("reading_published")
        assert output.interrupt() == 0
    # The debugger's own process sees the end of the service.
    until(lambda: not is_listening(5678), "end of the debugger")


DOCKERS = {
    "missing": (None, "Docker is not installed. See https://docs.docker.com/engine/install/."),
    "forbidden": (
        "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1",
        "Docker does not respond: permission denied while trying to connect to the Docker daemon "
        "socket See https://docs.docker.com/engine/install/linux-postinstall/.",
    ),
    "stopped": (
        "echo 'Cannot connect to the Docker daemon.' >&2; exit 1",
        "Docker does not respond: Cannot connect to the Docker daemon. "
        "See https://docs.docker.com/engine/daemon/troubleshoot/.",
    ),
    "without Compose": (
        '[ "$1" = version ]',
        "Docker Compose is not installed. See https://docs.docker.com/compose/install/.",
    ),
}


@pytest.mark.parametrize("docker", DOCKERS)
def test_without_docker_one_line_names_the_cause(
    project: BakedProject, tmp_path: Path, docker: str
) -> None:
    script, message = DOCKERS[docker]
    path = path_without("docker", folder=tmp_path / "bin")
    if script is not None:
        program = tmp_path / "bin/docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    for target in ("up", "status", "logs", "down", "deploy", "debug", "diagnose"):
        done = project.run(
            *("make", "--silent", target, f"SERVICE={SERVICE}"), env={"PATH": path}, check=False
        )
        first, *rest = done.stderr.splitlines()
        host = {name: f"make {name} SERVICE=name HOST=1" for name in ("debug", "diagnose")}
        assert first == f"{message} Without Docker: {host.get(target, 'make run SERVICE=name')}"
        assert all(line.startswith("make: ***") for line in rest), rest
        assert (done.returncode, done.stdout) == (2, "")
