"""A client of paho that reads and writes many packets with one system call.

paho reads a packet with three or four system calls and writes each packet with its own. Every call
passes the GIL to the busy event loop, and gets it back only after a switch of threads.

The methods of paho that are replaced here are private, so pyproject.toml bounds its version.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import LogLevel, MessageType, MQTTErrorCode
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

_BURST_BYTES = 64 * 1024
_QOS_BITS, _QOS_1 = 0b0110, 0b0010
_CONTINUATION_BIT = 0x80
# Marks the end of the connection in the queue. MQTT has no packet with this number.
_CLOSE = 0
# paho makes both for every message, and MQTT 3.1.1 has neither.
_SUCCESS = ReasonCode(PacketTypes.PUBACK)
_NO_PROPERTIES = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]


class BufferedClient(Client):
    """Client with a network thread (`loop_start`) for MQTT 3.1.1 and subscriptions at QoS 0 and 1.

    Both callbacks run on the network thread. `on_packet` replaces `on_message` and gets the topic,
    the payload, the flags of the packet (section 3.3.1) and the message id. `on_sent` replaces
    `on_publish` and gets the message id when a message was written at QoS 0, or acknowledged at
    QoS 1.
    """

    on_packet: Callable[[bytes, bytes, int, int], None]
    on_sent: Callable[[int], None]
    _received: bytearray
    _closing = _half_closed = False

    def acknowledge(self, mids: Iterable[int]) -> None:
        """Acknowledge messages at QoS 1 with one write."""
        packets = b"".join(b"\x40\x02" + mid.to_bytes(2) for mid in mids)
        self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Sending PUBACKs (%s)", packets)
        self._packet_queue(MessageType.PUBACK, packets, 0, 0)

    def close_connection(self) -> None:
        """End the connection without DISCONNECT, after everything queued has been written.

        Packets that the broker sends from now on are ignored.
        """
        self._closing = True
        self._packet_queue(_CLOSE, b"", 0, 0)

    def abort(self) -> None:
        """End the connection at once without DISCONNECT, and make no other."""
        # paho would sleep before it sees that it has to stop.
        self._reconnect_on_failure = False
        self._shut_down(socket.SHUT_RDWR)

    def reconnect(self) -> MQTTErrorCode:
        # The rest of a packet belongs to the lost connection.
        self._received = bytearray()
        # paho iterates over the queue, to which the event loop may append meanwhile.
        self._out_packet = deque()
        return super().reconnect()

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:  # noqa: ARG002 - as paho names it
        """Read once, and handle all complete packets."""
        try:
            code = self._read()
        except MalformedPacket:
            code = MQTTErrorCode.MQTT_ERR_PROTOCOL
        return self._loop_rc_handle(code) if code > 0 else code

    def _read(self) -> MQTTErrorCode:
        try:
            data = self._sock_recv(_BURST_BYTES)
        except BlockingIOError:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        except OSError as error:
            self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if not data:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if self._closing:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._last_bytes_received = monotonic()
        sock, buffer, position = self._sock, self._received, 0
        buffer += data
        # A handler may close the connection, or replace it.
        while self._sock is sock and not self._closing and (body := _find_body(buffer, position)):
            code = self._handle(buffer[position], buffer[slice(*body)])
            position = body[1]
            if code > 0:
                return code
        del buffer[:position]
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle(self, command: int, body: bytearray) -> MQTTErrorCode:
        kind, flags = command & 0xF0, command & 0x0F
        if kind == MessageType.PUBLISH and flags & _QOS_BITS in {0, _QOS_1}:
            self._handle_message(flags, body)
        elif kind == MessageType.PUBACK:
            mid = int.from_bytes(body[:2])
            self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received PUBACK (Mid: %d)", mid)
            with self._out_message_mutex:
                if mid in self._out_messages:
                    code = self._do_on_publish(mid, _SUCCESS, _NO_PROPERTIES)
                    # Last, so that paho no longer holds a message whose `publish` has returned.
                    self.on_sent(mid)
                    return code
        else:
            self._in_packet["command"] = command
            self._in_packet["remaining_length"] = len(body)
            self._in_packet["packet"] = body
            return self._packet_handle()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_message(self, flags: int, body: bytearray) -> None:
        size = int.from_bytes(body[:2])
        topic_end = 2 + size
        payload_begin = topic_end + 2 if flags & _QOS_1 else topic_end
        if not size or payload_begin > len(body):
            raise MalformedPacket
        topic, mid = bytes(body[2:topic_end]), int.from_bytes(body[topic_end:payload_begin])
        self._easy_log(LogLevel.MQTT_LOG_DEBUG, "Received PUBLISH (m%d), %r", mid, topic)
        self.on_packet(topic, bytes(body[payload_begin:]), flags, mid)

    def _packet_queue(
        self,
        command: int,
        packet: bytes | bytearray,
        mid: int,
        qos: int,
        info: MQTTMessageInfo | None = None,
    ) -> MQTTErrorCode:
        if command == MessageType.CONNECT:
            # CONNECT must come first (section 3.1). Whatever the event loop has queued since the
            # end of the last connection belongs to that one.
            self._out_packet.clear()
            self._closing = self._half_closed = False
        self._out_packet.append(
            {
                "command": command,
                "mid": mid,
                "qos": qos,
                "pos": 0,
                "to_process": len(packet),
                "packet": packet,
                "info": info,
            }
        )
        # The network thread has yet to write the others, if there are any.
        if len(self._out_packet) == 1 and self._sockpairW is not None:
            with suppress(BlockingIOError):
                self._sockpairW.send(b"0")
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _packet_write(self) -> MQTTErrorCode:
        # Mosquitto 2.0 reads a WebSocket frame in pieces of 4 kB, with a pause after each.
        limit = 1 if self._transport == "websockets" else _BURST_BYTES
        while self._out_packet and not self._half_closed:
            burst, size = [], 0
            while self._out_packet and size < limit:
                burst.append(self._out_packet.popleft())
                size += burst[-1]["to_process"]
            try:
                sent = self._sock_send(b"".join(item["packet"][item["pos"] :] for item in burst))
            except OSError as error:
                self._out_packet.extendleft(reversed(burst))
                if isinstance(error, BlockingIOError):
                    return MQTTErrorCode.MQTT_ERR_AGAIN
                self._easy_log(LogLevel.MQTT_LOG_ERR, "failed to send on socket: %s", error)
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            self._last_msg_out = monotonic()
            for index, item in enumerate(burst):
                part = min(sent, item["to_process"])
                sent -= part
                item["pos"] += part
                item["to_process"] -= part
                if item["to_process"]:
                    self._out_packet.extendleft(reversed(burst[index:]))
                    break
                kind = item["command"] & 0xF0
                if kind == MessageType.PUBLISH and item["qos"] == 0:
                    self.on_sent(item["mid"])
                elif kind == MessageType.DISCONNECT:
                    return MQTTErrorCode.MQTT_ERR_CONN_LOST
                elif kind == _CLOSE:
                    self._half_close()
                    return MQTTErrorCode.MQTT_ERR_SUCCESS
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def want_write(self) -> bool:
        return not self._half_closed and super().want_write()

    def _half_close(self) -> None:
        # A close would reset the connection while there is something to read, and the broker would
        # lose what it has not read yet. After this one, the broker closes.
        self._half_closed = True
        self._shut_down(socket.SHUT_WR)

    def _shut_down(self, how: int) -> None:
        sock = self._sock
        if sock is not None:
            # A second socket for the TCP connection itself, below TLS and WebSockets.
            with suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as raw:
                raw.shutdown(how)


def _find_body(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """Return where the body of a packet begins and ends, or None for an incomplete packet.

    Raises MalformedPacket for a length of more than four bytes (section 2.2.3).
    """
    length = 0
    for index in range(4):
        begin = position + index + 2
        if begin > len(buffer):
            return None
        digit = buffer[begin - 1]
        length |= (digit & ~_CONTINUATION_BIT) << 7 * index
        if not digit & _CONTINUATION_BIT:
            return (begin, begin + length) if begin + length <= len(buffer) else None
    raise MalformedPacket
