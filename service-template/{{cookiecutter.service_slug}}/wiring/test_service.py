"""Tests of {{ cookiecutter.service_slug }}."""

{% if cookiecutter.service_type == "poller" %}
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
{% elif cookiecutter.service_type == "subscriber" %}
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
        modules.config.ServiceSettings, alarm_above=20.0, heartbeat_interval_seconds=0
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


async def send(service: SimpleNamespace, **reading: Any) -> None:
    await service.mqtt.deliver(f"{service.settings.topic_prefix}/sensor/reading", reading)


async def test_keeps_statistics_of_all_readings(service: SimpleNamespace) -> None:
    await send(service, value=3.5)
    await send(service, value=1.5)
    statistics = service.mqtt.retained[service.instance.topic("statistics")]
    assert (statistics["readings"], statistics["highest"]) == (2, 3.5)


async def test_raises_an_alarm_above_the_limit_only(service: SimpleNamespace) -> None:
    await send(service, value=20.0)
    await send(service, value=20.5)
    (alarm,) = service.mqtt.payloads(service.instance.topic("alarm"))
    assert (alarm["value"], alarm["limit"]) == (20.5, 20.0)
    assert alarm["source"].endswith("/sensor/reading")


async def test_refuses_a_reading_without_a_value(service: SimpleNamespace) -> None:
    with pytest.raises(pydantic.ValidationError):
        await send(service, temperature=3.5)
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


async def test_tells_its_statistics_on_command(service: SimpleNamespace) -> None:
    prefix = service.settings.topic_prefix
    await send(service, value=3.5)
    await service.mqtt.deliver(
        f"{prefix}/coordinator/command/{{ cookiecutter.service_slug }}",
        {"command": "statistics", "request_id": "1", "reply_to": f"{prefix}/tester/response"},
    )
    (reply,) = service.mqtt.payloads(f"{prefix}/tester/response")
    assert (reply["status"], reply["readings"], reply["highest"]) == ("ok", 1, 3.5)
{% else %}
import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shared.mqtt import NotConnectedError, RequestTimeoutError
from tests.conftest import LoadService, MakeSettings
from tests.fakes import FakeMQTT


@pytest.fixture
async def service(
    load_service: LoadService, make_settings: MakeSettings, topic_prefix: str
) -> AsyncIterator[SimpleNamespace]:
    """The service with a broker in memory, and an HTTP client of its application."""
    modules = load_service("{{ cookiecutter.service_slug }}")
    settings = make_settings(modules.config.ServiceSettings, http_port=0)
    instance = modules.main.{{ cookiecutter.__class }}(settings)
    instance.mqtt = mqtt = FakeMQTT(instance.name, topic_prefix)
    mqtt.connect_background()
    transport = httpx.ASGITransport(app=modules.api.create_app(instance))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield SimpleNamespace(
            instance=instance, mqtt=mqtt, client=client, modules=modules, prefix=topic_prefix
        )


async def test_status_follows_the_health_of_the_service(service: SimpleNamespace) -> None:
    response = await service.client.get("/api/v1/status")
    assert (response.status_code, response.json()["status"]) == (200, "online")
    service.mqtt.thread_alive = False
    response = await service.client.get("/api/v1/status")
    assert (response.status_code, response.json()["status"]) == (503, "degraded")
    assert "network thread" in response.json()["reasons"][0]


async def test_sends_a_command_over_mqtt_and_returns_the_answer(service: SimpleNamespace) -> None:
    topic = f"{service.prefix}/coordinator/command/other"
    service.mqtt.replies[topic] = {"status": "ok", "request_id": "1", "value": 4.5}
    response = await service.client.post(
        "/api/v1/services/other/commands", json={"command": "refresh", "arguments": {"deep": True}}
    )
    assert response.json() == {"service": "other", "status": "ok", "result": {"value": 4.5}}
    (sent,) = service.mqtt.payloads(topic)
    assert (sent["command"], sent["deep"]) == ("refresh", True)


@pytest.mark.parametrize(
    ("error", "status"), [(RequestTimeoutError("late"), 504), (NotConnectedError("away"), 503)]
)
async def test_tells_when_there_is_no_answer(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(service.mqtt, "request", fail)
    response = await service.client.post(
        "/api/v1/services/other/commands", json={"command": "refresh"}
    )
    assert response.status_code == status


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/services/Not%23A%2BName/commands", {"command": "refresh"}),
        ("/api/v1/services/other/commands", {"command": ""}),
        ("/api/v1/services/other/commands", {"command": "x", "arguments": {"reply_to": "y"}}),
    ],
)
async def test_refuses_what_is_no_command(
    service: SimpleNamespace, path: str, body: dict[str, Any]
) -> None:
    response = await service.client.post(path, json=body)
    assert response.status_code == 422
    assert service.mqtt.published == []


async def test_describes_itself(service: SimpleNamespace) -> None:
    paths = (await service.client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {"/api/v1/status", "/api/v1/services/{name}/commands"}
    assert (await service.client.get("/docs")).status_code == 200


async def test_serves_until_the_service_stops(service: SimpleNamespace) -> None:
    running = asyncio.create_task(service.instance.start())
    await asyncio.wait_for(service.instance.server.listening.wait(), 10)
    async with httpx.AsyncClient() as client:
        port = service.instance.server.port
        response = await client.get(f"http://127.0.0.1:{port}/api/v1/status")
    assert response.status_code == 200
    service.instance.stop()
    await asyncio.wait_for(running, 10)
{% endif %}
