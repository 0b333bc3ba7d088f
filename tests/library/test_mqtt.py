"""The MQTT client with a broker: a real Mosquitto, or the embedded one."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from shared.config import ConfigurationError, Settings
from shared.mqtt import (
    MQTTClient,
    NotConnectedError,
    PayloadError,
    PublishTimeoutError,
    RequestTimeoutError,
)
from shared.mqtt.session import Session
from shared.tracing import bind_trace_id, current_trace_id
from tests.brokers import Broker
from tests.library.conftest import MakeClient
from tests.library.probes import LogProbe, Recorder
from tests.observer import PATIENCE_SECONDS, Observer
from tests.probes import soon


class Reading(BaseModel):
    celsius: float
    note: str | None = None


@pytest.fixture
async def client(broker: Broker, make_client: MakeClient) -> MQTTClient:
    client = make_client(broker)
    client.connect_background()
    await soon(client.wait_connected())
    return client


# Publish and subscribe


@pytest.mark.parametrize("qos", [0, 1])
async def test_json_goes_out_and_comes_in(client: MQTTClient, topic_prefix: str, qos: Any) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/in", recorder, qos=qos)
    await flush(client)
    payload = {"text": "grün", "numbers": [1, 2.5, None], "nested": {"ok": True}}
    await client.publish(f"{topic_prefix}/in", payload, qos=qos)
    assert await recorder.next() == (f"{topic_prefix}/in", payload)


async def flush(client: MQTTClient) -> None:
    """Return when the broker has handled what was sent before, subscriptions included."""
    await client.publish("flush", None)


@pytest.mark.parametrize(
    ("payload", "wire"),
    [
        ({"a": 1}, b'{"a":1}'),
        ([1, "zwölf"], '[1,"zwölf"]'.encode()),
        (Reading(celsius=1.5), b'{"celsius":1.5}'),
        ("plain text", b"plain text"),
        (b"\xff\x00", b"\xff\x00"),
        (True, b"true"),
        (3, b"3"),
        (None, b""),
    ],
)
async def test_what_goes_over_the_wire(
    client: MQTTClient, topic_prefix: str, payload: Any, wire: bytes
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/raw", recorder, payload_format="bytes")
    await flush(client)
    await client.publish(f"{topic_prefix}/raw", payload)
    assert (await recorder.next())[1] == wire


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload", [{"n": float("nan")}, {"o": object()}, "\ud800", ["\ud800"], nested(100_000)]
)
async def test_what_is_no_json_is_not_published(client: MQTTClient, payload: Any) -> None:
    with pytest.raises(PayloadError):
        await client.publish("unused", payload)


async def test_a_byte_order_mark_is_skipped(client: MQTTClient, topic_prefix: str) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/marked", recorder)
    await flush(client)
    await client.publish(f"{topic_prefix}/marked", b'\xef\xbb\xbf{"n": 1.5}')
    assert (await recorder.next())[1] == {"n": 1.5}


async def test_a_bad_topic_or_filter_is_refused(client: MQTTClient) -> None:
    with pytest.raises(ValueError, match="wildcard"):
        await client.publish("a/+", {})
    with pytest.raises(ValueError, match="filter"):
        client.subscribe("a/#/b", print)


async def test_subscriptions_from_before_the_connection(
    broker: Broker, make_client: MakeClient, topic_prefix: str
) -> None:
    client, recorder = make_client(broker), Recorder()
    client.subscribe(f"{topic_prefix}/early", recorder)
    client.connect_background()
    client.connect_background()
    await soon(client.wait_connected())
    await client.publish(f"{topic_prefix}/early", 1)
    assert (await recorder.next())[1] == 1


async def test_every_matching_handler_sync_or_async(client: MQTTClient, topic_prefix: str) -> None:
    one_level, all_levels, exact = Recorder(), Recorder(), Recorder()

    async def slowly(topic: str, payload: Any) -> None:
        await asyncio.sleep(0)
        all_levels(topic, payload)

    client.subscribe(f"{topic_prefix}/room/+/temperature", one_level)
    client.subscribe(f"{topic_prefix}/room/#", slowly)
    client.subscribe(f"{topic_prefix}/room/1/temperature", exact)
    await flush(client)
    await client.publish(f"{topic_prefix}/room/1/temperature", 20)
    await client.publish(f"{topic_prefix}/room/2/humidity", 50)
    await all_levels.until_payload(50)
    assert set(one_level.payloads) == set(exact.payloads) == {20}
    assert set(all_levels.payloads) == {20, 50}


async def test_messages_of_one_subscription_come_in_order_one_at_a_time(
    client: MQTTClient, topic_prefix: str
) -> None:
    recorder, running = Recorder(), 0

    async def handle(topic: str, payload: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        running -= 1
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/ordered", handle)
    await flush(client)
    await asyncio.gather(*(client.publish(f"{topic_prefix}/ordered", n) for n in range(200)))
    await recorder.until_payload(199)
    assert recorder.payloads == list(range(200))


async def test_a_slow_handler_holds_up_no_other(client: MQTTClient, topic_prefix: str) -> None:
    release, slow, quick = asyncio.Event(), Recorder(), Recorder()

    async def wait(topic: str, payload: Any) -> None:
        await release.wait()
        slow(topic, payload)

    client.subscribe(f"{topic_prefix}/slow", wait)
    client.subscribe(f"{topic_prefix}/quick", quick)
    await flush(client)
    await client.publish(f"{topic_prefix}/slow", 1)
    await client.publish(f"{topic_prefix}/quick", 2)
    await quick.next()
    assert slow.messages == []
    release.set()
    await slow.next()


async def test_unsubscribe_and_subscribe_anew(client: MQTTClient, topic_prefix: str) -> None:
    topic = f"{topic_prefix}/changing"
    first, second = Recorder(), Recorder()
    client.subscribe(topic, first)
    await flush(client)
    client.unsubscribe(topic)
    client.unsubscribe("never/subscribed")
    await client.publish(topic, "lost")
    client.subscribe(topic, second)
    await flush(client)
    await client.publish(topic, 2)
    await second.next()
    assert first.messages == []


async def test_a_second_handler_takes_the_place_of_the_first(
    client: MQTTClient, topic_prefix: str
) -> None:
    first, second = Recorder(), Recorder()
    client.subscribe(f"{topic_prefix}/same", first)
    client.subscribe(f"{topic_prefix}/same", second)
    await flush(client)
    await client.publish(f"{topic_prefix}/same", 1)
    await second.next()
    assert first.messages == []


async def test_models_and_text(client: MQTTClient, topic_prefix: str) -> None:
    readings, texts = Recorder(), Recorder()
    client.subscribe(f"{topic_prefix}/reading", readings, model=Reading)
    client.subscribe(f"{topic_prefix}/text", texts, payload_format="text")
    await flush(client)
    await client.publish(f"{topic_prefix}/reading", {"celsius": "21.5"})
    await client.publish(f"{topic_prefix}/text", "ON")
    assert (await readings.next())[1] == Reading(celsius=21.5)
    assert (await texts.next())[1] == "ON"


async def test_a_cleared_retained_message_arrives_as_none(
    client: MQTTClient, topic_prefix: str
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/kept", recorder)
    await flush(client)
    await client.publish(f"{topic_prefix}/kept", {}, retain=True)
    await client.publish(f"{topic_prefix}/kept", None, retain=True)
    await recorder.until_payload(None)


async def test_a_repeated_message_is_handled_once(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/once", recorder, deduplicate=True)
    await flush(client)
    same_trace: list[dict[str, Any]] = [{"trace_id": "t", "n": n} for n in (1, 2, 1)]
    same_request: list[dict[str, Any]] = [{"trace_id": "t", "request_id": "r", "n": 3}] * 2
    unknown: list[dict[str, Any]] = [
        {"n": 4},
        {"n": 4},
        {"request_id": 7, "n": 5},
        {"trace_id": "x" * 10_000, "n": 6},
    ]
    replays = [{**same_request[0], "n": 7, "replay_id": name} for name in ("a", "a", "b")]
    for payload in [*same_trace, *same_request, *unknown, *replays, {"n": "end"}]:
        await client.publish(f"{topic_prefix}/once", payload)
    await recorder.until_payload({"n": "end"})
    assert [payload["n"] for payload in recorder.payloads] == [1, 2, 3, 4, 4, 5, 6, 7, 7, "end"]
    assert (await log.next("message_repeated"))["message_id"].startswith("t ")
    assert (await log.next("message_repeated"))["message_id"] == "r"


async def test_the_trace_id_of_a_message_is_bound(client: MQTTClient, topic_prefix: str) -> None:
    seen: asyncio.Queue[str | None] = asyncio.Queue()
    client.subscribe(f"{topic_prefix}/traced", lambda *_: seen.put_nowait(current_trace_id()))
    await flush(client)
    for payload in ({"trace_id": "abc"}, {}, {"trace_id": "line\nbreak"}, [1]):
        await client.publish(f"{topic_prefix}/traced", payload)
    assert await soon(seen.get()) == "abc"
    others = [await soon(seen.get()) for _ in range(3)]
    assert all(trace_id and trace_id.isalnum() for trace_id in others)
    assert len(set(others)) == 3


# While disconnected


async def test_qos_0_while_down_is_an_error(broker: Broker, make_client: MakeClient) -> None:
    client = make_client(broker)
    with pytest.raises(NotConnectedError):
        await client.publish("unused", 1, qos=0)
    with pytest.raises(NotConnectedError):
        await client.wait_connected(0.01)
    with pytest.raises(PublishTimeoutError):
        await client.publish("unused", 1, timeout_seconds=0.01)


async def test_qos_1_waits_for_the_connection_and_is_sent_once(
    client: MQTTClient, broker: Broker, make_client: MakeClient, topic_prefix: str
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/waiting", recorder)
    await flush(client)
    late = make_client(broker, "late")
    publishing = asyncio.create_task(late.publish(f"{topic_prefix}/waiting", 1))
    await asyncio.sleep(0)
    late.connect_background()
    await soon(publishing)
    await late.publish(f"{topic_prefix}/waiting", 2)
    await recorder.until_payload(2)
    assert recorder.payloads == [1, 2]


async def test_a_cancelled_publish_leaves_the_client_usable(client: MQTTClient) -> None:
    publishing = asyncio.create_task(client.publish("unused", 1))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    await client.publish("unused", 2)


async def test_after_disconnect_nothing_is_accepted(client: MQTTClient) -> None:
    await client.disconnect()
    await client.disconnect()
    assert not client.connected
    assert not client.thread_alive
    with pytest.raises(NotConnectedError):
        await client.publish("unused", 1)
    client.connect_background()
    assert not client.thread_alive


async def test_disconnect_waits_for_a_network_thread_that_paho_has_given_up(
    broker: Broker, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(broker)
    paho: Any = client._connection._client
    main, stop = paho._thread_main, paho.loop_stop
    given_up, stopped = threading.Event(), threading.Event()

    def end_late() -> None:
        main()
        given_up.set()
        assert stopped.wait(PATIENCE_SECONDS)
        # Its end takes a while.
        time.sleep(0.5)

    def stop_late() -> None:
        assert given_up.wait(PATIENCE_SECONDS)
        stop()
        stopped.set()

    monkeypatch.setattr(paho, "loop_stop", stop_late)
    monkeypatch.setattr(paho, "_thread_main", end_late)
    client.connect_background()
    await soon(client.wait_connected())
    await soon(client.disconnect())
    assert not client.thread_alive


async def test_disconnect_without_a_connection(broker: Broker, make_client: MakeClient) -> None:
    client = make_client(broker)
    await client.disconnect()


# Availability


async def test_birth_and_farewell_are_retained(
    client: MQTTClient, broker: Broker, topic_prefix: str
) -> None:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")
    await client.disconnect()
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        farewell = await observer.next("tested/availability", status="offline", reason="stopped")
    assert farewell["service"] == "tested"
    assert datetime.now(UTC) - datetime.fromisoformat(farewell["timestamp"]) < timedelta(minutes=1)


async def test_a_last_will_that_comes_late_is_corrected(
    client: MQTTClient, broker: Broker, topic_prefix: str
) -> None:
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")
        observer.publish("tested/availability", {"status": "offline"})
        await observer.next("tested/availability", status="offline")
        await observer.next("tested/availability", status="online")


async def test_a_last_will_is_corrected_though_there_is_room_for_nothing_else(
    broker: Broker, make_client: MakeClient, topic_prefix: str
) -> None:
    client = make_client(broker, max_queued_messages=1)
    started, never = asyncio.Event(), asyncio.Event()

    async def wait(_topic: str, _payload: Any) -> None:
        started.set()
        await never.wait()

    client.subscribe(f"{topic_prefix}/flood", wait, qos=0)
    client.connect_background()
    await soon(client.wait_connected())
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")
        # At QoS 1 the birth message may still take the only place.
        await client.publish(f"{topic_prefix}/flood", 1, qos=0)
        await soon(started.wait())
        observer.publish("tested/availability", {"status": "offline"})
        await observer.next("tested/availability", status="offline")
        await observer.next("tested/availability", status="online")
    await client.disconnect(0.2)


# Request and reply


async def test_request_and_response(
    client: MQTTClient, broker: Broker, make_client: MakeClient, topic_prefix: str
) -> None:
    responder = make_client(broker, "responder")

    async def answer(_topic: str, request: dict[str, Any]) -> None:
        await responder.respond(request, {"doubled": request["n"] * 2, "seen": request["trace_id"]})

    responder.subscribe(f"{topic_prefix}/double", answer)
    responder.connect_background()
    await soon(responder.wait_connected())
    with bind_trace_id("trace"):
        requests = [client.request(f"{topic_prefix}/double", {"n": n}) for n in range(50)]
        answers = await asyncio.gather(*requests)
    assert [reply["doubled"] for reply in answers] == [n * 2 for n in range(50)]
    assert {reply["seen"] for reply in answers} == {"trace"}


async def test_a_handler_may_ask_while_many_messages_wait(
    client: MQTTClient, topic_prefix: str
) -> None:
    """Those that wait fill the broker's window of unacknowledged messages: answers must pass."""
    recorder = Recorder()

    async def ask(topic: str, payload: Any) -> None:
        recorder(topic, await client.request(f"{topic_prefix}/echo", {"n": payload}))

    client.subscribe(f"{topic_prefix}/work", ask)
    client.subscribe(
        f"{topic_prefix}/echo", lambda _, request: client.respond(request, request), qos=0
    )
    await flush(client)
    await asyncio.gather(*(client.publish(f"{topic_prefix}/work", n) for n in range(60)))
    for _ in range(60):
        await recorder.next()
    assert sorted(reply["n"] for reply in recorder.payloads) == list(range(60))


