"""The containers of a generated repository, on a real Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.baked import BakedProject, run, user_environment
from tests.conftest import Bake
from tests.stack import Stack, replace_in, restored, stack_of, until, write_env
from tests.test_documents import blocks
from tests.tools import needs

pytestmark = [pytest.mark.real, pytest.mark.docker, pytest.mark.xdist_group("docker")]

SERVICE = "example-service"
# In the table of scripts/status.py.
ROW_OF_A_HEALTHY_SERVICE = re.compile(rf"^{SERVICE} +running +healthy ", re.MULTILINE)
PUBLISH_TIMEOUT = timedelta(seconds=10)
HEALTH_MAX_AGE_SECONDS = 8
# The exit code of a container that Docker had to kill, 10 s after the signal.
KILLED = 137
# Hard values for .env: compose expands, python-dotenv unquotes.
PASSWORD = 'p $HOME ${X} #no "q" = ü'
USERNAME = 'the $1 #2 "user"'
OWN_DESCRIPTION = '  Costs $5, ${HOME}: #1 of "it", 100 % `ok`  '
# Hard answers for YAML, TOML and Python.
DESCRIPTION = """Costs $5, ${HOME} and 'all' #1 "of it": yes"""


class ServiceStack(Stack):
    """One service, a broker and a subscriber."""

    def deploy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """With quick health checks, which stand in the override that a deployment leaves out."""
        files = "docker-compose.yml:docker-compose.override.yml"
        command = ("scripts/deploy.sh", *arguments)
        env = {**self.env, "COMPOSE_FILE": files}
        return self.project.run(*command, env=env, check=check, timeout=600)

    def diagnosis(self, service: str = SERVICE) -> dict[str, str]:
        """The status of each step."""
        text = self.exec(service, "python", "diagnose.py", "--json", check=False)
        return {step["step"]: step["status"] for step in json.loads(text)}

    def messages(self, topic: str, count: int = 1, *, retained: bool = False) -> list[Any]:
        """The next messages on a topic."""
        options = f"-C {count} -W 60 {'--retained-only' if retained else ''}"
        text = self.exec("mqtt", *self.subscriber(topic, options))
        return [json.loads(line) for line in text.splitlines()]

    def subscriber(self, topic: str, options: str) -> tuple[str, ...]:
        """Return the command for the broker's container, which has the password."""
        home = "HOME=/run/mosquitto XDG_CONFIG_HOME=/run/mosquitto/.config"
        topic = shlex.quote(f"{self.prefix}/{topic}")
        return "sh", "-c", f"{home} mosquitto_sub -h 127.0.0.1 {options} -t {topic}"

    def record(self, topic: str) -> Iterator[Any]:
        """All messages on a topic from now on, a restart of the broker notwithstanding."""
        client_id = f"recorder-{uuid.uuid4().hex[:8]}"
        session = f"-c -i {client_id} -q 1"
        self.exec("mqtt", *self.subscriber(topic, f"{session} -E"))
        # The broker saves, so that it knows the session even if it is killed.
        self.compose("kill", "--signal", "USR1", "mqtt")

        def collected() -> Iterator[Any]:
            shell, option, command = self.subscriber(topic, f"{session} -W 60")
            # Killing `docker compose exec` leaves the program in the container, which would
            # take the session again.
            command = f"echo $$ >/run/mosquitto/{client_id}; exec env {command}"
            with subprocess.Popen(
                ["docker", "compose", "exec", "-T", "mqtt", shell, option, command],
                cwd=self.project.path,
                env=user_environment(self.env),
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                try:
                    yield from map(json.loads, process.stdout)
                finally:
                    process.kill()
                    # It has gone if its 60 seconds are over.
                    self.exec(
                        "mqtt", shell, option, f"kill $(cat /run/mosquitto/{client_id}) || true"
                    )
                    self.end_session(client_id)

        return collected()

    def end_session(self, client_id: str) -> None:
        """Remove a session from the broker, because a clean one of the same id replaces it."""
        self.exec("mqtt", *self.subscriber("unused", f"-i {client_id} -E"))


def event_times(container: str, action: str, *, since: float) -> list[float]:
    """When Docker saw this happen to a container, in seconds since the epoch."""
    options = ("--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--format", "json")
    lines = run("docker", "events", "--filter", f"container={container}", *options).stdout
    events = map(json.loads, lines.splitlines())
    return [event["timeNano"] / 1e9 for event in events if event["Action"] == action]


def hurry(project: BakedProject) -> None:
    """Health checks every second, where Docker's minute would make the tests slow."""
    override = {
        "services": {
            SERVICE: {"healthcheck": {"interval": "1s", "retries": 1}},
        }
    }
    project.file("docker-compose.override.yml").write_text(json.dumps(override), encoding="utf-8")


MakeStack = Callable[..., "ServiceStack"]


@pytest.fixture(scope="module")
def make_stack(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeStack]:
    with ExitStack() as stacks:

        def make(env: dict[str, str] | None = None, **answers: Any) -> ServiceStack:
            parent = tmp_path_factory.mktemp("stack")
            made = stacks.enter_context(stack_of(bake(**answers), parent, **(env or {})))
            hurry(made.project)
            return ServiceStack(made.project, made.name)

        yield make


@pytest.fixture(scope="module")
def stack(make_stack: MakeStack) -> ServiceStack:
    """The smallest options, with a password that is hard to quote."""
    stack = make_stack(
        env={
            "MQTT_USERNAME": USERNAME,
            "MQTT_PASSWORD": PASSWORD,
            "OWN_DESCRIPTION": OWN_DESCRIPTION,
            "HEALTH_MAX_AGE_SECONDS": str(HEALTH_MAX_AGE_SECONDS),
            "HEARTBEAT_INTERVAL_SECONDS": "1",
            # Short, so that there is more than one cycle in an outage.
            "MQTT_PUBLISH_TIMEOUT_SECONDS": "2",
            "EXAMPLE_SERVICE_POLL_INTERVAL_SECONDS": "1",
            # For development only: the service would wait for a debugger otherwise.
            "DEBUG_SERVICE": SERVICE,
        },
        description=DESCRIPTION,
        include_home_assistant=False,
        include_influxdb=False,
    )
    stack.up("--build")
    return stack


def test_all_containers_are_healthy(stack: ServiceStack) -> None:
    assert stack.is_healthy("mqtt")
    assert stack.is_healthy(SERVICE)


def test_the_service_has_few_rights(stack: ServiceStack) -> None:
    assert stack.exec(SERVICE, "id", "-u").strip() == "10001"
    for folder, is_writable in {
        "/": False,
        "/app": False,
        "/app/shared": False,
        "/opt/venv": False,
        "/app/data": True,
        "/tmp": True,
    }.items():
        script = f"touch {folder}/probe && rm {folder}/probe"
        done = stack.run(
            *("docker", "compose", "exec", "-T", SERVICE, "sh", "-c", script), check=False
        )
        assert (done.returncode == 0) == is_writable, folder
    capabilities = stack.exec(SERVICE, "grep", "Cap", "/proc/1/status")
    assert all(int(line.split()[1], 16) == 0 for line in capabilities.splitlines())
    assert "NoNewPrivs:\t1" in stack.exec(SERVICE, "cat", "/proc/1/status")


def test_a_start_compiles_only_code_that_is_mounted(stack: ServiceStack) -> None:
    program = (
        "import os, sys, shared.service; cached = {n: m.__spec__ and m.__spec__.cached"
        " for n, m in sys.modules.items()}; print([name for name, path in cached.items()"
        " if path and not os.path.exists(path) and not name.startswith('shared')])"
    )
    assert stack.exec(SERVICE, "python", "-c", program).strip() == "[]"


def test_docker_holds_the_limits(stack: ServiceStack) -> None:
    config = stack.inspect(SERVICE)["HostConfig"]
    expected = {
        "Memory": 256 * 1024**2,
        "MemorySwap": 256 * 1024**2,
        "NanoCpus": 1_000_000_000,
        "PidsLimit": 128,
        "LogConfig": {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}},
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "CapAdd": None,
        "Tmpfs": {"/tmp": "size=64m"},
        "Ulimits": [{"Name": "nofile", "Hard": 4096, "Soft": 4096}],
    }
    assert {key: config[key] for key in expected} == expected


