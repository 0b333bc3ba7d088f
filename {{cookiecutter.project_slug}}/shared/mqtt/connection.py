"""Connection to the broker: paho-mqtt and its network thread.

Callbacks on the network thread copy their arguments and schedule the work on the event loop, where
all state lives. Nothing needs a lock, and nothing blocks the network thread.
"""

import asyncio
import functools
import logging
import os
import random
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Concatenate, Literal, NamedTuple, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from structlog.stdlib import BoundLogger

from shared.mqtt.errors import (
    MQTTError,
    NotConnectedError,
    PublishRejectedError,
    PublishTimeoutError,
    QueueFullError,
)
from shared.mqtt.hints import hint_for_refusal, hint_for_silence
from shared.mqtt.withdrawal import WithdrawingClient

MAX_RECONNECT_DELAY_SECONDS = 30
_CONNECT_TIMEOUT_SECONDS = 5.0
_KEEPALIVE_TIMEOUT = "Keep alive timeout"
_SHORT_CONNECTION_SECONDS = 5.0
_SHORT_CONNECTIONS_BEFORE_WARNING = 3
# One lost connection may be a restart of the broker, so a message has more than one attempt.
_ATTEMPTS_BEFORE_REJECTED = 3


def _guarded[**P](callback: Callable[Concatenate["Connection", P], None]) -> Callable[..., None]:
    """Log an exception in a callback, because it would end the network thread of paho."""

    @functools.wraps(callback)
    def wrapper(self: "Connection", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception:
            self._logger.exception("mqtt_callback_failed", callback=callback.__name__)

    return wrapper


class _Socket(Protocol):
    """Socket of paho: plain, with TLS, or a WebSocket."""

    def fileno(self) -> int: ...


def _raw_socket(sock: _Socket) -> socket.socket:
    """Return a second socket for the TCP connection itself."""
    return socket.socket(fileno=os.dup(sock.fileno()))


class ReceivedMessage(NamedTuple):
    """Immutable copy of a message, safe to pass from the network thread to the event loop."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    mid: int
    # A message id is only valid on the connection that delivered the message.
    connection_id: int


class _Pending(NamedTuple):
    """A message that paho still holds: unacknowledged at QoS 1, unwritten at QoS 0."""

    qos: int
    topic: str
    size: int
    done: asyncio.Future[None] | None


class Connection:
    """A connection that paho makes again when it is lost, with the same client id and session.

    `on_message` is called on the network thread, every other callback on the event loop.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        client_id: str,
        clean_session: bool,
        username: str,
        password: str,
        tls: ssl.SSLContext | None,
        transport: Literal["tcp", "websockets"],
        websocket_path: str,
        keepalive_seconds: int,
        max_queued_messages: int,
        will: tuple[str, bytes],
        on_connect: Callable[[], None],
        on_disconnect: Callable[[], None],
        on_subscribe: Callable[[int, list[bool]], None],
        on_unsubscribe: Callable[[int], None],
        on_message: Callable[[ReceivedMessage], None],
        logger: BoundLogger,
    ) -> None:
        self.connected = False
        self._address = (host, port, keepalive_seconds)
        self._client_id, self._clean_session = client_id, clean_session
        self._max_queued_messages = max_queued_messages
        self._connect_callback, self._disconnect_callback = on_connect, on_disconnect
        self._subscribe_callback, self._unsubscribe_callback = on_subscribe, on_unsubscribe
        self._message_callback = on_message
        self._logger = logger
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        # Whether this connection follows one that `reconnect` has replaced, in the same session.
        self.resumed = False
        self._replacing = False
        self._has_tls = tls is not None
        self._awaits_connack = False
        self._silence_reported_at = -float("inf")
        self._connection_id = 1
        self._connected_at = 0.0
        self._short_connections = 0
        self._pending: dict[int, _Pending] = {}
        self._suspect, self._suspect_attempts = 0, 0
        self._closed_by_us = False
        self._publishing = False
        self._published: deque[int] = deque()
        self._wake_up_scheduled = False
        self._sent_without_waiting = 0
        self._acknowledgements: list[ReceivedMessage] = []
        self._client = self._make_client(username, password, tls, transport, will)
        if transport == "websockets":
            self._client.ws_set_options(websocket_path)

    @property
    def thread_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def thread_ended(self) -> bool:
        """Whether the network thread has ended without `stop`."""
        return self._thread is not None and not self._thread.is_alive() and not self._stopped

    def start(self) -> None:
        """Connect in the background. A second call does nothing."""
        if self._loop is None and not self._stopped:
            self._loop = asyncio.get_running_loop()
            self._client.connect_async(*self._address)
            self._client.loop_start()

    async def stop(self, timeout_seconds: float) -> None:
        """Disconnect and wait for the end of the network thread."""
        self._send_acknowledgements()
        self._stopped = True
        self.connected = False
        for qos in (0, 1):
            self._fail_pending(NotConnectedError("the client has disconnected"), qos=qos)
        if self._loop is None:
            return
        # Disconnect first: `loop_stop` alone would wait for acknowledgements that may never come.
        self._client.disconnect()
        # paho would log the end of the connection as an error.
        self._client.disable_logger()
        ended = asyncio.Event()
        # Use a daemon thread, because Python joins the threads of the executor at exit.
        threading.Thread(
            target=self._end_thread, args=[self._client, ended], name="mqtt-stop", daemon=True
        ).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended.wait()
        except TimeoutError:
            self._logger.warning("network_thread_still_running", waited_seconds=timeout_seconds)
        else:
            # paho closes its sockets with the last reference. The garbage collector might reach
            # the sockets first and warn about them.
            del self._client

    def _end_thread(self, client: Client, ended: asyncio.Event) -> None:
        try:
            client.loop_stop()
        except AttributeError:
            # paho drops its reference to the thread when the thread ends during the call.
            self._logger.debug("network_thread_ended_first")
        if self._thread is not None:
            # It may have dropped the reference, and not have ended yet.
            self._thread.join()
        self.schedule(ended.set)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        """Send one SUBSCRIBE and return its message id, or None without a connection."""
        code, mid = self._client.subscribe(list(filters))
        return mid if code is MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def unsubscribe(self, filters: Sequence[str]) -> int | None:
        """Send one UNSUBSCRIBE and return its message id, or None without a connection."""
        code, mid = self._client.unsubscribe(list(filters))
        return mid if code is MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def acknowledge(self, message: ReceivedMessage) -> None:
        """Acknowledge a message at QoS 1, with all others of this turn of the event loop."""
        if not message.qos:
            return
        if not self._acknowledgements:
            asyncio.get_running_loop().call_soon(self._send_acknowledgements)
        self._acknowledgements.append(message)

    def _send_acknowledgements(self) -> None:
        handled, self._acknowledgements = self._acknowledgements, []
        # The message id of an earlier connection would acknowledge another message.
        current = self._connection_id
        mids = [message.mid for message in handled if message.connection_id == current]
        # A new connection delivers messages before the loop hears that the last one was lost.
        if mids and not self._stopped:
            self._client.acknowledge(mids)

    def reconnect(self, connection_id: int) -> None:
        """Replace a connection, unless it is lost already. The session stays the same."""
        self._short_connections = 0
        if self.connected and connection_id == self._connection_id:
            # The broker would redeliver messages without these acknowledgements again and again.
            self._send_acknowledgements()
            self._replacing = self._closed_by_us = True
            self._client.close_connection()

    def abort(self) -> None:
        """End the connection for good without DISCONNECT: the broker publishes the last will."""
        self._closed_by_us = True
        self._client.abort()

    # Publishing

    def publish_nowait(self, topic: str, content: bytes, *, retain: bool) -> None:
        """Publish at QoS 1 without waiting, even if the queue is full."""
        self._pass_to_paho(topic, content, 1, retain, None)

    async def publish(
        self,
        topic: str,
        content: bytes,
        *,
        qos: int,
        retain: bool,
        timeout_seconds: float,
        ignore_limit: bool = False,
        keep_trying: bool = False,
    ) -> None:
        """Publish, and wait for the acknowledgement at QoS 1. Raises MQTTError.

        A message that times out is withdrawn, unless `keep_trying` is set.
        """
        if self._stopped or (qos == 0 and not self.connected):
            # paho drops messages at QoS 0 silently while it is not connected.
            message = f"no connection to {self._address[0]}:{self._address[1]}"
            raise NotConnectedError(message)
        if qos == 0:
            self._sent_without_waiting += 1
            if self._sent_without_waiting < self._max_queued_messages:
                code = self._client.publish(topic, content, qos=0, retain=retain).rc
                self._raise_for(code, qos)
                return
            # Wait for the network thread from time to time, to keep the queue of paho bounded.
            self._sent_without_waiting = 0
        elif len(self._pending) >= self._max_queued_messages and not ignore_limit:
            message = f"{len(self._pending)} messages wait for an acknowledgement already"
            raise QueueFullError(message)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        mid = self._pass_to_paho(topic, content, qos, retain, done)
        # `call_later` costs a third of `asyncio.timeout`, at thousands of messages a second.
        timer = loop.call_later(timeout_seconds, _expire, done, topic, timeout_seconds)
        try:
            await done
        except BaseException:
            if not keep_trying:
                self._withdraw(mid)
            raise
        finally:
            timer.cancel()

    def _pass_to_paho(
        self,
        topic: str,
        content: bytes,
        qos: int,
        retain: bool,
        done: asyncio.Future[None] | None,
    ) -> int:
        # The network thread may complete the message before `publish` returns its id.
        self._publishing = True
        try:
            info = self._client.publish(topic, content, qos=qos, retain=retain)
            self._raise_for(info.rc, qos)
            self._pending[info.mid] = _Pending(qos, topic, len(content), done)
        finally:
            self._publishing = False
        return info.mid

    def _withdraw(self, mid: int) -> None:
        # `stop` removes all pending messages, and then the client.
        if self._pending.pop(mid, None) is not None:
            self._client.withdraw(mid)

    def _withdraw_rejected(self) -> bool:
        """Withdraw the message for which the broker closes the connection. Return whether it did.

        It is the first message without an acknowledgement on several connections.
        """
        first = next((mid for mid, pending in self._pending.items() if pending.qos), 0)
        self._suspect_attempts = self._suspect_attempts + 1 if first == self._suspect else 1
        self._suspect = first
        if not first or self._suspect_attempts < _ATTEMPTS_BEFORE_REJECTED:
            return False
        _, topic, size, done = self._pending[first]
        self._withdraw(first)
        if done is not None and not done.done():
            message = f"the broker closes the connection for {topic} ({size} bytes)"
            done.set_exception(PublishRejectedError(message))
        self._logger.error(
            "publish_rejected",
            topic=topic,
            bytes=size,
            hint="check the size limit of the broker, its ACL and its rules for topics",
        )
        return True

    def _raise_for(self, code: MQTTErrorCode, qos: int) -> None:
        # MQTT_ERR_NO_CONN is not an error at QoS 1: paho keeps the message and sends it later.
        if code is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise QueueFullError(code.name)
        if qos == 0 and code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnectedError(code.name)

    def _fail_pending(self, error: MQTTError, *, qos: int) -> None:
        for mid in [mid for mid, pending in self._pending.items() if pending.qos == qos]:
            done = self._pending.pop(mid).done
            if done is not None and not done.done():
                done.set_exception(error)

    # Callbacks of paho, on the network thread

    def _make_client(
        self,
        username: str,
        password: str,
        tls: ssl.SSLContext | None,
        transport: Literal["tcp", "websockets"],
        will: tuple[str, bytes],
    ) -> WithdrawingClient:
        client = WithdrawingClient(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=self._clean_session,
            manual_ack=True,
            transport=transport,
        )
        packet_log = logging.getLogger("paho")
        if packet_log.isEnabledFor(logging.DEBUG):
            # Only when debugging, because paho logs every lost connection as an error.
            client.enable_logger(packet_log)
        client.connect_timeout = _CONNECT_TIMEOUT_SECONDS
        # paho has no jitter, so all services would reconnect at the same moment otherwise.
        client.reconnect_delay_set(
            random.uniform(0.5, 1.5),  # type: ignore[arg-type]  # noqa: S311
            MAX_RECONNECT_DELAY_SECONDS,
        )
        if username or password:
            client.username_pw_set(username, password or None)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(*will, qos=1, retain=True)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_sent = self._on_sent
        client.on_packet = self._on_message
        return client

    def schedule[*Ts](self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop is closed. An exception would end the network thread with a traceback.
            return

    @_guarded
    def _on_pre_connect(self, _client: Client, _userdata: object) -> None:
        self._thread = threading.current_thread()

    @_guarded
    def _on_socket_open(self, _client: Client, _userdata: object, sock: _Socket) -> None:
        self._awaits_connack = True
        # A message that follows an acknowledgement would wait 40 ms for a delayed ACK otherwise.
        with _raw_socket(sock) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @_guarded
    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._awaits_connack = False
        if reason.is_failure:
            self.schedule(self._report_refusal, str(reason))
        elif self._stopped:
            # paho has forgotten a `disconnect` that came while it was connecting.
            client.disconnect()
        else:
            self.schedule(self._set_connected, flags.session_present)

    @_guarded
    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        # paho does not pass the reason, but it calls this while it handles the exception.
        self.schedule(self._report_unreachable, str(sys.exception()))

    @_guarded
    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        # A message that is handled from now on belongs to a lost connection.
        self._connection_id += 1
        if self._awaits_connack:
            self.schedule(self._report_silence, str(reason))
        else:
            self.schedule(self._set_disconnected, str(reason))

    @_guarded
    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self.schedule(self._subscribe_callback, mid, [reason.is_failure for reason in reasons])

    @_guarded
    def _on_unsubscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        _reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self.schedule(self._unsubscribe_callback, mid)

    @_guarded
    def _on_sent(self, mid: int) -> None:
        # At QoS 0 `publish` has mostly not waited. Read the flag first, because the event loop adds
        # the message to `_pending` before it resets the flag.
        if self._publishing or mid in self._pending:
            self._published.append(mid)
            if not self._wake_up_scheduled:
                self._wake_up_scheduled = True
                self.schedule(self._complete_published)

    @_guarded
    def _on_message(self, topic: bytes, payload: bytes, flags: int, mid: int) -> None:
        # The flags of a PUBLISH packet (section 3.3.1): duplicate, QoS in two bits, retain.
        duplicate, qos, retain = bool(flags & 0b1000), flags >> 1 & 0b11, bool(flags & 1)
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            self._logger.warning("topic_not_utf8", topic=repr(topic), qos=qos)
            if qos:
                self._client.acknowledge([mid])
            return
        self._message_callback(
            ReceivedMessage(text, payload, qos, retain, duplicate, mid, self._connection_id)
        )

    # Work that the callbacks schedule on the event loop

    def _set_connected(self, session_present: bool) -> None:
        self.connected = not self._stopped
        self.resumed, self._replacing = self._replacing and session_present, False
        self._connected_at = time.monotonic()
        if self.connected:
            self._connect_callback()

    def _set_disconnected(self, reason: str) -> None:
        was_connected, self.connected = self.connected, False
        closed_by_us, self._closed_by_us = self._closed_by_us, False
        self._fail_pending(NotConnectedError(f"connection lost: {reason}"), qos=0)
        if not was_connected:
            return
        self._disconnect_callback()
        self._logger.warning("mqtt_disconnected", reason=reason)
        if not closed_by_us and reason != _KEEPALIVE_TIMEOUT and self._withdraw_rejected():
            self._short_connections = 0
            return
        is_short = time.monotonic() - self._connected_at < _SHORT_CONNECTION_SECONDS
        self._short_connections = self._short_connections + 1 if is_short else 0
        if self._short_connections >= _SHORT_CONNECTIONS_BEFORE_WARNING:
            self._short_connections = 0
            self._logger.warning(
                "mqtt_connection_flapping",
                client_id=self._client_id,
                hint="check whether another process uses the same client id. Otherwise the broker"
                " rejects a message, which `publish_rejected` names later",
            )

    def _report_refusal(self, reason: str) -> None:
        self._logger.error(
            "mqtt_connection_refused",
            reason=reason,
            hint=hint_for_refusal(reason),
        )

    def _report_silence(self, reason: str) -> None:
        now = time.monotonic()
        if self._stopped or now - self._silence_reported_at < MAX_RECONNECT_DELAY_SECONDS:
            return
        self._silence_reported_at = now
        host, port, _ = self._address
        self._logger.warning(
            "mqtt_no_connack",
            host=host,
            port=port,
            reason=reason,
            hint=hint_for_silence(tls=self._has_tls),
        )

    def _report_unreachable(self, reason: str) -> None:
        # A broker that has been away may have an older session.
        self._replacing = False
        host, port, _ = self._address
        self._logger.warning("mqtt_unreachable", host=host, port=port, reason=reason)

    def _complete_published(self) -> None:
        # Reset the flag first, so that a later acknowledgement schedules another call.
        self._wake_up_scheduled = False
        while self._published:
            pending = self._pending.pop(self._published.popleft(), None)
            if pending is not None and pending.done is not None and not pending.done.done():
                pending.done.set_result(None)


def _expire(done: asyncio.Future[None], topic: str, timeout_seconds: float) -> None:
    if not done.done():
        message = f"no acknowledgement for {topic} in {timeout_seconds:g} s"
        done.set_exception(PublishTimeoutError(message))
