"""Faults of a real broker: away, killed, frozen, flooded, unfriendly."""

import asyncio
import base64
import gc
import hashlib
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trustme
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from shared.config import ConfigurationError
from shared.mqtt import (
    MQTTClient,
    NotConnectedError,
    PublishTimeoutError,
    QueueFullError,
)
from shared.mqtt.dispatcher import MESSAGE_BYTES
from shared.mqtt.session import Session
from tests.brokers import HOST, free_port
from tests.library.conftest import MakeClient, Mosquitto
from tests.library.probes import LogProbe, Recorder
from tests.observer import Observer, disconnect
from tests.probes import soon, until

type MakeMosquitto = Callable[..., Mosquitto]

FLOOD = 20_000


@pytest.fixture
async def client(mosquitto: Mosquitto, make_client: MakeClient) -> MQTTClient:
    return await connected(make_client(mosquitto, keepalive_seconds=1))


async def connected(client: MQTTClient) -> MQTTClient:
    client.connect_background()
    await soon(client.wait_connected())
    return client


async def check_sizes(client: MQTTClient, *sizes: int) -> None:
    """Messages larger than a TLS record, a frame or the read buffer, between small ones."""
    payloads = ["x" * size for size in sizes] + ["y"] * 300
    recorder = Recorder()
    client.subscribe("sizes", recorder, payload_format="text")
    await client.publish("flush", None)
    await soon(asyncio.gather(*(client.publish("sizes", payload) for payload in payloads)))
    await until(lambda: len(recorder.payloads) == len(payloads))
    assert recorder.payloads == payloads
    client.unsubscribe("sizes")


def break_connection(client: MQTTClient) -> None:
    """Cut the connection without a DISCONNECT, as when a cable is pulled."""
    connection: Any = client._connection._client.socket()
    connection.shutdown(socket.SHUT_RDWR)


# A broker that is away