def test_the_broker_reaches_no_other_network_and_no_port_is_published(stack: ServiceStack) -> None:
    assert not any(
        publisher["PublishedPort"]
        for state in stack.states().values()
        for publisher in state["Publishers"] or []
    )
    for name, has_default_route in {"mqtt": False, SERVICE: True}.items():
        routes = stack.exec(name, "cat", "/proc/net/route").splitlines()[1:]
        assert any(route.split()[1] == "00000000" for route in routes) == has_default_route


def test_a_debugger_is_for_development(stack: ServiceStack) -> None:
    """`DEBUG_SERVICE` in .env has no effect: the service has not waited."""
    assert f"DEBUG_SERVICE='{SERVICE}'" in stack.project.read(".env")
    assert stack.exec(SERVICE, "printenv", "DEBUG_SERVICE").strip() == ""
    assert not stack.has_logged("debugger_", SERVICE)


def test_no_layer_of_an_image_holds_a_tool_or_a_secret(stack: ServiceStack, tmp_path: Path) -> None:
    saved = tmp_path / "images.tar"
    images = (stack.image("base"), stack.image(SERVICE))
    run("docker", "save", "--output", saved, *images)
    names: set[str] = set()
    with tarfile.open(saved) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        for layer in {layer for image in json.load(manifest) for layer in image["Layers"]}:
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                names.update(files.getnames())
    assert {"opt/venv/bin/python", "app/main.py"} <= names
    unwanted = re.compile(
        r"(^|/)(\.git|\.sops|\.env[^/]*|[^/]*age-key[^/]*|bin/(gcc|cc)|\.cache/pip)(/|$)"
    )
    assert [name for name in sorted(names) if unwanted.search(name)] == []


