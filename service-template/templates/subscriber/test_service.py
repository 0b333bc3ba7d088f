"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest

from tests.conftest import LoadService, MakeSettings
from tests.fakes import FakeMQTT


@pytest.fixture
async def service(
    load_service: LoadService, make_settings: MakeSettings, topic_prefix: str
) -> AsyncIterator[SimpleNamespace]:
    """The running service with a broker in memory, and everything that the tests look at."""
    modules = load_service("{{ cookiecutter.service_slug }}")
    settings = make_settings(
        modules.config.ServiceSettings,
        source="garden/+/heat",
        alarm_above=20.0,
        heartbeat_interval_seconds=0,
    )

    async def start() -> SimpleNamespace:
        instance = modules.main.{{ cookiecutter.__class }}(settings)
        instance.mqtt = mqtt = FakeMQTT(instance.name, topic_prefix)
        running = asyncio.create_task(instance.start())
        await mqtt.wait_for(lambda: mqtt.connected)
        return SimpleNamespace(
            instance=instance, mqtt=mqtt, settings=settings, running=running, start=start
        )

    started = await start()
    yield started
    started.instance.stop()
    await started.running


async def send(service: SimpleNamespace, topic: str = "garden/1/heat", **reading: Any) -> None:
    await service.mqtt.deliver(f"{service.settings.topic_prefix}/{topic}", reading)


async def test_keeps_statistics_of_all_readings(service: SimpleNamespace) -> None:
    await send(service, value=3.5)
    await send(service, "garden/2/heat", value=1.5)
    await send(service, "cellar/1/heat", value=9.5)
    statistics = service.mqtt.retained[service.instance.topic("statistics")]
    assert (statistics["readings"], statistics["highest"]) == (2, 3.5)


async def test_counts_a_reading_once_that_arrives_twice(service: SimpleNamespace) -> None:
    await send(service, value=3.5, trace_id="1")
    await send(service, value=3.5, trace_id="1")
    await send(service, value=4.5, trace_id="1")
    assert service.mqtt.retained[service.instance.topic("statistics")]["readings"] == 2


async def test_raises_an_alarm_above_the_limit_only(service: SimpleNamespace) -> None:
    await send(service, value=20.0)
    await send(service, value=20.5)
    (alarm,) = service.mqtt.payloads(service.instance.topic("alarm"))
    assert (alarm["value"], alarm["limit"]) == (20.5, 20.0)
    assert alarm["source"].endswith("/garden/1/heat")


@pytest.mark.parametrize("reading", [{"temperature": 3.5}, {"value": "nan"}, {"value": 1e999}])
async def test_refuses_a_reading_without_a_value(
    service: SimpleNamespace, reading: dict[str, Any]
) -> None:
    with pytest.raises(pydantic.ValidationError):
        await send(service, **reading)
    assert service.mqtt.published == []


async def test_counts_on_after_a_restart(service: SimpleNamespace) -> None:
    await send(service, value=3.5)
    service.instance.stop()
    await service.running
    again = await service.start()
    await send(again, value=1.0)
    statistics = again.mqtt.retained[again.instance.topic("statistics")]
    assert (statistics["readings"], statistics["highest"]) == (2, 3.5)
    again.instance.stop()
    await again.running


async def test_starts_anew_when_what_it_kept_is_no_use(service: SimpleNamespace) -> None:
    await send(service, value=3.5)
    service.instance.stop()
    await service.running
    (service.settings.data_dir / "state.json").write_text('{"readings": null}')
    again = await service.start()
    await send(again, value=1.0)
    statistics = again.mqtt.retained[again.instance.topic("statistics")]
    assert (statistics["readings"], statistics["highest"]) == (1, 1.0)
    again.instance.stop()
    await again.running


async def test_tells_its_statistics_on_command(service: SimpleNamespace) -> None:
    prefix = service.settings.topic_prefix
    await send(service, value=3.5)
    await service.mqtt.deliver(
        f"{prefix}/coordinator/command/{{ cookiecutter.service_slug }}",
        {"command": "statistics", "request_id": "1", "reply_to": f"{prefix}/tester/response"},
    )
    (reply,) = service.mqtt.payloads(f"{prefix}/tester/response")
    assert (reply["status"], reply["readings"], reply["highest"]) == ("ok", 1, 3.5)
