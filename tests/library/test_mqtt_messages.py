"""Messages that a broker rejects, keeps, repeats or sends by the thousand."""

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.enums import CallbackAPIVersion

from shared.mqtt import MQTTClient, PublishRejectedError, PublishTimeoutError
from shared.mqtt.dispatcher import MESSAGE_BYTES
from tests.library.conftest import Address, MakeClient, Mosquitto
from tests.library.probes import LogProbe, Recorder
from tests.observer import Observer, disconnect
from tests.probes import soon, until

type MakeMosquitto = Callable[..., Mosquitto]

LIMIT = 10_000


@pytest.fixture
def strict(make_mosquitto: MakeMosquitto) -> Mosquitto:
    """A broker that closes the connection for a larger packet, as Mosquitto 2.1 does at 2 MB."""
    broker = make_mosquitto(options=f"max_packet_size {LIMIT}\n")
    broker.start()
    return broker


async def connected(client: MQTTClient) -> MQTTClient:
    client.connect_background()
    await soon(client.wait_connected())
    return client


# Publishing


async def test_a_publish_that_the_broker_rejects_fails_and_the_service_goes_on(
    strict: Mosquitto, make_client: MakeClient, topic_prefix: str, log: LogProbe
) -> None:
    client = await connected(make_client(strict))
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/flow", recorder)
    numbered = [asyncio.create_task(client.publish(f"{topic_prefix}/flow", n)) for n in range(5)]
    too_large = asyncio.create_task(client.publish("large", b"x" * LIMIT))
    numbered += [
        asyncio.create_task(client.publish(f"{topic_prefix}/flow", n)) for n in range(5, 10)
    ]
    with pytest.raises(PublishRejectedError, match=f"large \\({LIMIT} bytes\\)"):
        await soon(too_large)
    await soon(asyncio.gather(*numbered))
    await recorder.until_payload(9)
    assert set(recorder.payloads) == set(range(10))
    rejected = await log.next("publish_rejected")
    assert (rejected["topic"], rejected["bytes"]) == ("large", LIMIT)
    # The connection stays.
    await soon(client.wait_connected())
    connection = client._connection._connection_id
    await client.publish(f"{topic_prefix}/flow", 10)
    await recorder.until_payload(10)
    assert client._connection._connection_id == connection