DECOYS = [
    *(".env", ".env.local", ".netrc", ".npmrc", ".pypirc", ".git/decoy", ".sops/age-key.txt"),
    *("id_rsa", "id_ecdsa", "id_ed25519", "server.key", "server.pem", "__pycache__/x.pyc"),
]


def test_nothing_but_code_goes_to_docker(stack: ServiceStack, tmp_path: Path) -> None:
    """A Dockerfile that takes all it can get shows what the build context holds."""
    project = stack.project
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {stack.image('base')}\nUSER 0\nCOPY . /context/\n")
    image = f"{stack.name}-context"
    decoys = [
        project.file(f"{folder}{name}")
        for folder in ("", f"services/{SERVICE}/", "shared/")
        for name in DECOYS
    ]
    decoys = [decoy for decoy in decoys if not decoy.exists()]
    for decoy in decoys:
        decoy.parent.mkdir(exist_ok=True)
        decoy.write_bytes(b"x" * 1_000_000)
    try:
        build = ("docker", "build", "--progress=plain", "-f", str(dockerfile), "-t", image, ".")
        progress = stack.run(*build).stderr
        listed = run("docker", "run", "--rm", image, "find", "/context", "-type", "f").stdout
    finally:
        for decoy in decoys:
            decoy.unlink()
        run("docker", "image", "rm", "--force", image, check=False)
    files = {line.removeprefix("/context/") for line in listed.splitlines()}
    tracked = stack.run("git", "ls-files", "services").stdout.splitlines()
    assert files == set(tracked)
    # The transfer of .dockerignore, a step of its own, calls itself the same.
    (step,) = re.findall(r"^(#\d+) \[internal\] load build context$", progress, re.MULTILINE)
    sizes = re.findall(rf"^{step} transferring context: ([\d.]+)([kMG]?)B", progress, re.MULTILINE)
    assert sizes, progress
    factors = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
    # Docker transfers only what it has not got from an earlier build.
    assert max(float(size) * factors[unit] for size, unit in sizes) < 500_000


def test_age_keys_do_not_go_to_docker_and_a_garage_keypad_does(
    bake_copy: Bake, tmp_path: Path
) -> None:
    project = bake_copy()
    service = project.file("services/garage-keypad")
    keys = [".sops/age-key.txt", "age-key.txt", "age-key.pub", "age-key-old.txt", "my.agekey"]
    for name in ["main.py", *keys]:
        (service / name).parent.mkdir(parents=True, exist_ok=True)
        (service / name).touch()
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY services/garage-keypad /\n")
    project.run("docker", "build", "-f", dockerfile, "--output", tmp_path / "context", ".")
    assert [path.name for path in (tmp_path / "context").iterdir()] == ["main.py"]


def test_heartbeats_pass_through_a_broker_that_wants_the_password(stack: ServiceStack) -> None:
    heartbeat = stack.messages(f"{SERVICE}/heartbeat")[0]
    assert (heartbeat["status"], heartbeat["service"]) == ("online", SERVICE)
    anonymous = ("mosquitto_sub", "-h", "127.0.0.1", "-t", "#", "-C", "1", "-W", "30")
    done = stack.run("docker", "compose", "exec", "-T", "mqtt", *anonymous, check=False)
    assert done.returncode != 0
    assert "not authorised" in done.stderr


def test_the_password_is_in_no_process_list(stack: ServiceStack) -> None:
    processes = stack.exec(
        "mqtt", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", check=False
    )
    assert "mosquitto" in processes
    assert PASSWORD not in processes


def test_settings_are_the_same_on_the_host_and_in_the_container(stack: ServiceStack) -> None:
    program = (
        "from shared.config import Settings\n"
        "class Own(Settings):\n    own_description: str\n"
        "s = Own()\n"
        "print(s.mqtt_username, s.mqtt_password.get_secret_value(), s.health_max_age_seconds)\n"
        "print(s.own_description)\n"
    )
    inside = stack.exec(SERVICE, "python", "-c", program)
    outside = stack.project.uv_run("python", "-c", program, env={"PYTHONPATH": "."}).stdout
    values = f"{USERNAME} {PASSWORD} {HEALTH_MAX_AGE_SECONDS}.0\n{OWN_DESCRIPTION}\n"
    assert inside == outside == values


def test_diagnosis_names_the_broker_alone_when_it_is_away(stack: ServiceStack) -> None:
    stack.exec(SERVICE, "python", "diagnose.py")
    stack.compose("stop", "mqtt")
    try:
        command = ("docker", "compose", "exec", "-T", SERVICE, "python", "diagnose.py", "--json")
        done = stack.run(*command, check=False)
    finally:
        stack.compose("start", "mqtt")
    assert done.returncode == 1
    failed = [step["step"] for step in json.loads(done.stdout) if step["status"] == "FAIL"]
    assert failed == ["mqtt"]
    until(lambda: stack.is_healthy(SERVICE), "healthy again")


