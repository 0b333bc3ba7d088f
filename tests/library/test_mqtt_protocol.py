"""Packets of the client, and its reaction to packets that no correct broker sends."""

import asyncio
import json
import logging
import struct
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from shared.mqtt import MQTTClient, NotConnectedError, PublishTimeoutError
from tests.library.conftest import MakeClient
from tests.library.probes import LogProbe, Recorder
from tests.library.scripted_broker import Kind, ScriptedBroker
from tests.probes import soon, until


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedBroker]:
    async with ScriptedBroker() as broker:
        yield broker


@pytest.fixture
def client(scripted: ScriptedBroker, make_client: MakeClient) -> MQTTClient:
    return make_client(scripted, session=None)


async def test_birth_comes_after_the_subscriptions_are_confirmed(
    scripted: ScriptedBroker, client: MQTTClient, topic_prefix: str
) -> None:
    client.subscribe("wanted/#", print)
    scripted.silent_on = {Kind.SUBSCRIBE}
    client.connect_background()
    for _ in range(2):
        # All filters in one packet, the second time after a broken connection.
        subscribe = await scripted.next(Kind.SUBSCRIBE)
        assert b"wanted/#" in subscribe.body
        assert b"/availability" in subscribe.body
        assert not client.connected
        scripted.acknowledge_subscription(subscribe)
        birth = await scripted.next_publish(f"{topic_prefix}/tested/availability")
        assert birth.body.endswith(b'"status":"online"}')
        # Retained, at QoS 1.
        assert birth.flags & 0b0111 == 0b0011
        await soon(client.wait_connected())
        scripted.drop_connection()