async def test_a_message_that_timed_out_is_not_sent_when_the_broker_returns(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    broker = make_mosquitto()
    client = make_client(broker)
    client.connect_background()
    for command, keep_trying in (("open", False), ("close", True)):
        with pytest.raises(PublishTimeoutError):
            await client.publish(
                f"{topic_prefix}/door/{command}",
                [],
                retain=True,
                timeout_seconds=0.01,
                keep_trying=keep_trying,
            )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.publish(f"{topic_prefix}/door/knock", [], retain=True)
    broker.start()
    # They are retained, because the client may be back before the observer has subscribed.
    async with Observer(broker.host, broker.port, f"{topic_prefix}/door") as observer:
        await soon(client.wait_connected())
        await client.publish(f"{topic_prefix}/door/end", [])
        await observer.next("end")
    assert observer.seen == [f"{topic_prefix}/door/close", f"{topic_prefix}/door/end"]
    assert not client._connection._client._out_messages


async def test_a_publish_returns_when_paho_no_longer_holds_the_message(
    broker: Any, make_client: MakeClient, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = Client._do_on_publish

    def remove_slowly(*args: Any) -> Any:
        time.sleep(0.1)  # on the network thread
        return removing(*args)

    monkeypatch.setattr(Client, "_do_on_publish", remove_slowly)
    client = await connected(make_client(broker))
    await client.publish(f"{topic_prefix}/door", [])
    assert not client._connection._client._out_messages


async def test_a_message_that_waits_behind_the_window_is_withdrawn_as_well(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    broker = make_mosquitto()
    broker.start()
    client = await connected(make_client(broker, keepalive_seconds=60))
    broker.freeze()
    timeouts = [client.publish(f"{topic_prefix}/late", n, timeout_seconds=0.05) for n in range(50)]
    results = await asyncio.gather(*timeouts, return_exceptions=True)
    assert all(isinstance(result, PublishTimeoutError) for result in results)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.publish(f"{topic_prefix}/late", "end"))
        broker.resume()
    # Paho's window has its places again.
    await until(lambda: client._connection._client._inflight_messages == 0)
    await asyncio.gather(*(client.publish(f"{topic_prefix}/after", n) for n in range(50)))


# Dead letters


async def test_a_dead_letter_is_bounded(
    broker: Any, make_client: MakeClient, topic_prefix: str
) -> None:
    client = await connected(make_client(broker, max_payload_bytes=500_000))
    letters = Recorder()
    client.subscribe(f"{topic_prefix}/errors/#", letters)
    client.subscribe(f"{topic_prefix}/failing", print, payload_format="json")
    for payload, kept, encoding in (
        (b"{" + "ä".encode() * 100_000, "{" + "ä" * 32_767, "utf-8"),
        (b"\xff" * 100_000, base64.b64encode(b"\xff" * 65_536).decode(), "base64"),
        (b"[" * 500_001, "", "utf-8"),
    ):
        await client.publish(f"{topic_prefix}/failing", payload)
        letter = (await letters.next())[1]
        assert (letter["payload"], letter["encoding"]) == (kept, encoding)
        assert letter["payload_bytes"] == len(payload)
        assert letter["payload_sha256"] == hashlib.sha256(payload).hexdigest()
    assert "MQTT_MAX_PAYLOAD_BYTES (500000)" in letter["error"]
    await client.publish(f"{topic_prefix}/failing", b"small")
    letter = (await letters.next())[1]
    assert letter["payload"] == "small"
    assert "payload_sha256" not in letter


async def test_a_message_that_meets_a_full_disk_waits_and_is_no_dead_letter(
    broker: Any,
    make_client: MakeClient,
    topic_prefix: str,
    log: LogProbe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher._FIRST_PAUSE_SECONDS", 0.01)
    client = await connected(make_client(broker))
    recorder, letters = Recorder(), Recorder()
    failures = [OSError(28, "No space left on device"), OSError(24, "Too many open files")]

    def handle(topic: str, payload: Any) -> None:
        if failures:
            raise failures.pop()
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/stored", handle, deduplicate=True)
    client.subscribe(f"{topic_prefix}/errors/#", letters)
    for n in range(3):
        await client.publish(f"{topic_prefix}/stored", {"request_id": str(n)})
    assert (await log.next("subscription_paused"))["topic"] == f"{topic_prefix}/stored"
    await recorder.until_payload({"request_id": "2"})
    assert [payload["request_id"] for payload in recorder.payloads] == ["0", "1", "2"]
    assert letters.payloads == []


# Retained messages


async def publish_retained(broker: Address, prefix: str, count: int, size: int) -> None:
    def publish() -> None:
        client = Client(CallbackAPIVersion.VERSION2)
        client.max_inflight_messages = 1000
        client.connect(broker.host, broker.port)
        client.loop_start()
        messages = [
            client.publish(f"{prefix}/kept/{n}", str(n).ljust(size), qos=1, retain=True)
            for n in range(count)
        ]
        for message in messages:
            message.wait_for_publish(60)
        disconnect(client)

    await asyncio.to_thread(publish)


async def until_all_is_handled(client: MQTTClient, prefix: str) -> None:
    """Whatever the broker has sent twice comes before this."""
    end = Recorder()
    client.subscribe(f"{prefix}/end", end)
    await client.publish(f"{prefix}/end", 1)
    await end.next()
    await until(lambda: not client._dispatcher._unfinished)


async def assert_retained_is_handled_once(
    broker: Address, client: MQTTClient, topic_prefix: str, count: int, qos: Any
) -> None:
    """Retain so many messages at a broker, and receive them on one wildcard."""
    await publish_retained(broker, topic_prefix, count, 200)
    handled: list[int] = []
    done = asyncio.Event()

    def handle(_topic: str, payload: int) -> None:
        if not handled:
            # The others arrive meanwhile, as at the start of a busy service.
            time.sleep(0.5)
        handled.append(payload)
        if len(set(handled)) == count:
            done.set()

    client.subscribe(f"{topic_prefix}/kept/+", handle, qos=qos)
    client.connect_background()
    await soon(done.wait())
    await until_all_is_handled(client, topic_prefix)
    assert sorted(handled) == list(range(count))
    assert client._dispatcher._dropped == 0


@pytest.mark.parametrize(("count", "qos"), [(1500, 1), (3000, 0)])
async def test_each_of_thousands_of_retained_messages_is_handled_once(
    mosquitto: Mosquitto, make_client: MakeClient, topic_prefix: str, count: int, qos: Any
) -> None:
    client = make_client(mosquitto)
    await assert_retained_is_handled_once(mosquitto, client, topic_prefix, count, qos)
    assert client._connection._connection_id == 1


async def test_retained_messages_that_exceed_the_limit_are_not_sent_from_the_start_again(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    log: LogProbe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Less than the broker sends without an acknowledgement.
    monkeypatch.setattr("shared.mqtt.dispatcher.MAX_QUEUED_BYTES", 10 * MESSAGE_BYTES)
    count = 100
    await publish_retained(mosquitto, topic_prefix, count, 1)
    client = make_client(mosquitto)
    handled: list[int] = []
    release, done = asyncio.Event(), asyncio.Event()

    async def handle(_topic: str, payload: int) -> None:
        await release.wait()
        handled.append(payload)
        if len(set(handled)) == count:
            done.set()

    client.subscribe(f"{topic_prefix}/kept/+", handle)
    client.connect_background()
    await until(lambda: client._dispatcher._overrun_connection_id > 0)
    release.set()
    await soon(done.wait())
    assert "messages_too_many" in log.names()
    await until_all_is_handled(client, topic_prefix)
    assert sorted(handled) == list(range(count))


# Sessions


async def test_a_client_without_a_session_leaves_none_at_the_broker(
    mosquitto: Mosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    client = await connected(make_client(mosquitto, session=None))
    client.subscribe(f"{topic_prefix}/flow", print)
    await client.disconnect()
    loop = asyncio.get_running_loop()
    is_present = loop.create_future()
    again = Client(CallbackAPIVersion.VERSION2, client.client_id, clean_session=False)

    def on_connect(_client: Client, _userdata: object, flags: ConnectFlags, *_: object) -> None:
        loop.call_soon_threadsafe(is_present.set_result, flags.session_present)

    again.on_connect = on_connect
    again.connect_async(mosquitto.host, mosquitto.port)
    again.loop_start()
    assert not await soon(is_present)
    await asyncio.to_thread(disconnect, again)


async def test_a_restarted_replica_takes_over_the_session_of_the_killed_one(
    mosquitto: Mosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    handled: list[int] = []
    done = asyncio.Event()

    def handle(_topic: str, payload: int) -> None:
        handled.append(payload)
        if len(set(handled)) == 60:
            done.set()

    def start() -> MQTTClient:
        client = make_client(mosquitto)
        client.subscribe(f"{topic_prefix}/work", handle, shared=True)
        return client

    replicas = [await connected(start()) for _ in range(2)]
    publisher = await connected(make_client(mosquitto, "publisher"))
    killed = replicas[1]
    # As the system ends it: the lock is free, and the broker notices nothing but a lost connection.
    os.close(killed._session._descriptor or 0)
    killed._session._descriptor = None
    killed._connection._stopped = True
    killed._connection.abort()
    await until(lambda: not killed._connection.connected)
    for n in range(30):
        await publisher.publish(f"{topic_prefix}/work", n)
    restarted = await connected(start())
    assert restarted.client_id == killed.client_id
    for n in range(30, 60):
        await publisher.publish(f"{topic_prefix}/work", n)
    await soon(done.wait())
    assert sorted(handled) == list(range(60))