def test_a_broker_that_is_killed_is_noticed_and_its_return_heals(stack: ServiceStack) -> None:
    until(lambda: stack.is_healthy(SERVICE), "healthy before")
    started = stack.started_at(SERVICE)
    broker, service = stack.ids()["mqtt"], stack.ids()[SERVICE]
    before = time.time()
    stack.compose("kill", "mqtt")
    until(lambda: stack.is_unhealthy(SERVICE), "unhealthy without the broker")
    killed = event_times(broker, "die", since=before)[0]
    noticed = event_times(service, "health_status: unhealthy", since=before)[0]
    # The health timestamp is older than the kill, and Docker checks it every second.
    assert HEALTH_MAX_AGE_SECONDS / 2 < noticed - killed < HEALTH_MAX_AGE_SECONDS + 15
    stack.compose("start", "mqtt")
    until(lambda: stack.is_healthy(SERVICE), "healthy after the broker's return")
    assert stack.started_at(SERVICE) == started


def test_a_reading_that_could_not_be_sent_in_time_is_not_sent_later(stack: ServiceStack) -> None:
    until(lambda: stack.is_healthy(SERVICE), "healthy before")
    readings = stack.record(f"{SERVICE}/reading")
    stack.compose("kill", "mqtt")
    killed = datetime.now(timezone.utc)
    until(lambda: stack.is_unhealthy(SERVICE), "unhealthy without the broker")
    returning = datetime.now(timezone.utc)
    stack.compose("start", "mqtt")
    last_cycle = 0
    for reading in readings:
        assert reading["cycle"] >= last_cycle
        last_cycle = reading["cycle"]
        published = datetime.fromisoformat(reading["timestamp"])
        if published > returning:
            break
        assert not killed < published < returning - PUBLISH_TIMEOUT


SEND = """
import sys
from paho.mqtt.publish import multiple
from shared.config import Settings
settings = Settings()
auth = {"username": settings.mqtt_username, "password": settings.mqtt_password.get_secret_value()}
topic, payload, count = sys.argv[1:]
messages = [(topic, payload, 1, False)] * int(count)
multiple(messages, hostname=settings.mqtt_host, auth=auth)
"""


def test_what_is_sent_to_a_service_while_it_is_stopped_arrives(stack: ServiceStack) -> None:
    """Held by the broker, which restarts before the service can fetch it."""
    until(lambda: stack.is_healthy(SERVICE), "healthy before")
    replies = stack.record("test/reply")
    command = {
        "command": "refresh",
        "request_id": uuid.uuid4().hex,
        "reply_to": f"{stack.prefix}/test/reply",
    }
    topic = f"{stack.prefix}/coordinator/command/{SERVICE}"
    stack.compose("stop", SERVICE)
    try:
        stack.compose(
            *("run", "--rm", "--no-deps", "-T", SERVICE, "python", "-c", SEND),
            *(topic, json.dumps(command), "1"),
        )
        stack.compose("restart", "mqtt")
        until(lambda: stack.is_healthy("mqtt"), "the broker is back")
    finally:
        stack.compose("start", SERVICE)
    reply = next(replies)
    assert (reply["status"], reply["request_id"]) == ("ok", command["request_id"])


def test_messages_that_wait_are_not_written_again_with_every_other(stack: ServiceStack) -> None:
    def written() -> int:
        counters = stack.exec("mqtt", "cat", "/proc/1/io")
        return int(re.search(r"wchar: (\d+)", counters)[1])  # type: ignore[index]

    until(lambda: stack.is_healthy(SERVICE), "healthy before")
    stack.exec("mqtt", *stack.subscriber("flood", "-c -i flooded -q 1 -E"))
    before = written()
    topic = f"{stack.prefix}/flood"
    stack.exec(SERVICE, "python", "-c", SEND, topic, "x" * 500, "1000")
    # Half of a megabyte, once to the database and twice over the network: a hundred times that
    # when it is saved at every change.
    assert written() - before < 10_000_000
    stack.end_session("flooded")


def test_a_stop_kills_nothing_and_leaves_the_offline_status(stack: ServiceStack) -> None:
    stack.compose("stop", SERVICE)
    assert stack.exit_code(SERVICE) == 0
    (status,) = stack.messages(f"{SERVICE}/availability", retained=True)
    assert (status["status"], status["reason"]) == ("offline", "stopped")
    # While it starts as well, before it has a handler for the signal.
    stack.compose("start", SERVICE)
    stack.compose("stop", SERVICE)
    assert stack.exit_code(SERVICE) != KILLED
    stack.compose("start", SERVICE)
    until(lambda: stack.is_healthy(SERVICE), "healthy after the start")