async def test_a_request_that_nobody_answers(client: MQTTClient) -> None:
    with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
        await client.request("nobody", {}, timeout_seconds=0.05)


async def test_a_request_whose_answer_was_lost_is_repeated_under_its_id(
    client: MQTTClient, topic_prefix: str
) -> None:
    seen = Recorder()

    async def answer_the_second(topic: str, request: dict[str, Any]) -> None:
        seen(topic, request["request_id"])
        if len(seen.messages) > 1:
            await client.respond(request, {"ok": True})

    client.subscribe(f"{topic_prefix}/ask", answer_the_second)
    await flush(client)
    first = asyncio.create_task(
        client.request(f"{topic_prefix}/ask", {"request_id": "r"}, timeout_seconds=60)
    )
    await seen.next()
    with pytest.raises(ValueError, match="another request waits with the request_id 'r'"):
        await client.request("unused", {"request_id": "r"})
    with pytest.raises(ValueError, match="text"):
        await client.request("unused", {"request_id": 7})
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(RequestTimeoutError):
        await client.request("nobody", {"request_id": "r"}, timeout_seconds=0.05)
    reply = await client.request(f"{topic_prefix}/ask", {"request_id": "r"})
    assert reply == {"ok": True, "request_id": "r"}
    assert seen.payloads == ["r", "r"]


