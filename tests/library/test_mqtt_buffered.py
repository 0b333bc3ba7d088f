"""The parts of paho that the client replaces: bursts of packets, cut packets, bad packets."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from shared.mqtt import MQTTClient
from tests.library.conftest import MakeClient
from tests.library.probes import LogProbe, Recorder
from tests.library.scripted_broker import Kind, ScriptedBroker
from tests.observer import PATIENCE_SECONDS
from tests.probes import soon, until

COUNT = 50


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedBroker]:
    async with ScriptedBroker() as broker:
        yield broker


@pytest.fixture
async def client(scripted: ScriptedBroker, make_client: MakeClient) -> MQTTClient:
    client = make_client(scripted)
    client.connect_background()
    await soon(client.wait_connected())
    return client


async def subscribe(scripted: ScriptedBroker, client: MQTTClient, handler: Recorder) -> None:
    """Subscribe, and wait until the broker has nothing left to acknowledge."""
    client.subscribe("in", handler)
    for _ in range(2):
        await scripted.next(Kind.SUBSCRIBE)


def messages(qos: int) -> bytes:
    """Messages 1 to COUNT, as bytes on the wire. The last one is larger than 127 bytes."""
    packets = b""
    for number in range(1, COUNT + 1):
        body = struct.pack("!H", 2) + b"in" + (struct.pack("!H", number) if qos else b"")
        body += str(number).encode().rjust(200 if number == COUNT else 1)
        size = [len(body)] if len(body) < 128 else [len(body) & 127 | 128, len(body) >> 7]
        packets += bytes([0x30 | qos << 1, *size]) + body
    return packets


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("qos", [0, 1])
async def test_packets_may_be_cut_anywhere(
    scripted: ScriptedBroker, client: MQTTClient, qos: int, size: int
) -> None:
    recorder = Recorder()
    await subscribe(scripted, client, recorder)
    data = messages(qos)
    for start in range(0, len(data), size):
        scripted.send_bytes(data[start : start + size])
        await asyncio.sleep(0)
    await until(lambda: len(recorder.payloads) == COUNT)
    assert recorder.payloads == list(range(1, COUNT + 1))


async def test_a_burst_is_read_and_acknowledged_with_few_system_calls(
    scripted: ScriptedBroker, client: MQTTClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    paho: Any = client._connection._client
    reads, writes = 0, 0
    receive: Callable[[int], bytes] = paho._sock_recv
    send: Callable[[bytes], int] = paho._sock_send

    def count_reads(size: int) -> bytes:
        nonlocal reads
        reads += 1
        return receive(size)

    def count_writes(data: bytes) -> int:
        nonlocal writes
        writes += 1
        return send(data)

    await subscribe(scripted, client, Recorder())
    monkeypatch.setattr(paho, "_sock_recv", count_reads)
    monkeypatch.setattr(paho, "_sock_send", count_writes)
    scripted.send_bytes(messages(1))
    mids = [(await scripted.next(Kind.PUBACK)).mid for _ in range(COUNT)]
    assert mids == [struct.pack("!H", number) for number in range(1, COUNT + 1)]
    assert reads < COUNT / 5
    assert writes < COUNT / 5


@pytest.mark.parametrize("qos", [0, 1])
async def test_packets_that_the_socket_takes_in_pieces(
    scripted: ScriptedBroker, client: MQTTClient, monkeypatch: pytest.MonkeyPatch, qos: Any
) -> None:
    paho: Any = client._connection._client
    send, calls = paho._sock_send, 0

    def send_a_piece(data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise BlockingIOError
        sent: int = send(data[:13])
        return sent

    monkeypatch.setattr(paho, "_sock_send", send_a_piece)
    publishing = asyncio.gather(
        *(client.publish("out", "x" * number, qos=qos) for number in range(COUNT))
    )
    bodies = [(await scripted.next_publish("out")).body for _ in range(COUNT)]
    await soon(publishing)
    assert [body.count(b"x") for body in bodies] == list(range(COUNT))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x30\xff\xff\xff\xff\x01", id="length of five bytes"),
        pytest.param(b"\x30\x03\x00\x05a", id="topic longer than the packet"),
        pytest.param(b"\x30\x02\x00\x00", id="topic without characters"),
        pytest.param(b"\x32\x04\x00\x02in", id="no message id"),
        pytest.param(b"\xf0\x00", id="unknown type"),
    ],
)
async def test_a_malformed_packet_ends_the_connection(
    scripted: ScriptedBroker, client: MQTTClient, log: LogProbe, data: bytes
) -> None:
    # The client must not read the rest of the lost connection as the start of the new one.
    scripted.send_bytes(data + messages(0)[:3])
    await log.next("mqtt_disconnected")
    await soon(client.wait_connected())
    assert scripted.connections == 2
    recorder = Recorder()
    client.subscribe("in", recorder)
    scripted.send_bytes(messages(0))
    await recorder.next()


async def test_a_message_is_written_at_once(scripted: ScriptedBroker, client: MQTTClient) -> None:
    """The network thread would find each one after a second at the latest."""
    async with asyncio.timeout(COUNT / 5):
        for number in range(COUNT):
            await client.publish("out", number, qos=0)
            await scripted.next_publish("out")


@pytest.mark.parametrize("moment", ["on_pre_connect", "on_socket_open"])
async def test_a_message_that_is_published_while_the_client_reconnects(
    scripted: ScriptedBroker, client: MQTTClient, moment: str
) -> None:
    paho: Any = client._connection._client
    loop, published = asyncio.get_running_loop(), threading.Event()
    callback: Callable[..., None] = getattr(paho, moment)

    def publish(number: int) -> None:
        tasks.append(asyncio.create_task(client.publish("out", str(number))))
        loop.call_soon(published.set)

    def pause(*arguments: Any) -> None:
        callback(*arguments)
        loop.call_soon_threadsafe(publish, 3)
        assert published.wait(PATIENCE_SECONDS)

    tasks: list[asyncio.Task[None]] = []
    scripted.silent_on = {Kind.PUBLISH}
    for number in range(3):
        publish(number)
        await scripted.next_publish("out")
    published.clear()
    setattr(paho, moment, pause)
    scripted.silent_on = set()
    scripted.drop_connection()
    assert (await scripted.next_packet()).kind is Kind.CONNECT
    numbers = [int((await scripted.next_publish("out")).body[7:]) for _ in range(4)]
    assert numbers == [0, 1, 2, 3]
    await soon(asyncio.gather(*tasks))


async def test_an_acknowledgement_that_comes_while_the_client_reconnects(
    scripted: ScriptedBroker, client: MQTTClient
) -> None:
    paho: Any = client._connection._client

    class Packet(dict[str, Any]):
        """Lets the event loop act while paho goes through its packets."""

        def __getitem__(self, name: str) -> Any:
            paho._out_packet.append(dict(self))
            return super().__getitem__(name)

    callback: Callable[..., None] = paho.on_disconnect

    def leave_packets(*arguments: Any) -> None:
        callback(*arguments)
        paho._out_packet.extend([Packet(command=Kind.PUBACK << 4, qos=0)] * 2)

    paho.on_disconnect = leave_packets
    scripted.drop_connection()
    await until(lambda: scripted.connections == 2)
    await soon(client.wait_connected())
    assert client.thread_alive


async def test_connect_comes_first_and_what_a_lost_connection_has_left_is_dropped(
    scripted: ScriptedBroker, make_client: MakeClient
) -> None:
    client = make_client(scripted)
    paho: Any = client._connection._client
    callback: Callable[..., None] = paho.on_socket_open

    def act_late(*arguments: Any) -> None:
        callback(*arguments)
        paho.acknowledge([1])
        paho.close_connection()

    paho.on_socket_open = act_late
    client.connect_background()
    await soon(client.wait_connected())
    assert scripted.connections == 1
    await client.disconnect()
    kinds = await scripted.rest_of_connection()
    assert kinds[0] is Kind.CONNECT
    assert Kind.PUBACK not in kinds
