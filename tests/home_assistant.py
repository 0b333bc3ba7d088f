"""A real Home Assistant, in an environment of its own, on the loopback interface.

`python -m tests.home_assistant` installs it into .tools/homeassistant (0.8 GB, one to three
minutes). `.ci/run` does that. Tests that need it are skipped while it is missing.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.tools import HOME_ASSISTANT, find_python

VERSION, PYTHON_VERSION = "2025.4.4", "3.13"
# Newer releases break this version, and its own constraints do not exclude them.
CONSTRAINTS = "pycares<5\njosepy<2\nsetuptools<81\n"
INTEGRATIONS = {"api", "config", "frontend", "http", "mqtt", "websocket_api"}
PATIENCE_SECONDS = 120
PYTHON = HOME_ASSISTANT / "bin/python"
# About this installation, not about what the tests do.
EXPECTED_LOG = (
    "Skipping pip installation",
    "Support for the running Python version",
    "is taking over 10 seconds",
)

CONFIGURATION = """\
homeassistant:
  name: Test
  latitude: 52.0
  longitude: 5.0
  elevation: 0
  unit_system: metric
  time_zone: UTC
  currency: EUR
  country: NL
http:
  server_host: 127.0.0.1
  server_port: {port}
api:
config:
frontend:
logger:
  default: warning
"""
ONBOARDED = {
    "version": 4,
    "minor_version": 1,
    "key": "onboarding",
    "data": {"done": ["user", "core_config", "analytics", "integration"]},
}
# Makes a user with a long-lived token in the auth store, as `hass --script auth` does.
MAKE_TOKEN = """
import asyncio, datetime, sys
from homeassistant.auth import auth_manager_from_config
from homeassistant.auth.const import GROUP_ID_ADMIN
from homeassistant.auth.models import TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN
from homeassistant.core import HomeAssistant
from homeassistant.helpers import device_registry, entity_registry

async def main():
    hass = HomeAssistant(sys.argv[1])
    await asyncio.gather(device_registry.async_load(hass), entity_registry.async_load(hass))
    hass.auth = await auth_manager_from_config(hass, [{"type": "homeassistant"}], [])
    provider = hass.auth.auth_providers[0]
    await provider.async_initialize()
    await hass.async_add_executor_job(provider.data.add_auth, "test", "test")
    await provider.data.async_save()
    credentials = await provider.async_get_or_create_credentials({"username": "test"})
    user = await hass.auth.async_create_user("test", group_ids=[GROUP_ID_ADMIN])
    await hass.auth.async_link_user(user, credentials)
    refresh = await hass.auth.async_create_refresh_token(
        user, client_name="test", token_type=TOKEN_TYPE_LONG_LIVED_ACCESS_TOKEN,
        access_token_expiration=datetime.timedelta(days=30))
    token = hass.auth.async_create_access_token(refresh)
    await hass.async_stop(force=True)
    print(token)

