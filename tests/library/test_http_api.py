"""The HTTP server of a service of type http-api: its start, its stop and its log."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.mqtt import NotConnectedError
from tests.conftest import ROOT, StartService
from tests.library.probes import LogProbe
from tests.observer import PATIENCE_SECONDS
from tests.probes import soon, until
from tests.running import StartedService

NAME = "example-service"
COMMANDS = "/api/v1/services/other/commands"


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start_service(NAME, http_port=0, shutdown_timeout_seconds=600)


async def test_the_health_check_of_the_service_decides_over_the_status(
    service: StartedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"status": "degraded", "reasons": ["the disk is full"], "queue": 3}
    monkeypatch.setattr(service.instance, "health_check", lambda: own)
    transport = httpx.ASGITransport(app=service.modules.api.create_app(service.instance))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/api/v1/status")
    assert response.status_code == 503
    assert (response.json()["status"], response.json()["reasons"]) == ("degraded", own["reasons"])


async def test_waits_for_a_reply_as_long_as_is_set(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start_service(NAME, http_port=0, command_timeout_seconds=2.5)
    waits = []

    async def request(*_: Any, timeout_seconds: float) -> None:
        waits.append(timeout_seconds)
        raise NotConnectedError

    monkeypatch.setattr(service.mqtt, "request", request)
    transport = httpx.ASGITransport(app=service.modules.api.create_app(service.instance))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post(COMMANDS, json={"command": "refresh"})
    assert (response.status_code, waits) == (503, [2.5])


@pytest.mark.parametrize(("graceful_seconds", "status"), [(60, 200), (0, 503)])
async def test_a_request_under_way_at_the_stop_gets_a_response_within_the_time_limit(
    service: StartedService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    graceful_seconds: int,
    status: int,
) -> None:
    asked, replied = asyncio.Event(), asyncio.Event()

    async def request(*_: Any, **__: Any) -> dict[str, Any]:
        asked.set()
        await replied.wait()
        return {"status": "ok"}

    monkeypatch.setattr(service.mqtt, "request", request)
    server = service.instance.server
    server.config.timeout_graceful_shutdown = graceful_seconds
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        posting = asyncio.create_task(client.post(COMMANDS, json={"command": "refresh"}))
        await soon(asked.wait())
        service.instance.stop()
        await until(lambda: not server.servers[0].is_serving())
        if graceful_seconds:
            replied.set()
        response = await soon(posting)
    assert response.status_code == status
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_endpoint_that_awaits_a_cancelled_future_has_failed(
    service: StartedService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def request(*_: Any, **__: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    monkeypatch.setattr(service.mqtt, "request", request)
    server = service.instance.server
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        response = await client.post(COMMANDS, json={"command": "refresh"})
    assert (response.status_code, response.json()["detail"]) == (500, "internal error")
    assert [record for record in caplog.records if record.exc_info]


async def test_a_signal_stops_it_in_order() -> None:
    """In a process of its own. All that uvicorn logs is in the log of the service."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ROOT / f"services/{NAME}/main.py",
        env={**os.environ, "PYTHONPATH": str(ROOT), "EXAMPLE_SERVICE_HTTP_PORT": "0"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = []
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in process.stdout:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "http_listening":
                    process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert {line["service"] for line in lines} == {NAME}
    assert lines[-1]["event"] == "service_stopped"


async def get(service: StartedService, path: str, **options: Any) -> httpx.Response:
    app = service.modules.api.create_app(service.instance)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, **options)


@pytest.mark.parametrize(
    ("path", "status", "level"), [("/api/v1/status", 200, "debug"), ("/nowhere", 404, "info")]
)
async def test_a_request_is_one_line_with_the_trace_id_of_its_response(
    service: StartedService, log: LogProbe, path: str, status: int, level: str
) -> None:
    response = await get(service, f"{path}?token=secret")
    (line,) = [event for event in log.events if event["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("GET", path, status)
    assert line["level"] == level
    assert line["milliseconds"] >= 0
    assert line["trace_id"] == response.headers["x-trace-id"]
    assert "secret" not in str(log.events)
    if status == 404:
        assert response.json() == {"detail": "Not Found", "trace_id": line["trace_id"]}


async def test_an_unexpected_error_is_logged_and_has_the_trace_id_in_its_body(
    service: StartedService, monkeypatch: pytest.MonkeyPatch, log: LogProbe
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("private")

    monkeypatch.setattr(service.instance, "health_report", fail)
    response = await get(service, "/api/v1/status")
    assert response.status_code == 500
    failed, line = (event for event in log.events if event["event"].startswith("request"))
    assert response.json() == {"detail": "internal error", "trace_id": failed["trace_id"]}
    assert failed["exc_info"]
    assert (line["status"], line["trace_id"]) == (500, failed["trace_id"])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        (f"{NAME}:8000", 200),
        ("attacker.example", 400),
        (f"{NAME}.attacker.example", 400),
        ("", 400),
    ],
)
async def test_only_its_own_names_reach_it(service: StartedService, host: str, status: int) -> None:
    assert (await get(service, "/api/v1/status", headers={"Host": host})).status_code == status


async def test_other_host_names_can_be_set(start_service: StartService) -> None:
    service = await start_service(NAME, http_port=0, http_allowed_hosts=["*.example.com"])
    assert (await get(service, "/api/v1/status", headers={"Host": "api.example.com"})).is_success


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_read_up_to_its_limit_only(service: StartedService, chunked: bool) -> None:
    read = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(100):
            read.append(number)
            yield b" " * 100_000

    server = service.instance.server
    content = chunks() if chunked else b" " * 1_000_001
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        response = await client.post(COMMANDS, content=content)
    assert response.status_code == 413
    assert "1000000 bytes" in response.json()["detail"]


async def test_no_page_loads_anything_from_the_internet(service: StartedService) -> None:
    for path in ("/docs", "/redoc"):
        assert (await get(service, path)).status_code == 404


async def test_the_status_shows_a_lost_connection_after_a_heartbeat_interval(
    start_service: StartService,
) -> None:
    service = await start_service(NAME, http_port=0, heartbeat_interval_seconds=0.05)
    assert (await get(service, "/api/v1/status")).status_code == 200
    service.mqtt.connected = False
    await until(lambda: not service.instance.health.healthy)
    response = await get(service, "/api/v1/status")
    assert response.status_code == 503
    assert response.json()["reasons"][0].startswith("no connection to the broker")


async def test_a_port_in_use_is_named_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            ROOT / f"services/{NAME}/main.py",
            env={**os.environ, "PYTHONPATH": str(ROOT), "EXAMPLE_SERVICE_HTTP_PORT": str(port)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await soon(process.communicate())
    assert (process.returncode, output) == (os.EX_CONFIG, b"")
    problem = f"{NAME}: EXAMPLE_SERVICE_HTTP_PORT: cannot listen on 127.0.0.1:{port}: "
    assert errors.decode().startswith(problem)
    assert errors.count(b"\n") == 1
