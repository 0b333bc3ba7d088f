"""Commands between services: typed, with a deadline, and the status of the other side."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field

from shared.config import Settings
from shared.mqtt import (
    CommandError,
    NotConnectedError,
    PayloadError,
    RequestTimeoutError,
    ServiceOfflineError,
)
from shared.schemas import Command, CommandReply, CommandSpec
from shared.service import BaseService
from shared.service_status import ServiceStatus
from tests.library.probes import LogProbe
from tests.observer import PATIENCE_SECONDS, Observer
from tests.probes import until
from tests.running import running

type MakeSettings = Callable[..., Settings]

pytestmark = pytest.mark.usefixtures("broker")


class Charge(BaseModel):
    power_kw: float = Field(gt=0)


class Charging(BaseModel):
    energy_kwh: float


class TracedCharge(Command):
    power_kw: float
    target: str = ""


CHARGE = CommandSpec(name="charge", arguments=Charge, reply=Charging, description="charge the car")


class Charger(BaseService[Settings]):
    name = "charger"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.charged: list[float] = []

    async def run(self) -> None:
        self.on_command(CHARGE, self.charge)
        self.on_command("traced", self.traced, model=TracedCharge)
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def charge(self, arguments: Charge) -> Charging:
        self.charged.append(arguments.power_kw)
        return Charging(energy_kwh=2 * arguments.power_kw)

    def traced(self, command: TracedCharge) -> dict[str, Any]:
        asked_by = command.service
        return {"power_kw": command.power_kw, "asked_by": asked_by, "target": command.target}


class Panel(BaseService[Settings]):
    name = "panel"

    async def run(self) -> None:
        self.mqtt.connect_background()
        await self.wait_for_shutdown()


@pytest.fixture
async def panel(make_settings: MakeSettings) -> AsyncIterator[Panel]:
    async with running(Panel(make_settings())) as panel:
        yield panel


@pytest.fixture
async def charger(make_settings: MakeSettings) -> AsyncIterator[Charger]:
    async with running(Charger(make_settings())) as charger:
        yield charger


async def test_arguments_and_results_are_models(panel: Panel, charger: Charger) -> None:
    reply = await panel.send_command("charger", "charge", model=Charging, power_kw=11)
    assert reply == Charging(energy_kwh=22)
    assert charger.charged == [11.0]


async def test_a_model_of_the_whole_command_has_its_envelope(
    panel: Panel, charger: Charger
) -> None:
    reply = await panel.send_command("charger", "traced", power_kw=1, target="car")
    assert (reply["power_kw"], reply["asked_by"], reply["target"]) == (1.0, "panel", "car")


async def test_arguments_that_are_not_valid_get_an_error_reply_without_a_dead_letter(
    panel: Panel, charger: Charger, log: LogProbe
) -> None:
    reply = await panel.send_command("charger", "charge", power_kw="secret")
    assert reply["status"] == "error"
    assert reply["error"].startswith("the arguments are not valid: power_kw: Input should be")
    assert "secret" not in reply["error"]
    with pytest.raises(CommandError, match="charger charge: the arguments are not valid: power_kw"):
        await panel.send_command("charger", "charge", model=Charging, power_kw=-1)
    assert charger.charged == []
    assert "command_rejected" in log.names()
    assert "message_failed" not in log.names()


async def test_a_reply_that_does_not_fit_the_model_is_an_error(
    panel: Panel, charger: Charger
) -> None:
    with pytest.raises(PayloadError, match="not a valid Charge: power_kw: Field required"):
        await panel.send_command("charger", "charge", model=Charge, power_kw=1)


async def test_a_command_is_not_run_after_its_sender_has_given_up(
    panel: Panel, charger: Charger, make_settings: MakeSettings
) -> None:
    def command(seconds: float) -> Command:
        expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        return Command(command="charge", expires_at=expires_at, power_kw=seconds)

    for seconds in (-5, 60):
        await charger._commands.handle("", command(seconds))
    assert charger.charged == [60.0]


async def test_a_request_carries_its_deadline(panel: Panel, topic_prefix: str, broker: Any) -> None:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        sent_at = datetime.now(UTC)
        with pytest.raises(RequestTimeoutError):
            await panel.send_command("nobody", "charge", timeout_seconds=0.2)
        message = await observer.next("coordinator/command/nobody")
    expires_at = Command.model_validate(message).expires_at
    assert expires_at is not None
    assert timedelta(seconds=0.2) <= expires_at - sent_at < timedelta(seconds=10)


async def test_a_service_that_is_offline_gets_no_command(
    panel: Panel, make_settings: MakeSettings, log: LogProbe
) -> None:
    async with running(Charger(make_settings())):
        await panel.send_command("charger", "charge", power_kw=1)
    await until(lambda: panel.service_status("charger").status == "offline")
    with pytest.raises(ServiceOfflineError, match="charger is offline"):
        await panel.send_command("charger", "charge", power_kw=2, timeout_seconds=60)
    async with running(Charger(make_settings())) as charger:
        await until(lambda: panel.service_status("charger").status == "online")
        await panel.send_command("charger", "charge", power_kw=3)
        assert charger.charged == [3.0]


async def test_the_first_command_knows_that_its_target_is_offline(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.service_status._RETAINED_SECONDS", PATIENCE_SECONDS)
    async with running(Charger(make_settings())):
        pass
    async with running(Panel(make_settings())) as panel:
        with pytest.raises(ServiceOfflineError):
            await panel.send_command("charger", "charge", power_kw=2, timeout_seconds=60)


async def test_a_service_without_a_connection_fails_at_once(make_settings: MakeSettings) -> None:
    panel = Panel(make_settings())
    with pytest.raises(NotConnectedError, match="charge was not sent to charger"):
        await panel.send_command("charger", "charge", timeout_seconds=60)


async def test_the_status_of_other_services_with_the_age_of_their_heartbeat(
    panel: Panel, make_settings: MakeSettings
) -> None:
    assert panel.service_status("charger").status == "unknown"
    assert panel.service_statuses() == {}
    async with AsyncExitStack() as stack:
        settings = make_settings(heartbeat_interval_seconds=0.05)
        charger = await stack.enter_async_context(running(Charger(settings)))
        await until(lambda: panel.service_status("charger").heartbeat is not None)
        status = panel.service_statuses()["charger"]
        assert status.status == "online"
        assert status.heartbeat is not None
        assert status.heartbeat.memory_mb > 0
        charger.health_check = lambda: {"status": "degraded"}  # type: ignore[method-assign]
        await until(lambda: panel.service_status("charger").status == "degraded")
    await until(lambda: panel.service_status("charger").status == "offline")
    earlier = panel.service_status("charger").heartbeat_age_seconds or 0
    await asyncio.sleep(0.01)
    assert (panel.service_status("charger").heartbeat_age_seconds or 0) > earlier


async def test_a_new_birth_message_and_a_cleared_status_are_followed(
    panel: Panel, topic_prefix: str
) -> None:
    async def publish(event: str, payload: Mapping[str, Any] | None) -> None:
        await panel.mqtt.publish(f"{topic_prefix}/{event}", payload, retain=True)

    def charger() -> ServiceStatus:
        return panel.service_status("charger")

    charger()
    await panel.mqtt.wait_connected()
    online = {"status": "online", "timestamp": "2026-01-31T12:00:00Z"}
    sick = {"status": "degraded", "uptime_seconds": 1, "memory_mb": 2}
    await publish("charger/availability", online)
    await publish("charger/heartbeat", sick)
    await until(lambda: charger().status == "degraded")
    # The broker repeats the retained one on each connection.
    await publish("charger/availability", online)
    await publish("next/availability", online)
    await until(lambda: panel.service_status("next").status == "online")
    assert charger().status == "degraded"
    await publish("charger/availability", {"status": "offline"})
    await until(lambda: charger().status == "offline")
    await publish("charger/availability", online | {"timestamp": "2026-01-31T12:00:01Z"})
    await until(lambda: charger().status == "online")
    for event in ("next/availability", "charger/heartbeat", "charger/availability"):
        await publish(event, None)
    await until(lambda: charger() == ServiceStatus())
    assert "charger" not in panel.service_statuses()


def test_a_reply_is_a_command_reply_by_default() -> None:
    assert CommandSpec(name="x", arguments=Command, description="x").reply is CommandReply
