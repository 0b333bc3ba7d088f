"""Each example of docs/devices.md, taken from there and run with payloads of real devices."""

from collections.abc import Callable
from typing import Any

from tests.fakes import FakeMQTT
from tests.running import running
from tests.test_patterns import example

type MakeSettings = Callable[..., Any]


async def test_zigbee2mqtt(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Zigbee2MQTT").Plug(make_settings()), fake_mqtt) as plug:
        for power in (3, 5, 2100):
            state = {"state": "ON", "power": power, "linkquality": 87}
            await fake_mqtt.deliver("zigbee2mqtt/plug", state)
    published = fake_mqtt.payloads(plug.topic("power"))
    assert [message["watts"] for message in published] == [3, 2100]
    assert fake_mqtt.payloads("zigbee2mqtt/plug/set") == [{"state": "OFF"}]


async def test_tasmota(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Tasmota").Boiler(make_settings()), fake_mqtt) as boiler:
        await fake_mqtt.deliver("tele/boiler/LWT", "Online")
        await fake_mqtt.deliver("stat/boiler/POWER", "ON")
        sensor = {"Time": "2026-01-01T00:00:00", "DS18B20": {"Temperature": 80.5}}
        await fake_mqtt.deliver("tele/boiler/SENSOR", sensor)
    assert fake_mqtt.payloads(boiler.topic("switched"))[0]["is_on"] is True
    assert fake_mqtt.payloads("cmnd/boiler/POWER") == ["OFF"]
    assert fake_mqtt.dead_letters == []


async def test_shelly(make_settings: MakeSettings, fake_mqtt: FakeMQTT) -> None:
    async with running(example("Shelly").Pump(make_settings()), fake_mqtt) as pump:
        for event, payload in (
            ("relay/0", "on"),
            ("relay/0/power", "21.5"),
            ("temperature", "90.4"),
            ("info", '{"wifi_sta": {"connected": true}}'),
        ):
            await fake_mqtt.deliver(f"shellies/pump/{event}", payload)
    assert fake_mqtt.payloads(pump.topic("switched"))[0]["is_on"] is True
    assert fake_mqtt.payloads(pump.topic("power"))[0]["watts"] == 21.5
    assert fake_mqtt.payloads("shellies/pump/relay/0/command") == ["off"]
    assert fake_mqtt.dead_letters == []