def test_state_outlives_the_containers(stack: ServiceStack) -> None:
    last = stack.messages(f"{SERVICE}/reading")[0]["cycle"]
    stack.compose("stop")
    assert KILLED not in {stack.exit_code(service) for service in stack.ids()}
    stack.compose("down")
    stack.up()
    assert stack.messages(f"{SERVICE}/reading")[0]["cycle"] > last


def test_the_data_of_the_broker_is_copied_as_documented(stack: ServiceStack) -> None:
    commands = blocks(stack.project.read("docs/upgrading.md"), "bash")[-1]
    copy = f"{stack.name}_mqtt_copy"
    commands = commands.replace(stack.project.path.name, stack.name).replace("mqtt_copy", copy)
    mount = ("--volume", f"{copy}:/to")
    try:
        stack.run("bash", "-ec", commands)
        found = run("docker", "run", "--rm", *mount, "eclipse-mosquitto:2", "ls", "/to").stdout
    finally:
        stack.compose("start", "mqtt")
        run("docker", "volume", "rm", "--force", copy)
    assert "mosquitto.db" in found
    until(lambda: stack.is_healthy(SERVICE), "healthy again")


def test_a_change_of_the_shared_library_is_live_without_a_build(stack: ServiceStack) -> None:
    log = stack.project.file("shared/service.py")
    log.write_text(log.read_text().replace('"service_starting"', '"service_starting_anew"'))
    stack.compose("restart", SERVICE)
    until(lambda: stack.has_logged("service_starting_anew", SERVICE), "the new line")
    until(lambda: stack.is_healthy(SERVICE), "healthy after the restart")


def table(stack: ServiceStack) -> dict[str, str]:
    done = stack.run("make", "--silent", "status", check=False)
    header, *rows = done.stdout.splitlines()
    assert header.split()[:3] == ["SERVICE", "STATE", "HEALTH"]
    good = all(re.search(r" running +(healthy|-) ", row) for row in rows)
    assert done.returncode == (0 if good else 2)
    assert ("Not running or not healthy: " in done.stderr) == (not good)
    return {row.split()[0]: row.removeprefix(row.split()[0]).strip() for row in rows}


def test_status_shows_every_fault_in_one_table(stack: ServiceStack) -> None:
    rows = table(stack)
    assert set(rows) == {"mqtt", SERVICE}
    without_swarm = stack.run("make", "--silent", "status", "ARGS=--heartbeats", check=False)
    assert without_swarm.returncode == 2
    assert "--heartbeats needs a swarm" in without_swarm.stderr
    assert re.match(r"running +healthy +[\d:]+ +\d+ s ago +0 +\d+$", rows[SERVICE])
    fault = {
        "extends": {"file": "base/compose.yml", "service": "service"},
        "image": stack.image("base"),
        "restart": "no",
    }
    grow = ["python", "-c", "x = b'x' * 10**9"]
    services = {
        "absent": fault,
        "exits": {**fault, "command": ["python", "-c", "raise SystemExit(3)"]},
        "grows": {**fault, "command": grow},
        "restarts": {**fault, "command": grow, "restart": "on-failure:2"},
    }
    with restored(stack.project.file("docker-compose.override.yml")) as override:
        override.write_text(json.dumps({"services": services}))
        try:
            stack.compose("up", "--detach", "--no-build", "exits", "grows", "restarts")
            until(lambda: "1 out of memory" in table(stack)["grows"], "the memory of one")
            until(lambda: "3 out of memory" in table(stack)["restarts"], "the memory of another")
            rows = table(stack)
        finally:
            stack.compose("rm", "--stop", "--force", *services)
    assert rows["absent"].split() == ["absent", *["-"] * 5]
    assert rows["exits"].startswith("exited (3)")
    assert re.match(r"exited \(137\) .* 2, 3 out of memory", rows["restarts"])


def test_status_counts_sessions_without_a_client(stack: ServiceStack) -> None:
    def waiting() -> int:
        shown = stack.run("make", "--silent", "status", check=False).stderr
        match = re.search(r"^MQTT sessions without a client: (\d+)\.", shown, re.MULTILINE)
        return int(match[1]) if match else 0

    until(lambda: waiting() == 0, "every session has its client")
    stack.exec("mqtt", *stack.subscriber("x", "-c -i away -q 1 -E"))
    until(lambda: waiting() == 1, "the session that waits")
    stack.end_session("away")
    until(lambda: waiting() == 0, "the end of the session")


def test_make_up_says_what_failed(stack: ServiceStack) -> None:
    with restored(stack.project.file(f"services/{SERVICE}/main.py")) as main:
        main.write_text("raise SystemExit('broken on purpose')\n")
        done = stack.run("make", "up", check=False)
    assert done.returncode == 2
    assert "broken on purpose" in done.stdout.split(f"=== last lines of {SERVICE}\n")[1]
    stack.up("--build")


