"""Two services and an observer, over a broker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.config import Settings
from shared.schemas import Command, DeadLetter
from shared.service import BaseService
from tests.brokers import Broker
from tests.conftest import MakeSettings
from tests.observer import Observer
from tests.probes import soon
from tests.running import running

pytestmark = pytest.mark.integration


class Thermometer(BaseService[Settings]):
    """Measures on command, publishes the result, and replies to the sender."""

    name = "thermometer"

    async def run(self) -> None:
        self.on_command("measure", self._measure)
        self.mqtt.connect_background()
        await self.wait_for_shutdown()

    async def _measure(self, command: Command) -> dict[str, Any]:
        celsius = {"kitchen": 21.5}[getattr(command, "room", "")]
        await self.publish("measured", {"celsius": celsius})
        return {"celsius": celsius}


class Display(BaseService[Settings]):
    """Sends commands to the thermometer and shows the events that it publishes."""

    name = "display"

    async def run(self) -> None:
        self.shown: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        topic = f"{self.settings.topic_prefix}/thermometer/measured"
        self.mqtt.subscribe(topic, lambda _topic, payload: self.shown.put_nowait(payload))
        self.mqtt.connect_background()
        await self.wait_for_shutdown()


@pytest.fixture
async def observer(broker: Broker, topic_prefix: str) -> AsyncIterator[Observer]:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        yield observer


async def test_a_command_its_reply_and_the_event_belong_to_one_trace(
    make_settings: MakeSettings, observer: Observer
) -> None:
    async with running(Thermometer(make_settings())), running(Display(make_settings())) as display:
        reply = await display.send_command("thermometer", "measure", room="kitchen")
        event = await soon(display.shown.get())
        command = await observer.next("coordinator/command/thermometer")
        assert (reply["status"], reply["celsius"]) == ("ok", 21.5)
        assert (event["service"], event["celsius"]) == ("thermometer", 21.5)
        assert reply["trace_id"] == event["trace_id"] == command["trace_id"]


async def test_a_command_that_fails_gets_an_error_reply_and_leaves_a_dead_letter(
    make_settings: MakeSettings, observer: Observer
) -> None:
    async with running(Thermometer(make_settings())), running(Display(make_settings())) as display:
        reply = await display.send_command("thermometer", "measure", room="cellar")
        assert (reply["status"], reply["error"]) == ("error", "KeyError: 'cellar'")
        letter = DeadLetter.model_validate(await observer.next("errors/thermometer"))
        assert letter.original_topic.endswith("/coordinator/command/thermometer")
        assert letter.error_type == "KeyError"
        assert letter.trace_id == reply["trace_id"]
