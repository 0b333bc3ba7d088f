"""The in-memory client behaves as the real one does."""

from typing import Any

import pytest
from pydantic import BaseModel

from shared.mqtt import PayloadError
from tests.fakes import FakeMQTT
from tests.probes import Recorder


class Reading(BaseModel):
    celsius: float
    note: str | None = None


async def test_deliver_reaches_every_matching_handler(fake_mqtt: FakeMQTT) -> None:
    exact, wild, typed = Recorder(), Recorder(), Recorder()

    async def handle(topic: str, payload: Any) -> None:
        wild(topic, payload)

    fake_mqtt.subscribe("room/1", exact)
    fake_mqtt.subscribe("room/+", handle)
    fake_mqtt.subscribe("room/#", typed, model=Reading)
    await fake_mqtt.deliver("room/1", {"celsius": 20})
    fake_mqtt.unsubscribe("room/1")
    await fake_mqtt.deliver("room/1", {"celsius": 21})
    assert exact.payloads == [{"celsius": 20}]
    assert wild.payloads == [{"celsius": 20}, {"celsius": 21}]
    assert typed.payloads == [Reading(celsius=20), Reading(celsius=21)]


async def test_publish_records_what_would_be_sent(fake_mqtt: FakeMQTT) -> None:
    await fake_mqtt.publish("a", {"n": (1, 2)}, qos=0)
    await fake_mqtt.publish("a", Reading(celsius=1), retain=True)
    await fake_mqtt.publish("b", "text")
    assert fake_mqtt.payloads("a") == [{"n": [1, 2]}, {"celsius": 1.0}]
    assert fake_mqtt.retained == {"a": {"celsius": 1.0}}
    assert fake_mqtt.published[-1] == ("b", "text")


async def test_bad_topics_and_payloads_are_refused(fake_mqtt: FakeMQTT) -> None:
    with pytest.raises(ValueError, match="wildcard"):
        await fake_mqtt.publish("a/#", {})
    with pytest.raises(ValueError, match="filter"):
        fake_mqtt.subscribe("a/#/b", print)
    with pytest.raises(PayloadError):
        await fake_mqtt.publish("a", {"n": float("nan")})


async def test_request_and_respond(fake_mqtt: FakeMQTT) -> None:
    fake_mqtt.replies["ask"] = {"answer": 42}
    assert await fake_mqtt.request("ask", {}) == {"answer": 42}
    await fake_mqtt.respond({"reply_to": "there", "request_id": "r"}, {"ok": True})
    assert fake_mqtt.payloads("there") == [{"ok": True, "request_id": "r"}]
