"""The connection to the broker: paho-mqtt with its network thread, and the way to the event loop.

A callback of the network thread copies what it got and schedules the rest on the loop, where all
state lives: nothing is locked, and nothing waits in that thread.
"""

import asyncio
import contextlib
import functools
import logging
import random
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from structlog.stdlib import BoundLogger

from shared.inbox import Received
from shared.mqtt_errors import MQTTError, NotConnectedError, PublishTimeoutError, QueueFullError

MAX_RECONNECT_DELAY_SECONDS = 30
_CONNECT_TIMEOUT_SECONDS = 5.0
_SHORT_CONNECTION_SECONDS = 5.0
_SHORT_CONNECTIONS_BEFORE_WARNING = 3


def _guarded[**P](callback: Callable[Concatenate["Link", P], None]) -> Callable[..., None]:
    """An exception in a callback would end paho's network thread; log it instead."""

    @functools.wraps(callback)
    def wrapper(self: "Link", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception:
            self._logger.exception("mqtt_callback_failed", callback=callback.__name__)

    return wrapper


class _Pending(NamedTuple):
    """A message that paho has: at QoS 1 not acknowledged, at QoS 0 not written."""

    qos: int
    done: asyncio.Future[None] | None


class Link:
    """One connection after the other, under one client id and in one session.

    `on_message` is called on the network thread, all other functions on the event loop.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        client_id: str,
        username: str,
        password: str,
        tls: ssl.SSLContext | None,
        keepalive_seconds: int,
        max_queued_messages: int,
        will: tuple[str, bytes],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_subscribed: Callable[[int, list[bool]], None],
        on_unsubscribed: Callable[[int], None],
        on_message: Callable[[Received], None],
        logger: BoundLogger,
    ) -> None:
        self.up = False
        self._address = (host, port, keepalive_seconds)
        self._client_id = client_id
        self._max_queued_messages = max_queued_messages
        self._on_up, self._on_down = on_up, on_down
        self._on_subscribed, self._on_unsubscribed = on_subscribed, on_unsubscribed
        self._on_received = on_message
        self._logger = logger
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._connection = 0
        self._connected_at = 0.0
        self._short_connections = 0
        self._pending: dict[int, _Pending] = {}
        self._handing_over = False
        self._published: deque[int] = deque()
        self._wake_up_due = False
        self._sent_unwatched = 0
        self._client = self._make_client(username, password, tls, will)

    @property
    def thread_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Connect in the background; from a running loop. A second call does nothing."""
        if self._loop is None and not self._stopped:
            self._loop = asyncio.get_running_loop()
            self._client.connect_async(*self._address)
            self._client.loop_start()

    async def stop(self, timeout_seconds: float) -> None:
        """Disconnect and wait for the end of the network thread; publishing is over."""
        self._stopped = True
        self.up = False
        for qos in (0, 1):
            self._fail_pending(NotConnectedError("the client has disconnected"), qos=qos)
        if self._loop is None:
            return
        # In this order: `loop_stop` alone would wait for acknowledgements that may never come.
        self._client.disconnect()
        # The network thread takes the end of the connection for an error.
        self._client.disable_logger()
        ended = asyncio.Event()
        # Not in the loop's executor, whose threads are joined at exit: this one may be stuck.
        threading.Thread(
            target=self._end_thread, args=[self._client, ended], name="mqtt-stop", daemon=True
        ).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended.wait()
        except TimeoutError:
            self._logger.warning("network_thread_still_running", waited_seconds=timeout_seconds)
        else:
            # paho closes its sockets when the last reference is gone, and the garbage collector
            # might come to the sockets first.
            del self._client

    def _end_thread(self, client: Client, ended: asyncio.Event) -> None:
        try:
            client.loop_stop()
        except AttributeError:
            # paho's reference to its thread is gone when the thread ends at this very moment.
            self._logger.debug("network_thread_ended_first")
        self.schedule(ended.set)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int | None:
        """Send one SUBSCRIBE and return its message id, None when the connection is gone."""
        code, mid = self._client.subscribe(list(filters))
        return mid if code is MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def unsubscribe(self, filters: Sequence[str]) -> int | None:
        """Send one UNSUBSCRIBE and return its message id, None when the connection is gone."""
        code, mid = self._client.unsubscribe(list(filters))
        return mid if code is MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def acknowledge(self, message: Received) -> None:
        # Message ids start again with every connection: an old one would acknowledge another.
        if self.up and message.connection == self._connection:
            self._client.ack(message.mid, message.qos)

    def renew(self, connection: int) -> None:
        """Break this connection, if it still stands; paho makes a new one, in the same session."""
        self._short_connections = 0
        if self.up and connection == self._connection:
            self.break_off()

    def break_off(self) -> None:
        """End the connection without a word, which makes the broker publish the last will."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            # Not `sock.shutdown`: with TLS the network thread would go on reading, in the clear.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # Publishing

    def post(self, topic: str, content: bytes, *, retain: bool) -> None:
        """Publish at QoS 1 without waiting, even if the queue is full."""
        self._hand_over(topic, content, 1, retain, None)

    async def publish(
        self,
        topic: str,
        content: bytes,
        *,
        qos: int,
        retain: bool,
        timeout_seconds: float,
        beyond_limit: bool = False,
    ) -> None:
        """At QoS 1 wait for the acknowledgement; at QoS 0 only now and then, for room."""
        if self._stopped or (qos == 0 and not self.up):
            # At QoS 0 paho would drop it without a word.
            message = f"no connection to {self._address[0]}:{self._address[1]}"
            raise NotConnectedError(message)
        if qos == 0:
            self._sent_unwatched += 1
            if self._sent_unwatched < self._max_queued_messages:
                code = self._client.publish(topic, content, qos=0, retain=retain).rc
                self._raise_for(code, qos)
                return
            # Let the network thread catch up, else this queue would grow without bound.
            self._sent_unwatched = 0
        elif len(self._pending) >= self._max_queued_messages and not beyond_limit:
            message = f"{len(self._pending)} messages wait for the broker already"
            raise QueueFullError(message)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._hand_over(topic, content, qos, retain, done)
        # A third of the cost of `asyncio.timeout`, at thousands of messages a second.
        timer = loop.call_later(timeout_seconds, _expire, done, topic, timeout_seconds)
        try:
            await done
        finally:
            timer.cancel()

    def _hand_over(
        self,
        topic: str,
        content: bytes,
        qos: int,
        retain: bool,
        done: asyncio.Future[None] | None,
    ) -> None:
        # The network thread may be done with it before `publish` returns.
        self._handing_over = True
        try:
            info = self._client.publish(topic, content, qos=qos, retain=retain)
            self._raise_for(info.rc, qos)
            self._pending[info.mid] = _Pending(qos, done)
        finally:
            self._handing_over = False

    def _raise_for(self, code: MQTTErrorCode, qos: int) -> None:
        # MQTT_ERR_NO_CONN is no failure at QoS 1: paho keeps the message and sends it later.
        if code is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise QueueFullError(code.name)
        if qos == 0 and code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnectedError(code.name)

    def _fail_pending(self, error: MQTTError, *, qos: int) -> None:
        for mid in [mid for mid, pending in self._pending.items() if pending.qos == qos]:
            done = self._pending.pop(mid).done
            if done is not None and not done.done():
                done.set_exception(error)

    # Network thread: copy and schedule, nothing else

    def _make_client(
        self, username: str, password: str, tls: ssl.SSLContext | None, will: tuple[str, bytes]
    ) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, self._client_id, clean_session=False, manual_ack=True
        )
        packet_log = logging.getLogger("paho")
        if packet_log.isEnabledFor(logging.DEBUG):
            # Not otherwise: paho calls every lost connection an error.
            client.enable_logger(packet_log)
        client.connect_timeout = _CONNECT_TIMEOUT_SECONDS
        # paho has no jitter: without it all services would come back in the same instant.
        client.reconnect_delay_set(
            random.uniform(0.5, 1.5),  # type: ignore[arg-type]  # noqa: S311
            MAX_RECONNECT_DELAY_SECONDS,
        )
        if password:
            client.username_pw_set(username, password)
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
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def schedule[*Ts](self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has ended before the network thread: nobody is left to tell, and an
            # exception here would only end the thread with a traceback.
            return

    @_guarded
    def _on_pre_connect(self, client: Client, _userdata: object) -> None:
        self._thread = threading.current_thread()
        if client.protocol is not MQTTProtocolVersion.MQTTv311:
            # By itself, and for good, once a broker has refused 3.1.1.
            self.schedule(self._downgraded)

    @_guarded
    def _on_socket_open(self, _client: Client, _userdata: object, sock: object) -> None:
        # An acknowledgement followed by a message would otherwise wait for the other side's
        # delayed ACK, 40 ms.
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @_guarded
    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        # Also called on refusal.
        if reason.is_failure:
            self.schedule(self._refused, str(reason))
        elif self._stopped:
            # `disconnect` came while this connection was being made, and paho forgot it.
            client.disconnect()
        else:
            self._connection += 1
            self.schedule(self._went_up)

    @_guarded
    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        # paho hands over no reason, but calls while it handles the error.
        self.schedule(self._unreachable, str(sys.exception()))

    @_guarded
    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self.schedule(self._went_down, str(reason))

    @_guarded
    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self.schedule(self._on_subscribed, mid, [reason.is_failure for reason in reasons])

    @_guarded
    def _on_unsubscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        _reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self.schedule(self._on_unsubscribed, mid)

    @_guarded
    def _on_publish(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        # Also called at QoS 0, for which mostly nobody waits.
        if mid in self._pending or self._handing_over:
            self._published.append(mid)
            if not self._wake_up_due:
                self._wake_up_due = True
                self.schedule(self._complete_published)

    @_guarded
    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError as error:
            self._logger.warning("topic_not_utf8", topic=repr(error.object), qos=message.qos)
            client.ack(message.mid, message.qos)
            return
        self._on_received(
            Received(
                topic,
                bytes(message.payload),
                message.qos,
                message.retain,
                message.dup,
                message.mid,
                self._connection,
            )
        )

    # Event loop: what the callbacks have scheduled

    def _went_up(self) -> None:
        self.up = not self._stopped
        self._connected_at = time.monotonic()
        if self.up:
            self._on_up()

    def _went_down(self, reason: str) -> None:
        was_up, self.up = self.up, False
        self._fail_pending(NotConnectedError(f"connection lost: {reason}"), qos=0)
        if not was_up:
            return
        self._on_down()
        self._logger.warning("mqtt_disconnected", reason=reason)
        is_short = time.monotonic() - self._connected_at < _SHORT_CONNECTION_SECONDS
        self._short_connections = self._short_connections + 1 if is_short else 0
        if self._short_connections >= _SHORT_CONNECTIONS_BEFORE_WARNING:
            self._short_connections = 0
            self._logger.warning(
                "mqtt_connection_flapping",
                client_id=self._client_id,
                hint="does another process use the same client id?",
            )

    def _refused(self, reason: str) -> None:
        self._logger.error(
            "mqtt_connection_refused",
            reason=reason,
            hint="check MQTT_USERNAME and MQTT_PASSWORD; trying again, ever more slowly",
        )

    def _unreachable(self, reason: str) -> None:
        host, port, _ = self._address
        self._logger.warning("mqtt_unreachable", host=host, port=port, reason=reason)

    def _downgraded(self) -> None:
        self._logger.warning(
            "mqtt_protocol_downgraded",
            protocol="3.1",
            hint="the broker refuses 3.1.1, without which a refused subscription is not told",
        )

    def _complete_published(self) -> None:
        # First, so that what is published from now on causes another call.
        self._wake_up_due = False
        while self._published:
            pending = self._pending.pop(self._published.popleft(), None)
            if pending is not None and pending.done is not None and not pending.done.done():
                pending.done.set_result(None)


def _expire(done: asyncio.Future[None], topic: str, timeout_seconds: float) -> None:
    if not done.done():
        message = f"no acknowledgement for {topic} in {timeout_seconds:g} s"
        done.set_exception(PublishTimeoutError(message))
