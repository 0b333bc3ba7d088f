"""The endpoints of the charger in tests/library/examples, in a service of type http-api."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.conftest import StartService
from tests.library.examples.charger_http_api import router
from tests.running import StartedService

CHARGE = "/api/v1/charger/charge"


@pytest.fixture
async def service(start_service: StartService) -> StartedService:
    return await start_service("example-service", http_port=0)


@pytest.fixture
async def client(service: StartedService) -> AsyncIterator[httpx.AsyncClient]:
    app = service.modules.api.create_app(service.instance)
    app.include_router(router)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_charges_through_the_charger(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    topic = f"{service.settings.topic_prefix}/coordinator/command/charger"
    service.mqtt.replies[topic] = {"status": "ok", "mode": "always", "is_charging": True}
    response = await client.post(CHARGE, json={"mode": "always"})
    assert response.json() == {"mode": "always", "is_charging": True}
    (sent,) = service.mqtt.payloads(topic)
    assert (sent["command"], sent["mode"]) == ("charge", "always")
    assert (await client.post(CHARGE, json={"mode": "maybe"})).status_code == 422


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"status": "error", "error": "no car"}, 502),
        ({"status": "ok", "mode": "always"}, 502),
        (None, 504),
    ],
)
async def test_reports_why_there_is_no_result(
    service: StartedService, client: httpx.AsyncClient, reply: dict[str, Any] | None, status: int
) -> None:
    if reply is not None:
        service.mqtt.replies[f"{service.settings.topic_prefix}/coordinator/command/charger"] = reply
    response = await client.post(CHARGE, json={"mode": "always"})
    assert response.status_code == status
    assert response.json()["trace_id"] == response.headers["x-trace-id"]


async def test_an_offline_charger_and_a_lost_broker_are_reported_at_once(
    service: StartedService, client: httpx.AsyncClient
) -> None:
    availability = f"{service.settings.topic_prefix}/charger/availability"
    service.instance.service_status("charger")
    await service.mqtt.deliver(availability, {"status": "offline"})
    response = await client.post(CHARGE, json={"mode": "always"})
    assert response.status_code == 504
    assert response.json()["detail"] == "charger is offline, so charge was not sent"
    service.mqtt.connected = False
    assert (await client.post(CHARGE, json={"mode": "always"})).status_code == 503