async def test_a_request_without_a_connection(broker: Broker, make_client: MakeClient) -> None:
    with pytest.raises(RequestTimeoutError):
        await make_client(broker).request("nobody", {}, timeout_seconds=0.05)


async def test_a_request_ends_with_the_client(client: MQTTClient) -> None:
    asking = asyncio.create_task(client.request("nobody", {}, timeout_seconds=60))
    await flush(client)
    await client.disconnect()
    with pytest.raises(NotConnectedError):
        await asking
    with pytest.raises(NotConnectedError):
        await client.request("nobody", {}, timeout_seconds=60)


async def test_strange_replies_are_ignored(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    topic = f"{topic_prefix}/tested/response/{client.client_id}"
    for payload in ([1], {"request_id": ["x"]}, {"request_id": "unknown"}):
        await client.publish(topic, payload)
    for _ in range(3):
        await log.next("reply_unexpected")


async def test_a_response_to_a_request_without_reply_to(
    client: MQTTClient, topic_prefix: str
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/tested/response", recorder)
    await flush(client)
    await client.respond({"request_id": "r"}, {"ok": True})
    assert (await recorder.next())[1] == {"ok": True, "request_id": "r"}


@pytest.mark.parametrize("reply_to", ["a/#", ["list"], 7, {"no": "topic"}, "nul\0"])
async def test_a_reply_to_that_is_no_topic(client: MQTTClient, reply_to: Any) -> None:
    with pytest.raises(PayloadError, match="reply_to"):
        await client.respond({"reply_to": reply_to}, {})


# Dead letters


@pytest.fixture
async def dead_letters(client: MQTTClient, topic_prefix: str) -> Recorder:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/errors/#", recorder)
    return recorder


async def test_a_handler_that_raises_makes_a_dead_letter(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder, log: LogProbe
) -> None:
    def fail(_topic: str, _payload: Any) -> None:
        raise LookupError("no such thing, password=hunter2")

    client.subscribe(f"{topic_prefix}/failing", fail)
    await flush(client)
    await client.publish(f"{topic_prefix}/failing", {"trace_id": "abc", "n": 1})
    topic, letter = await dead_letters.next()
    assert topic == f"{topic_prefix}/errors/tested"
    assert letter.pop("timestamp")
    assert letter == {
        "service": "tested",
        "trace_id": "abc",
        "original_topic": f"{topic_prefix}/failing",
        "payload": '{"trace_id":"abc","n":1}',
        "encoding": "utf-8",
        "error_type": "LookupError",
        "error": "no such thing, password=[redacted]",
    }
    assert (await log.next("message_failed"))["topic"] == f"{topic_prefix}/failing"


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [
        (b"no json", "utf-8"),
        (b"{", "utf-8"),
        (b'{"n": NaN}', "utf-8"),
        (b'{"n": 1e999}', "utf-8"),
        (b"[" * 100_000, "utf-8"),
        (b"1" * 10_000, "utf-8"),
        (b"\xff\xfe\x00", "base64"),
        (b'{"n": "\xff"}', "base64"),
    ],
)
async def test_poison_becomes_a_dead_letter_and_the_next_message_is_handled(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder, payload: bytes, encoding: str
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/poison", recorder)
    await flush(client)
    await client.publish(f"{topic_prefix}/poison", payload)
    await client.publish(f"{topic_prefix}/poison", "1")
    _, letter = await dead_letters.next()
    assert (letter["error_type"], letter["encoding"]) == ("PayloadError", encoding)
    assert (await recorder.next())[1] == 1


async def test_text_that_is_no_text_and_a_model_that_does_not_fit(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder
) -> None:
    client.subscribe(f"{topic_prefix}/text", print, payload_format="text")
    client.subscribe(f"{topic_prefix}/reading", print, model=Reading)
    await flush(client)
    await client.publish(f"{topic_prefix}/text", b"\xff")
    assert (await dead_letters.next())[1]["error_type"] == "PayloadError"
    await client.publish(f"{topic_prefix}/reading", {"celsius": "warm"})
    assert (await dead_letters.next())[1]["error_type"] == "ValidationError"


async def test_an_error_that_quotes_the_whole_payload_is_cut(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder
) -> None:
    def fail(_topic: str, payload: Any) -> None:
        raise ValueError(payload)

    client.subscribe(f"{topic_prefix}/long", fail, payload_format="text")
    await flush(client)
    await client.publish(f"{topic_prefix}/long", "x" * 100_000)
    _, letter = await dead_letters.next()
    assert (len(letter["error"]), len(letter["payload"])) == (2000, 65_536)


async def test_half_a_surrogate_pair_in_the_error(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder
) -> None:
    def fail(_topic: str, payload: Any) -> None:
        raise ValueError(payload["text"])

    client.subscribe(f"{topic_prefix}/surrogate", fail)
    await flush(client)
    await client.publish(f"{topic_prefix}/surrogate", rb'{"text": "\ud800", "trace_id": "\ud800"}')
    assert (await dead_letters.next())[1]["error"] == "\\ud800"


async def test_a_handler_that_is_cancelled_from_within(
    client: MQTTClient, topic_prefix: str, dead_letters: Recorder
) -> None:
    async def handle(_topic: str, _payload: Any) -> None:
        inner = asyncio.create_task(asyncio.sleep(3600))
        inner.cancel()
        await inner

    client.subscribe(f"{topic_prefix}/cancelled", handle)
    await flush(client)
    for _ in range(2):
        await client.publish(f"{topic_prefix}/cancelled", 1)
        assert (await dead_letters.next())[1]["error_type"] == "CancelledError"


async def test_a_dead_letter_never_makes_another(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    handled = Recorder()

    def fail(topic: str, payload: Any) -> None:
        handled(topic, payload)
        raise LookupError

    client.subscribe(f"{topic_prefix}/errors/#", fail)
    await flush(client)
    for n in range(2):
        await client.publish(f"{topic_prefix}/errors/other", n)
        await log.next("message_failed")
    assert handled.payloads == [0, 1]


async def test_a_dead_letter_that_cannot_be_sent(
    client: MQTTClient, topic_prefix: str, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    recorder = Recorder()

    def handle(topic: str, payload: Any) -> None:
        if payload == 1:
            raise UnprintableError
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/mixed", handle)
    await flush(client)
    await client.publish(f"{topic_prefix}/mixed", 1)
    await client.publish(f"{topic_prefix}/mixed", 2)
    await log.next("dead_letter_not_sent")
    assert (await recorder.next())[1] == 2


# End


async def test_disconnect_finishes_what_is_at_hand(
    client: MQTTClient, broker: Broker, topic_prefix: str
) -> None:
    started, release, recorder = asyncio.Event(), asyncio.Event(), Recorder()

    async def handle(topic: str, payload: Any) -> None:
        started.set()
        await release.wait()
        await client.publish(f"{topic_prefix}/result", payload)
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/work", handle)
    await flush(client)
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        await client.publish(f"{topic_prefix}/work", {"n": 1})
        await soon(started.wait())
        leaving = asyncio.create_task(client.disconnect(20))
        await asyncio.sleep(0)
        release.set()
        await soon(leaving)
        assert recorder.payloads == [{"n": 1}]
        await observer.next("result", n=1)
        await observer.next("tested/availability", status="offline")


async def test_a_handler_gets_the_answer_that_it_waits_for_at_the_end(
    client: MQTTClient, broker: Broker, make_client: MakeClient, topic_prefix: str
) -> None:
    responder, asked, release = make_client(broker, "responder"), asyncio.Event(), asyncio.Event()
    answers, late = Recorder(), Recorder()

    async def answer(_topic: str, request: dict[str, Any]) -> None:
        asked.set()
        await release.wait()
        await responder.respond(request, {"ok": True})

    async def ask(topic: str, _payload: Any) -> None:
        answers(topic, await client.request(f"{topic_prefix}/ask", {}))

    responder.subscribe(f"{topic_prefix}/ask", answer)
    responder.connect_background()
    await soon(responder.wait_connected())
    client.subscribe(f"{topic_prefix}/work", ask)
    client.subscribe(f"{topic_prefix}/late", late)
    await flush(client)
    await client.publish(f"{topic_prefix}/work", 1)
    await soon(asked.wait())
    draining = asyncio.create_task(client.drain(20))
    await asyncio.sleep(0)
    await responder.publish(f"{topic_prefix}/late", 1)
    release.set()
    await soon(draining)
    assert answers.payloads[0]["ok"] is True
    await client.disconnect()
    assert late.messages == []


async def test_disconnect_cuts_off_a_handler_that_never_ends(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    started, cut_off = asyncio.Event(), asyncio.Event()

    async def handle(_topic: str, _payload: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()

    client.subscribe(f"{topic_prefix}/endless", handle)
    await flush(client)
    await client.publish(f"{topic_prefix}/endless", 1)
    await soon(started.wait())
    await soon(client.disconnect(0.5))
    assert cut_off.is_set()
    assert (await log.next("handlers_cut_off"))["messages"] == 1


async def test_a_handler_may_disconnect(client: MQTTClient, topic_prefix: str) -> None:
    done = asyncio.Event()

    async def leave(_topic: str, _payload: Any) -> None:
        await client.disconnect(4)
        done.set()

    client.subscribe(f"{topic_prefix}/leave", leave)
    await flush(client)
    await client.publish(f"{topic_prefix}/leave", 1)
    await soon(done.wait())
    assert not client.thread_alive


async def test_a_full_disk_does_not_keep_it_from_connecting(
    broker: Broker,
    make_client: MakeClient,
    claim_session: Callable[[], Session],
    log: LogProbe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    client = make_client(broker, session=claim_session())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        client.connect_background()
        await soon(client.wait_connected())
        await log.next("session_not_saved")
    assert not client._session.persistent


# Settings


async def test_from_settings(
    broker: Broker, make_settings: Any, logger: structlog.stdlib.BoundLogger
) -> None:
    settings: Settings = make_settings()
    clients = [MQTTClient.from_settings(settings, "tested", logger) for _ in range(2)]
    assert clients[0].client_id != clients[1].client_id
    clients[0].connect_background()
    await soon(clients[0].wait_connected())
    await clients[0].disconnect()


def test_a_ca_file_that_cannot_be_used(
    make_settings: Any,
    logger: structlog.stdlib.BoundLogger,
    tmp_path: Path,
) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    settings: Settings = make_settings(mqtt_tls=True, mqtt_tls_ca_file=path)
    with pytest.raises(ConfigurationError, match="MQTT_TLS_CA_FILE"):
        MQTTClient.from_settings(settings, "tested", logger)


def test_an_argument_of_release_0_2_still_works(make_client: MakeClient, broker: Broker) -> None:
    client: Any = make_client(broker)
    message = r"version 2\.0 .* Write payload_format"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        client.subscribe("text", print, decoding="text")
    assert warned[0].filename == __file__
    assert client._dispatcher._subscriptions["text"].payload_format == "text"