def test_a_healthy_release_does_not_vouch_for_the_next_one(stack: ServiceStack) -> None:
    until(lambda: stack.is_healthy(SERVICE), "healthy before")
    with restored(stack.project.file(f"services/{SERVICE}/main.py")) as main:
        main.write_text(f"import time; time.sleep(9); raise SystemExit\n{main.read_text()}")
        for done in (stack.run("make", "up", check=False), stack.deploy(check=False)):
            assert done.returncode != 0
            shown = done.stdout.split(f"=== last lines of {SERVICE}\n")[1]
            assert re.search(
                r"Restarts: \d+\. Last health check: the process has not been healthy", shown
            )
    stack.up("--build")


def test_a_blocked_loop_restarts_the_container_once(stack: ServiceStack) -> None:
    with restored(stack.project.file(f"services/{SERVICE}/main.py")) as main:
        # Once, because the broker redelivers the command after the restart.
        hang = "os.mkdir(self.settings.data_dir / 'hung'); __import__('time').sleep(600)"
        replace_in(main, "return await self.measure()", hang)
        stack.up("--build")
        container, before = stack.ids()[SERVICE], time.time()
        statuses = stack.record(f"{SERVICE}/availability")
        topic = f"{stack.prefix}/coordinator/command/{SERVICE}"
        stack.exec(SERVICE, "python", "-c", SEND, topic, '{"command": "refresh"}', "1")
        # The retained status comes first.
        offline = next(status for status in statuses if status["status"] == "offline")
        assert offline["reason"] == "connection_lost"
        assert next(statuses)["status"] == "online"
        until(lambda: stack.is_healthy(SERVICE), "healthy after the restart")
        assert len(event_times(container, "die", since=before)) == 1
        assert stack.inspect(SERVICE)["RestartCount"] == 1
        assert stack.has_logged("event_loop_blocked", SERVICE)
        assert stack.has_logged("in _on_refresh", SERVICE)
    stack.up("--build")


def test_deploy_starts_everything_and_shows_what_is_unhealthy(stack: ServiceStack) -> None:
    # A leftover of `docker compose run` need not be healthy.
    leftover = f"{stack.name}-leftover"
    stack.compose("run", "--no-deps", "-T", "--name", leftover, SERVICE, "true")
    try:
        done = stack.deploy()
    finally:
        run("docker", "rm", leftover)
    assert ROW_OF_A_HEALTHY_SERVICE.search(done.stdout)
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert first.startswith("Building the images with the tag ")
    assert last.startswith("Deployed ")
    dies = "raise SystemExit('broken on purpose')\n"
    hangs = "import time\nprint('broken on purpose', flush=True)\ntime.sleep(600)\n"
    main = stack.project.file(f"services/{SERVICE}/main.py")
    for fault in (dies, hangs):
        with restored(main):
            main.write_text(fault)
            done = stack.deploy("--timeout", "10", check=False)
        assert done.returncode != 0
        assert "broken on purpose" in done.stdout.split(f"=== last lines of {SERVICE}\n")[1]
    # It has not waited for the start period of the one that hangs, which is 2 minutes.
    assert stack.inspect(SERVICE)["State"]["Health"]["Status"] == "starting"
    stack.deploy()


def test_deploy_restarts_a_broker_whose_configuration_has_changed(stack: ServiceStack) -> None:
    stack.deploy()
    started = stack.started_at("mqtt")
    stack.deploy()
    assert stack.started_at("mqtt") == started
    with restored(stack.project.file("infrastructure/mosquitto/start.sh")) as script:
        replace_in(script, "exec mosquitto", "echo 'a start of our own' >&2\nexec mosquitto")
        stack.deploy()
        assert stack.has_logged("a start of our own", "mqtt")
    stack.deploy()


def test_deploy_refuses_a_context_that_does_not_answer(stack: ServiceStack) -> None:
    done = stack.run("scripts/deploy.sh", "--context", "nowhere", check=False)
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_deploy_goes_through_a_context(stack: ServiceStack) -> None:
    """One that leads to this machine: then what it mounts must stay as it is."""
    endpoint = run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}").stdout
    before = stack.run("git", "status", "--porcelain").stdout
    started = stack.started_at(SERVICE)
    run("docker", "context", "create", stack.name, "--docker", f"host={endpoint.strip()}")
    try:
        with restored(stack.project.file("docker-compose.override.yml")) as override:
            override.write_text(stack.project.read("docker-compose.override.example.yml"))
            done = stack.run("scripts/deploy.sh", "--context", stack.name, timeout=600)
        assert stack.exec(SERVICE, "pwd") == "/app\n"
        assert not stack.inspect("mqtt")["HostConfig"]["PortBindings"]
        deployed = stack.started_at(SERVICE)
        env = {**stack.env, "DOCKER_CONTEXT": stack.name}
        status = stack.project.run("make", "--silent", "status", env=env).stdout
    finally:
        run("docker", "context", "rm", "--force", stack.name)
    assert ROW_OF_A_HEALTHY_SERVICE.search(status)
    assert f"in the context {stack.name}" in done.stdout
    assert "nothing to copy" in done.stdout
    assert ROW_OF_A_HEALTHY_SERVICE.search(done.stdout)
    assert deployed != started
    assert stack.run("git", "status", "--porcelain").stdout == before


