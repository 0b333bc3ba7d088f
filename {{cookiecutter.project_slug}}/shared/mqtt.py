"""The MQTT client of a service, on paho-mqtt with its own network thread.

Everything that has a state lives on the event loop; a callback of the network thread copies what
it got and schedules the rest. Handlers, sync and async, run on the loop.
"""

import asyncio
import functools
import json
import random
import secrets
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, Literal, Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.config import Settings
from shared.dedup import RecentIds
from shared.inbox import Decoding, Handler, Inbox, Received, Subscription
from shared.mqtt_errors import (
    MQTTError,
    NotConnectedError,
    PayloadError,
    PublishTimeoutError,
    QueueFullError,
    RequestTimeoutError,
)
from shared.redaction import redact_text
from shared.schemas import Availability, DeadLetter
from shared.topics import validate_filter, validate_topic
from shared.tracing import bind_trace_id, current_trace_id, new_trace_id

__all__ = [
    "Handler",
    "MQTTClient",
    "MQTTError",
    "NotConnectedError",
    "Payload",
    "PayloadError",
    "PublishTimeoutError",
    "QueueFullError",
    "RequestTimeoutError",
]

type Payload = Mapping[str, Any] | BaseModel | list[Any] | str | bytes | bool | float | None
type QoS = Literal[0, 1]

MAX_RECONNECT_DELAY_SECONDS = 30
_CONNECT_TIMEOUT_SECONDS = 5.0
_SHORT_CONNECTION_SECONDS = 5.0
_SHORT_CONNECTIONS_BEFORE_WARNING = 3


