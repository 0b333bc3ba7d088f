"""The client in memory behaves as the client with a broker: each test runs on both."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import BaseModel, RootModel

from shared.mqtt import (
    MQTTClient,
    NotConnectedError,
    PayloadError,
    PayloadFormat,
    PublishTimeoutError,
    RequestTimeoutError,
)
from shared.tracing import current_trace_id
from tests.fakes import FakeMQTT
from tests.library.conftest import MakeClient
from tests.library.probes import Recorder
from tests.observer import PATIENCE_SECONDS
from tests.probes import soon, until


class Reading(BaseModel):
    celsius: float
    note: str | None = None


class Number(RootModel[float]):
    pass


class Side:
    """A client under test, and the other end of its connection."""

    def __init__(self, client: MQTTClient, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    async def send(self, event: str, payload: Any, *, retain: bool = False) -> None:
        raise NotImplementedError

    def sent(self, event: str) -> list[Any]:
        """Return what the client has published."""
        raise NotImplementedError

    async def next_sent(self, event: str, count: int = 1) -> list[Any]:
        await until(lambda: len(self.sent(event)) >= count)
        return self.sent(event)

    def topic(self, event: str) -> str:
        return f"{self.prefix}/{event}"

    def subscribe(self, event: str, handler: Any, **options: Any) -> None:
        self.client.subscribe(self.topic(event), handler, **options)


class FakeSide(Side):
    client: FakeMQTT

    async def send(self, event: str, payload: Any, *, retain: bool = False) -> None:
        if retain:
            self.client.retained[self.topic(event)] = payload
        await self.client.deliver(self.topic(event), payload)

    def sent(self, event: str) -> list[Any]:
        return self.client.payloads(self.topic(event))


class RealSide(Side):
    def __init__(self, client: MQTTClient, prefix: str, peer: MQTTClient) -> None:
        super().__init__(client, prefix)
        self.peer, self.recorder = peer, Recorder()
        peer.subscribe(f"{prefix}/#", self.recorder, payload_format="auto")

    async def send(self, event: str, payload: Any, *, retain: bool = False) -> None:
        await self.peer.publish(self.topic(event), payload, retain=retain)

    def sent(self, event: str) -> list[Any]:
        return [payload for topic, payload in self.recorder.messages if topic == self.topic(event)]


@pytest.fixture(params=["memory", "broker"])
async def side(
    request: pytest.FixtureRequest, topic_prefix: str, make_client: MakeClient
) -> AsyncIterator[Side]:
    if request.param == "memory":
        side: Side = FakeSide(FakeMQTT("tested", topic_prefix), topic_prefix)
    else:
        broker = request.getfixturevalue("broker")
        peer = make_client(broker, "peer")
        side = RealSide(make_client(broker), topic_prefix, peer)
        peer.connect_background()
        await peer.wait_connected(PATIENCE_SECONDS)
    yield side
    await side.client.disconnect()


async def connected(side: Side) -> None:
    side.client.connect_background()
    await side.client.wait_connected(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("payload_format", "model", "payload", "expected"),
    [
        ("json", None, {"n": (1, 2)}, {"n": [1, 2]}),
        ("json", None, '"on"', "on"),
        ("json", None, None, None),
        ("json", Reading, {"celsius": 20}, Reading(celsius=20)),
        ("text", None, {"n": 1}, '{"n":1}'),
        ("text", Number, "21.5", Number(21.5)),
        ("bytes", None, b"\xff", b"\xff"),
        ("auto", None, "on", "on"),
        ("auto", None, '"on"', "on"),
        ("auto", None, "21.5", 21.5),
        ("auto", None, '{"state": "ON"}', {"state": "ON"}),
        ("auto", None, "NaN", "NaN"),
        ("auto", None, b"\xff", b"\xff"),
        ("auto", None, None, None),
        ("auto", Reading, {"celsius": 20}, Reading(celsius=20)),
    ],
)
async def test_a_handler_gets_the_payload_in_its_format(
    side: Side, payload_format: PayloadFormat, model: type[BaseModel], payload: Any, expected: Any
) -> None:
    recorder = Recorder()
    side.subscribe("in", recorder, payload_format=payload_format, model=model)
    await connected(side)
    await side.send("in", payload)
    assert await recorder.next() == (side.topic("in"), expected)


@pytest.mark.parametrize(
    ("payload_format", "model", "payload", "error_type"),
    [
        ("json", None, "on", "PayloadError"),
        ("json", None, b"\xff", "PayloadError"),
        ("json", None, '{"n": NaN}', "PayloadError"),
        ("text", None, b"\xff", "PayloadError"),
        ("json", Reading, {"temperature": 20}, "ValidationError"),
        ("auto", Reading, "on", "ValidationError"),
        ("bytes", Number, b"x", "ValidationError"),
    ],
)
async def test_a_payload_that_is_not_valid_becomes_a_dead_letter(
    side: Side, payload_format: PayloadFormat, model: type[BaseModel], payload: Any, error_type: str
) -> None:
    recorder = Recorder()
    side.subscribe("in", recorder, payload_format=payload_format, model=model)
    await connected(side)
    await side.send("in", payload)
    (letter,) = await side.next_sent("errors/tested")
    assert (letter["error_type"], letter["original_topic"]) == (error_type, side.topic("in"))
    assert letter["encoding"] == ("base64" if payload == b"\xff" else "utf-8")
    assert recorder.messages == []


async def test_a_handler_that_fails_leaves_a_dead_letter_and_gets_the_next_message(
    side: Side,
) -> None:
    recorder = Recorder()

    async def handle(topic: str, payload: Any) -> None:
        if payload == 1:
            raise KeyError("room")
        recorder(topic, (payload, current_trace_id()))

    side.subscribe("in", handle)
    await connected(side)
    await side.send("in", 1)
    await side.send("in", {"trace_id": "t"})
    assert (await recorder.next())[1] == ({"trace_id": "t"}, "t")
    (letter,) = await side.next_sent("errors/tested")
    assert (letter["error"], letter["payload"], letter["service"]) == ("'room'", "1", "tested")


async def test_every_matching_handler_is_called_once_and_in_order(side: Side) -> None:
    exact, wild = Recorder(), Recorder()
    side.subscribe("room/1", Recorder())
    side.subscribe("room/1", exact)
    side.subscribe("other/+", wild)
    await connected(side)
    for number in range(10):
        await side.send("room/1", number)
        await side.send("other/1", number)
    await exact.until_payload(9)
    await wild.until_payload(9)
    assert exact.payloads == wild.payloads == list(range(10))
    side.client.unsubscribe(side.topic("room/1"))
    with pytest.raises(ValueError, match="filter"):
        side.subscribe("room/#/1", print)


async def test_deduplicate_skips_what_was_received_before(side: Side) -> None:
    recorder = Recorder()
    side.subscribe("in/+", recorder, deduplicate=True)
    await connected(side)
    for event, message in (
        ("in/1", {"request_id": "r", "n": 1}),
        ("in/1", {"request_id": "r", "n": 2}),
        ("in/2", {"request_id": "r", "n": 3}),
        ("in/1", {"trace_id": "t", "n": 4}),
        ("in/1", {"trace_id": "t", "n": 4}),
        ("in/1", {"trace_id": "t", "n": 5}),
        ("in/1", {"n": 6}),
        ("in/1", {"n": 6}),
        ("in/1", {"n": 7}),
    ):
        await side.send(event, message)
    await until(lambda: bool(recorder.payloads) and recorder.payloads[-1]["n"] == 7)
    assert [message["n"] for message in recorder.payloads] == [1, 3, 4, 5, 6, 6, 7]


async def test_a_new_subscription_gets_retained_messages_unless_it_skips_them(side: Side) -> None:
    await side.send("kept/1", {"celsius": 20}, retain=True)
    every, fresh, typed = Recorder(), Recorder(), Recorder()
    side.subscribe("kept/+", every)
    side.subscribe("kept/1", fresh, skip_retained=True)
    side.subscribe("kept/#", typed, model=Reading)
    await connected(side)
    assert (await every.next())[1] == {"celsius": 20}
    assert (await typed.next())[1] == Reading(celsius=20)
    await side.send("kept/1", None, retain=True)
    await every.until_payload(None)
    await fresh.until_payload(None)
    # A broker may send a message once for each filter, and every handler gets it each time.
    assert set(map(str, every.payloads)) == {"{'celsius': 20}", "None"}
    assert set(fresh.payloads) == {None}
    assert {type(payload) for payload in typed.payloads} == {Reading}
    assert side.sent("errors/tested") == []


async def test_publish_sends_json_text_and_bytes_also_to_itself(side: Side) -> None:
    recorder = Recorder()
    side.subscribe("out", recorder, payload_format="auto")
    await connected(side)
    for payload in ({"n": (1, 2)}, Reading(celsius=1), "text", [True], 1.5, b"\xff"):
        await side.client.publish(side.topic("out"), payload)
    await recorder.until_payload(b"\xff")
    expected = [{"n": [1, 2]}, {"celsius": 1.0}, "text", [True], 1.5, b"\xff"]
    assert await side.next_sent("out", len(expected)) == expected
    assert recorder.payloads == expected


async def test_topics_and_payloads_that_are_not_valid_are_rejected(side: Side) -> None:
    await connected(side)
    with pytest.raises(ValueError, match="wildcard"):
        await side.client.publish("a/#", {})
    with pytest.raises(PayloadError):
        await side.client.publish("a", {"n": float("nan")})
    with pytest.raises(PayloadError, match="reply_to"):
        await side.client.respond({"reply_to": "a/#"}, {})


async def test_without_a_connection(side: Side) -> None:
    client = side.client
    with pytest.raises(NotConnectedError):
        await client.wait_connected(0.01)
    with pytest.raises(NotConnectedError):
        await client.publish("a", 1, qos=0)
    if isinstance(client, FakeMQTT):
        # A client that was never started has no thread that paho could pass the message to.
        with pytest.raises(PublishTimeoutError):
            await client.publish("a", 1, timeout_seconds=0.01)
    await connected(side)
    assert client.connected
    assert client.thread_alive
    await client.disconnect()
    assert not client.connected
    for qos in (0, 1):
        with pytest.raises(NotConnectedError):
            await client.publish("a", 1, qos=qos)
    with pytest.raises(NotConnectedError):
        await client.request("a", {})


async def test_availability_is_published_at_the_start_and_the_end(side: Side) -> None:
    def availability() -> Any:
        if isinstance(side, FakeSide):
            return side.client.retained.get(side.topic("tested/availability"))
        return (side.sent("tested/availability") or [None])[-1]

    await connected(side)
    await until(lambda: bool(availability()) and availability()["status"] == "online")
    await side.client.disconnect()
    await until(lambda: bool(availability()["status"] == "offline"))
    assert availability()["reason"] == "stopped"


async def test_a_request_and_its_reply(side: Side) -> None:
    if isinstance(side, FakeSide):
        side.client.replies[side.topic("ask")] = {"n": 42}
    elif isinstance(side, RealSide):
        peer = side.peer

        async def reply(_topic: str, request: Any) -> None:
            await peer.respond(request, {"n": 42})

        peer.subscribe(side.topic("ask"), reply)
    await connected(side)
    asking: Callable[[], Any] = lambda: side.client.request(side.topic("ask"), {"a": 1})  # noqa: E731
    assert (await soon(asking()))["n"] == 42
    if isinstance(side, FakeSide):
        (request,) = side.sent("ask")
        envelope = {"trace_id", "request_id", "reply_to", "expires_at"}
        assert request.keys() == {"a", *envelope}


async def test_a_request_without_a_reply(side: Side) -> None:
    await connected(side)
    with pytest.raises(RequestTimeoutError, match=r"nobody in 0\.05 s"):
        await side.client.request(side.topic("nobody"), {"n": 1}, timeout_seconds=0.05)
    assert (await side.next_sent("nobody"))[0]["n"] == 1
    with pytest.raises(ValueError, match="request_id must be text"):
        await side.client.request(side.topic("nobody"), {"request_id": 7})


async def test_respond_uses_the_topic_of_the_request(side: Side) -> None:
    await connected(side)
    request = {"reply_to": side.topic("there"), "request_id": "r"}
    await side.client.respond(request, {"ok": True})
    await side.client.respond({}, {"ok": False})
    assert await side.next_sent("there") == [{"ok": True, "request_id": "r"}]
    assert await side.next_sent("tested/response") == [{"ok": False}]


async def test_drain_finishes_the_handlers_at_work(side: Side) -> None:
    started, released, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(_topic: str, _payload: Any) -> None:
        started.set()
        await released.wait()
        finished.set()

    side.subscribe("in", handle)
    await connected(side)
    sending = asyncio.create_task(side.send("in", 1))
    await soon(started.wait())
    draining = asyncio.create_task(side.client.drain(PATIENCE_SECONDS))
    released.set()
    await soon(draining)
    await soon(sending)
    assert finished.is_set()


async def test_in_memory_a_connection_can_be_lost_and_made_again(topic_prefix: str) -> None:
    fake = FakeMQTT("tested", topic_prefix)
    fake.connect_background()
    await fake.wait_connected()
    fake.connected = False
    assert not fake.connected
    with pytest.raises(NotConnectedError):
        await fake.publish("a", 1, qos=0)
    waiting = asyncio.create_task(fake.publish("a", 1))
    fake.connected = True
    await soon(waiting)
    await soon(fake.wait_connected())
    await fake.wait_for(lambda: fake.payloads("a") == [1])
    fake.thread_alive = False
    assert not fake.thread_alive
    await fake.disconnect()
    assert fake.disconnected
