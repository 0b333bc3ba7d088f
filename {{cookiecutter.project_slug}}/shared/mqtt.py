"""The MQTT client of a service: publish, subscribe, ask and answer.

Handlers, sync and async, run on the event loop. All methods belong to that loop.
"""

import asyncio
import json
import secrets
import ssl
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel
from structlog.stdlib import BoundLogger

from shared.config import ConfigurationError, Settings
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
from shared.mqtt_link import Link
from shared.redaction import redact_text
from shared.schemas import Availability, DeadLetter, dump_message
from shared.session import Session
from shared.topics import is_shared, validate_filter, validate_topic
from shared.tracing import bind_trace_id, current_trace_id, new_trace_id

__all__ = [
    "Handler",
    "MQTTClient",
    "MQTTError",
    "NotConnectedError",
    "Payload",
    "PayloadError",
    "PublishTimeoutError",
    "QoS",
    "QueueFullError",
    "RequestTimeoutError",
    "encode",
]

type Payload = Mapping[str, Any] | BaseModel | list[Any] | str | bytes | bool | float | None
type QoS = Literal[0, 1]

# An error may quote the whole payload, which the dead letter holds already.
_MAX_ERROR_LENGTH = 2000


class MQTTClient:
    """Survives a broker that is away: connects again, subscribes again, announces itself again.

    Messages at QoS 1 are acknowledged after they were handled, and the session outlives the
    connection, so that a broken one loses none of them. A `session` that is kept outlives the
    client as well: the broker collects for the next start. A message whose handler fails goes
    to `{prefix}/errors/{service}`. Messages of one subscription are handled one at a time, in
    order. While as many messages are not handled as the broker leaves unacknowledged (Mosquitto:
    20), it sends no others at QoS 1.
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
        session: Session | None = None,
    ) -> None:
        self._session = session or Session.new(service)
        self.client_id = self._session.client_id
        self._broker = f"{host}:{port}"
        self._service, self._prefix, self._logger = service, topic_prefix, logger
        self._publish_timeout_seconds = publish_timeout_seconds
        self._ready = asyncio.Event()
        self._draining = self._stopping = False
        self._subscribing: dict[int, list[str]] = {}
        self._unsubscribing: dict[int, list[str]] = {}
        self._opening: int | None = None
        self._requests: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._reply_topic = f"{topic_prefix}/{service}/response/{self.client_id}"
        self._availability_topic = f"{topic_prefix}/{service}/availability"
        lost = Availability(status="offline", reason="connection_lost", service=service)
        self._link = Link(
            host,
            port,
            client_id=self.client_id,
            username=username,
            password=password,
            tls=tls,
            keepalive_seconds=keepalive_seconds,
            max_queued_messages=max_queued_messages,
            will=(self._availability_topic, encode(lost)),
            on_up=self._subscribe_all,
            on_down=self._ready.clear,
            on_subscribed=self._subscribed,
            on_unsubscribed=self._unsubscribed,
            on_message=self._received,
            logger=logger,
        )
        self._inbox = Inbox(
            max_queued_messages=max_queued_messages,
            schedule=self._link.schedule,
            acknowledge=self._link.acknowledge,
            ask_again=self._link.renew,
            bury=self._bury,
            urgent_topics=frozenset({self._reply_topic, self._availability_topic}),
            logger=logger,
        )
        # At QoS 0: handlers that wait for an answer keep the broker from sending more at QoS 1.
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
        """Raises ConfigurationError for a CA file that cannot be used."""
        tls = None
        if settings.mqtt_tls:
            try:
                tls = ssl.create_default_context(cafile=settings.mqtt_tls_ca_file)
            except OSError as error:
                problem = f"MQTT_TLS_CA_FILE: {settings.mqtt_tls_ca_file}: {error}"
                raise ConfigurationError([problem]) from error
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
            session=session,
        )

    @property
    def connected(self) -> bool:
        """Connected, subscribed and announced as online."""
        return self._ready.is_set()

    @property
    def thread_alive(self) -> bool:
        """Whether the network thread runs; without it nothing is sent or received."""
        return self._link.thread_alive

    @property
    def dropped_messages(self) -> int:
        """Messages at QoS 0 that came faster than they were handled and found no room."""
        return self._inbox.dropped

    # Connection

    def connect_background(self) -> None:
        """Connect, and connect again whenever it is lost; returns at once, from a running loop."""
        self._link.start()

    async def wait_connected(self, timeout_seconds: float | None = None) -> None:
        """Wait until the client is connected and subscribed; raises NotConnectedError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._ready.wait()
        except TimeoutError as error:
            message = f"no connection to {self._broker} in {timeout_seconds} s"
            raise NotConnectedError(message) from error

    async def drain(self, timeout_seconds: float = 5.0) -> None:
        """Take no more messages and finish those at hand; what takes longer is cut off.

        Answers still come in, since a handler may wait for one. A second call does nothing.
        """
        if self._draining:
            return
        self._draining = True
        if self._link.up:
            self._end_subscriptions()
        await self._inbox.drain(timeout_seconds)

    async def disconnect(self, timeout_seconds: float = 5.0, *, keep_status: bool = True) -> None:
        """Drain, say goodbye, and leave. Never raises.

        Half of the time is for the handlers at most. With `keep_status=False` the broker retains
        no status of this client. A second call does nothing.
        """
        if self._stopping:
            return
        self._stopping = True
        deadline = time.monotonic() + timeout_seconds
        await self.drain(timeout_seconds / 2)
        await self._inbox.close()
        if self._link.up:
            # A clean disconnect keeps the broker from publishing the last will.
            content = self._status("offline", "stopped") if keep_status else b""
            has_said = await self._say_goodbye(content, max(deadline - time.monotonic(), 0.1))
            if keep_status and not has_said:
                # `online` would stay.
                self._link.break_off()
        self._ready.clear()
        for reply in self._requests.values():
            if not reply.done():
                reply.set_exception(NotConnectedError("the client has disconnected"))
        await self._link.stop(max(deadline - time.monotonic(), 0.1))

    async def _say_goodbye(self, content: bytes, timeout_seconds: float) -> bool:
        try:
            await self._link.publish(
                self._availability_topic,
                content,
                qos=1,
                retain=True,
                timeout_seconds=timeout_seconds,
                beyond_limit=True,
            )
        except MQTTError as error:
            self._logger.warning("offline_not_announced", error=error)
            return False
        return True

    # Availability

    def _announce(self) -> None:
        self._link.post(self._availability_topic, self._status("online"), retain=True)

    def _status(self, status: Literal["online", "offline"], reason: str | None = None) -> bytes:
        now, service = datetime.now(UTC), self._service
        message = Availability(status=status, reason=reason, timestamp=now, service=service)
        return encode(message)

    def _on_availability(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
        # The broker may publish the last will of a connection that broke, or of a process that
        # was killed, long after this one has announced itself.
        is_offline = isinstance(payload, dict) and payload.get("status") == "offline"
        if is_offline and self.connected and not self._stopping:
            self._announce()

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
        retained: bool = True,
    ) -> None:
        """Call `handler(topic, payload)` for what arrives on `topic`, which may hold wildcards.

        It takes the place of an earlier handler of the same `topic`. The payload is decoded JSON,
        an instance of `model`, or what `decoding` says; an empty one is None, and nothing to a
        `model`. Call it before connecting: later, what the broker has collected meanwhile finds
        no handler and is lost. Raises ValueError for a bad filter.

        With `deduplicate` a message is skipped whose `request_id` was seen lately, or its content
        with its `trace_id`; not for requests, whose sender repeats them to be answered. With
        `retained=False` what the broker sends from its store is skipped, as it does with every
        connection. Where filters overlap, a broker may send a message once for each, and each
        time every handler gets it.
        """
        recent = RecentIds() if deduplicate else None
        validate_filter(topic)
        self._inbox.add(Subscription(topic, handler, qos, model, decoding, recent, retained))
        if self._link.up:
            self._remember([topic])
            self._send_subscribe([(topic, qos)])

    def unsubscribe(self, topic: str) -> None:
        """End a subscription; what has arrived for it is still handled."""
        if self._inbox.remove(topic) and self._link.up:
            self._send_unsubscribe([topic])

    def _remember(self, topic_filters: Iterable[str]) -> None:
        self._session.filters.update(topic_filters)
        self._save_session()

    def _save_session(self) -> None:
        try:
            self._session.save()
        except OSError as error:
            self._logger.warning("session_not_saved", error=error)

    def _subscribe_all(self) -> None:
        # On every connection: a session that the broker claims to have may lack the newest ones.
        self._subscribing.clear()
        self._unsubscribing.clear()
        filters = self._inbox.filters()
        if self._draining:
            self._end_subscriptions()
            filters = [(self._reply_topic, 0)]
        else:
            wanted = {name for name, _ in filters}
            # The session may be older than this process, or a subscription have ended meanwhile.
            if obsolete := self._session.filters - wanted:
                self._send_unsubscribe(sorted(obsolete))
            self._remember(wanted)
        self._opening = self._send_subscribe(filters)

    def _end_subscriptions(self) -> None:
        # The broker would go on collecting: for nobody, unless the session is kept for the next
        # start, and always instead of the others of the group.
        ended = [
            name
            for name, _ in self._inbox.filters()
            if name != self._reply_topic and (not self._session.is_kept or is_shared(name))
        ]
        if ended:
            self._send_unsubscribe(ended)

    def _send_subscribe(self, filters: list[tuple[str, int]]) -> int | None:
        mid = self._link.subscribe(filters)
        if mid is not None:
            self._subscribing[mid] = [name for name, _ in filters]
        return mid

    def _send_unsubscribe(self, topic_filters: list[str]) -> None:
        mid = self._link.unsubscribe(topic_filters)
        if mid is not None:
            self._unsubscribing[mid] = topic_filters

    def _unsubscribed(self, mid: int) -> None:
        wanted = {name for name, _ in self._inbox.filters()}
        # Not before: one that is lost has to be sent again.
        self._session.filters -= set(self._unsubscribing.pop(mid, [])) - wanted
        self._save_session()

    def _subscribed(self, mid: int, refused: list[bool]) -> None:
        topic_filters = self._subscribing.pop(mid, [])
        for topic_filter, is_refused in zip(topic_filters, refused, strict=False):
            if is_refused:
                self._logger.error("subscription_refused", topic=topic_filter)
        if topic_filters and mid == self._opening and not self._stopping:
            # Only now: who reads `online` may send at once.
            self._announce()
            self._ready.set()
            self._logger.info("mqtt_connected", broker=self._broker)

    def _received(self, message: Received) -> None:
        # What the broker has retained of ourselves is older than our birth.
        is_stale = message.retain and message.topic == self._availability_topic
        # One that is sent again may be at work still, and is acknowledged on this connection.
        is_late = self._draining and message.topic != self._reply_topic and not message.duplicate
        if is_stale:
            # Else it would keep a place in the broker's window for as long as the session lasts.
            self._link.schedule(self._link.acknowledge, message)
        elif not is_late:
            self._inbox.put(message)

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
        await self._link.publish(
            topic,
            encode(payload),
            qos=qos,
            retain=retain,
            timeout_seconds=(
                self._publish_timeout_seconds if timeout_seconds is None else timeout_seconds
            ),
        )

    # Request and response

    async def request(
        self, topic: str, payload: Mapping[str, Any], *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Publish a request and return the answer that carries its `request_id`.

        Adds `reply_to` and, when missing, `request_id` and `trace_id`. Raises RequestTimeoutError,
        NotConnectedError after a disconnect, what `publish` raises, and ValueError for a
        `request_id` that is no text or that another request waits with.
        """
        if self._stopping:
            message = "the client has disconnected"
            raise NotConnectedError(message)
        envelope = {
            "trace_id": current_trace_id() or new_trace_id(),
            "request_id": secrets.token_hex(16),
            **payload,
            "reply_to": self._reply_topic,
        }
        request_id = envelope["request_id"]
        if not isinstance(request_id, str):
            message = f"a request_id is text, not {request_id!r}"
            raise ValueError(message)  # noqa: TRY004 - one kind of error for a bad id
        if request_id in self._requests:
            message = f"a request with the id {request_id!r} waits already"
            raise ValueError(message)
        reply = asyncio.get_running_loop().create_future()
        self._requests[request_id] = reply
        try:
            async with asyncio.timeout(timeout_seconds):
                # Else the answer might be there before the subscription to it.
                await self._ready.wait()
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

    def _on_reply(self, _topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
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
            topic = f"{self._prefix}/errors/{self._service}"
            try:
                await self._link.publish(
                    topic,
                    encode(self._dead_letter(message, error, trace_id)),
                    qos=1,
                    retain=False,
                    timeout_seconds=self._publish_timeout_seconds,
                    beyond_limit=True,
                )
            except Exception:
                self._logger.exception("dead_letter_not_sent", topic=message.topic)
                return False
        return True

    def _dead_letter(self, message: Received, error: BaseException, trace_id: str) -> DeadLetter:
        try:
            payload, encoding = message.payload.decode(), "utf-8"
        except UnicodeDecodeError:
            payload, encoding = b64encode(message.payload).decode(), "base64"
        # JSON may hold half a surrogate pair ("\ud800"), which UTF-8 cannot.
        text = redact_text(str(error))[:_MAX_ERROR_LENGTH]
        text = text.encode(errors="backslashreplace").decode()
        return DeadLetter.model_validate(
            {
                "timestamp": datetime.now(UTC),
                "service": self._service,
                "trace_id": trace_id,
                "original_topic": message.topic,
                "payload": payload,
                "encoding": encoding,
                "error_type": type(error).__name__,
                "error": text,
            }
        )


def encode(payload: Payload) -> bytes:
    """What goes over the wire; raises PayloadError."""
    try:
        match payload:
            case dict():  # first: most are, and the other questions take longer
                pass
            case None:
                return b""
            case bytes():
                return payload
            case str():
                return payload.encode()
            case BaseModel():
                payload = dump_message(payload)
            case Mapping():
                payload = dict(payload)
        return _JSON.encode(payload).encode()
    except (TypeError, ValueError) as error:
        message = f"the payload cannot be written as JSON: {error}"
        raise PayloadError(message) from error


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
