"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shared.mqtt import NotConnectedError, RequestTimeoutError
from tests.conftest import ROOT, LoadService, MakeSettings
from tests.fakes import FakeMQTT
from tests.observer import PATIENCE_SECONDS
from tests.probes import soon, until

COMMANDS = "/api/v1/services/other/commands"
OK = {"status": "ok"}


@pytest.fixture
async def service(
    load_service: LoadService, make_settings: MakeSettings, topic_prefix: str
) -> AsyncIterator[SimpleNamespace]:
    """The service with a broker in memory, and an HTTP client of its application."""
    modules = load_service("{{ cookiecutter.service_slug }}")
    settings = make_settings(
        modules.config.ServiceSettings,
        http_port=0,
        command_timeout_seconds=2.5,
        shutdown_timeout_seconds=600,
    )
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


async def test_status_says_what_the_heartbeat_says(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"status": "degraded", "reasons": ["the disk is full"], "queue": 3}
    monkeypatch.setattr(service.instance, "health_check", lambda: own)
    response = await service.client.get("/api/v1/status")
    assert response.status_code == 503
    body = response.json()
    assert (body["status"], body["reasons"]) == ("degraded", ["the disk is full"])


async def test_sends_a_command_over_mqtt_and_returns_the_answer(service: SimpleNamespace) -> None:
    topic = f"{service.prefix}/coordinator/command/other"
    service.mqtt.replies[topic] = {**OK, "request_id": "1", "value": 4.5}
    response = await service.client.post(
        COMMANDS, json={"command": "refresh", "arguments": {"deep": True}}
    )
    assert response.json() == {"service": "other", "status": "ok", "result": {"value": 4.5}}
    (sent,) = service.mqtt.payloads(topic)
    assert (sent["command"], sent["deep"]) == ("refresh", True)


async def test_waits_for_the_answer_as_long_as_is_set(
    service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    async def request(*_: Any, timeout_seconds: float) -> dict[str, Any]:
        waits.append(timeout_seconds)
        return OK

    monkeypatch.setattr(service.mqtt, "request", request)
    await service.client.post(COMMANDS, json={"command": "refresh"})
    assert waits == [2.5]


@pytest.mark.parametrize(
    ("error", "connected", "status"),
    [
        (RequestTimeoutError("late"), True, 504),
        (RequestTimeoutError("late"), False, 503),
        (NotConnectedError("away"), False, 503),
    ],
)
async def test_tells_when_there_is_no_answer(
    service: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    connected: bool,
    status: int,
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(service.mqtt, "request", fail)
    service.mqtt.connected = connected
    response = await service.client.post(COMMANDS, json={"command": "refresh"})
    assert response.status_code == status


@pytest.mark.parametrize(
    "reply",
    [
        {"value": 4.5},
        {"status": 200},
        {"status": "fine"},
        {**OK, "value": float("inf")},
        {**OK, "value": "\ud800"},
    ],
)
async def test_passes_on_no_answer_that_is_not_valid(
    service: SimpleNamespace, reply: dict[str, Any]
) -> None:
    service.mqtt.replies[f"{service.prefix}/coordinator/command/other"] = reply
    response = await service.client.post(COMMANDS, json={"command": "refresh"})
    assert response.status_code == 502


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("Not%23A%2BName", '{"command": "refresh"}'),
        ("other", "{"),
        ("other", '{"command": ""}'),
        ("other", '{"command": NaN}'),
        ("other", r'{"command": "\ud800"}'),
        ("other", '{"command": "x", "arguments": {"reply_to": "y"}}'),
        ("other", '{"command": "x", "arguments": {"self": "y"}}'),
        ("other", '{"command": "x", "arguments": {"value": NaN}}'),
        ("other", '{"command": "x", "arguments": {"value": 1e999}}'),
        ("other", r'{"command": "x", "arguments": {"value": "\ud800"}}'),
        ("other", r'{"command": "x", "arguments": {"\ud800": 1}}'),
    ],
)
async def test_refuses_what_is_no_command(service: SimpleNamespace, name: str, body: str) -> None:
    response = await service.client.post(
        f"/api/v1/services/{name}/commands",
        content=body,
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert {"loc", "msg", "type"} == set(response.json()["detail"][0])
    assert service.mqtt.published == []


async def test_describes_itself(service: SimpleNamespace) -> None:
    paths = (await service.client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {"/api/v1/status", "/api/v1/services/{name}/commands"}
    assert set(paths["/api/v1/status"]["get"]["responses"]) == {"200", "503"}
    answers = paths["/api/v1/services/{name}/commands"]["post"]["responses"]
    assert set(answers) == {"200", "422", "502", "503", "504"}
    assert (await service.client.get("/docs")).status_code == 200


@asynccontextmanager
async def serving(instance: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running service, which is stopped and has ended at the end."""
    running = asyncio.create_task(instance.start())
    await soon(instance.server.listening.wait())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{instance.server.port}") as client:
        yield client
    instance.stop()
    await soon(running)


async def test_serves_until_the_service_stops(service: SimpleNamespace) -> None:
    async with serving(service.instance) as client:
        response = await client.get("/api/v1/status")
    assert response.status_code == 200


@pytest.mark.parametrize(("graceful_seconds", "status"), [(60, 200), (0, 500)])
async def test_a_request_under_way_is_answered_at_the_stop_in_the_time_for_it(
    service: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    graceful_seconds: int,
    status: int,
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def request(*_: Any, **__: Any) -> dict[str, Any]:
        asked.set()
        await answered.wait()
        return OK

    monkeypatch.setattr(service.mqtt, "request", request)
    monkeypatch.setattr(service.modules.server, "GRACEFUL_STOP_SECONDS", graceful_seconds)
    settings = service.instance.settings
    instance = service.modules.main.{{ cookiecutter.__class }}(settings)
    instance.mqtt = service.mqtt
    async with serving(instance) as client:
        posting = asyncio.create_task(client.post(COMMANDS, json={"command": "refresh"}))
        await soon(asked.wait())
        instance.stop()
        await until(lambda: not instance.server.servers[0].is_serving())
        if graceful_seconds:
            answered.set()
        response = await soon(posting)
    assert response.status_code == status


async def test_a_signal_stops_it_in_order() -> None:
    """As a process of its own, and with all that uvicorn logs in the service's log."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / "services/{{ cookiecutter.service_slug }}/main.py",
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "{{ cookiecutter.__env }}_HTTP_PORT": "0",
            # Nobody is there, and nobody is needed.
            "MQTT_PORT": "1",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = []
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in process.stdout:
                lines.append(json.loads(line))
                if lines[-1]["event"].startswith("Uvicorn running"):
                    process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert {line["service"] for line in lines} == {"{{ cookiecutter.service_slug }}"}
    assert lines[-1]["event"] == "service_stopped"


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
