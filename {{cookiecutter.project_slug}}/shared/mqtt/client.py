"""The MQTT client: publish, subscribe, request and reply.

Handlers, sync and async, run on the event loop. All methods must be called on that loop.
"""

import asyncio
import codecs
import hashlib
import secrets
import ssl
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.config import ConfigurationError, Settings, tls_context
from shared.mqtt.connection import Connection, ReceivedMessage
from shared.mqtt.dedup import RecentIds
from shared.mqtt.deprecated import accept_old_arguments
from shared.mqtt.dispatcher import Dispatcher, Handler, QoS, Subscription
from shared.mqtt.errors import MQTTError, NotConnectedError, PayloadError, RequestTimeoutError
from shared.mqtt.journal import Journal
from shared.mqtt.payload import Payload, PayloadFormat, encode
from shared.mqtt.session import Session
from shared.mqtt.topics import is_shared, validate_filter, validate_topic
from shared.redaction import redact_text
from shared.schemas import Availability, DeadLetter
from shared.timestamps import format_utc
from shared.tracing import bind_trace_id, current_trace_id, new_trace_id

# An error may quote the whole payload, which the dead letter already contains.
_MAX_ERROR_LENGTH = 2000
# As JSON, a dead letter is smaller than 1 MiB: a byte of its payload or topic becomes 6 at most.
_MAX_DEAD_LETTER_PAYLOAD_BYTES = 64 * 1024


