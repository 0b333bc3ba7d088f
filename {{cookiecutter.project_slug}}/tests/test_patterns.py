"""Each example of docs/patterns.md, taken from there and run against a broker."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.service import BaseService
from tests.brokers import Broker
from tests.observer import Observer
from tests.running import running

DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"

type MakeSettings = Callable[..., Any]
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
    """What the examples of these sections define."""
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
    """Runs services of these classes; each is connected before the next one starts."""

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


async def test_replicas(run: Run, observer: Observer) -> None:
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


async def test_request_and_response(run: Run, observer: Observer) -> None:
    code = example("Command", "Request and response")
    async with run(code.Heater, code.Panel):
        await observer.next("panel/shown", heating=True)


async def test_request_while_the_other_side_is_away(run: Run, observer: Observer) -> None:
    code = example("Command", "Request and response")
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
@pytest.mark.usefixtures("fake_ha")
async def test_shared_state(run: Run, observer: Observer) -> None:
    code = example("Shared state")
    async with run(code.Charger):
        await observer.next("charger/started", reserve_kwh=2.0)
    async with run(code.Planner, code.Charger):
        await observer.next("charger/started", reserve_kwh=4.5)
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


def test_every_example_has_a_test() -> None:
    files = (Path(__file__), Path(__file__).with_name("test_devices.py"))
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [title for title, code in CODE.items() if code and f'"{title}"' not in source] == []
