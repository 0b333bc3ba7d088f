"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import LoadService, MakeSettings
from tests.fakes import FakeMQTT
from tests.probes import until


@pytest.fixture
async def service(
    load_service: LoadService, make_settings: MakeSettings, topic_prefix: str
) -> AsyncIterator[SimpleNamespace]:
    """The running service with a broker in memory, and everything that the tests look at."""
    modules = load_service("{{ cookiecutter.service_slug }}")
    settings = make_settings(
        modules.config.ServiceSettings,
        poll_interval_seconds=0.01,
        heartbeat_interval_seconds=0,
        health_max_age_seconds=0.3,
    )

    async def start() -> SimpleNamespace:
        instance = modules.main.{{ cookiecutter.__class }}(settings)
        instance.mqtt = mqtt = FakeMQTT(instance.name, topic_prefix)
        running = asyncio.create_task(instance.start())
        await mqtt.wait_for(lambda: mqtt.connected)
        return SimpleNamespace(
            instance=instance,
            mqtt=mqtt,
            settings=settings,
            modules=modules,
            running=running,
            start=start,
        )

    started = await start()
    yield started
    started.instance.stop()
    await started.running


async def readings(service: SimpleNamespace, number: int) -> list[dict[str, Any]]:
    """The first readings that were published, as soon as there are so many."""
    topic = service.instance.topic("reading")
    await service.mqtt.wait_for(lambda: len(service.mqtt.payloads(topic)) >= number)
    published: list[dict[str, Any]] = service.mqtt.payloads(topic)[:number]
    return published


async def test_publishes_a_reading_each_round(service: SimpleNamespace) -> None:
    first, second = await readings(service, 2)
    assert (first["round"], second["round"]) == (1, 2)
    assert first["service"] == "{{ cookiecutter.service_slug }}"
    service.modules.schemas.Reading.model_validate(first)


async def test_waits_between_two_rounds_as_long_as_is_set(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = service.settings.model_copy(update={"poll_interval_seconds": 12.5})
    instance = service.modules.main.{{ cookiecutter.__class }}(settings)
    instance.mqtt = service.mqtt
    waits: list[float | None] = []

    async def wait(timeout_seconds: float | None = None) -> bool:
        waits.append(timeout_seconds)
        return len(waits) == 2

    monkeypatch.setattr(instance, "wait_for_shutdown", wait)
    await instance.run()
    assert waits == [12.5, 12.5]


async def test_is_healthy_again_once_a_round_succeeds(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise OSError("the sensor is away")

    with monkeypatch.context() as broken:
        broken.setattr(service.instance, "measure", fail)
        await until(lambda: not service.instance.health.healthy)
        assert "no success" in service.instance.health.reasons[0]
    await until(lambda: service.instance.health.healthy)


async def test_measures_at_once_on_the_command_refresh(service: SimpleNamespace) -> None:
    prefix = service.settings.topic_prefix
    reply_topic = f"{prefix}/tester/response"
    await service.mqtt.deliver(
        f"{prefix}/coordinator/command/{{ cookiecutter.service_slug }}",
        {"command": "refresh", "request_id": "1", "reply_to": reply_topic},
    )
    (reply,) = service.mqtt.payloads(reply_topic)
    assert reply["status"] == "ok"
    assert isinstance(reply["value"], float)


async def test_counts_on_after_a_restart(service: SimpleNamespace) -> None:
    await readings(service, 2)
    service.instance.stop()
    await service.running
    last = service.mqtt.payloads(service.instance.topic("reading"))[-1]
    again = await service.start()
    (first,) = await readings(again, 1)
    assert first["round"] == last["round"] + 1
    again.instance.stop()
    await again.running


async def test_starts_anew_when_what_it_kept_is_no_use(service: SimpleNamespace) -> None:
    await readings(service, 2)
    service.instance.stop()
    await service.running
    (service.settings.data_dir / "state.json").write_text('{"round": null}')
    again = await service.start()
    (first,) = await readings(again, 1)
    assert first["round"] == 1
    again.instance.stop()
    await again.running


async def test_the_health_check_passes_while_it_works(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthcheck = service.modules.healthcheck
    await service.mqtt.wait_for(lambda: healthcheck.main() == 0)
    monkeypatch.setattr(healthcheck, "MAX_AGE_SECONDS", -1)
    assert healthcheck.main() == 1
    monkeypatch.setattr(healthcheck, "HEALTHCHECK_FILE", service.settings.data_dir / "missing")
    assert healthcheck.main() == 1