@needs("unshare")
def test_deploy_brings_what_is_mounted_to_another_host(stack: ServiceStack, tmp_path: Path) -> None:
    """A mount namespace shows deploy.sh another directory than Docker sees at the same path."""
    if run("unshare", "-rm", "true", check=False).returncode != 0:
        pytest.skip("unprivileged namespaces are off")
    there, here = stack.project.path, tmp_path / "here"
    shutil.copytree(there, here, symlinks=True)
    told = "print('from the other side')"
    replace_in(here / "shared/log.py", "import sys\n", f"import sys\n{told}\n")
    # As under a umask of 077.
    run("chmod", "-R", "go=", here / "shared", here / "infrastructure", here / "docs")
    stale = there / "shared/stale.py"
    stale.touch()
    note = there / "note.txt"
    note.touch()
    # As on a host that had no docs/ before.
    shutil.rmtree(there / "docs")
    cut = tmp_path / "cut"
    cut.mkdir()
    script = f'#!/bin/sh\n{shutil.which("tar")} "$@"\ntruncate --size 20000 "$2"\n'
    (cut / "tar").write_text(script)
    (cut / "tar").chmod(0o755)
    endpoint = run("docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}").stdout
    run("docker", "context", "create", stack.name, "--docker", f"host={endpoint.strip()}")
    deploy = 'mount --bind "$1" "$2" && cd "$2" && exec scripts/deploy.sh --context "$3"'
    try:
        with restored(there / "shared/log.py"):
            command = ("unshare", "-rm", "sh", "-c", deploy, "sh", here, there, stack.name)
            path = f"PATH={cut}:{os.environ['PATH']}"
            interrupted = stack.run("env", path, *command, check=False, timeout=600)
            assert interrupted.returncode != 0
            assert "Copying" in interrupted.stdout
            assert stale.exists()
            assert told not in (there / "shared/log.py").read_text()
            done = stack.run(*command, timeout=600)
            assert stack.has_logged("from the other side", SERVICE)
            assert note.exists()
            for page in (here / "docs").rglob("*.*"):
                assert (there / page.relative_to(here)).read_bytes() == page.read_bytes()
            assert (there / "docs/topics.md").stat().st_mode & 0o444 == 0o444
    finally:
        run("docker", "context", "rm", "--force", stack.name)
        note.unlink()
        shutil.copytree(here / "docs", there / "docs", dirs_exist_ok=True)
        stack.deploy()
    assert "Copying" in done.stdout
    assert "nothing to copy" not in done.stdout
    assert ROW_OF_A_HEALTHY_SERVICE.search(done.stdout)
    assert not stale.exists()


