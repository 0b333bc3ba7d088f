"""An MQTT client without a network, for the tests of services."""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from shared.mqtt import (
    Handler,
    NotConnectedError,
    Payload,
    PayloadFormat,
    QoS,
    RequestTimeoutError,
    encode,
)
from shared.mqtt.dedup import RecentIds, message_id
from shared.mqtt.deprecated import accept_old_arguments
from shared.mqtt.dispatcher import Subscription
from shared.mqtt.topics import matches, validate_filter, validate_topic


class FakeMQTT:
    """Records what is published and hands over what a test delivers, with real topic matching.

    Put it in the place of a service's client: `service.mqtt = FakeMQTT(...)`.
    """

    dropped_messages = 0

    def __init__(self, service: str, topic_prefix: str) -> None:
        self.connected = self.thread_alive = self.disconnected = False
        self.published: list[tuple[str, Any]] = []
        self.retained: dict[str, Any] = {}
        self.replies: dict[str, dict[str, Any]] = {}
        self._service, self._prefix = service, topic_prefix
        self._changed = asyncio.Event()
        self._subscriptions: dict[str, Subscription] = {}

    def payloads(self, topic: str) -> list[Any]:
        """What was published on `topic`, in order."""
        return [payload for published, payload in self.published if published == topic]

    async def deliver(self, topic: str, payload: Any, *, retain: bool = False) -> None:
        """Hand a message to every handler whose filter matches; their exceptions are raised.

        The payload is what JSON would be decoded to; text or bytes for a handler of such.
        `retain` is for a message that the broker has kept.
        """
        for subscription in list(self._subscriptions.values()):
            if not matches(subscription.topic_filter, topic):
                continue
            if retain and subscription.skip_retained:
                continue
            if subscription.recent is not None and _seen(subscription.recent, topic, payload):
                continue
            if subscription.model is not None and payload is None:
                continue
            result = subscription.handler(topic, _value(subscription, payload))
            if inspect.isawaitable(result):
                await result

    async def wait_for(
        self, condition: Callable[[], bool], timeout_seconds: float | None = 10.0
    ) -> None:
        """Return as soon as `condition` holds after a message or a change of the connection."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def connect_background(self) -> None:
        self.connected = self.thread_alive = True
        self._changed.set()

    async def wait_connected(self, timeout_seconds: float | None = None) -> None:
        try:
            await self.wait_for(lambda: self.connected, timeout_seconds)
        except TimeoutError as error:
            raise NotConnectedError from error

    async def drain(self, timeout_seconds: float = 5.0) -> None:
        """Nothing is ever at hand: `deliver` waits for the handlers."""

    async def disconnect(self, timeout_seconds: float = 5.0, *, keep_status: bool = True) -> None:
        self.connected = self.thread_alive = False
        self.disconnected = True
        self._changed.set()

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
    ) -> None:
        recent = RecentIds() if deduplicate else None
        self.unsubscribe(validate_filter(topic))
        self._subscriptions[topic] = Subscription(
            topic, handler, qos, model, payload_format, recent, skip_retained
        )

    def unsubscribe(self, topic: str) -> None:
        self._subscriptions.pop(topic, None)

    async def publish(
        self,
        topic: str,
        payload: Payload,
        *,
        qos: QoS = 1,
        retain: bool = False,
        timeout_seconds: float | None = None,
    ) -> None:
        """Record a message; at QoS 1 also while disconnected, as one that waits."""
        validate_topic(topic)
        content = encode(payload)
        if not qos and not self.connected:
            raise NotConnectedError
        if not isinstance(payload, bytes | str | None):
            payload = json.loads(content)
        self.published.append((topic, payload))
        self._changed.set()
        if retain:
            self.retained[topic] = payload

    async def request(
        self, topic: str, payload: Mapping[str, Any], *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Answer with what the test has put into `replies` for the topic.

        Without it raises RequestTimeoutError, at once.
        """
        await self.publish(topic, payload)
        if topic not in self.replies:
            message = f"no reply to the request on {topic} in {timeout_seconds:g} s"
            raise RequestTimeoutError(message)
        return self.replies[topic]

    async def respond(self, request: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        topic = request.get("reply_to") or f"{self._prefix}/{self._service}/response"
        await self.publish(topic, {**payload, "request_id": request.get("request_id")})


def _seen(recent: RecentIds, topic: str, payload: Any) -> bool:
    if not isinstance(payload, dict):
        return False
    content = json.dumps(payload).encode()
    sent_as = message_id(payload.get("request_id"), payload.get("trace_id"), content)
    return sent_as is not None and recent.seen((topic, sent_as))


def _value(subscription: Subscription, payload: Any) -> Any:
    if subscription.payload_format == "bytes":
        return encode(payload)
    if subscription.payload_format == "text":
        return encode(payload).decode()
    return subscription.model.model_validate(payload) if subscription.model else payload
