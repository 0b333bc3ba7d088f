"""The HTTP server of a service of type http-api: its start, its stop and its log."""

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

import httpx
import pytest

from shared.mqtt import NotConnectedError
from tests.conftest import ROOT, StartService
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
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
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
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post(COMMANDS, json={"command": "refresh"})
    assert (response.status_code, waits) == (503, [2.5])


@pytest.mark.parametrize(("graceful_seconds", "status"), [(60, 200), (0, 500)])
async def test_a_request_under_way_at_the_stop_gets_a_response_within_the_time_limit(
    service: StartedService,
    monkeypatch: pytest.MonkeyPatch,
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
