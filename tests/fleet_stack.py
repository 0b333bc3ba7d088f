"""Services and a broker on this machine, and the fleet page in Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import Browser, sync_playwright

from tests.baked import ROOT, BakedProject, user_environment
from tests.ports import free_port
from tests.stack import replace_in, until

PASSWORD = "correct horse"
PREFIX = "homelab-services"
FAILURE = '        raise ValueError("the scale is missing")\n'
HANDLER = "async def _on_reading(self, topic: str, reading: Reading) -> None:\n"


class FleetStack:
    """A broker, a poller, a subscriber that can fail on purpose, and the fleet service."""

    def __init__(self, project: BakedProject) -> None:
        self.project, self.broker_port = project, free_port()
        page_port = free_port()
        self.url = f"http://127.0.0.1:{page_port}/"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        environment = project.environment()
        self.python = Path(str(environment["UV_PROJECT_ENVIRONMENT"])) / "bin/python"
        self.environment = user_environment(
            {
                "EXAMPLE_SERVICE_POLL_INTERVAL_SECONDS": "0.5",
                "FLEET_HTTP_PORT": str(page_port),
                "FLEET_PASSWORD": PASSWORD,
                "HEARTBEAT_INTERVAL_SECONDS": "1",
                "LOG_FORMAT": "json",
                "MQTT_HOST": "127.0.0.1",
                "MQTT_PORT": str(self.broker_port),
                "PYTHONPATH": str(project.path),
            }
        )
        project.run("scripts/new-service.sh", "fleet", "--type", "fleet")
        project.run("scripts/new-service.sh", "listener", "--type", "subscriber")
        # The password of the broker is not for this one.
        project.file(".env").unlink()

    def log(self, name: str) -> str:
        return self.project.file(f"{name}.log").read_text(encoding="utf-8")

    def start_broker(self) -> None:
        config = self.project.file("broker.conf")
        config.write_text(f"listener {self.broker_port} 127.0.0.1\nallow_anonymous true\n")
        path = f"{os.environ['PATH']}:/usr/sbin"
        self._start("broker", str(shutil.which("mosquitto", path=path)), "-c", str(config))

    def start(self, name: str, **environment: str) -> None:
        data = {"DATA_DIR": str(self.project.file(f".data/{name}"))}
        if name == "fleet":
            # A service is stale after three of its intervals. A slow browser needs longer than 3 s.
            data["HEARTBEAT_INTERVAL_SECONDS"] = "5"
        program = self.project.file(f"services/{name}/main.py")
        self._start(name, str(self.python), str(program), **data, **environment)

    def _start(self, name: str, *command: str, **environment: str) -> None:
        with self.project.file(f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.project.path,
                env={**self.environment, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        """Stop a process in order."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0, self.log(name)

    def break_listener(self) -> None:
        """Restart the subscriber with a handler that fails for every reading."""
        self.stop("listener")
        main = self.project.file("services/listener/main.py")
        replace_in(main, HANDLER, HANDLER + FAILURE)
        self.start("listener")

    def fix_listener(self) -> None:
        replace_in(self.project.file("services/listener/main.py"), FAILURE, "")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the broker."""
        client: Client = Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self.broker_port)
        client.loop_start()
        try:
            yield client
        finally:
            client.disconnect()
            # paho drops its reference to the thread when the thread ends during the call.
            with suppress(AttributeError):
                client.loop_stop()


@contextmanager
def running_stack(project: BakedProject) -> Iterator[FleetStack]:
    stack = FleetStack(project)
    try:
        stack.start_broker()
        for name in ("fleet", "listener", "example-service"):
            stack.start(name)
        for name in ("fleet", "listener"):
            until(lambda name=name: "mqtt_connected" in stack.log(name), f"the service {name}")  # type: ignore[misc]
        yield stack
    finally:
        stack.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium of the system."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()


def log_in(page: Any, stack: FleetStack, view: str = "services") -> None:
    page.goto(f"{stack.url}#{view}")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("Live", exact=True).wait_for()


@contextmanager
def new_repository() -> Iterator[BakedProject]:
    """A repository for a measurement or a picture, with the environment of the last one."""
    environments = ROOT / ".tools/fleet"
    environments.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        path = cookiecutter(
            str(ROOT), no_input=True, output_dir=name, extra_context={"include_influxdb": False}
        )
        yield BakedProject(Path(path), {}, environments)
