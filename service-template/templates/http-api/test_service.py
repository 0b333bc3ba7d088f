"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
import socket
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
        ("/api/v1/services/other/commands", {"command": "x", "arguments": {"self": "y"}}),
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


async def test_stops_in_order_when_its_port_is_taken(
    service: SimpleNamespace, make_settings: MakeSettings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = make_settings(
            service.modules.config.ServiceSettings, http_port=taken.getsockname()[1]
        )
        instance = service.modules.main.{{ cookiecutter.__class }}(settings)
        instance.mqtt = service.mqtt
        with pytest.raises(OSError, match="cannot listen"):
            await instance.start()
    assert service.mqtt.disconnected
