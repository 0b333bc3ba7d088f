"""Each example of docs/patterns.md and docs/devices.md, taken from there and run."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.service import BaseService
from tests.brokers import Broker
from tests.conftest import MakeSettings
from tests.fakes import {{ "FakeHomeAssistant, " if cookiecutter.include_home_assistant }}FakeMQTT
from tests.observer import Observer
from tests.running import running

DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"

type Run = Callable[..., Any]


def code_by_section(name: str) -> dict[str, str]:
    """The Python code below each heading of a document."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    title, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return {
        section.partition("\n")[0]: "\n".join(
            re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        )
        for section in [f"\n{title}", *sections]
    }


CODE = code_by_section("devices.md") | code_by_section("patterns.md")


def example(*titles: str) -> SimpleNamespace:
    """Run the code of these sections and return the names that it defines."""
    namespace: dict[str, Any] = {"__name__": "patterns"}
    for title in ("", *titles):
        exec(compile(CODE[title], f"docs: {title}", "exec"), namespace)  # noqa: S102
    return SimpleNamespace(**namespace)


@pytest.fixture
async def observer(broker: Broker, topic_prefix: str) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        yield observer


@pytest.fixture
def run(broker: Broker, make_settings: MakeSettings, tmp_path: Path) -> Run:
    """Run services of these classes. Each is connected before the next one starts."""

    @asynccontextmanager
    async def run(*classes: type[BaseService[Any]]) -> AsyncIterator[list[BaseService[Any]]]:
        async with AsyncExitStack() as stack:
            services = []
            for service_class in classes:
                data_dir = tmp_path / service_class.name
                settings = make_settings(service_class.settings_class, data_dir=data_dir)
                services.append(await stack.enter_async_context(running(service_class(settings))))
            yield services

    return run


async def test_replicas(run: Run, observer: Observer, broker: Broker) -> None:
    if broker.kind == "embedded":
        pytest.skip("needs mosquitto, because the embedded broker has no shared subscriptions")
    code = example("Replicas")
    async with run(code.Worker, code.Worker):
        for n in range(20):
            observer.publish("camera/motion", {"image": n})
        images = [(await observer.next("worker/done"))["image"] for _ in range(20)]
        assert sorted(images) == list(range(20))


async def test_event(run: Run, observer: Observer) -> None:
    code = example("Event")
    async with run(code.Display, code.Forecaster):
        updated = await observer.next("forecaster/updated")
        shown = await observer.next("display/shown")
    assert shown["text"] == "42.3 kWh today"
    assert shown["trace_id"] == updated["trace_id"]


async def test_event_that_does_not_fit(run: Run, observer: Observer) -> None:
    code = example("Event")
    async with run(code.Display):
        observer.publish("forecaster/updated", {"today_kwh": "plenty"})
        letter = await observer.next("errors/display")
        assert letter["original_topic"].endswith("forecaster/updated")
        observer.publish("forecaster/updated", {"today_kwh": 1})
        await observer.next("display/shown", text="1.0 kWh today")


async def test_command(run: Run, observer: Observer) -> None:
    code = example("Command")
    async with run(code.Heater):
        observer.publish("coordinator/command/heater", {"command": "heat", "celsius": 21.5})
        await observer.next("heater/response", status="ok", heating=True)
        observer.publish("coordinator/command/heater", {"command": "heat", "celsius": 90})
        await observer.next("heater/response", status="error", command="heat")
        observer.publish("coordinator/command/heater", {"command": "explode"})
        await observer.next("heater/response", status="error", command="explode")


async def test_request_and_reply(run: Run, observer: Observer) -> None:
    code = example("Command", "Request and reply")
    async with run(code.Heater, code.Panel):
        await observer.next("panel/shown", heating=True)


async def test_request_while_the_other_service_is_away(run: Run, observer: Observer) -> None:
    code = example("Command", "Request and reply")
    async with run(code.Panel):
        await observer.next("panel/shown", heating=None)


async def test_demand(run: Run, observer: Observer) -> None:
    code = example("Demand")
    async with run(code.Car):
        await observer.next("car/demand")
        async with run(code.Controller):
            planned = await observer.next("controller/planned")
    assert (planned["for"], planned["power_kw"]) == ("car", 3)


