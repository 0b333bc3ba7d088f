"""An MQTT client without a network, for the tests of services."""

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from shared.inbox import Handler
from shared.mqtt import Payload, encode
from shared.topics import matches, validate_filter, validate_topic


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
        self._handlers: list[tuple[str, Handler, type[BaseModel] | None]] = []

    def payloads(self, topic: str) -> list[Any]:
        """What was published on `topic`, in order."""
        return [payload for published, payload in self.published if published == topic]

    async def deliver(self, topic: str, payload: Any) -> None:
        """Hand a message to every handler whose filter matches; their exceptions are raised."""
        for topic_filter, handler, model in list(self._handlers):
            if matches(topic_filter, topic):
                value = model.model_validate(payload) if model else payload
                result = handler(topic, value)
                if inspect.isawaitable(result):
                    await result

    async def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
        """Return as soon as `condition` holds after a message or a change of the connection."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def connect_background(self) -> None:
        self.connected = self.thread_alive = True
        self._changed.set()

    async def wait_connected(self, timeout_seconds: float | None = None) -> None:
        await self.wait_for(lambda: self.connected, timeout_seconds or 10.0)

    async def drain(self, timeout_seconds: float = 5.0) -> None:
        """Nothing is ever at hand: `deliver` waits for the handlers."""

    async def disconnect(self, timeout_seconds: float = 5.0) -> None:
        self.connected = self.thread_alive = False
        self.disconnected = True
        self._changed.set()

    def subscribe(
        self, topic: str, handler: Handler, *, model: type[BaseModel] | None = None, **_: Any
    ) -> None:
        self.unsubscribe(validate_filter(topic))
        self._handlers.append((topic, handler, model))

    def unsubscribe(self, topic: str) -> None:
        self._handlers = [entry for entry in self._handlers if entry[0] != topic]

    async def publish(
        self, topic: str, payload: Payload, *, retain: bool = False, **_: Any
    ) -> None:
        validate_topic(topic)
        content = encode(payload)
        if not isinstance(payload, bytes | str | None):
            payload = json.loads(content)
        self.published.append((topic, payload))
        self._changed.set()
        if retain:
            self.retained[topic] = payload

    async def request(
        self, topic: str, payload: Mapping[str, Any], *, timeout_seconds: float = 5.0
    ) -> dict[str, Any]:
        """Answer with what the test has put into `replies` for the topic."""
        await self.publish(topic, payload)
        return self.replies[topic]

    async def respond(self, request: Mapping[str, Any], payload: Mapping[str, Any]) -> None:
        topic = request.get("reply_to") or f"{self._prefix}/{self._service}/response"
        await self.publish(topic, {**payload, "request_id": request.get("request_id")})