@pytest.mark.parametrize(
    ("python", "mosquitto"), [("3.12", "eclipse-mosquitto:2"), ("3.14", "eclipse-mosquitto:2.1")]
)
def test_the_smallest_stack_on_other_images(
    make_stack: MakeStack, python: str, mosquitto: str
) -> None:
    stack = make_stack(python_version=python, include_home_assistant=False, include_influxdb=False)
    # No .env at all, which is how a clone starts, and one under a umask of 077.
    stack.project.file(".env").unlink()
    stack.project.run("chmod", "-R", "go=", "services")
    compose = stack.project.file("docker-compose.yml")
    replace_in(compose, "eclipse-mosquitto:2\n", f"{mosquitto}\n")
    stack.up("--build")
    assert stack.is_healthy(SERVICE)
    version = stack.exec(
        SERVICE, "python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    )
    assert version.strip() == python


@pytest.fixture
def influxdb_image() -> Iterator[str]:
    """InfluxDB's own, or where it cannot be had a stand-in under a name that nobody else uses."""
    image = "influxdb:2"
    if run("docker", "image", "inspect", image, check=False).returncode == 0:
        yield image
        return
    image = f"influxdb-stand-in:{uuid.uuid4().hex[:8]}"
    run("docker", "build", "--quiet", "--tag", image, Path(__file__).parent / "influxdb_stand_in")
    yield image
    run("docker", "image", "rm", "--force", image)


def test_the_default_stack(make_stack: MakeStack, influxdb_image: str) -> None:
    """All options on."""
    stack = make_stack()
    replace_in(stack.project.file("docker-compose.yml"), "influxdb:2\n", f"{influxdb_image}\n")
    stack.up("--build")
    assert stack.is_healthy(SERVICE)
    assert stack.is_healthy("influxdb")
    assert stack.diagnosis() == {
        "config": "PASS",
        "data": "PASS",
        "mqtt": "PASS",
        "home-assistant": "SKIP",
        "discovery": "SKIP",
        "influxdb": "SKIP",
    }
    # No port of the broker is published, so the command is sent from a container.
    # This machine may have another broker on the usual port.
    send = ("make", "--silent", "send", f"SERVICE={SERVICE}", "COMMAND=refresh")
    sent = stack.run("env", "MQTT_PORT=1", *send)
    assert json.loads(sent.stdout)["status"] == "ok"
    # It has not set itself up without a token, so the first one is the right one.
    write_env(stack.project, INFLUX_TOKEN="a-token-of-ours")
    stack.up()
    assert stack.diagnosis()["influxdb"] == "PASS"
    write_env(stack.project, INFLUX_TOKEN="another-token")
    stack.up()
    assert stack.diagnosis()["influxdb"] == "FAIL"
    # The image can go only after its container.
    stack.compose("down", "--volumes", "--timeout", "3")


def extend_service(project: BakedProject, name: str, block: str) -> None:
    """Merge a documented block into the Compose file of a service."""
    path = project.file(f"services/{name}/compose.yml")
    config = yaml.safe_load(path.read_text())
    service = config["services"][name]
    for key, value in yaml.safe_load(block).items():
        if isinstance(value, list):
            service[key] = [*dict.fromkeys([*service.get(key, []), *value])]
        else:
            service[key] = {**service.get(key, {}), **value}
    path.write_text(yaml.safe_dump(config))


def test_a_broker_with_tls_as_documented(make_stack: MakeStack) -> None:
    stack = make_stack(include_home_assistant=False, include_influxdb=False)
    project = stack.project
    section = project.read("docs/containers.md").split("### A broker elsewhere, with TLS")[1]
    (env, *_) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    project.file(".env").write_text(env)
    make_certificates = (
        "import trustme; ca = trustme.CA()"
        "; ca.cert_pem.write_to_path('infrastructure/certs/ca.crt')"
        "; own = ca.issue_cert('broker.example.org')"
        "; own.private_key_and_cert_chain_pem.write_to_path('infrastructure/broker.pem')"
    )
    project.uv_run("python", "-c", make_certificates)
    project.file("infrastructure/broker.pem").chmod(0o644)
    project.file("infrastructure/broker.conf").write_text(
        "listener 8883\nallow_anonymous true\ncertfile /run/broker.pem\nkeyfile /run/broker.pem\n"
    )
    broker = {
        "image": "eclipse-mosquitto:2",
        "command": "mosquitto -c /run/broker.conf",
        "volumes": [
            f"./infrastructure/broker.{suffix}:/run/broker.{suffix}:ro"
            for suffix in ("pem", "conf")
        ],
        "networks": {"internal": {"aliases": ["broker.example.org"]}},
    }
    override = project.file("docker-compose.override.yml")
    override.write_text(json.dumps({"services": {"broker": broker}}))
    stack.up("--build")
    assert stack.diagnosis() == {"config": "PASS", "data": "PASS", "mqtt": "PASS"}
    # As the services on the host read it.
    project.uv_run("python", "-c", "from shared.config import Settings; Settings()")


def test_a_volume_is_shared_as_documented(make_stack: MakeStack) -> None:
    stack = make_stack(include_home_assistant=False, include_influxdb=False)
    section = stack.project.read("docs/containers.md").split("## A volume that services share")[1]
    snippet = section.split("```yaml\n")[1].split("```")[0]
    folder = section.split("add `")[1].split("`")[0]
    for name, mode in {"producer": "", "consumer": ":ro"}.items():
        stack.run("scripts/new-service.sh", name, "--type", "subscriber")
        block = snippet.replace("my_service", name).replace("/app/exchange", f"/app/exchange{mode}")
        extend_service(stack.project, name, block)
        dockerfile = stack.project.file(f"services/{name}/Dockerfile")
        replace_in(dockerfile, "USER 10001:10001", f"{folder}\nUSER 10001:10001")
    replace_in(
        stack.project.file("docker-compose.yml"), "  mqtt_data:\n", "  mqtt_data:\n  exchange:\n"
    )
    stack.up("--build", "producer", "consumer")

    path = "from pathlib import Path; path = Path('/app/exchange/forecast.json')"
    write = f"{path}; from shared.files import write_envelope"
    write += "; write_envelope(path, {'kwh': 4.2}, produced_by='producer')"
    read = f"{path}; from shared.files import read_envelope; print(read_envelope(path))"
    stack.exec("producer", "python", "-c", write)
    assert stack.exec("consumer", "python", "-c", read) == "{'kwh': 4.2}\n"
    refused = stack.run(
        "docker", "compose", "exec", "-T", "consumer", "python", "-c", write, check=False
    )
    assert "Read-only file system" in refused.stderr
    assert stack.exec("consumer", "ls", "/app/exchange") == "forecast.json\n"


def test_a_service_image_adds_little(stack: ServiceStack) -> None:
    def size(image: str) -> int:
        return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image).stdout)

    assert size(stack.image(SERVICE)) - size(stack.image("base")) <= 200_000
