"""The other side of each measurement, in a process of its own: speaks MQTT 3.1.1 by hand.

`load.py send PORT QOS COUNT` publishes as fast as it can and prints when it began.
`load.py ask PORT QOS COUNT` sends 200 requests a second and prints how long the replies took.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Iterator

REQUESTS_PER_SECOND = 200
# As many unacknowledged messages as keep the broker busy.
WINDOW = 100
PUBLISH, PUBACK, SUBSCRIBE = 0x30, 0x40, 0x82


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    size, length = b"", len(body)
    while True:
        length, digit = divmod(length, 128)
        size += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([kind]) + size + body


def publish(topic: str, payload: bytes, qos: int, mid: int) -> bytes:
    identifier = struct.pack("!H", mid) if qos else b""
    return packet(PUBLISH | qos << 1, text(topic) + identifier + payload)


class Connection:
    def __init__(self, port: int, name: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._packets = self._read()
        variable = text("MQTT") + bytes([4, 2]) + struct.pack("!H", 60)
        self.socket.sendall(packet(0x10, variable + text(name)))
        self.receive()

    def receive(self) -> tuple[int, bytes]:
        """First byte and body of the next packet."""
        return next(self._packets)

    def _read(self) -> Iterator[tuple[int, bytes]]:
        buffer = b""
        while True:
            size, shift, end = 0, 0, 1
            complete = False
            while end < len(buffer) and not complete:
                size |= (buffer[end] & 0x7F) << shift
                complete = buffer[end] < 0x80
                shift, end = shift + 7, end + 1
            if complete and len(buffer) >= end + size:
                yield buffer[0], buffer[end : end + size]
                buffer = buffer[end + size :]
                continue
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionError
            buffer += received


def send(port: int, qos: int, count: int) -> dict[str, float]:
    connection = Connection(port, "load")
    padding = "x" * 175
    packets = [
        publish("in", json.dumps({"number": n, "text": padding}).encode(), qos, n % 65535 + 1)
        for n in range(count)
    ]
    began = time.monotonic()
    unacknowledged = 0
    for data in packets:
        connection.socket.sendall(data)
        if qos:
            unacknowledged += 1
            while unacknowledged >= WINDOW:
                connection.receive()
                unacknowledged -= 1
    # The broker would drop what is unread when the connection is closed.
    while unacknowledged:
        connection.receive()
        unacknowledged -= 1
    connection.socket.sendall(packet(0xC0, b""))
    while connection.receive()[0] != 0xD0:
        pass
    return {"began": began}


def ask(port: int, qos: int, count: int) -> dict[str, float]:
    connection = Connection(port, "load")
    connection.socket.sendall(packet(SUBSCRIBE, struct.pack("!H", 1) + text("out") + bytes([qos])))
    connection.receive()
    durations = []
    for number in range(1, count + 1):
        request = json.dumps({"number": number, "reply_to": "out", "request_id": str(number)})
        began = time.monotonic()
        connection.socket.sendall(publish("in", request.encode(), qos, number))
        while True:
            kind, body = connection.receive()
            if kind & 0xF0 == PUBLISH:
                break
        durations.append(time.monotonic() - began)
        if kind >> 1 & 3:
            start = 2 + struct.unpack("!H", body[:2])[0]
            connection.socket.sendall(packet(PUBACK, body[start : start + 2]))
        time.sleep(max(0.0, began + 1 / REQUESTS_PER_SECOND - time.monotonic()))
    durations.sort()
    return {"p50_ms": durations[count // 2] * 1000}


if __name__ == "__main__":
    action = {"send": send, "ask": ask}[sys.argv[1]]
    print(json.dumps(action(*map(int, sys.argv[2:]))))