{% if cookiecutter.include_home_assistant %}
async def test_shared_state(run: Run, observer: Observer, fake_ha: FakeHomeAssistant) -> None:
    code = example("Shared state")
    async with run(code.Charger):
        await observer.next("charger/started", reserve_kwh=2.0)
    fake_ha.states["input_number.reserve_kwh"] = "3.0"
    async with run(code.Planner, code.Charger):
        await observer.next("charger/started", reserve_kwh=4.5)


async def test_changes_in_home_assistant(
    run: Run, observer: Observer, fake_ha: FakeHomeAssistant
) -> None:
    code = example("Changes in Home Assistant")
    fake_ha.states["binary_sensor.motion"] = "off"
    async with run(code.NightLight):
        await observer.next("night-light/light", on=False)
        await fake_ha.set_state("binary_sensor.motion", "on")
        await observer.next("night-light/light", on=True)
{% else %}
async def test_shared_state(run: Run, observer: Observer) -> None:
    code = example("Shared state")
    async with run(code.Charger):
        await observer.next("charger/charging", reserve_kwh=2.0)
    async with run(code.Planner, code.Charger):
        await observer.next("charger/charging", reserve_kwh=4.5)
{% endif %}


async def test_a_loop_that_survives_a_failed_cycle(run: Run, observer: Observer) -> None:
    code = example("A loop that survives a failed cycle")
    async with run(code.Meter):
        await observer.next("meter/read", watts=100)
        await observer.next("meter/read", watts=50)


async def test_fail_open(run: Run, observer: Observer) -> None:
    code = example("Fail open")
    async with run(code.Sprinkler):
        await observer.next("sprinkler/started")


async def test_state_that_survives_a_restart(run: Run, observer: Observer) -> None:
    code = example("State that survives a restart")
    for starts in (1, 2):
        async with run(code.Counter):
            await observer.next("counter/started", starts=starts)


def test_files_between_programs(tmp_path: Path) -> None:
    code = example("Files between programs")
    assert code.hand_over(tmp_path) == {"today_kwh": 42.3}


async def test_zigbee2mqtt(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Zigbee2MQTT").Plug(make_settings()), fake_mqtt) as plug:
        for power in (3, 5, 2100):
            state = {"state": "ON", "power": power, "linkquality": 87}
            await fake_mqtt.deliver("zigbee2mqtt/plug", state)
    published = fake_mqtt.payloads(plug.topic("power"))
    assert [message["watts"] for message in published] == [3, 2100]
    assert fake_mqtt.payloads("zigbee2mqtt/plug/set") == [{"state": "OFF"}]


async def test_tasmota(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Tasmota").Boiler(make_settings()), fake_mqtt) as boiler:
        await fake_mqtt.deliver("tele/boiler/LWT", "Online")
        await fake_mqtt.deliver("stat/boiler/POWER", "ON")
        sensor = {"Time": "2026-01-01T00:00:00", "DS18B20": {"Temperature": 80.5}}
        await fake_mqtt.deliver("tele/boiler/SENSOR", sensor)
        # A broker delivers the command of the service as well.
        await fake_mqtt.deliver("cmnd/boiler/POWER", "OFF")
    assert [event["is_on"] for event in fake_mqtt.payloads(boiler.topic("switched"))] == [True]
    assert fake_mqtt.payloads("cmnd/boiler/POWER") == ["OFF"]
    assert fake_mqtt.dead_letters == []


async def test_shelly(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Shelly").Pump(make_settings()), fake_mqtt) as pump:
        for event, payload in (
            ("relay/0", "on"),
            ("relay/0/power", "21.5"),
            ("temperature", "90.4"),
            ("info", '{"wifi_sta": {"connected": true}}'),
        ):
            await fake_mqtt.deliver(f"shellies/pump/{event}", payload)
    assert fake_mqtt.payloads(pump.topic("switched"))[0]["is_on"] is True
    assert fake_mqtt.payloads(pump.topic("power"))[0]["watts"] == 21.5
    assert fake_mqtt.payloads("shellies/pump/relay/0/command") == ["off"]
    assert fake_mqtt.dead_letters == []


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [title for title, code in CODE.items() if code and f'"{title}"' not in source] == []
