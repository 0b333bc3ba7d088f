"""The charger of tests/library/examples, with the payloads of real devices."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.fakes import FakeHomeAssistant, FakeMQTT
from tests.library.examples.charger_home_assistant import ChargerService, ChargerSettings
from tests.probes import until
from tests.running import running

type MakeSettings = Callable[..., Any]

SWITCH = "input_boolean.charge_car"


@pytest.fixture
def settings(make_settings: MakeSettings) -> ChargerSettings:
    settings: ChargerSettings = make_settings(ChargerSettings, charger_interval_seconds=0.01)
    return settings


@pytest.fixture
async def charger(
    settings: ChargerSettings, fake_mqtt: FakeMQTT, fake_ha: FakeHomeAssistant
) -> AsyncIterator[ChargerService]:
    fake_ha.states[SWITCH] = "off"
    async with running(ChargerService(settings), fake_mqtt) as charger:
        yield charger


async def sunny(charger: ChargerService, fake_mqtt: FakeMQTT) -> None:
    """Deliver what the devices send on a sunny day with the car plugged in."""
    for topic, payload in (
        ("shellies/meter/relay/0", "on"),
        ("shellies/meter/emeter/0/power", "-3200.5"),
        ("zigbee2mqtt/car", {"contact": True, "battery": 88}),
        ("zigbee2mqtt/car/availability", "online"),
        (f"{charger.settings.topic_prefix}/forecast/updated", {"today_kwh": 12}),
    ):
        await fake_mqtt.deliver(topic, payload)


async def send(charger: ChargerService, fake_mqtt: FakeMQTT, **fields: Any) -> Any:
    topic = f"{charger.settings.topic_prefix}/coordinator/command/charger"
    reply_to = charger.topic("response")
    await fake_mqtt.deliver(topic, {"command": "charge", "reply_to": reply_to, **fields})
    return fake_mqtt.payloads(reply_to)[-1]


async def test_charges_with_the_sun(
    charger: ChargerService, fake_mqtt: FakeMQTT, fake_ha: FakeHomeAssistant
) -> None:
    await sunny(charger, fake_mqtt)
    await until(lambda: fake_ha.states[SWITCH] == "on")
    kept = fake_mqtt.retained[charger.topic("charging")]
    assert (kept["is_charging"], kept["surplus_watts"]) == (True, 3200.5)
    await fake_mqtt.deliver("shellies/meter/emeter/0/power", "150")
    await until(lambda: fake_ha.states[SWITCH] == "off")
    assert fake_mqtt.dead_letters == []


async def test_the_goal_is_set_by_a_command_and_survives_a_restart(
    charger: ChargerService,
    settings: ChargerSettings,
    fake_mqtt: FakeMQTT,
    fake_ha: FakeHomeAssistant,
) -> None:
    await sunny(charger, fake_mqtt)
    reply = await send(charger, fake_mqtt, mode="never")
    assert (reply["status"], reply["is_charging"]) == ("ok", False)
    assert (await send(charger, fake_mqtt, mode="maybe"))["status"] == "error"
    assert fake_ha.states[SWITCH] == "off"
    again = FakeMQTT("charger", settings.topic_prefix)
    async with running(ChargerService(settings), again):
        await again.wait_for(lambda: bool(again.payloads(charger.topic("charging"))))
    assert again.payloads(charger.topic("charging"))[0]["mode"] == "never"
