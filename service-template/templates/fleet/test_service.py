"""Tests of {{ cookiecutter.service_slug }}."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from structlog.stdlib import BoundLogger

from shared.mqtt import PublishTimeoutError
from shared.state import StateFile
from tests.conftest import LoadService, MakeSettings, StartService
from tests.probes import until
from tests.running import StartedService

NAME = "{{ cookiecutter.service_slug }}"
HEADER = {"X-Fleet": "1"}
PASSWORD = "correct horse"


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start_service(NAME, http_port=0, command_timeout_seconds=0.2)


@pytest.fixture
async def client(service: StartedService) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(service) as client:
        yield client


def open_client(service: StartedService, **options: Any) -> httpx.AsyncClient:
    address = f"http://127.0.0.1:{service.instance.server.port}"
    return httpx.AsyncClient(base_url=address, headers=HEADER, **options)


def beat(**fields: Any) -> dict[str, Any]:
    return {"status": "online", "uptime_seconds": 5, "memory_mb": 40.5, **fields}


async def fail(service: StartedService, topic: str, payload: Any, **fields: Any) -> None:
    """Deliver the dead letter of a message below the prefix."""
    letter = {
        "timestamp": datetime.now(UTC).isoformat(),
        "service": "meter",
        "trace_id": "t1",
        "original_topic": f"{service.settings.topic_prefix}/{topic}",
        "payload": payload if isinstance(payload, str) else json.dumps(payload),
        "error_type": "ValueError",
        "error": "no value",
        **fields,
    }
    await service.deliver("errors/meter", letter)


async def letters(client: httpx.AsyncClient, **query: Any) -> list[Any]:
    response = await client.get("/api/v1/dead-letters", params=query)
    found: list[Any] = response.json()["letters"]
    return found


async def state_of(client: httpx.AsyncClient, name: str) -> tuple[str, list[str]]:
    rows = (await client.get("/api/v1/services")).json()["services"]
    (row,) = [row for row in rows if row["name"] == name]
    return row["state"], row["reasons"]


async def test_shows_the_state_of_each_service(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await service.deliver("meter/availability", {"status": "online"})
    assert await state_of(client, "meter") == ("online", [])
    await service.deliver("meter/heartbeat", beat(status="degraded", reasons=["no disk"]))
    assert await state_of(client, "meter") == ("degraded", ["no disk"])
    await service.deliver("meter/availability", {"status": "offline", "reason": "stopped"})
    assert await state_of(client, "meter") == ("offline", ["stopped"])
    await service.deliver("gone/availability", {"status": "offline"})
    await service.deliver("other/heartbeat", beat(version="1.2"))
    summary = (await client.get("/api/v1/summary")).json()
    # The fleet service sees itself as well.
    assert (summary["online"], summary["offline"], summary["status"]) == (2, 2, "problem")
    metrics = (await client.get("/metrics")).text
    assert 'fleet_service_state{service="meter",state="offline"} 1.0' in metrics
    for name in ("gone", "meter"):
        await service.deliver(f"{name}/availability", "")
    rows = (await client.get("/api/v1/services")).json()["services"]
    assert [(row["name"], row["version"]) for row in rows] == [(NAME, None), ("other", "1.2")]
    # Other programs use such topics as well.
    for topic, payload in (("heatpump/availability", "online"), ("boiler/heartbeat", "17")):
        await service.deliver(topic, payload)
        response = await client.get(f"/api/v1/services/{topic.split('/')[0]}")
        assert response.status_code == 404, topic


async def test_a_service_without_heartbeats_becomes_stale(start_service: StartService) -> None:
    service = await start_service(NAME, http_port=0, heartbeat_interval_seconds=0.01)
    await service.deliver("meter/availability", {"status": "online"})
    fleet = service.instance.fleet
    while fleet.row("meter").state != "stale":
        await fleet.wait_changed(fleet.change)


async def test_streams_everything_and_then_the_changes(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await service.deliver("meter/heartbeat", beat())
    async with client.stream("GET", "/api/v1/events") as response:
        updates = (json.loads(line[5:]) async for line in response.aiter_lines() if line[:1] == "d")
        first = await anext(updates)
        assert first["is_full"]
        assert {row["name"] for row in first["services"]} == {NAME, "meter"}
        await service.deliver("other/heartbeat", beat())
        async for update in updates:
            assert not update["is_full"]
            if "other" in {row["name"] for row in update["services"]}:
                break
        # A stop ends the stream at once.
        service.instance.stop()
        async for _ in updates:
            pass


async def test_keeps_dead_letters_once_and_over_a_restart(
    service: StartedService, client: httpx.AsyncClient, start_service: StartService
) -> None:
    for _ in range(2):
        await fail(service, "garden/reading", "{", timestamp="2026-01-01T00:00:00Z")
    (letter,) = await letters(client, text="no val")
    assert letter["kind"].startswith("meter: ValueError on ")
    assert (letter["payload"], letter["error"], letter["rejection"]) == ("{", "no value", None)
    assert await letters(client, text="no%val") == await letters(client, kind="other") == []
    await service.stop()
    again = await start_service(NAME, http_port=0, max_dead_letters=2)
    async with open_client(again) as client_again:
        assert len(await letters(client_again)) == 1
        for number in range(2):
            await fail(again, "garden/reading", str(number))
        assert [letter["payload"] for letter in await letters(client_again)] == ["1", "0"]


async def test_a_letter_waits_for_room_on_the_disk(
    service: StartedService, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._FIRST_PAUSE_SECONDS", 0.01)
    database = service.instance.letters._database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    delivering = asyncio.create_task(fail(service, "garden/reading", "x" * 10_000))
    await until(lambda: service.instance.health_check() != {})
    assert await letters(client) == []
    database.execute(f"PRAGMA max_page_count = {pages + 100}")
    await delivering
    assert len(await letters(client)) == 1
    assert service.instance.health_check() == {}


async def test_replays_with_the_old_trace_and_a_mark(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await fail(service, "garden/reading", {"value": 3})
    (letter,) = await letters(client, text='{"value": 3}')
    response = await client.post(f"/api/v1/dead-letters/{letter['id']}/replay")
    assert response.json() == {"done": 1, "rejected": [], "remaining": 0}
    (sent,) = service.mqtt.payloads(letter["original_topic"])
    assert (sent["value"], sent["trace_id"]) == (3, "t1")
    assert sent["replay_id"].startswith(f"{letter['id']}-")
    assert letter["original_topic"] not in service.mqtt.retained
    assert await letters(client) == []
    trace = await client.get("/api/v1/messages", params={"trace_id": "t1"})
    assert [message["topic"].rpartition("/")[2] for message in trace.json()] == ["meter", "reading"]


async def test_requests_at_the_same_time_replay_a_letter_once(service: StartedService) -> None:
    await fail(service, "garden/reading", {"value": 3})
    fleet, mqtt = service.instance, service.mqtt
    (letter,) = fleet.letters.find()
    # No acknowledgement arrives before all three have started.
    mqtt.connected = False
    replays = asyncio.gather(
        fleet.replay(letter), fleet.replay(letter), fleet.replay_kind(letter.kind)
    )
    await mqtt.wait_for(lambda: mqtt.payloads(letter.original_topic) != [])
    mqtt.connected = True
    first, second, third = await replays
    assert (first, second, third.done) == (1, 0, 0)
    assert len(mqtt.payloads(letter.original_topic)) == 1


async def test_a_letter_stays_until_its_replay_is_acknowledged(
    service: StartedService, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish(*_: Any, **__: Any) -> None:
        message = "not acknowledged"
        raise PublishTimeoutError(message)

    await fail(service, "garden/reading", {"value": 3})
    (letter,) = await letters(client)
    monkeypatch.setattr(service.mqtt, "publish", publish)
    response = await client.post(f"/api/v1/dead-letters/{letter['id']}/replay")
    assert (response.status_code, response.json()["detail"]) == (503, "not acknowledged")
    assert len(await letters(client)) == 1


async def test_replays_text_and_bytes_as_they_were(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await fail(service, "garden/reading", "on")
    await fail(service, "garden/reading", "/wA=", encoding="base64")
    await fail(service, "garden/reading", '{"value": NaN}')
    (kind,) = {letter["kind"] for letter in await letters(client)}
    response = await client.post("/api/v1/dead-letters/replay", json={"kind": kind})
    assert response.json() == {"done": 3, "rejected": [], "remaining": 0}
    topic = f"{service.settings.topic_prefix}/garden/reading"
    assert service.mqtt.payloads(topic) == ["on", b"\xff\x00", '{"value": NaN}']


async def test_rejects_letters_that_a_replay_cannot_repeat(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    old = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    command = {"command": "refresh", "timestamp": old}
    await fail(service, "coordinator/command/meter", command)
    await fail(service, "garden/reading", "/w=", encoding="base64")
    await fail(service, "garden/+", "{}")
    await fail(service, "garden/photo", "{", payload_bytes=70_000, payload_sha256="0" * 64)
    for letter in await letters(client):
        assert letter["rejection"]
        response = await client.post(f"/api/v1/dead-letters/{letter['id']}/replay")
        assert (response.status_code, response.json()["detail"]) == (409, letter["rejection"])
        response = await client.post("/api/v1/dead-letters/replay", json={"kind": letter["kind"]})
        assert response.json() == {"done": 0, "rejected": [letter["rejection"]], "remaining": 1}
        assert (await client.delete(f"/api/v1/dead-letters/{letter['id']}")).json()["done"] == 1
    assert service.mqtt.published == []
    assert (await client.post("/api/v1/dead-letters/1/replay")).status_code == 404


async def test_rejects_values_that_it_cannot_process(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for method, path, body in (
        ("POST", "session", r'{"password": "\ud800"}'),
        ("POST", "dead-letters/replay", r'{"kind": "\ud800"}'),
        ("POST", "dead-letters/discard", r'{"kind": "\ud800"}'),
        ("GET", f"dead-letters?before={2**70}", ""),
        ("GET", f"dead-letters?before={-(2**70)}", ""),
        ("GET", f"dead-letters?text={'a' * 50_001}", ""),
        ("DELETE", f"dead-letters/{2**63 - 1}", ""),
        ("POST", f"dead-letters/{2**64}/replay", ""),
    ):
        response = await client.request(method, f"/api/v1/{path}", content=body, headers=headers)
        assert response.status_code == 422, (method, path[:50], body)


async def test_shows_a_message_whose_trace_id_is_not_text(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await service.deliver("meter/heartbeat", beat())
    await service.deliver("meter/reading", rb'{"trace_id": "\ud800"}')
    detail = (await client.get("/api/v1/services/meter")).json()
    seen = {message["payload"] for topic in detail["topics"] for message in topic["messages"]}
    assert r'{"trace_id": "\ud800"}' in seen


async def test_sends_a_command_with_the_arguments_of_its_schema(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    await service.deliver(f"{NAME}/heartbeat", beat())
    detail = (await client.get(f"/api/v1/services/{NAME}")).json()
    patterns = {topic["pattern"].rpartition("/")[2] for topic in detail["topics"]}
    assert {"heartbeat", "availability"} <= patterns
    await service.deliver("meter/heartbeat", beat())
    topic = f"{service.settings.topic_prefix}/coordinator/command/meter"
    service.mqtt.replies[topic] = {"status": "ok", "value": 1}
    body = {"command": "refresh", "arguments": {"deep": True}}
    response = await client.post("/api/v1/services/meter/commands", json=body)
    assert response.json() == {"reply": {"status": "ok", "value": 1}}
    (sent,) = service.mqtt.payloads(topic)
    assert (sent["command"], sent["deep"], sent["service"]) == ("refresh", True, NAME)
    for argument in ('{"reply_to": "x"}', '{"value": NaN}', r'{"value": "\ud800"}'):
        response = await client.post(
            "/api/v1/services/meter/commands",
            content='{"command": "refresh", "arguments": ' + argument + "}",
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == 422, argument
    assert len(service.mqtt.payloads(topic)) == 1
    assert (await client.get("/api/v1/services/nobody")).status_code == 404


async def test_reports_that_a_command_has_no_result(start_service: StartService) -> None:
    service = await start_service(NAME, http_port=0, command_timeout_seconds=60)
    async with open_client(service) as client:
        status = f"{service.settings.topic_prefix}/meter/availability"
        service.mqtt.retained[status] = {"status": "online"}
        await service.deliver("meter/availability", {"status": "online"})
        topic = f"{service.settings.topic_prefix}/coordinator/command/meter"
        service.mqtt.replies[topic] = {"status": "ok", "value": "\ud800"}

        async def send() -> int:
            response = await client.post(
                "/api/v1/services/meter/commands", json={"command": "refresh"}
            )
            return response.status_code

        assert await send() == 502
        await service.deliver("meter/availability", {"status": "offline"})
        assert await send() == 504
        # At once, which is long before the timeout.
        service.mqtt.connected = False
        assert await send() == 503
        assert len(service.mqtt.payloads(topic)) == 1


async def test_the_password_protects_everything_but_the_page(start_service: StartService) -> None:
    service = await start_service(NAME, http_port=0, password=SecretStr(PASSWORD))
    async with open_client(service) as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        paths = (await client.get("/openapi.json")).json()["paths"]
        closed = {path for path, methods in paths.items() if "get" in methods}
        for path in closed:
            response = await client.get(path.format(name="x", letter_id=1))
            assert response.status_code == 401, path
        response = await client.post("/api/v1/session", json={"password": "wrong"})
        assert response.status_code == 401
        for session in ("x", "9999999999.x", "9999999999.é"):
            headers = {b"Cookie": f"fleet_session={session}".encode()}
            assert (await client.get("/metrics", headers=headers)).status_code == 401
        response = await client.post("/api/v1/session", json={"password": PASSWORD})
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await client.get("/metrics")).status_code == 200
    async with open_client(service, auth=("any", PASSWORD)) as client:
        assert (await client.get("/metrics")).status_code == 200


async def test_rejects_forms_of_other_sites_and_other_hosts(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    client.headers.pop("X-Fleet")
    for path in ("/api/v1/session", "/api/v1/dead-letters/discard"):
        assert (await client.post(path, json={"kind": "x"})).status_code == 403
    response = await client.get("/", headers={"Host": "attacker.example"})
    assert response.status_code == 400


@pytest.mark.parametrize("host", ["192.168.1.5", "::", "fleet.local"])
def test_needs_a_password_beyond_this_machine(
    load_service: LoadService, make_settings: MakeSettings, host: str
) -> None:
    settings = load_service(NAME).config.ServiceSettings
    with pytest.raises(ValidationError, match=r"must be set in \.env"):
        make_settings(settings, http_host=host)
    assert make_settings(settings, http_host=host, password=SecretStr(PASSWORD))
    with pytest.raises(ValidationError, match="must be ASCII"):
        make_settings(settings, http_host=host, password=SecretStr("größe"))


async def test_alerts_once_and_again_after_the_recovery(
    load_service: LoadService, tmp_path: Path, logger: BoundLogger
) -> None:
    requests: asyncio.Queue[Any] = asyncio.Queue()
    statuses = iter(["302 Found", "204 No Content", "204 No Content"])

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        requests.put_nowait(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {next(statuses)}\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(receive, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        modules, state = load_service(NAME), StateFile(tmp_path / "alerts.json", logger)
        modules.alerts.INTERVAL_SECONDS = 0
        row = modules.schemas.ServiceRow(name="meter", state="degraded", since=datetime.now(UTC))
        row.reasons = ["no disk"]
        for problem in ("alerts cannot be sent: status 302", "", ""):
            # Each one is that of a restart. The last one has nothing to report.
            alerts = modules.alerts.Alerts(url, after_seconds=0, state=state, logger=logger)
            alerts.update([row], connected=True)
            await alerts.send()
            assert alerts.problem == problem
        alerts.on_first_letter("meter: ValueError", "no value")
        row.state = "online"
        for connected in (False, True, True):
            alerts.update([row], connected=connected)
        await alerts.send()
        line = "meter is degraded: no disk"
        for _ in range(2):
            assert requests.get_nowait() == {"title": line, "message": line}
        assert requests.get_nowait()["message"].splitlines() == [
            "First dead letter of meter: ValueError: no value",
            "meter is online again",
        ]
        row.state = "offline"
        alerts.update([row], connected=True)
        # It was removed before the alert was sent.
        alerts.update([], connected=True)
        await alerts.send()
        assert requests.empty()
