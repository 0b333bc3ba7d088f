"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

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
        modules.config.ServiceSettings, poll_interval_seconds=0.01, heartbeat_interval_seconds=0
    )
    instance = modules.main.{{ cookiecutter.__class }}(settings)
    instance.mqtt = mqtt = FakeMQTT(instance.name, topic_prefix)
    running = asyncio.create_task(instance.start())
    yield SimpleNamespace(instance=instance, mqtt=mqtt, settings=settings, modules=modules)
    instance.stop()
    await running


async def test_publishes_a_reading_each_round(service: SimpleNamespace) -> None:
    topic = service.instance.topic("reading")
    await service.mqtt.wait_for(lambda: len(service.mqtt.payloads(topic)) >= 2)
    first, second = service.mqtt.payloads(topic)[:2]
    assert (first["round"], second["round"]) == (1, 2)
    assert first["service"] == "{{ cookiecutter.service_slug }}"
    service.modules.schemas.Reading.model_validate(first)


async def test_goes_on_after_a_round_that_failed(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = service.instance.measure
    failed = asyncio.Event()

    async def fail_once() -> None:
        monkeypatch.setattr(service.instance, "measure", measure)
        failed.set()
        raise OSError("the sensor is away")

    monkeypatch.setattr(service.instance, "measure", fail_once)
    await asyncio.wait_for(failed.wait(), 10)
    before = len(service.mqtt.published)
    await service.mqtt.wait_for(lambda: len(service.mqtt.published) > before)


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
    topic = service.instance.topic("reading")
    await service.mqtt.wait_for(lambda: bool(service.mqtt.payloads(topic)))
    service.instance.stop()
    await service.mqtt.wait_for(lambda: service.mqtt.disconnected)
    saved = json.loads((service.settings.data_dir / "state.json").read_text())
    assert saved["round"] == service.mqtt.payloads(topic)[-1]["round"]


async def test_starts_anew_when_what_it_kept_is_no_use(
    load_service: LoadService, make_settings: MakeSettings, topic_prefix: str
) -> None:
    modules = load_service("{{ cookiecutter.service_slug }}")
    settings = make_settings(modules.config.ServiceSettings)
    settings.data_dir.mkdir()
    (settings.data_dir / "state.json").write_text('{"round": null}')
    instance = modules.main.{{ cookiecutter.__class }}(settings)
    instance.mqtt = mqtt = FakeMQTT(instance.name, topic_prefix)
    running = asyncio.create_task(instance.start())
    await mqtt.wait_for(lambda: bool(mqtt.payloads(instance.topic("reading"))))
    assert mqtt.payloads(instance.topic("reading"))[0]["round"] == 1
    instance.stop()
    await running


async def test_the_health_check_passes_while_it_works(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthcheck = service.modules.healthcheck
    await service.mqtt.wait_for(lambda: healthcheck.main() == 0)
    monkeypatch.setattr(healthcheck, "MAX_AGE_SECONDS", -1)
    assert healthcheck.main() == 1
    monkeypatch.setattr(healthcheck, "HEALTHCHECK_FILE", service.settings.data_dir / "missing")
    assert healthcheck.main() == 1
