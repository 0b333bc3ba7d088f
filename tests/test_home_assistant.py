"""Services appear in a real Home Assistant, and their announcements pass its own schemas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import home_assistant
from tests.baked import ROOT, BakedProject, run
from tests.conftest import Bake
from tests.home_assistant import HomeAssistant, until
from tests.ports import free_port
from tests.tools import needs

pytestmark = [pytest.mark.slow, pytest.mark.real, needs("home-assistant", "mosquitto")]

GOLDEN = ROOT / "tests/library/discovery"
KEEPALIVE_SECONDS = 5
SETTINGS = {
    "EXAMPLE_SERVICE_POLL_INTERVAL_SECONDS": "3600",
    "HA_DISCOVERY_PREFIX": "homeassistant",
    "HEARTBEAT_INTERVAL_SECONDS": "1",
    "MQTT_HOST": "127.0.0.1",
    "MQTT_KEEPALIVE_SECONDS": str(KEEPALIVE_SECONDS),
    "MQTT_PASSWORD": "",
}
MAIN = """
if __name__ == "__main__":
    from shared.service import run_service

    raise SystemExit(run_service(Boiler))
"""


class Services:
    """Runs services of a repository on this machine."""

    def __init__(self, project: BakedProject, port: int) -> None:
        self.project = project
        self.environment = {**SETTINGS, "MQTT_PORT": str(port), "PYTHONPATH": str(project.path)}
        self._python = Path(str(project.environment()["UV_PROJECT_ENVIRONMENT"])) / "bin/python"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        data = self.project.file(f".data/{name}")
        data.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self.environment, "DATA_DIR": str(data)}
        with data.joinpath("log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [self._python, f"services/{name}/main.py"],
                cwd=self.project.path,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        assert process.wait(timeout=20) == 0

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.wait(timeout=20)

    def kill_all(self) -> None:
        for name in list(self._running):
            self.kill(name)


@pytest.fixture
def services(bake_copy: Bake, tmp_path: Path) -> Iterator[Services]:
    """A repository with the example service and a boiler, and a broker of its own."""
    project = bake_copy(include_influxdb=False)
    boiler = project.file("services/boiler/main.py")
    boiler.parent.mkdir()
    example = (ROOT / "tests/library/examples/boiler_discovery.py").read_text(encoding="utf-8")
    boiler.write_text(example + MAIN, encoding="utf-8")
    port = free_port()
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    mosquitto = shutil.which("mosquitto")
    assert mosquitto is not None
    broker = subprocess.Popen([mosquitto, "-c", configuration], stderr=subprocess.DEVNULL)
    made = Services(project, port)
    yield made
    made.kill_all()
    broker.terminate()
    broker.wait(timeout=20)


@pytest.fixture
def hass(services: Services, tmp_path: Path) -> Iterator[HomeAssistant]:
    yield from home_assistant.running(tmp_path, int(services.environment["MQTT_PORT"]))


def test_services_in_home_assistant(services: Services, hass: HomeAssistant) -> None:
    """One long test, because a start of Home Assistant takes longer than all of the rest."""
    services.start("boiler")
    services.start("example-service")
    values = {
        "sensor.boiler_power": "1.5",
        "binary_sensor.boiler_window_open": "off",
        "sensor.boiler_burner": "heating",
        "sensor.boiler_fuel": "gas",
        "sensor.boiler_note": "unknown",
        "sensor.boiler_serviced_at": "unknown",
        "switch.boiler_pump": "off",
        "number.boiler_setpoint": "20.0",
        "select.boiler_mode": "unknown",
        "text.boiler_label": "",
        "binary_sensor.boiler_connectivity": "on",
        "binary_sensor.boiler_problem": "off",
        "sensor.boiler_last_failure": "unknown",
        "sensor.boiler_dead_letters": "0",
    }
    hass.wait(values)
    hass.wait({"binary_sensor.example_service_problem": "off"})
    hass.action("button.press", "button.example_service_refresh")
    numbers = ("sensor.boiler_uptime", "sensor.boiler_memory", "sensor.example_service_cpu_load")
    until(lambda: all(number(hass, name) is not None for name in numbers), "numbers")
    assert "button.boiler_wipe" not in hass.states()

    # Commands
    hass.action("button.press", "button.boiler_refresh")
    hass.action("switch.turn_on", "switch.boiler_pump")
    hass.action("number.set_value", "number.boiler_setpoint", value=21.5)
    hass.action("select.select_option", "select.boiler_mode", option="boost")
    hass.action("text.set_value", "text.boiler_label", value='with "quotes"')
    changed = {
        "sensor.boiler_power": "2.5",
        "switch.boiler_pump": "on",
        "number.boiler_setpoint": "21.5",
        "select.boiler_mode": "boost",
    }
    hass.wait(changed)
    hass.action("text.set_value", "text.boiler_label", value="attic")
    hass.wait({"text.boiler_label": "attic"})
    hass.wait({"sensor.example_service_cycle": "2"})

    # The diagnosis asks the real one.
    access = {**services.environment, "HA_URL": hass.url, "HA_TOKEN": hass.token}
    program = "services/example-service/diagnose.py"
    done = services.project.uv_run("python", program, "--step", "discovery", env=access)
    assert "in Home Assistant: boiler, example-service" in done.stdout

    # A restart of Home Assistant
    hass.stop()
    hass.start()
    hass.wait({**values, **changed, "text.boiler_label": "attic"})

    # A field that is gone
    services.stop("boiler")
    boiler = services.project.file("services/boiler/main.py")
    text = boiler.read_text(encoding="utf-8")
    mark = 'Annotated[Literal["gas", "wood"], Sensor()]'
    assert mark in text
    boiler.write_text(text.replace(mark, "str"), encoding="utf-8")
    assert "sensor.boiler_fuel" in hass.entities_of("boiler")
    services.start("boiler")
    hass.wait({"sensor.boiler_fuel": None, "binary_sensor.boiler_problem": "off"})
    assert "sensor.boiler_fuel" not in hass.entities_of("boiler")

    # A stop, and a crash
    gone = {name: "unavailable" for name in values if name != "sensor.boiler_fuel"}
    gone["binary_sensor.boiler_connectivity"] = "off"
    services.stop("boiler")
    hass.wait(gone, seconds=KEEPALIVE_SECONDS / 2)
    services.start("boiler")
    hass.wait({"binary_sensor.boiler_connectivity": "on", "binary_sensor.boiler_problem": "off"})
    services.kill("boiler")
    hass.wait(gone, seconds=1.5 * KEEPALIVE_SECONDS)

    # A service that is removed
    services.stop("example-service")
    services.project.run("scripts/remove-service.sh", "example-service", "--yes", env=access)
    until(lambda: not hass.entities_of("example-service"), "removal")
    assert hass.entities_of("boiler")

    assert hass.complaints() == []


def number(hass: HomeAssistant, entity_id: str) -> float | None:
    """The state of a sensor that has a number."""
    try:
        return float(hass.states().get(entity_id, ""))
    except ValueError:
        return None


def python(*arguments: str | Path) -> Any:
    """Run a program with the Python of Home Assistant."""
    return run(home_assistant.PYTHON, *arguments, check=False)


def test_announcements_pass_the_schemas_of_home_assistant() -> None:
    files = sorted(GOLDEN.glob("*.json"))
    assert len(files) == 3
    done = python(ROOT / "tests/validate_discovery.py", *files)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_validation_finds_faults(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "every-mark.json").read_text(encoding="utf-8"))
    components = config["components"]
    components["reading_power"]["unit_of_measurement"] = "°C"
    components["state_mode"].pop("options")
    components["state_pump"]["unit"] = "W"
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    done = python(ROOT / "tests/validate_discovery.py", file)
    assert done.returncode == 1
    found = [line.partition(": ")[2].partition(":")[0] for line in done.stdout.splitlines()]
    assert found == ["reading_power", "state_pump", "state_mode"]