def _guarded[**P](
    callback: Callable[Concatenate["MQTTClient", P], None],
) -> Callable[Concatenate["MQTTClient", P], None]:
    """An exception in a callback would end paho's network thread; log it instead."""

    @functools.wraps(callback)
    def wrapper(self: "MQTTClient", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(self, *args, **kwargs)
        except Exception:
            self._logger.exception("mqtt_callback_failed", callback=callback.__name__)

    return wrapper


@dataclass(frozen=True)
class _Subscribing:
    filters: tuple[str, ...]
    opens_connection: bool


class MQTTClient:
    """Publishes, subscribes, asks and answers; survives a broker that is away.

    Messages at QoS 1 are acknowledged after they were handled. One whose handler fails goes to
    `{prefix}/errors/{service}`. The session lives as long as the client does, so that a broken
    connection loses nothing of QoS 1.
    """

    def __init__(
        self,
        host: str,
        port: int = 1883,
        *,
        service: str,
        topic_prefix: str,
        logger: BoundLogger,
        username: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        keepalive_seconds: int = 30,
        publish_timeout_seconds: float = 10.0,
        max_queued_messages: int = 1000,
        client_id: str = "",
    ) -> None:
        self.client_id = client_id or f"{service}-{secrets.token_hex(4)}"
        self._host, self._port, self._keepalive_seconds = host, port, keepalive_seconds
        self._service, self._prefix, self._logger = service, topic_prefix, logger
        self._publish_timeout_seconds = publish_timeout_seconds
        self._max_queued_messages = max_queued_messages
        self._inbox = Inbox(
            max_queued_messages=max_queued_messages,
            acknowledge=self._acknowledge,
            bury=self._bury,
            logger=logger,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = asyncio.Event()
        self._linked = False
        self._stopping = False
        self._connection = 0
        self._connected_at = 0.0
        self._short_connections = 0
        self._subscribing: dict[int, _Subscribing] = {}
        self._unacknowledged: dict[int, asyncio.Future[None]] = {}
        self._awaited = 0
        self._requests: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reply_topic = f"{topic_prefix}/{service}/response/{self.client_id}"
        self._availability_topic = f"{topic_prefix}/{service}/availability"
        self._client = self._make_client(username, password, tls)
        self.subscribe(self._reply_topic, self._on_reply)

    @classmethod
    def from_settings(cls, settings: Settings, service: str, logger: BoundLogger) -> Self:
        tls = None
        if settings.mqtt_tls:
            tls = ssl.create_default_context(cafile=settings.mqtt_tls_ca_file)
        return cls(
            settings.mqtt_host,
            settings.mqtt_port,
            service=service,
            topic_prefix=settings.topic_prefix,
            logger=logger,
            username=settings.mqtt_username,
            password=settings.mqtt_password.get_secret_value(),
            tls=tls,
            keepalive_seconds=settings.mqtt_keepalive_seconds,
            publish_timeout_seconds=settings.mqtt_publish_timeout_seconds,
            max_queued_messages=settings.mqtt_max_queued_messages,
        )

    @property
    def connected(self) -> bool:
        """Connected, subscribed and announced as online."""
        return self._ready.is_set()

    @property
    def thread_alive(self) -> bool:
        """Whether the network thread runs; without it nothing is sent or received."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def dropped_messages(self) -> int:
        """Messages at QoS 0 that came faster than they were handled and found no room."""
        return self._inbox.dropped

    # Connection

    def connect_background(self) -> None:
        """Connect, and connect again whenever it is lost; returns at once, from a running loop."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._client.connect_async(self._host, self._port, self._keepalive_seconds)
        self._client.loop_start()

    async def wait_connected(self, timeout_seconds: float | None = None) -> None:
        """Wait until the client is connected and subscribed; raises NotConnectedError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        except TimeoutError as error:
            message = f"no connection to {self._host}:{self._port} in {timeout_seconds} s"
            raise NotConnectedError(message) from error

    async def disconnect(self, timeout_seconds: float = 5.0) -> None:
        """Take no more messages, finish those at hand, say goodbye, and leave. Never raises.

        Half of the time is for the handlers at most. A second call does nothing.
        """
        if self._stopping:
            return
        self._stopping = True
        deadline = time.monotonic() + timeout_seconds
        if self._linked:
            # The session outlives the connection: without this the broker would go on collecting.
            self._client.unsubscribe([name for name, _ in self._inbox.filters()])
        await self._finish_handlers(timeout_seconds / 2)
        if self._linked:
            await self._say_goodbye(max(deadline - time.monotonic(), 0.1))
        self._ready.clear()
        self._fail_waiting(NotConnectedError("the client has disconnected"))
        if self._loop is not None:
            # In this order: `loop_stop` alone would wait for acknowledgements that may never come.
            self._client.disconnect()
            await self._join_thread(max(deadline - time.monotonic(), 0.1))

    async def _finish_handlers(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._inbox.drain()
        except TimeoutError:
            self._logger.warning("handlers_cut_off", messages=self._inbox.waiting)
        await self._inbox.close()

    async def _say_goodbye(self, timeout_seconds: float) -> None:
        # A clean disconnect keeps the broker from publishing the last will.
        offline = Availability(status="offline", reason="stopped")
        try:
            await self._send(self._availability_topic, _encode(offline), True, timeout_seconds)
        except MQTTError as error:
            self._logger.warning("offline_not_announced", error=error)

    async def _join_thread(self, timeout_seconds: float) -> None:
        # Not the loop's executor: its threads are joined at exit, and a frozen one would hold us.
        ended = asyncio.Event()

        def stop() -> None:
            self._client.loop_stop()
            self._schedule(ended.set)

        threading.Thread(target=stop, name="mqtt-loop-stop", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended.wait()
        except TimeoutError:
            self._logger.warning("network_thread_still_running", waited_seconds=timeout_seconds)

    # Subscriptions

    def subscribe(
        self,
        topic: str,
        handler: Handler,
        *,
        qos: QoS = 1,
        model: type[BaseModel] | None = None,
        decoding: Decoding = "json",
        deduplicate: bool = False,
    ) -> None:
        """Call `handler(topic, payload)` for what arrives on `topic`, which may hold wildcards.

        The payload is decoded JSON, an instance of `model`, or what `decoding` says. With
        `deduplicate` a message whose `request_id`, else `trace_id`, was seen lately is skipped.
        May be called at any time; best before connecting. Raises ValueError for a bad filter.
        """
        recent = RecentIds() if deduplicate else None
        validate_filter(topic)
        self._inbox.add(Subscription(topic, handler, qos, model, decoding, recent))
        if self._linked:
            self._send_subscribe([(topic, qos)], opens_connection=False)

    def unsubscribe(self, topic: str) -> None:
        """End a subscription; what has arrived for it is still handled."""
        if self._inbox.remove(topic) and self._linked:
            self._client.unsubscribe(topic)

    def _send_subscribe(self, filters: list[tuple[str, int]], *, opens_connection: bool) -> None:
        code, mid = self._client.subscribe(filters)
        if code is MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
            names = tuple(name for name, _ in filters)
            self._subscribing[mid] = _Subscribing(names, opens_connection)

    # Publishing

    async def publish(
        self,
        topic: str,
        payload: Payload,
        *,
        qos: QoS = 1,
        retain: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Publish mappings, lists, models, numbers as JSON, and text and bytes as they are.

        QoS 0 raises NotConnectedError while there is no connection. QoS 1 waits for one, and
        returns when the broker has acknowledged; raises PublishTimeoutError (the message may
        still be delivered) and QueueFullError. Raises PayloadError, and ValueError for a bad topic.
        """
        validate_topic(topic)
        content = _encode(payload)
        if qos == 0:
            self._send_unacknowledged(topic, content, retain)
        else:
            timeout = self._publish_timeout_seconds if timeout_seconds is None else timeout_seconds
            await self._send(topic, content, retain, timeout)

    def _send_unacknowledged(self, topic: str, content: bytes, retain: bool) -> None:
        # paho would drop it without a word.
        if not self._linked:
            message = f"no connection to {self._host}:{self._port}"
            raise NotConnectedError(message)
        code = self._client.publish(topic, content, qos=0, retain=retain).rc
        if code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise NotConnectedError(code.name)

    async def _send(self, topic: str, content: bytes, retain: bool, timeout_seconds: float) -> None:
        acknowledged = asyncio.get_running_loop().create_future()
        # Before the call: the acknowledgement may be there before it returns.
        self._awaited += 1
        info = self._client.publish(topic, content, qos=1, retain=retain)
        self._unacknowledged[info.mid] = acknowledged
        try:
            # MQTT_ERR_NO_CONN is no failure at QoS 1: paho keeps the message and sends it later.
            if info.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                message = f"{self._max_queued_messages} messages wait for the broker already"
                raise QueueFullError(message)
            async with asyncio.timeout(timeout_seconds):
                await acknowledged
        except TimeoutError as error:
            message = f"no acknowledgement for {topic} in {timeout_seconds:g} s"
            raise PublishTimeoutError(message) from error
        finally:
            self._awaited -= 1
            self._unacknowledged.pop(info.mid, None)

    # Request and response

    async def request(
        self, topic: str, payload: Mapping[str, Any], *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Publish a request and return the answer that carries its `request_id`.

        Adds `request_id`, `reply_to` and, when missing, `trace_id`. Raises RequestTimeoutError.
        """
        request_id = secrets.token_hex(16)
        envelope = {
            "trace_id": current_trace_id() or new_trace_id(),
            **payload,
            "request_id": request_id,
            "reply_to": self._reply_topic,
        }
        reply = asyncio.get_running_loop().create_future()
        self._requests[request_id] = reply
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.publish(topic, envelope, timeout_seconds=timeout_seconds + 1)
                answer: dict[str, Any] = await reply
        except TimeoutError as error:
            message = f"no answer to the request on {topic} in {timeout_seconds:g} s"
            raise RequestTimeoutError(message) from error
        finally:
            del self._requests[request_id]
        return answer

    async def respond(self, request: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        """Answer a request on its `reply_to`, else on `{prefix}/{service}/response`.

        Raises what `publish` raises, with PayloadError for a `reply_to` that is no topic.
        """
        topic = request.get("reply_to") or f"{self._prefix}/{self._service}/response"
        try:
            validate_topic(topic)
        except (AttributeError, TypeError, ValueError) as error:
            message = f"reply_to is no topic: {topic!r}"
            raise PayloadError(message) from error
        await self.publish(topic, {**payload, "request_id": request.get("request_id")})

    def _on_reply(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        request_id = payload.get("request_id") if isinstance(payload, dict) else None
        waiting = self._requests.get(request_id) if isinstance(request_id, str) else None
        if waiting is None:
            self._logger.debug("reply_unexpected", request_id=request_id)
        elif not waiting.done():
            waiting.set_result(payload)

    # Dead letters

    async def _bury(self, message: Received, error: BaseException, trace_id: str) -> bool:
        """Publish a message that failed, and why; False when the broker does not have it."""
        with bind_trace_id(trace_id):
            self._logger.error("message_failed", topic=message.topic, exc_info=error)
            if message.topic.startswith(f"{self._prefix}/errors/"):
                # The dead letter of a dead letter would fail as well, for ever.
                return True
            try:
                await self.publish(
                    f"{self._prefix}/errors/{self._service}", self._dead_letter(message, error)
                )
            except MQTTError as failure:
                self._logger.error("dead_letter_not_sent", topic=message.topic, error=failure)  # noqa: TRY400
                return False
        return True

    def _dead_letter(self, message: Received, error: BaseException) -> DeadLetter:
        try:
            payload, encoding = message.payload.decode(), "utf-8"
        except UnicodeDecodeError:
            payload, encoding = b64encode(message.payload).decode(), "base64"
        return DeadLetter.model_validate(
            {
                "timestamp": datetime.now(UTC),
                "service": self._service,
                "trace_id": current_trace_id(),
                "original_topic": message.topic,
                "payload": payload,
                "encoding": encoding,
                "error_type": type(error).__name__,
                "error": redact_text(str(error)),
            }
        )

    # Network thread: copy and schedule, nothing else

    def _make_client(self, username: str, password: str, tls: ssl.SSLContext | None) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2, self.client_id, clean_session=False, manual_ack=True
        )
        client.connect_timeout = _CONNECT_TIMEOUT_SECONDS
        client.max_queued_messages_set(self._max_queued_messages)
        # paho has no jitter: without it all services would come back in the same instant.
        client.reconnect_delay_set(
            random.uniform(0.5, 1.5),  # type: ignore[arg-type]  # noqa: S311
            MAX_RECONNECT_DELAY_SECONDS,
        )
        if username:
            client.username_pw_set(username, password)
        if tls is not None:
            client.tls_set_context(tls)
        lost = Availability(status="offline", reason="connection_lost")
        client.will_set(self._availability_topic, _encode(lost), qos=1, retain=True)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    def _schedule[*Ts](self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop has ended before the network thread: nobody is left to tell, and an
            # exception here would only end the thread with a traceback.
            return

    @_guarded
    def _on_pre_connect(self, _client: Client, _userdata: object) -> None:
        self._thread = threading.current_thread()

    @_guarded
    def _on_socket_open(self, _client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
        # An acknowledgement followed by a message would otherwise wait for the other side's
        # delayed ACK, 40 ms.
        if isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @_guarded
    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        # Also called on refusal.
        if reason.is_failure:
            self._schedule(self._refused, str(reason))
            return
        self._connection += 1
        self._schedule(self._link_up, self._connection, flags.session_present)

    @_guarded
    def _on_connect_fail(self, _client: Client, _userdata: object) -> None:
        self._schedule(self._unreachable)

    @_guarded
    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._schedule(self._link_down, str(reason))

    @_guarded
    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._schedule(self._subscribed, mid, [reason.is_failure for reason in reasons])

    @_guarded
    def _on_publish(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        # Also called at QoS 0, for which nobody waits.
        if self._awaited:
            self._schedule(self._published, mid)

    @_guarded
    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        if self._stopping:
            return
        try:
            topic = message.topic
        except UnicodeDecodeError as error:
            self._logger.warning("topic_not_utf8", topic=repr(error.object), qos=message.qos)
            client.ack(message.mid, message.qos)
            return
        self._inbox.put(
            Received(
                topic,
                bytes(message.payload),
                message.qos,
                message.mid,
                message.retain,
                self._connection,
            ),
            self._schedule,
        )

    # Event loop: what the callbacks have scheduled

    def _link_up(self, connection: int, session_present: bool) -> None:
        self._linked = True
        self._connected_at = time.monotonic()
        self._subscribing.clear()
        if session_present:
            self._inbox.forget_redelivered(connection)
        # On every connection: a session that the broker claims to have may lack the newest ones.
        self._send_subscribe(self._inbox.filters(), opens_connection=True)

    def _subscribed(self, mid: int, refused: list[bool]) -> None:
        subscribing = self._subscribing.pop(mid, None)
        if subscribing is None:
            return
        for topic_filter, is_refused in zip(subscribing.filters, refused, strict=False):
            if is_refused:
                self._logger.error("subscription_refused", topic=topic_filter)
        if subscribing.opens_connection and self._linked and not self._stopping:
            # Only now: who reads `online` may send at once.
            online = _encode(Availability(status="online"))
            self._client.publish(self._availability_topic, online, qos=1, retain=True)
            self._ready.set()
            self._logger.info("mqtt_connected", host=self._host, port=self._port)

    def _link_down(self, reason: str) -> None:
        was_linked, self._linked = self._linked, False
        self._ready.clear()
        if self._stopping or not was_linked:
            return
        self._logger.warning("mqtt_disconnected", reason=reason)
        is_short = time.monotonic() - self._connected_at < _SHORT_CONNECTION_SECONDS
        self._short_connections = self._short_connections + 1 if is_short else 0
        if self._short_connections >= _SHORT_CONNECTIONS_BEFORE_WARNING:
            self._short_connections = 0
            self._logger.warning(
                "mqtt_connection_flapping",
                client_id=self.client_id,
                hint="does another process use the same client id?",
            )

    def _refused(self, reason: str) -> None:
        self._logger.error(
            "mqtt_connection_refused",
            reason=reason,
            hint="check MQTT_USERNAME and MQTT_PASSWORD; trying again, ever more slowly",
        )

    def _unreachable(self) -> None:
        self._logger.warning("mqtt_unreachable", host=self._host, port=self._port)

    def _published(self, mid: int) -> None:
        acknowledged = self._unacknowledged.get(mid)
        if acknowledged is not None and not acknowledged.done():
            acknowledged.set_result(None)

    def _acknowledge(self, message: Received) -> None:
        # Message ids start again with every connection: an old one would acknowledge another.
        if self._linked and message.connection == self._connection:
            self._client.ack(message.mid, message.qos)

    def _fail_waiting(self, error: MQTTError) -> None:
        waiting: list[asyncio.Future[Any]] = [
            *self._unacknowledged.values(),
            *self._requests.values(),
        ]
        for future in waiting:
            if not future.done():
                future.set_exception(error)


def _encode(payload: Payload) -> bytes:
    """What goes over the wire; raises PayloadError."""
    match payload:
        case None:
            return b""
        case bytes():
            return payload
        case str():
            return payload.encode()
        case BaseModel():
            return payload.model_dump_json(exclude_none=True).encode()
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        message = f"the payload cannot be written as JSON: {error}"
        raise PayloadError(message) from error