async def test_a_refused_subscription_is_reported_and_the_others_work(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    recorder = Recorder()
    client.subscribe("forbidden", print)
    client.subscribe("allowed", recorder)
    scripted.refused_topic = "forbidden"
    client.connect_background()
    assert (await log.next("subscription_refused"))["topic"] == "forbidden"
    await soon(client.wait_connected())
    scripted.deliver(b"allowed", b"1")
    assert (await recorder.next())[1] == 1


async def test_a_topic_that_is_no_utf8_is_reported_acknowledged_and_skipped(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    recorder = Recorder()
    client.subscribe("#", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.deliver(b"\xff\xfe", b"1", mid=7)
    scripted.deliver(b"good", b"2", mid=8)
    assert "ff" in (await log.next("topic_not_utf8"))["topic"]
    assert await recorder.next() == ("good", 2)
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\7"
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\x08"
    assert client.thread_alive


async def test_a_message_is_acknowledged_after_it_was_handled(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    release, recorder = asyncio.Event(), Recorder()

    async def wait(topic: str, payload: object) -> None:
        await release.wait()
        recorder(topic, payload)

    client.subscribe("slow", wait)
    client.subscribe("quick", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.deliver(b"slow", b"1", mid=1)
    scripted.deliver(b"quick", b"2", mid=2)
    scripted.deliver(b"nobody", b"3", mid=3)
    mids = {(await scripted.next(Kind.PUBACK)).mid for _ in range(2)}
    assert mids == {b"\0\2", b"\0\3"}
    release.set()
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\1"
    assert recorder.payloads == [2, 1]


async def test_a_message_whose_dead_letter_is_not_sent_stays_unacknowledged(
    scripted: ScriptedBroker, make_client: MakeClient, log: LogProbe
) -> None:
    def fail(_topic: str, _payload: object) -> None:
        raise LookupError

    client = make_client(scripted, publish_timeout_seconds=0.1)
    client.subscribe("failing", fail)
    client.subscribe("good", lambda *_: None)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.PUBLISH}
    scripted.deliver(b"failing", b"1", mid=1)
    await log.next("dead_letter_not_sent")
    scripted.deliver(b"good", b"2", mid=2)
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\2"
    scripted.silent_on = set()


async def test_an_old_acknowledgement_is_not_sent_on_a_new_connection(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    """Message ids start again: it would acknowledge a message that nobody has handled."""
    release, recorder = asyncio.Event(), Recorder()

    async def wait(topic: str, payload: object) -> None:
        await release.wait()
        recorder(topic, payload)

    client.subscribe("slow", wait)
    client.subscribe("quick", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.deliver(b"slow", b"1", mid=1)
    scripted.deliver(b"quick", b"0", mid=9)
    await scripted.next(Kind.PUBACK)
    scripted.drop_connection()
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    release.set()
    await recorder.until_payload(1)
    scripted.deliver(b"quick", b"2", mid=2)
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\2"


async def test_a_message_sent_again_while_it_waits_is_handled_once(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    release, recorder = asyncio.Event(), Recorder()

    async def wait(topic: str, payload: object) -> None:
        await release.wait()
        recorder(topic, payload)

    client.subscribe("slow", wait)
    client.subscribe("quick", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.deliver(b"slow", b"1", mid=1)
    scripted.deliver(b"slow", b"2", mid=2)
    scripted.drop_connection()
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    scripted.deliver(b"slow", b"1", mid=1, duplicate=True)
    # The same message id, but another message: the broker has lost its memory.
    scripted.deliver(b"slow", b"3", mid=2, duplicate=True)
    scripted.deliver(b"quick", b"4", mid=4)
    await recorder.until_payload(4)
    release.set()
    await recorder.until_payload(3)
    assert recorder.payloads == [4, 1, 2, 3]
    mids = [(await scripted.next(Kind.PUBACK)).mid for _ in range(3)]
    assert mids == [b"\0\4", b"\0\1", b"\0\2"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (2, ("Client identifier not valid", "MQTT_CLIENT_ID")),
        (3, ("Server unavailable", "log of the broker")),
        (4, ("Bad user name or password", "MQTT_PASSWORD")),
        (5, ("Not authorized", "MQTT_PASSWORD")),
    ],
)
async def test_a_refused_connection_is_reported(
    scripted: ScriptedBroker,
    client: MQTTClient,
    log: LogProbe,
    code: int,
    expected: tuple[str, str],
) -> None:
    scripted.connack = bytes([0, code])
    client.connect_background()
    refused = await log.next("mqtt_connection_refused")
    assert refused["reason"] == expected[0]
    assert expected[1] in refused["hint"]
    assert not client.connected
    scripted.connack = b"\0\0"
    await soon(client.wait_connected())


@pytest.mark.parametrize(
    ("username", "is_sent"), [("sensor", True), ("services", False), ("", False)]
)
async def test_a_user_name_without_a_password(
    scripted: ScriptedBroker,
    make_settings: Any,
    logger: structlog.stdlib.BoundLogger,
    username: str,
    is_sent: bool,
) -> None:
    settings = make_settings(
        mqtt_host=scripted.host, mqtt_port=scripted.port, mqtt_username=username
    )
    client = MQTTClient.from_settings(settings, "tested", logger)
    client.connect_background()
    flags = (await scripted.next(Kind.CONNECT)).body[7]
    assert (bool(flags & 0x80), bool(flags & 0x40)) == (is_sent, False)
    await client.disconnect()


async def test_a_broker_that_rejects_the_protocol_is_reported(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    scripted.connack = b"\0\1"
    client.connect_background()
    refused = await log.next("mqtt_connection_refused")
    assert refused["reason"] == "Unsupported protocol version"


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
async def test_every_packet_is_logged_when_debugging_only(
    scripted: ScriptedBroker,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    level: int,
) -> None:
    """paho gets a logger only at DEBUG, because it calls every lost connection an error."""
    with caplog.at_level(level, "paho"):
        client = make_client(scripted, password="s3cret", username="user")
        client.connect_background()
        await soon(client.wait_connected())
        assert (client._connection._client._logger is None) == (level != logging.DEBUG)
        await client.disconnect()
    lines = [record.getMessage() for record in caplog.records if record.name == "paho"]
    assert any("Sending CONNECT" in line for line in lines) == (level == logging.DEBUG)
    assert "s3cret" not in str(lines)


async def test_no_acknowledgement_for_a_message(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.PUBLISH}
    with pytest.raises(PublishTimeoutError, match=r"asked in 0\.05 s"):
        await client.publish("asked", 1, timeout_seconds=0.05)
    scripted.silent_on = set()


async def test_a_message_without_acknowledgement_is_sent_again(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.PUBLISH}
    publishing = asyncio.create_task(client.publish("again", {"n": 1}))
    first = await scripted.next_publish("again")
    scripted.silent_on = set()
    scripted.drop_connection()
    second = await scripted.next_publish("again")
    await soon(publishing)
    # The same message, marked as a repetition (section 3.3.1.1).
    assert (first.body, first.flags | 0b1000) == (second.body, second.flags)
    assert json.loads(second.body[-7:]) == {"n": 1}


async def test_qos_0_fails_at_once_when_the_connection_is_lost(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    scripted.connack = b"\0\5"
    scripted.drop_connection()
    await log.next("mqtt_disconnected")
    with pytest.raises(NotConnectedError):
        await client.publish("now", 1, qos=0)


async def test_its_own_retained_status_is_acknowledged_though_not_handled(
    scripted: ScriptedBroker, client: MQTTClient, topic_prefix: str
) -> None:
    """A message left unacknowledged would take one more place in the broker's window each time."""
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/+/availability", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    own = f"{topic_prefix}/tested/availability".encode()
    # At QoS 0 there is nothing to acknowledge, and a broker rejects the message id 0.
    scripted.deliver(own, b'{"status": "offline"}', retain=True)
    scripted.deliver(own, b'{"status": "offline"}', mid=7, retain=True)
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\7"
    scripted.deliver(f"{topic_prefix}/other/availability".encode(), b"1", mid=8, retain=True)
    await recorder.next()
    assert recorder.payloads == [1]


async def test_disconnect_says_goodbye_in_order(
    scripted: ScriptedBroker, client: MQTTClient, topic_prefix: str
) -> None:
    client.subscribe("wanted", print)
    client.connect_background()
    await soon(client.wait_connected())
    await soon(client.disconnect())
    assert b"wanted" in (await scripted.next(Kind.UNSUBSCRIBE)).body
    farewell = await scripted.next_publish(f"{topic_prefix}/tested/availability")
    status = json.loads(farewell.body[farewell.body.index(b"{") :])
    assert (status["status"], status["reason"]) == ("offline", "stopped")
    await scripted.next(Kind.DISCONNECT)
    assert scripted.connections == 1


async def test_without_a_farewell_the_last_will_is_left_to_tell(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.PUBLISH}
    await soon(client.disconnect(0.1))
    assert "offline_message_not_sent" in log.names()
    # Which the broker does not publish after a DISCONNECT (section 3.14.4).
    assert Kind.DISCONNECT not in await scripted.rest_of_connection()
    await until(lambda: not client.thread_alive)


async def test_a_client_that_gives_up_its_connection_does_not_wait_to_connect_again(
    scripted: ScriptedBroker, client: MQTTClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.PUBLISH}
    connection, waits = client._connection, list[bool]()
    abort = connection.abort

    def abort_and_wait() -> None:
        abort()
        # The network thread sees the end of the connection before the client goes on.
        while client.thread_alive and not waits:
            time.sleep(0.001)

    monkeypatch.setattr(connection, "abort", abort_and_wait)
    monkeypatch.setattr(connection._client, "_reconnect_wait", lambda: waits.append(True))
    await soon(client.disconnect(0.1))
    assert waits == []
    await until(lambda: not client.thread_alive)


async def test_a_message_of_a_connection_that_is_not_known_yet_is_acknowledged(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    recorder = Recorder()
    client.subscribe("in", recorder)
    client.connect_background()
    await soon(client.wait_connected())
    # As after the end of the last connection, which the event loop learns first.
    client._connection.connected = False
    scripted.deliver(b"in", b"1", mid=7)
    assert (await scripted.next(Kind.PUBACK)).mid == b"\0\7"


async def test_a_message_of_a_lost_connection_is_not_acknowledged_on_the_next_one(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    started, release, handled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(_topic: str, _payload: object) -> None:
        started.set()
        await release.wait()
        handled.set()

    client.subscribe("in", wait)
    client.connect_background()
    await soon(client.wait_connected())
    await scripted.next(Kind.PUBLISH)
    scripted.deliver(b"in", b"1", mid=7)
    await soon(started.wait())
    scripted.silent_on = {Kind.CONNECT}
    scripted.drop_connection()
    await scripted.next(Kind.CONNECT)
    release.set()
    await soon(handled.wait())
    await asyncio.sleep(0)
    scripted.send(Kind.CONNACK, scripted.connack)
    await soon(client.wait_connected())
    await client.disconnect()
    assert Kind.PUBACK not in await scripted.rest_of_connection()


async def test_a_connection_that_comes_back_at_the_end_takes_no_more_messages(
    scripted: ScriptedBroker, client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    release, started, recorder = asyncio.Event(), asyncio.Event(), Recorder()

    async def wait(topic: str, payload: object) -> None:
        started.set()
        await release.wait()
        recorder(topic, payload)

    client.subscribe("wanted", wait)
    client.connect_background()
    await scripted.next(Kind.SUBSCRIBE)
    await soon(client.wait_connected())
    scripted.deliver(b"wanted", b"1", mid=1)
    await soon(started.wait())
    draining = asyncio.create_task(client.drain(20))
    await scripted.next(Kind.UNSUBSCRIBE)
    scripted.drop_connection()
    # The session lives on, and the first UNSUBSCRIBE may have been lost.
    assert b"wanted" in (await scripted.next(Kind.UNSUBSCRIBE)).body
    again = (await scripted.next(Kind.SUBSCRIBE)).body
    assert b"wanted" not in again
    assert b"/response/" in again
    await soon(client.wait_connected())
    # A broker may still send what was on its way.
    scripted.deliver(b"wanted", b"2", mid=2)
    scripted.deliver(client._reply_topic.encode(), b"{}")
    await log.next("reply_unexpected")
    release.set()
    await soon(draining)
    assert recorder.payloads == [1]


async def test_an_unsubscription_that_was_lost_is_sent_again(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    client.subscribe("ended", print)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.silent_on = {Kind.UNSUBSCRIBE}
    client.unsubscribe("ended")
    await scripted.next(Kind.UNSUBSCRIBE)
    scripted.silent_on = set()
    scripted.drop_connection()
    assert b"ended" in (await scripted.next(Kind.UNSUBSCRIBE)).body
    await soon(client.wait_connected())
    await until(lambda: "ended" not in client._session.filters)


async def test_a_message_at_work_is_acknowledged_on_a_late_connection(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe
) -> None:
    release, started = asyncio.Event(), asyncio.Event()

    async def wait(_topic: str, _payload: object) -> None:
        started.set()
        await release.wait()

    client.subscribe("wanted", wait)
    client.connect_background()
    await soon(client.wait_connected())
    scripted.deliver(b"wanted", b"1", mid=7)
    await soon(started.wait())
    draining = asyncio.create_task(client.drain(20))
    await scripted.next(Kind.UNSUBSCRIBE)
    scripted.drop_connection()
    await scripted.next(Kind.SUBSCRIBE)
    await soon(client.wait_connected())
    scripted.deliver(b"wanted", b"1", mid=7, duplicate=True)
    scripted.deliver(b"wanted", b"2", mid=8, duplicate=True)
    # A message on the reply topic is handled after them.
    scripted.deliver(client._reply_topic.encode(), b"{}")
    await log.next("reply_unexpected")
    release.set()
    await soon(draining)
    assert (await scripted.next(Kind.PUBACK)).mid == struct.pack("!H", 7)


async def test_a_network_thread_that_does_not_end_is_reported_and_left(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.connect_background()
    await soon(client.wait_connected())
    paho, stop = client._connection._client, threading.Event()
    loop_stop = paho.loop_stop
    monkeypatch.setattr(paho, "loop_stop", stop.wait)
    await soon(client.disconnect(0.2))
    assert "network_thread_still_running" in log.names()
    stop.set()
    await asyncio.to_thread(loop_stop)


async def test_a_network_thread_that_ends_while_it_is_stopped(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paho's `loop_stop` then trips over its own reference to the thread."""
    client.connect_background()
    await soon(client.wait_connected())
    paho = client._connection._client
    loop_stop = paho.loop_stop

    def trip() -> None:
        loop_stop()
        raise AttributeError

    monkeypatch.setattr(paho, "loop_stop", trip)
    await soon(client.disconnect())
    assert not client.thread_alive
    assert "network_thread_ended_first" in log.names()