asyncio.run(main())
"""


def install() -> None:
    """Install Home Assistant, unless it is there. Raises CalledProcessError."""
    stamp = HOME_ASSISTANT / "installed"
    wanted = f"homeassistant=={VERSION}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(HOME_ASSISTANT, ignore_errors=True)
    uv = os.environ.get("UV", "uv")
    run = subprocess.check_call
    run([uv, "venv", "--quiet", "--python", str(find_python(PYTHON_VERSION)), str(HOME_ASSISTANT)])
    pip = [uv, "pip", "install", "--quiet", "--python", str(PYTHON)]
    run([*pip, "--no-deps", wanted])
    package = next(HOME_ASSISTANT.glob("lib/python*/site-packages/homeassistant"))
    constraints, requirements = HOME_ASSISTANT / "constraints.txt", HOME_ASSISTANT / "required.txt"
    own = (package / "package_constraints.txt").read_text(encoding="utf-8")
    constraints.write_text(f"{own}\n{CONSTRAINTS}", encoding="utf-8")
    requirements.write_text("\n".join(find_requirements(package)), encoding="utf-8")
    run([*pip, "-c", str(constraints), wanted, "-r", str(requirements)])
    stamp.write_text(wanted, encoding="utf-8")


def find_requirements(package: Path) -> list[str]:
    """The requirements of the integrations that start by default, and of those in use here."""
    waiting, seen, found = set(INTEGRATIONS), {"default_config", "cloud"}, set()
    for node in ast.walk(ast.parse((package / "bootstrap.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "components" and node.level == 1:
            waiting |= {alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Set):
            waiting |= {
                each.value
                for each in node.value.elts
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    while waiting:
        name = waiting.pop()
        manifest = package / "components" / name / "manifest.json"
        if name in seen or not manifest.exists():
            continue
        seen.add(name)
        content = json.loads(manifest.read_text(encoding="utf-8"))
        waiting |= set(content.get("dependencies", []))
        found |= set(content.get("requirements", []))
    return sorted(found)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Return the first true value of `condition`. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds} s")
        time.sleep(0.05)
    return value


class HomeAssistant:
    """One instance with a directory of its own. Nothing but its log and its states outlive it."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        self.port = free_port()
        self.log = folder / "home-assistant.log"
        self._config = folder / "config"
        (self._config / ".storage").mkdir(parents=True)
        configuration = CONFIGURATION.format(port=self.port) + configuration
        (self._config / "configuration.yaml").write_text(configuration, encoding="utf-8")
        (self._config / ".storage/onboarding").write_text(json.dumps(ONBOARDED), encoding="utf-8")
        made = subprocess.check_output([PYTHON, "-c", MAKE_TOKEN, self._config], text=True)
        self.url, self.token = f"http://127.0.0.1:{self.port}", made.split()[-1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it runs."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "homeassistant", "-c", self._config, "--skip-pip", "--log-no-color"],
                stdout=log,
                stderr=log,
            )
        until(self._is_running, "start of Home Assistant")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=PATIENCE_SECONDS)
            self._process = None

    def _is_running(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
        try:
            return bool(self.call("/api/config")["state"] == "RUNNING")
        except OSError:
            return False

    def call(self, path: str, data: object = None) -> Any:
        """Call the REST API: a POST with data. Raises OSError."""
        request = urllib.request.Request(
            self.url + path,
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read().decode()
        return text if path == "/api/template" else json.loads(text)

    def set_up_mqtt(self, port: int) -> None:
        """Go through the config flow that the user interface uses."""
        flow = self.call("/api/config/config_entries/flow", {"handler": "mqtt"})
        answers = {"broker": "127.0.0.1", "port": port}
        done = self.call(f"/api/config/config_entries/flow/{flow['flow_id']}", answers)
        assert done["type"] == "create_entry", done

    def action(self, name: str, entity_id: str, **data: object) -> None:
        """Call an action such as `switch.turn_on`."""
        path = f"/api/services/{name.replace('.', '/')}"
        self.call(path, {"entity_id": entity_id, **data})

    def states(self) -> dict[str, str]:
        """All states by entity id."""
        return {each["entity_id"]: each["state"] for each in self.call("/api/states")}

    def wait(self, wanted: Mapping[str, str | None], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for states by entity id. None stands for an entity that does not exist."""

        def differences() -> dict[str, str | None]:
            found = self.states()
            return {name: found.get(name) for name in wanted if found.get(name) != wanted[name]}

        try:
            until(lambda: not differences(), "states", seconds)
        except TimeoutError:
            raise AssertionError(f"not in {seconds} s: {differences()}") from None

    def entities_of(self, device: str) -> list[str]:
        """The entities in the registry that belong to a device, by the name of the device."""
        template = (
            "{% for entity in integration_entities('mqtt') "
            f"if device_attr(entity, 'name') == '{device}' %}}"
            "{{ entity }} {% endfor %}"
        )
        text: str = self.call("/api/template", {"template": template})
        return text.split()

    def complaints(self) -> list[str]:
        """Lines of the log, which is empty but for what is about the installation."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not any(text in line for text in EXPECTED_LOG)]


def running(folder: Path, mqtt_port: int) -> Iterator[HomeAssistant]:
    """Yield an instance that uses this broker, and stop it afterwards."""
    instance = HomeAssistant(folder)
    try:
        instance.start()
        instance.set_up_mqtt(mqtt_port)
        yield instance
    finally:
        instance.stop()


if __name__ == "__main__":
    install()
    sys.stdout.write(f"{(HOME_ASSISTANT / 'installed').read_text(encoding='utf-8')}\n")
