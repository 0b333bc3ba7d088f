"""A broker that speaks MQTT 3.1.1 by hand and does what no honest one can be made to do."""

import asyncio
import struct
from enum import IntEnum
from typing import NamedTuple, Self

from tests.brokers import HOST
from tests.probes import soon


class Kind(IntEnum):
    """Control packet types (section 2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Packet(NamedTuple):
    kind: Kind
    flags: int
    body: bytes

    @property
    def topic(self) -> str:
        size = struct.unpack("!H", self.body[:2])[0]
        return self.body[2 : 2 + size].decode()

    @property
    def mid(self) -> bytes:
        start = 2 + struct.unpack("!H", self.body[:2])[0] if self.kind is Kind.PUBLISH else 0
        return self.body[start : start + 2]


class ScriptedBroker:
    """Follows the protocol, unless told otherwise. Use it with `async with`."""

    host = HOST

    def __init__(self) -> None:
        self.port = 0
        self.silent_on: set[Kind] = set()
        self.connack = b"\0\0"
        self.refused_topic = "none"
        self.connections = 0
        self._received: asyncio.Queue[Packet] = asyncio.Queue()
        self._closed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        self.drop_connection()
        await self._server.wait_closed()

    async def next_packet(self) -> Packet:
        """Return the next packet of any kind."""
        return await soon(self._received.get())

    async def next(self, kind: Kind) -> Packet:
        """Return the next packet of this kind, and skip all others."""
        while (packet := await self.next_packet()).kind is not kind:
            pass
        return packet

    async def rest_of_connection(self) -> list[Kind]:
        """Return the kinds of the unread packets, once the client has closed the connection."""
        await soon(self._closed.wait())
        return [self._received.get_nowait().kind for _ in range(self._received.qsize())]

    async def next_publish(self, topic: str) -> Packet:
        while (packet := await self.next(Kind.PUBLISH)).topic != topic:
            pass
        return packet

    def send(self, kind: Kind, body: bytes, flags: int = 0) -> None:
        assert len(body) < 128
        self.send_bytes(bytes([kind << 4 | flags, len(body)]) + body)

    def send_bytes(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    def deliver(
        self,
        topic: bytes,
        payload: bytes,
        *,
        mid: int = 0,
        duplicate: bool = False,
        retain: bool = False,
    ) -> None:
        """Send a message to the client: at QoS 1 with a message id, else at QoS 0."""
        identifier = struct.pack("!H", mid) if mid else b""
        flags = (2 if mid else 0) | (8 if duplicate else 0) | int(retain)
        self.send(Kind.PUBLISH, struct.pack("!H", len(topic)) + topic + identifier + payload, flags)

    def acknowledge_subscription(self, packet: Packet) -> None:
        codes, rest = b"", packet.body[2:]
        while rest:
            size = struct.unpack("!H", rest[:2])[0]
            refused = rest[2 : 2 + size].decode() == self.refused_topic
            codes += b"\x80" if refused else rest[2 + size : 3 + size]
            rest = rest[3 + size :]
        self.send(Kind.SUBACK, packet.mid + codes)

    def drop_connection(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._closed.clear()
        self.connections += 1
        try:
            while True:
                packet = await self._read(reader)
                if packet.kind not in self.silent_on:
                    self._answer(packet)
                self._received.put_nowait(packet)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            self._closed.set()

    async def _read(self, reader: asyncio.StreamReader) -> Packet:
        first = (await reader.readexactly(1))[0]
        size, shift = 0, 0
        while (digit := (await reader.readexactly(1))[0]) & 0x80:
            size |= (digit & 0x7F) << shift
            shift += 7
        size |= digit << shift
        return Packet(Kind(first >> 4), first & 0x0F, await reader.readexactly(size))

    def _answer(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.CONNECT:
                self.send(Kind.CONNACK, self.connack)
            case Kind.SUBSCRIBE:
                self.acknowledge_subscription(packet)
            case Kind.UNSUBSCRIBE:
                self.send(Kind.UNSUBACK, packet.mid)
            case Kind.PUBLISH if packet.flags & 2:
                self.send(Kind.PUBACK, packet.mid)
            case Kind.PINGREQ:
                self.send(Kind.PINGRESP, b"")
            case _:
                pass
