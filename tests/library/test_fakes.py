"""The in-memory client behaves as the real one does."""

from typing import Any

import pytest
from pydantic import BaseModel

from shared.mqtt import NotConnectedError, PayloadError, RequestTimeoutError
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


async def test_deduplicate_skips_what_was_delivered_before(fake_mqtt: FakeMQTT) -> None:
    once, always = Recorder(), Recorder()
    fake_mqtt.subscribe("a/+", once, deduplicate=True)
    fake_mqtt.subscribe("a/#", always)
    for topic, message in (
        ("a/1", {"request_id": "r", "n": 1}),
        ("a/1", {"request_id": "r", "n": 2}),
        ("a/2", {"request_id": "r", "n": 3}),
        ("a/1", {"trace_id": "t", "n": 4}),
        ("a/1", {"trace_id": "t", "n": 4}),
        ("a/1", {"trace_id": "t", "n": 5}),
        ("a/1", {"n": 6}),
        ("a/1", {"n": 6}),
    ):
        await fake_mqtt.deliver(topic, message)
    assert [message["n"] for message in once.payloads] == [1, 3, 4, 5, 6, 6]
    assert len(always.payloads) == 8


async def test_a_handler_gets_text_and_bytes_when_it_asks_for_them(fake_mqtt: FakeMQTT) -> None:
    text, raw = Recorder(), Recorder()
    fake_mqtt.subscribe("a/+", text, payload_format="text")
    fake_mqtt.subscribe("a/#", raw, payload_format="bytes", deduplicate=True)
    await fake_mqtt.deliver("a/1", {"n": 1})
    await fake_mqtt.deliver("a/1", b"\xc3\xa4")
    assert text.payloads == ['{"n":1}', "ä"]
    assert raw.payloads == [b'{"n":1}', b"\xc3\xa4"]


async def test_what_the_broker_has_kept_and_what_is_empty(fake_mqtt: FakeMQTT) -> None:
    fresh, every, typed = Recorder(), Recorder(), Recorder()
    fake_mqtt.subscribe("a/+", fresh, skip_retained=True)
    fake_mqtt.subscribe("a/#", every)
    fake_mqtt.subscribe("+/1", typed, model=Reading)
    await fake_mqtt.deliver("a/1", {"celsius": 20}, retain=True)
    await fake_mqtt.deliver("a/1", None)
    assert fresh.payloads == [None]
    assert every.payloads == [{"celsius": 20}, None]
    assert typed.payloads == [Reading(celsius=20)]


async def test_publish_records_what_would_be_sent(fake_mqtt: FakeMQTT) -> None:
    fake_mqtt.connect_background()
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


async def test_without_a_connection(fake_mqtt: FakeMQTT) -> None:
    with pytest.raises(NotConnectedError):
        await fake_mqtt.wait_connected(0.01)
    fake_mqtt.connect_background()
    await fake_mqtt.wait_connected()
    await fake_mqtt.disconnect(keep_status=False)
    with pytest.raises(NotConnectedError):
        await fake_mqtt.publish("a", 1, qos=0)
    await fake_mqtt.publish("a", 2, qos=1)
    assert fake_mqtt.payloads("a") == [2]


async def test_request_and_respond(fake_mqtt: FakeMQTT) -> None:
    fake_mqtt.replies["ask"] = {"answer": 42}
    assert await fake_mqtt.request("ask", {}) == {"answer": 42}
    await fake_mqtt.respond({"reply_to": "there", "request_id": "r"}, {"ok": True})
    assert fake_mqtt.payloads("there") == [{"ok": True, "request_id": "r"}]


async def test_a_request_that_nobody_answers(fake_mqtt: FakeMQTT) -> None:
    with pytest.raises(RequestTimeoutError, match=r"ask in 2\.5 s"):
        await fake_mqtt.request("ask", {"n": 1}, timeout_seconds=2.5)
    assert fake_mqtt.payloads("ask") == [{"n": 1}]