async def test_a_broker_that_is_absent_at_first(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    broker = make_mosquitto()
    client = make_client(broker)
    client.connect_background()
    publishing = asyncio.create_task(client.publish("early", 1, timeout_seconds=30))
    # As often as within the first 10 s: after 0, 1, 3 and 7 s, here in a twentieth of the time.
    for _ in range(4):
        assert "Connection refused" in (await log.next("mqtt_unreachable"))["reason"]
    assert not client.connected
    assert client.thread_alive
    broker.start()
    await soon(client.wait_connected())
    await soon(publishing)


async def test_the_queue_is_bounded_and_does_not_hold_up_birth_and_farewell(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    broker = make_mosquitto()
    client = make_client(broker, max_queued_messages=3)
    client.connect_background()
    waiting = [asyncio.create_task(client.publish("early", n)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await client.publish("one too many", 1)
    broker.start()
    async with Observer(broker.host, broker.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")
        await soon(asyncio.gather(*waiting))
        await client.publish("room again", 1)


async def test_messages_that_are_kept_count_until_the_broker_has_them(
    make_mosquitto: MakeMosquitto, make_client: MakeClient
) -> None:
    client = make_client(make_mosquitto(), max_queued_messages=2)
    client.connect_background()
    for n in range(2):
        with pytest.raises(PublishTimeoutError):
            await client.publish("lonely", n, timeout_seconds=0.01, keep_trying=True)
    with pytest.raises(QueueFullError):
        await client.publish("lonely", 2)


async def test_disconnect_while_connecting(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    client = make_client(make_mosquitto())
    client.connect_background()
    publishing = asyncio.create_task(client.publish("never", 1, timeout_seconds=60))
    await log.next("mqtt_unreachable")
    await soon(client.disconnect())
    with pytest.raises(NotConnectedError):
        await publishing
    assert not client.thread_alive


async def test_clients_come_back_at_different_times_and_never_wait_for_long(
    logger: structlog.stdlib.BoundLogger,
) -> None:
    clients = [
        MQTTClient(
            "broker", service="tested", topic_prefix="test", logger=logger
        )._connection._client
        for _ in range(10)
    ]
    first_delays = {client._reconnect_min_delay for client in clients}
    assert len(first_delays) == len(clients)
    assert all(0.5 <= delay <= 1.5 for delay in first_delays)
    assert {client._reconnect_max_delay for client in clients} == {30}


# A broker that is killed or restarted while messages flow


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_nothing_acknowledged_is_lost_when_a_persistent_broker_restarts(
    make_mosquitto: MakeMosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    tmp_path: Path,
    end: str,
) -> None:
    broker = make_mosquitto(persistent=True)
    broker.start()
    subscriber, publisher = make_client(broker, "subscriber"), make_client(broker, "publisher")
    recorder, slow = Recorder(), asyncio.Event()

    async def handle(topic: str, payload: Any) -> None:
        if payload >= 50:
            await slow.wait()
        recorder(topic, payload)

    subscriber.subscribe(f"{topic_prefix}/flow", handle)
    await connected(subscriber)
    await connected(publisher)
    # So that a broker that is killed has the session on its disk.
    database = tmp_path / "mosquitto-0" / "mosquitto.db"
    await publisher.publish("saved", 1, retain=True)
    await until(
        lambda: database.exists() and f"{topic_prefix}/flow".encode() in database.read_bytes()
    )
    acknowledged = []

    async def publish(numbers: range) -> None:
        for n in numbers:
            await publisher.publish(f"{topic_prefix}/flow", n, timeout_seconds=30)
            acknowledged.append(n)

    await publish(range(50))
    await until(lambda: len(recorder.payloads) == 50)
    # On the same connection as the acknowledgements, and after them.
    await subscriber.publish("handled", 1)
    # These are not handled, and fit into the broker's window: more would be in its memory alone,
    # and lost with it when it is killed.
    await publish(range(50, 65))
    # The acknowledgement of this message comes after them.
    await subscriber.publish("received", 1)
    getattr(broker, end)()
    publishing = asyncio.create_task(publish(range(65, 200)))
    await until(lambda: not subscriber.connected and not publisher.connected)
    broker.start()
    slow.set()
    await soon(publishing)
    await until(lambda: set(acknowledged) <= set(recorder.payloads))
    assert list(dict.fromkeys(recorder.payloads)) == list(range(200))


async def test_nothing_acknowledged_is_lost_when_a_service_restarts(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    claim_session: Callable[[], Session],
) -> None:
    publisher = await connected(make_client(mosquitto, "publisher"))
    first = make_client(mosquitto, "restarted", session=claim_session())
    recorder, never = Recorder(), asyncio.Event()

    async def handle(topic: str, payload: Any) -> None:
        if payload >= 5:
            await never.wait()
        recorder(topic, payload)

    first.subscribe(f"{topic_prefix}/flow", handle)
    await connected(first)

    async def publish(numbers: range) -> None:
        for n in numbers:
            await publisher.publish(f"{topic_prefix}/flow", n)

    # More than fit into the broker's window, and some while nobody is there.
    await publish(range(50))
    await until(lambda: len(recorder.payloads) == 5)
    await first.disconnect(timeout_seconds=0.2)
    await publish(range(50, 80))
    second = make_client(mosquitto, "restarted", session=claim_session())
    second.subscribe(f"{topic_prefix}/flow", recorder)
    await connected(second)
    await recorder.until_payload(79)
    assert recorder.payloads == list(range(80))


async def test_the_others_of_a_group_get_all_while_a_member_is_stopped(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    claim_session: Callable[[], Session],
) -> None:
    recorder = Recorder()
    stopped = make_client(mosquitto, "restarted", session=claim_session())
    staying = make_client(mosquitto, "staying")
    for client in (stopped, staying):
        client.subscribe(f"$share/group/{topic_prefix}/work", recorder)
        await connected(client)
    await stopped.disconnect()
    for n in range(10):
        await staying.publish(f"{topic_prefix}/work", n)
    await recorder.until_payload(9)
    assert recorder.payloads == list(range(10))


async def test_a_subscription_of_an_earlier_start_ends(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    claim_session: Callable[[], Session],
    log: LogProbe,
) -> None:
    for topic in ("old", "new"):
        client = make_client(mosquitto, "restarted", session=claim_session())
        recorder = Recorder()
        client.subscribe(f"{topic_prefix}/{topic}", recorder)
        await connected(client)
        await client.publish(f"{topic_prefix}/old", {"for": "old"})
        await client.publish(f"{topic_prefix}/new", {"for": "new"})
        await recorder.until_payload({"for": topic})
        await client.disconnect()
    assert "message_without_handler" not in log.names()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_broker_that_forgets_everything(
    mosquitto: Mosquitto, client: MQTTClient, topic_prefix: str, log: LogProbe, end: str
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/flow", recorder)
    await client.publish(f"{topic_prefix}/flow", 1)
    await recorder.until_payload(1)
    getattr(mosquitto, end)()
    await log.next("mqtt_disconnected")
    pending = asyncio.create_task(client.publish("pending", 2))
    mosquitto.start()
    await soon(client.wait_connected())
    await soon(pending)
    await client.publish(f"{topic_prefix}/flow", 3)
    await recorder.until_payload(3)
    async with Observer(mosquitto.host, mosquitto.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")


async def test_a_message_in_hand_when_the_connection_breaks_is_handled_once(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    recorder, release, started = Recorder(), asyncio.Event(), asyncio.Event()

    async def handle(topic: str, payload: Any) -> None:
        started.set()
        await release.wait()
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/flow", handle)
    for n in range(10):
        await client.publish(f"{topic_prefix}/flow", n)
    await soon(started.wait())
    break_connection(client)
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    await client.publish(f"{topic_prefix}/flow", 10)
    release.set()
    await recorder.until_payload(10)
    assert recorder.payloads == list(range(11))
    # Acknowledged on the new connection, else the broker's window would be full for ever.
    for n in range(11, 50):
        await client.publish(f"{topic_prefix}/flow", n)
    await recorder.until_payload(49)


async def test_a_broken_connection_lets_the_broker_publish_the_last_will(
    mosquitto: Mosquitto, client: MQTTClient, topic_prefix: str
) -> None:
    async with Observer(mosquitto.host, mosquitto.port, topic_prefix) as observer:
        await observer.next("tested/availability", status="online")
        break_connection(client)
        await observer.next("tested/availability", reason="connection_lost")
        await observer.next("tested/availability", status="online")


# A broker that does not respond


async def test_a_frozen_broker_is_noticed_and_its_return_too(
    mosquitto: Mosquitto, client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/flow", recorder)
    await client.publish(f"{topic_prefix}/flow", 1)
    await recorder.until_payload(1)
    mosquitto.freeze()
    with pytest.raises(PublishTimeoutError):
        await client.publish(f"{topic_prefix}/flow", 2, timeout_seconds=0.1)
    await log.next("mqtt_disconnected")
    assert not client.connected
    mosquitto.resume()
    await soon(client.wait_connected())
    await client.publish(f"{topic_prefix}/flow", 3)
    await recorder.until_payload(3)


async def test_a_short_freeze_only_delays(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    client = await connected(make_client(mosquitto, keepalive_seconds=60))
    mosquitto.freeze()
    with pytest.raises(PublishTimeoutError):
        await client.publish("late", 1, timeout_seconds=0.2)
    mosquitto.resume()
    await client.publish("after", 2)
    assert "mqtt_disconnected" not in log.names()


async def test_disconnect_from_a_frozen_broker(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    client = await connected(make_client(mosquitto, keepalive_seconds=60))
    mosquitto.freeze()
    publishing = asyncio.create_task(client.publish("unanswered", 1, timeout_seconds=60))
    await asyncio.sleep(0)
    await soon(client.disconnect(0.5))
    with pytest.raises(NotConnectedError):
        await publishing
    assert "offline_message_not_sent" in log.names()
    # paho waits for acknowledgements that do not come, unless it was told to disconnect first.
    assert not client.thread_alive
    mosquitto.resume()


async def test_qos_0_waits_for_the_network_thread_instead_of_filling_the_memory(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    client = await connected(make_client(mosquitto, max_queued_messages=10, keepalive_seconds=1))
    mosquitto.freeze()

    async def publish_for_ever() -> None:
        while True:
            await client.publish("away", b"x" * 1_000_000, qos=0, timeout_seconds=60)

    with pytest.raises(NotConnectedError):
        await soon(publish_for_ever())
    assert len(client._connection._client._out_packet) <= 11
    mosquitto.resume()


# Handlers that block


async def test_a_handler_that_blocks_the_loop_does_not_break_the_connection(
    client: MQTTClient, topic_prefix: str, log: LogProbe
) -> None:
    recorder = Recorder()

    def block(topic: str, payload: Any) -> None:
        # Twice as long as the broker waits for a packet of the client (section 3.1.2.10).
        time.sleep(3)
        recorder(topic, payload)

    client.subscribe(f"{topic_prefix}/blocking", block)
    await client.publish(f"{topic_prefix}/blocking", 1)
    await recorder.next()
    await client.publish(f"{topic_prefix}/other", 1)
    assert "mqtt_disconnected" not in log.names()


# Floods


async def flood(broker: Mosquitto, topic: str, qos: int, count: int = FLOOD) -> None:
    """As fast as a thread can, and then one more on `{topic}/end`."""

    def publish() -> None:
        client = Client(CallbackAPIVersion.VERSION2)
        client.connect(broker.host, broker.port)
        client.loop_start()
        for n in range(count):
            client.publish(topic, str(n), qos=qos)
        client.publish(f"{topic}/end", "0", qos=1).wait_for_publish(60)
        disconnect(client)

    await asyncio.to_thread(publish)


@pytest.mark.parametrize("qos", [0, 1])
async def test_disconnect_while_messages_pour_in(
    mosquitto: Mosquitto, client: MQTTClient, topic_prefix: str, log: LogProbe, qos: Any
) -> None:
    """The network thread hands over to a loop that waits for this thread's end."""
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/flood", recorder, qos=qos)
    await client.publish("flush", None)
    flooding = asyncio.create_task(flood(mosquitto, f"{topic_prefix}/flood", qos))
    await recorder.next()
    await soon(client.disconnect())
    assert not client.thread_alive
    assert "handlers_cut_off" not in log.names()
    await flooding


@pytest.mark.parametrize("room", [1000, 15])
async def test_a_flood_at_qos_1_is_handled_whole_and_in_order(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    """The lower limit is below the broker's window: the broker redelivers the excess."""
    count = FLOOD if room > 20 else 200
    monkeypatch.setattr("shared.mqtt.dispatcher.MAX_QUEUED_BYTES", room * (MESSAGE_BYTES + 1))
    client = await connected(make_client(mosquitto))
    handled: dict[int, None] = {}
    most_waiting = 0
    done = asyncio.Event()

    async def handle(_topic: str, payload: Any) -> None:
        nonlocal most_waiting
        most_waiting = max(most_waiting, client._dispatcher._backlogs[1].messages)
        handled[payload] = None
        if len(handled) == count:
            done.set()
        elif payload % 1000 == 0:
            await asyncio.sleep(0.01)

    client.subscribe(f"{topic_prefix}/flood", handle)
    await client.publish("flush", None)
    await flood(mosquitto, f"{topic_prefix}/flood", 1, count)
    await soon(done.wait())
    assert list(handled) == list(range(count))
    assert client._dispatcher._dropped == 0
    assert most_waiting <= room


async def test_a_flood_at_qos_0_is_bounded_and_counted(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    topic_prefix: str,
    log: LogProbe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.mqtt.dispatcher.MAX_QUEUED_BYTES", 101 * MESSAGE_BYTES)
    client = await connected(make_client(mosquitto))
    release, end, handled = asyncio.Event(), Recorder(), Recorder()

    async def handle(topic: str, payload: Any) -> None:
        await release.wait()
        handled(topic, payload)

    client.subscribe(f"{topic_prefix}/flood", handle, qos=0)
    client.subscribe(f"{topic_prefix}/flood/end", end)
    await client.publish("flush", None)
    await flood(mosquitto, f"{topic_prefix}/flood", 0)
    await end.next()
    assert client._dispatcher._dropped == FLOOD - 100
    release.set()
    await handled.until_payload(99)
    assert handled.payloads == list(range(100))
    # There is room again.
    await client.publish(f"{topic_prefix}/flood", "-1", qos=0)
    await handled.until_payload(-1)
    await client.disconnect()
    await log.next("messages_dropped", dropped_in_total=FLOOD - 100)


async def test_a_message_of_5_mb(
    make_mosquitto: MakeMosquitto, make_client: MakeClient, topic_prefix: str
) -> None:
    # Mosquitto 2.1 has a limit of 2 MB without this line.
    broker = make_mosquitto(options="max_packet_size 6000000\n")
    broker.start()
    client = await connected(make_client(broker, max_payload_bytes=6_000_000))
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/big", recorder)
    text = "x" * 5_000_000
    await client.publish(f"{topic_prefix}/big", {"text": text})
    assert (await recorder.next())[1] == {"text": text}


# Two clients of one name


async def test_a_second_client_with_the_same_id_is_reported(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    clients = [make_client(mosquitto, session=Session("same")) for _ in range(2)]
    for client in clients:
        client.connect_background()
    warning = await log.next("mqtt_connection_flapping")
    assert warning["client_id"] == "same"


# The traps of paho


async def test_an_exception_in_a_callback_does_not_end_the_network_thread(
    client: MQTTClient, topic_prefix: str, log: LogProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    client.subscribe(f"{topic_prefix}/flow", recorder)
    await client.publish("flush", None)

    def fail(_message: object) -> None:
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(client._connection, "_message_callback", fail)
        await client.publish(f"{topic_prefix}/flow", 1)
        assert (await log.next("mqtt_callback_failed"))["callback"] == "_on_message"
    await client.publish(f"{topic_prefix}/flow", 2)
    await recorder.until_payload(2)
    assert client.thread_alive


def test_the_network_thread_survives_the_end_of_the_loop(
    mosquitto: Mosquitto, topic_prefix: str, logger: structlog.stdlib.BoundLogger
) -> None:
    clients: list[MQTTClient] = []

    async def connect_and_leave() -> None:
        client = MQTTClient(
            mosquitto.host,
            mosquitto.port,
            service="tested",
            topic_prefix=topic_prefix,
            logger=logger,
        )
        client.subscribe("after", print)
        clients.append(await connected(client))

    async def publish_from_another() -> None:
        client = await connected(
            MQTTClient(
                mosquitto.host,
                mosquitto.port,
                service="other",
                topic_prefix=topic_prefix,
                logger=logger,
            )
        )
        await client.publish("after", 1)
        await client.disconnect()

    asyncio.run(connect_and_leave())
    asyncio.run(publish_from_another())
    assert clients[0].thread_alive
    disconnect(clients[0]._connection._client)


async def test_small_packets_are_not_held_back(client: MQTTClient) -> None:
    connection: Any = client._connection._client.socket()
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Passwords and TLS


def password_line(name: str, password: str) -> str:
    """A line of Mosquitto's password file, as `mosquitto_passwd` makes it."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"{name}:$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


@pytest.fixture
def guarded(make_mosquitto: MakeMosquitto, tmp_path: Path) -> Mosquitto:
    """A broker that asks for a password, over TLS."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert(HOST)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "passwords").write_text(password_line("user", "s3cret ü"))
    broker = make_mosquitto(
        options=(
            f"allow_anonymous false\npassword_file {tmp_path}/passwords\n"
            f"certfile {tmp_path}/cert.pem\nkeyfile {tmp_path}/key.pem\n"
        )
    )
    broker.start()
    return broker


async def test_password_and_tls(
    guarded: Mosquitto,
    make_settings: Any,
    logger: structlog.stdlib.BoundLogger,
    tmp_path: Path,
) -> None:
    settings = make_settings(
        mqtt_host=guarded.host,
        mqtt_port=guarded.port,
        mqtt_username="user",
        mqtt_password="s3cret ü",
        mqtt_tls=True,
        mqtt_tls_ca_file=tmp_path / "ca.pem",
    )
    client = await connected(MQTTClient.from_settings(settings, "tested", logger))
    await check_sizes(client, 1, 500_000, 2, 20_000, 65_536, 3)
    await client.disconnect()


async def test_a_client_certificate(
    make_mosquitto: MakeMosquitto,
    make_settings: Any,
    logger: structlog.stdlib.BoundLogger,
    log: LogProbe,
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, certificate in (
        ("broker", authority.issue_cert(HOST)),
        ("client", authority.issue_cert("client")),
    ):
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}-key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    broker = make_mosquitto(
        options=(
            f"require_certificate true\ncafile {tmp_path}/ca.pem\n"
            f"certfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker-key.pem\n"
        )
    )
    broker.start()
    settings = make_settings(
        mqtt_host=broker.host,
        mqtt_port=broker.port,
        mqtt_tls=True,
        mqtt_tls_ca_file=tmp_path / "ca.pem",
        mqtt_tls_cert_file=tmp_path / "client.pem",
        mqtt_tls_key_file=tmp_path / "client-key.pem",
    )
    client = await connected(MQTTClient.from_settings(settings, "tested", logger))
    # The connection over TLS is replaced as any other.
    client._connection.reconnect(client._connection._connection_id)
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    await client.disconnect()
    wrong = settings.model_copy(update={"mqtt_tls_key_file": tmp_path / "broker-key.pem"})
    with pytest.raises(ConfigurationError, match="MQTT_TLS_CERT_FILE"):
        MQTTClient.from_settings(wrong, "tested", logger)
    without = settings.model_copy(update={"mqtt_tls_cert_file": None})
    client = MQTTClient.from_settings(without, "tested", logger)
    client.connect_background()
    assert "(MQTT_TLS_CERT_FILE)" in (await log.next("mqtt_no_connack"))["hint"]
    await client.disconnect()


async def test_websockets(
    make_mosquitto: MakeMosquitto,
    make_settings: Any,
    logger: structlog.stdlib.BoundLogger,
    log: LogProbe,
) -> None:
    port = free_port()
    broker = make_mosquitto(options=f"listener {port} {HOST}\nprotocol websockets\n")
    broker.start()
    settings = make_settings(mqtt_host=broker.host, mqtt_port=port, mqtt_transport="websockets")
    client = await connected(MQTTClient.from_settings(settings, "tested", logger))
    await check_sizes(client, 1, 5_000, 2)
    client._connection.reconnect(client._connection._connection_id)
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    await client.disconnect()


async def test_a_wrong_password_is_reported_and_not_hammered(
    guarded: Mosquitto, make_client: MakeClient, log: LogProbe, tmp_path: Path
) -> None:
    tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    client = make_client(guarded, username="user", password="wrong", tls=tls)
    started = time.monotonic()
    client.connect_background()
    for _ in range(4):
        event = await log.next("mqtt_connection_refused")
        assert event["level"] == "error"
    assert not client.connected
    assert "wrong" not in json.dumps(log.events, default=str)
    # The waits double: 0.05 s, 0.1 s, 0.2 s. A slow machine can only add to them.
    assert time.monotonic() - started > 0.3


async def serve_wrongly(kind: str, attempts: asyncio.Queue[None]) -> asyncio.Server:
    """Start a server that accepts connections, but is not a broker."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.put_nowait(None)
        if kind == "web server":
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" + b"x" * 99)
        elif kind == "mute":
            await reader.read()
        # Docker accepts on a published port, and closes when nothing listens in the container.
        writer.close()

    return await asyncio.start_server(serve, HOST)


@pytest.mark.parametrize("kind", ["closing", "web server", "mute"])
async def test_a_server_that_is_not_a_broker_is_reported(
    make_client: MakeClient, log: LogProbe, kind: str
) -> None:
    attempts: asyncio.Queue[None] = asyncio.Queue()
    server = await serve_wrongly(kind, attempts)
    address = SimpleNamespace(host=HOST, port=server.sockets[0].getsockname()[1])
    client = make_client(address, keepalive_seconds=1)
    client.connect_background()
    event = await log.next("mqtt_no_connack")
    assert (event["level"], event["port"]) == ("warning", address.port)
    for cause in ("MQTT_TLS", "web server", "local clients only"):
        assert cause in event["hint"]
    for _ in range(3):
        await soon(attempts.get())
    await client.disconnect()
    server.close()
    # One warning stands for the attempts of half a minute.
    assert log.names().count("mqtt_no_connack") == 1


async def test_a_plain_client_on_a_tls_port_is_reported(
    guarded: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    make_client(guarded).connect_background()
    assert "(MQTT_TLS)" in (await log.next("mqtt_no_connack"))["hint"]


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
async def test_a_certificate_of_somebody_else(
    guarded: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    client = make_client(guarded, tls=ssl.create_default_context())
    client.connect_background()
    assert "CERTIFICATE_VERIFY_FAILED" in (await log.next("mqtt_unreachable"))["reason"]
    await log.next("mqtt_unreachable")
    assert client.thread_alive
    await client.disconnect()
    gc.collect()


# Steps before `online`


async def test_a_lost_connection_is_not_online_when_its_preparation_ends(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe, topic_prefix: str
) -> None:
    client, prepared = make_client(mosquitto), [asyncio.Event(), asyncio.Event()]
    calls = iter(prepared)

    async def prepare() -> None:
        await next(calls).wait()

    client.before_online = prepare
    async with Observer(mosquitto.host, mosquitto.port, topic_prefix) as observer:
        client.connect_background()
        await until(lambda: client._going_online is not None)
        first = client._going_online
        assert first is not None
        break_connection(client)
        await until(lambda: client._going_online is not first)
        prepared[0].set()
        await soon(first)
        assert not client.connected
        await observer.next("tested/availability", status="offline")
        prepared[1].set()
        await observer.next("tested/availability", status="online")
    await soon(client.wait_connected())
    assert log.names().count("mqtt_connected") == 1


async def test_a_preparation_that_fails_is_logged_and_leaves_the_client_offline(
    mosquitto: Mosquitto, make_client: MakeClient, log: LogProbe
) -> None:
    async def prepare() -> None:
        raise LookupError("nothing to announce")

    client = make_client(mosquitto)
    client.before_online = prepare
    client.connect_background()
    assert "nothing to announce" in str((await log.next("before_online_failed"))["error"])
    assert not client.connected
