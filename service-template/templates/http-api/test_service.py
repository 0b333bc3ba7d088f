"""Tests of {{ cookiecutter.service_slug }}."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.conftest import StartService
from tests.running import StartedService

NAME = "{{ cookiecutter.service_slug }}"
COMMANDS = "/api/v1/services/other/commands"
OK = {"status": "ok"}


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start_service(NAME, http_port=0)


@pytest.fixture
async def client(service: StartedService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the HTTP interface."""
    address = f"http://127.0.0.1:{service.instance.server.port}"
    async with httpx.AsyncClient(base_url=address) as client:
        yield client


async def test_status_follows_the_health_of_the_service(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    response = await client.get("/api/v1/status")
    assert (response.status_code, response.json()["status"]) == (200, "online")
    service.mqtt.thread_alive = False
    response = await client.get("/api/v1/status")
    assert (response.status_code, response.json()["status"]) == (503, "degraded")
    assert "network thread" in response.json()["reasons"][0]


async def test_the_root_shows_the_endpoints_without_the_internet(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/")).text
    assert "/api/v1/services/{name}/commands" in page
    assert "http://" not in page
    assert "https://" not in page


async def test_sends_a_command_over_mqtt_and_returns_the_reply(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    topic = f"{service.settings.topic_prefix}/coordinator/command/other"
    service.mqtt.replies[topic] = {**OK, "request_id": "1", "value": 4.5}
    body = {"command": "refresh", "arguments": {"deep": True}}
    response = await client.post(COMMANDS, json=body)
    assert response.json() == {"service": "other", "status": "ok", "result": {"value": 4.5}}
    (sent,) = service.mqtt.payloads(topic)
    assert (sent["command"], sent["deep"]) == ("refresh", True)


@pytest.mark.parametrize(("connected", "status"), [(True, 504), (False, 503)])
async def test_reports_that_there_is_no_reply(
    service: StartedService, client: httpx.AsyncClient, connected: bool, status: int
) -> None:
    service.mqtt.connected = connected
    response = await client.post(COMMANDS, json={"command": "refresh"})
    assert response.status_code == status


async def test_passes_on_valid_replies_only(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    topic = f"{service.settings.topic_prefix}/coordinator/command/other"
    for reply in ({"value": 4.5}, {"status": "fine"}, OK | {"v": 1e999}, OK | {"v": "\ud800"}):
        service.mqtt.replies[topic] = reply
        response = await client.post(COMMANDS, json={"command": "refresh"})
        assert response.status_code == 502, reply


async def test_rejects_a_request_that_is_not_valid(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    for name, body in (
        ("Not%23A%2BName", '{"command": "refresh"}'),
        ("other", "{"),
        ("other", '{"command": ""}'),
        ("other", r'{"command": "\ud800"}'),
        ("other", '{"command": "x", "arguments": {"reply_to": "y"}}'),
        ("other", '{"command": "x", "arguments": {"model": "y"}}'),
        ("other", '{"command": "x", "arguments": {"value": NaN}}'),
        ("other", r'{"command": "x", "arguments": {"\ud800": 1}}'),
    ):
        response = await client.post(
            f"/api/v1/services/{name}/commands",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 422, body
        assert {"loc", "msg", "type"} == set(response.json()["detail"][0])
        assert response.json()["trace_id"] == response.headers["x-trace-id"]
    assert service.mqtt.published == []


async def test_describes_itself(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    status = paths["/api/v1/status"]["get"]["responses"]
    command = paths["/api/v1/services/{name}/commands"]["post"]["responses"]
    assert status.keys() == {"200", "503"}
    assert command.keys() == {"200", "422", "502", "503", "504"}


async def test_a_websocket_request_is_not_an_error(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert (await client.get("/api/v1/status", headers=headers)).status_code == 403
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_rejects_other_hosts_and_large_bodies(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/status", headers={"Host": "attacker.example"})
    assert response.status_code == 400
    response = await client.post(COMMANDS, content=b" " * 1_000_001)
    assert response.status_code == 413
    assert response.json()["trace_id"] == response.headers["x-trace-id"]