class MQTTClient:
    """Client that reconnects, subscribes again and publishes its birth message again.

    A message at QoS 1 is acknowledged after it was handled. A `session` that is kept outlives the
    connection, so a lost connection loses no message, and the broker queues messages while the
    service is stopped. A client without a session misses the messages sent while it is away.

    Messages of one subscription are handled one at a time and in order. A message whose handler
    fails is published as a dead letter on `{prefix}/errors/{service}`. The broker limits the
    number of unacknowledged messages (Mosquitto: 20) and sends no more at QoS 1 until then.
    """

    connection_class: ClassVar[type[Connection]] = Connection

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
        transport: Literal["tcp", "websockets"] = "tcp",
        websocket_path: str = "/mqtt",
        keepalive_seconds: int = 30,
        publish_timeout_seconds: float = 10.0,
        max_queued_messages: int = 1000,
        max_payload_bytes: int = 2**20,
        session: Session | None = None,
    ) -> None:
        self._session = session or Session.new(service)
        self.client_id = self._session.client_id
        self._broker = f"{host}:{port}"
        self._service, self._prefix, self._logger = service, topic_prefix, logger
        self._publish_timeout_seconds = publish_timeout_seconds
        self._max_payload_bytes = max_payload_bytes
        self.before_online: Callable[[], Awaitable[None]] | None = None
        """Awaited on every connection, before `online` is published."""
        self._ready = asyncio.Event()
        self._going_online: asyncio.Task[None] | None = None
        self._draining = self._stopping = False
        self._subscribing: dict[int, list[str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._initial_subscribe: int | None = None
        self._confirmed: set[str] = set()
        self._requests: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._dead_letters_sent = 0
        self._reply_topic = f"{topic_prefix}/{service}/response/{self.client_id}"
        self._availability_topic = f"{topic_prefix}/{service}/availability"
        last_will = Availability(status="offline", reason="connection_lost", service=service)
        self._connection = self.connection_class(
            host,
            port,
            client_id=self.client_id,
            clean_session=not self._session.kept,
            username=username,
            password=password,
            tls=tls,
            transport=transport,
            websocket_path=websocket_path,
            keepalive_seconds=keepalive_seconds,
            max_queued_messages=max_queued_messages,
            will=(self._availability_topic, encode(last_will)),
            on_connect=self._subscribe_all,
            on_disconnect=self._ready.clear,
            on_subscribe=self._on_subscribe,
            on_unsubscribe=self._on_unsubscribe,
            on_message=self._on_message,
            logger=logger,
        )
        self._dispatcher = Dispatcher(
            max_payload_bytes=max_payload_bytes,
            schedule=self._connection.schedule,
            acknowledge=self._connection.acknowledge,
            reconnect=self._connection.reconnect,
            send_dead_letter=self._send_dead_letter,
            urgent_topics=frozenset({self._reply_topic, self._availability_topic}),
            journal=(
                None
                if self._session.deaths is None
                else Journal(self._session.deaths, self._save_session)
            ),
            logger=logger,
        )
        # QoS 0, because handlers that wait for a reply may use up the broker's limit at QoS 1.
        self.subscribe(self._reply_topic, self._on_reply, qos=0)
        self.subscribe(self._availability_topic, self._on_availability, qos=0)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        service: str,
        logger: BoundLogger,
        *,
        session: Session | None = None,
    ) -> Self:
        """Create a client from the settings. Raises ConfigurationError for invalid TLS files."""
        username, password = mqtt_credentials(settings)
        return cls(
            settings.mqtt_host,
            settings.mqtt_port,
            service=service,
            topic_prefix=settings.topic_prefix,
            logger=logger,
            username=username,
            password=password,
            tls=mqtt_tls_context(settings) if settings.mqtt_tls else None,
            transport=settings.mqtt_transport,
            websocket_path=settings.mqtt_websocket_path,
            keepalive_seconds=settings.mqtt_keepalive_seconds,
            publish_timeout_seconds=settings.mqtt_publish_timeout_seconds,
            max_queued_messages=settings.mqtt_max_queued_messages,
            max_payload_bytes=settings.mqtt_max_payload_bytes,
            session=session,
        )

    @property
    def connected(self) -> bool:
        """Whether the client is connected, subscribed and has published its birth message."""
        return self._ready.is_set()

    @property
    def thread_alive(self) -> bool:
        """Whether the network thread runs. Nothing is sent or received without it."""
        return self._connection.thread_alive

    @property
    def thread_ended(self) -> bool:
        """Whether the network thread has ended without `disconnect()`. It never starts again."""
        return self._connection.thread_ended

    @property
    def dead_letters_sent(self) -> int:
        """Number of messages whose handler failed."""
        return self._dead_letters_sent

    # Connection

    def connect_background(self) -> None:
        """Connect, and reconnect after every lost connection. Returns at once."""
        self._connection.start()

    async def wait_connected(self, timeout_seconds: float | None = None) -> None:
        """Wait until the client is connected and subscribed. Raises NotConnectedError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        except TimeoutError as error:
            message = f"no connection to {self._broker} in {timeout_seconds} s"
            raise NotConnectedError(message) from error

    async def drain(self, timeout_seconds: float = 5.0) -> None:
        """Accept no more messages and finish those that wait.

        Handlers that exceed the timeout are cancelled. Replies are still accepted, because a
        handler may wait for one. A second call does nothing.
        """
        if self._draining:
            return
        self._draining = True
        if self._connection.connected:
            self._end_subscriptions()
        await self._dispatcher.drain(timeout_seconds)

    async def disconnect(
        self,
        timeout_seconds: float = 5.0,
        *,
        keep_status: bool = True,
        reason: str = "stopped",
    ) -> None:
        """Drain, publish the offline message and disconnect. Never raises.

        Handlers get at most half of the time. The offline message holds the reason. With
        `keep_status=False` the retained availability is cleared. A second call does nothing.
        """
        if self._stopping:
            return
        self._stopping = True
        deadline = time.monotonic() + timeout_seconds
        await self.drain(timeout_seconds / 2)
        await self._dispatcher.close()
        if self._connection.connected:
            # After a clean disconnect the broker does not publish the last will.
            content = self._availability("offline", reason) if keep_status else b""
            remaining_seconds = max(deadline - time.monotonic(), 0.1)
            is_sent = await self._send_offline_message(content, remaining_seconds)
            if keep_status and not is_sent:
                # Let the broker publish the last will, because `online` is still retained.
                self._connection.abort()
        self._ready.clear()
        for reply in self._requests.values():
            if not reply.done():
                reply.set_exception(NotConnectedError("the client has disconnected"))
        await self._connection.stop(max(deadline - time.monotonic(), 0.1))

    # Availability

    async def _send_offline_message(self, content: bytes, timeout_seconds: float) -> bool:
        try:
            await self._connection.publish(
                self._availability_topic,
                content,
                qos=1,
                retain=True,
                timeout_seconds=timeout_seconds,
                ignore_limit=True,
            )
        except MQTTError as error:
            self._logger.warning("offline_message_not_sent", error=error)
            return False
        return True

    def _send_birth_message(self) -> None:
        content = self._availability("online")
        self._connection.publish_nowait(self._availability_topic, content, retain=True)

    def _availability(
        self, status: Literal["online", "offline"], reason: str | None = None
    ) -> bytes:
        now, service = datetime.now(UTC), self._service
        message = Availability(status=status, reason=reason, timestamp=now, service=service)
        return encode(message)

    def _on_availability(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
        # The broker may publish the last will of an earlier connection after the birth message.
        is_offline = isinstance(payload, dict) and payload.get("status") == "offline"
        if is_offline and self.connected and not self._stopping:
            self._send_birth_message()

    # Subscriptions

    @accept_old_arguments
    def subscribe(
        self,
        topic: str,
        handler: Handler,
        *,
        qos: QoS = 1,
        model: type[BaseModel] | None = None,
        payload_format: PayloadFormat = "json",
        deduplicate: bool = False,
        skip_retained: bool = False,
        shared: bool = False,
    ) -> None:
        """Call `handler(topic, payload)` for each message on `topic`, which may hold wildcards.

        With `shared`, each message goes to one replica of the service, by the filter
        `$share/{service}/{topic}`. A shared subscription keeps less than a plain one: messages are
        lost while all replicas are stopped, and Mosquitto forgets the subscription when it
        restarts until the replicas connect again. Retained messages do not arrive. The order of
        messages is only kept within a replica.

        The handler replaces an earlier one for the same `topic`. Subscribe before connecting:
        messages that the broker has queued meanwhile are lost without a handler. Raises ValueError
        for an invalid filter. If filters overlap, a broker may send a message once for each
        filter, and every matching handler is called each time.

        Args:
            topic: Topic filter, or `$share/GROUP/FILTER`.
            handler: Function or coroutine function.
            qos: Highest QoS that the broker uses for this subscription.
            model: Pydantic model that validates the payload. It skips empty payloads.
            payload_format: Type of the payload, before a `model` validates it. `auto` is JSON if
                the payload is valid JSON, otherwise text, otherwise bytes. Empty JSON is None.
            deduplicate: Skip a message whose `request_id`, or `trace_id` and content, was seen
                recently. Do not use it for requests: their sender repeats them to get a reply.
            skip_retained: Skip the retained messages that the broker sends on every connection.
            shared: Share the messages with the other replicas of this service.
        """
        if shared:
            topic = f"$share/{self._service}/{topic}"
        recent = RecentIds() if deduplicate else None
        validate_filter(topic)
        self._dispatcher.add(
            Subscription(topic, handler, qos, model, payload_format, recent, skip_retained)
        )
        if self._connection.connected:
            self._add_to_session([topic])
            self._send_subscribe([(topic, qos)])

    def unsubscribe(self, topic: str) -> None:
        """End a subscription. Messages that have arrived are still handled.

        The filter of a shared one is `$share/{service}/{topic}`.
        """
        self._confirmed.discard(topic)
        if self._dispatcher.remove(topic) and self._connection.connected:
            self._send_unsubscribe([topic])

    def _add_to_session(self, topic_filters: Iterable[str]) -> None:
        self._session.filters.update(topic_filters)
        self._save_session()

    def _save_session(self) -> None:
        try:
            self._session.save()
        except OSError as error:
            self._logger.warning("session_not_saved", error=error)

    def _subscribe_all(self) -> None:
        # Subscribe on every connection, because the broker may have an older session.
        self._subscribing.clear()
        self._unsubscribing.clear()
        filters = self._dispatcher.filters()
        if self._draining:
            self._end_subscriptions()
            filters = [(self._reply_topic, 0)]
        else:
            wanted = {name for name, _ in filters}
            # The session may hold filters of an earlier process, or of an ended subscription.
            if obsolete := self._session.filters - wanted:
                self._send_unsubscribe(sorted(obsolete))
            self._add_to_session(wanted)
            if self._connection.resumed:
                # A subscription that the session has already would send its retained messages
                # again, of which the last connection got too many.
                filters = [
                    item
                    for item in filters
                    if item[0] not in self._confirmed or item[0] == self._reply_topic
                ]
        self._initial_subscribe = self._send_subscribe(filters)

    def _end_subscriptions(self) -> None:
        # The broker would queue messages that no process will read, unless the session is
        # persistent. A stopped member of a group must not get the messages of the others.
        ended = [
            name
            for name, _ in self._dispatcher.filters()
            if name != self._reply_topic and (not self._session.persistent or is_shared(name))
        ]
        if ended:
            self._send_unsubscribe(ended)

    def _send_subscribe(self, filters: list[tuple[str, int]]) -> int | None:
        mid = self._connection.subscribe(filters)
        if mid is not None:
            self._subscribing[mid] = [name for name, _ in filters]
        return mid

    def _send_unsubscribe(self, topic_filters: list[str]) -> None:
        mid = self._connection.unsubscribe(topic_filters)
        if mid is not None:
            self._unsubscribing[mid] = topic_filters

    def _on_unsubscribe(self, mid: int) -> None:
        # Forget the filters only now, because a lost UNSUBSCRIBE has to be sent again.
        wanted = {name for name, _ in self._dispatcher.filters()}
        self._session.filters -= set(self._unsubscribing.pop(mid, [])) - wanted
        self._save_session()

    def _on_subscribe(self, mid: int, failures: list[bool]) -> None:
        topic_filters = self._subscribing.pop(mid, [])
        for topic_filter, failed in zip(topic_filters, failures, strict=False):
            if failed:
                self._logger.error("subscription_refused", topic=topic_filter)
            else:
                self._confirmed.add(topic_filter)
        if topic_filters and mid == self._initial_subscribe and not self._stopping:
            # Publish `online` only now, because its readers may send messages at once.
            if self.before_online is None:
                self._go_online()
            else:
                preparing = self._prepare(self.before_online, mid)
                self._going_online = asyncio.create_task(preparing, name="mqtt-before-online")

    async def _prepare(self, before_online: Callable[[], Awaitable[None]], mid: int) -> None:
        try:
            await before_online()
        except Exception as error:  # noqa: BLE001 - the service that it belongs to reports it
            self._logger.warning("before_online_failed", error=error)
            return
        is_current = mid == self._initial_subscribe and self._connection.connected
        if is_current and not self._stopping:
            self._go_online()

    def _go_online(self) -> None:
        self._send_birth_message()
        self._ready.set()
        self._logger.info("mqtt_connected", broker=self._broker)

    def _on_message(self, message: ReceivedMessage) -> None:
        """Queue a message. Called on the network thread."""
        # Our own retained status predates this connection, so ignore it.
        is_stale = message.retain and message.topic == self._availability_topic
        # A redelivered message may still be handled, and is acknowledged on this connection.
        is_late = self._draining and message.topic != self._reply_topic and not message.duplicate
        if is_stale:
            # Acknowledge it, because it would count as unacknowledged in the whole session.
            self._connection.schedule(self._connection.acknowledge, message)
        elif not is_late:
            self._dispatcher.put(message)

    # Publishing

    async def publish(
        self,
        topic: str,
        payload: Payload,
        *,
        qos: QoS = 1,
        retain: bool = False,
        timeout_seconds: float | None = None,
        keep_trying: bool = False,
    ) -> None:
        """Publish a mapping, list, model or number as JSON. Text and bytes are sent unchanged.

        QoS 0 raises NotConnectedError without a connection. QoS 1 waits for a connection and for
        the acknowledgement of the broker.

        A message that times out is withdrawn. The broker may still receive it if it was written to
        the connection before, because MQTT cannot take a message back. With `keep_trying`, the
        error is raised as well, and it is sent on the next connections until the process ends.

        Raises:
            PublishTimeoutError: No acknowledgement in time.
            PublishRejectedError: The broker closes the connection whenever it gets this message.
            QueueFullError: Too many messages wait for an acknowledgement.
            PayloadError: The payload cannot be encoded.
            ValueError: The topic is not valid.
        """
        validate_topic(topic)
        await self._connection.publish(
            topic,
            encode(payload),
            qos=qos,
            retain=retain,
            timeout_seconds=(
                self._publish_timeout_seconds if timeout_seconds is None else timeout_seconds
            ),
            keep_trying=keep_trying,
        )

    # Request and reply

    async def request(
        self, topic: str, payload: Mapping[str, Any], *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Publish a request and return the reply with the same `request_id`.

        Adds `reply_to`, `expires_at` and, if missing, `request_id` and `trace_id`. Raises what
        `publish` raises.

        Raises:
            RequestTimeoutError: No reply in time.
            NotConnectedError: The client disconnects during the wait for the reply, or has
                disconnected before.
            ValueError: The `request_id` is not text, or another request waits with it.
        """
        if self._stopping:
            message = "the client has disconnected"
            raise NotConnectedError(message)
        envelope = {
            "trace_id": current_trace_id() or new_trace_id(),
            "request_id": secrets.token_hex(16),
            **payload,
            "reply_to": self._reply_topic,
            "expires_at": format_utc(datetime.now(UTC) + timedelta(seconds=timeout_seconds)),
        }
        request_id = envelope["request_id"]
        if not isinstance(request_id, str):
            message = f"request_id must be text, not {request_id!r}"
            raise ValueError(message)  # noqa: TRY004 - one kind of error for an invalid id
        if request_id in self._requests:
            message = f"another request waits with the request_id {request_id!r}"
            raise ValueError(message)
        reply = asyncio.get_running_loop().create_future()
        self._requests[request_id] = reply
        try:
            async with asyncio.timeout(timeout_seconds):
                # Subscribe first, because the reply might arrive earlier otherwise.
                await self._ready.wait()
                await self.publish(topic, envelope, timeout_seconds=timeout_seconds + 1)
                content: dict[str, Any] = await reply
        except TimeoutError as error:
            message = f"no reply to the request on {topic} in {timeout_seconds:g} s"
            raise RequestTimeoutError(message) from error
        finally:
            del self._requests[request_id]
        return content

    async def respond(self, request: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        """Reply to a request on its `reply_to`, or on `{prefix}/{service}/response` without one.

        Raises what `publish` raises, and PayloadError for an invalid `reply_to`.
        """
        topic = request.get("reply_to") or f"{self._prefix}/{self._service}/response"
        try:
            validate_topic(topic)
        except (AttributeError, TypeError, ValueError) as error:
            message = f"reply_to is not a valid topic: {topic!r}"
            raise PayloadError(message) from error
        request_id = request.get("request_id")
        known = {} if request_id is None else {"request_id": request_id}
        await self.publish(topic, {**payload, **known})

    def _on_reply(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
        request_id = payload.get("request_id") if isinstance(payload, dict) else None
        waiting = self._requests.get(request_id) if isinstance(request_id, str) else None
        if waiting is None:
            self._logger.debug("reply_unexpected", request_id=request_id)
        elif not waiting.done():
            waiting.set_result(payload)

    # Dead letters

    async def _send_dead_letter(
        self, message: ReceivedMessage, error: BaseException, trace_id: str
    ) -> bool:
        """Publish a failed message with its error. Return whether the broker has it."""
        with bind_trace_id(trace_id):
            self._logger.error("message_failed", topic=message.topic, exc_info=error)
            if message.topic.startswith(f"{self._prefix}/errors/"):
                # The dead letter of a dead letter would fail as well, and so on forever.
                return True
            try:
                await self._connection.publish(
                    f"{self._prefix}/errors/{self._service}",
                    encode(self._dead_letter(message, error, trace_id)),
                    qos=1,
                    retain=False,
                    timeout_seconds=self._publish_timeout_seconds,
                    ignore_limit=True,
                )
            except Exception:
                self._logger.exception("dead_letter_not_sent", topic=message.topic)
                return False
            self._dead_letters_sent += 1
        return True

    def _dead_letter(
        self, message: ReceivedMessage, error: BaseException, trace_id: str
    ) -> DeadLetter:
        encoding: Literal["utf-8", "base64"] = "utf-8"
        size = len(message.payload)
        # A payload that is too large to be decoded is too large for a dead letter as well.
        limit = 0 if size > self._max_payload_bytes else _MAX_DEAD_LETTER_PAYLOAD_BYTES
        content, is_cut = message.payload[:limit], size > limit
        try:
            # The cut may be inside a character.
            payload = codecs.getincrementaldecoder("utf-8")().decode(content, final=not is_cut)
        except UnicodeDecodeError:
            payload, encoding = b64encode(content).decode(), "base64"
        # JSON may hold half of a surrogate pair ("\ud800"), which UTF-8 cannot encode.
        text = redact_text(str(error))[:_MAX_ERROR_LENGTH]
        text = text.encode(errors="backslashreplace").decode()
        return DeadLetter(
            timestamp=datetime.now(UTC),
            service=self._service,
            trace_id=trace_id,
            original_topic=message.topic,
            payload=payload,
            encoding=encoding,
            payload_bytes=size if is_cut else None,
            payload_sha256=hashlib.sha256(message.payload).hexdigest() if is_cut else None,
            error_type=type(error).__name__,
            error=text,
        )


def mqtt_credentials(settings: Settings) -> tuple[str, str]:
    """Return user name and password. Both are empty for an anonymous connection."""
    username, password = settings.mqtt_username, settings.mqtt_password.get_secret_value()
    is_default = username == type(settings).model_fields["mqtt_username"].default
    return "" if is_default and not password else username, password


def mqtt_tls_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context for the broker. Raises ConfigurationError for invalid files."""
    context = tls_context("MQTT_TLS_CA_FILE", settings.mqtt_tls_ca_file)
    if settings.mqtt_tls_cert_file is not None:
        try:
            context.load_cert_chain(settings.mqtt_tls_cert_file, settings.mqtt_tls_key_file)
        except OSError as error:
            problem = f"MQTT_TLS_CERT_FILE: {settings.mqtt_tls_cert_file}: {error}"
            raise ConfigurationError([problem]) from error
    return context
