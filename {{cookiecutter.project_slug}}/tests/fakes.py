"""Stand-ins for what services connect to, for their tests."""

import asyncio
import itertools
{% if cookiecutter.include_home_assistant %}
import json
{% endif %}
from collections.abc import {{ "AsyncGenerator, " if cookiecutter.include_home_assistant }}Callable, Sequence
{% if cookiecutter.include_influxdb %}
from types import SimpleNamespace
{% endif %}
from typing import Any, ClassVar

{% if cookiecutter.include_home_assistant %}
import httpx
{% endif %}
import structlog

{% if cookiecutter.include_home_assistant %}
from shared.home_assistant import StateChange
{% endif %}
from shared.mqtt import MQTTClient, NotConnectedError, Payload, PublishTimeoutError, encode
from shared.mqtt.connection import Connection, ReceivedMessage
from shared.mqtt.payload import decode
from shared.mqtt.topics import matches

_PATIENCE_SECONDS = 10.0


class MemoryConnection(Connection):
    """A connection to a broker in memory, which has one client and accepts everything at once."""

    def __init__(self, *address: Any, will: tuple[str, bytes], **options: Any) -> None:
        super().__init__(*address, will=will, **options)
        self.alive = False
        self.online, self.changed = asyncio.Event(), asyncio.Event()
        self.published: list[tuple[str, Any]] = []
        self.retained: dict[str, Any] = {}
        self.on_publish: Callable[[str, Any, bool], None]
        self._availability_topic = will[0]
        self._filters: set[str] = set()
        self._ids = itertools.count(1)
        self._unhandled: dict[int, asyncio.Event] = {}

    @property
    def thread_alive(self) -> bool:
        return self.alive

    def start(self) -> None:
        if not self.alive and not self._stopped:
            self._loop = asyncio.get_running_loop()
            self.alive = True
            self.schedule(self.set_connected, True)

    async def stop(self, timeout_seconds: float) -> None:
        self._stopped = True
        self.set_connected(False)
        self.alive = False

    def set_connected(self, connected: bool) -> None:
        self.connected = connected
        if connected:
            self.online.set()
            self._connect_callback()
        else:
            self.online.clear()
            self._disconnect_callback()
        self.changed.set()

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> int:
        mid = next(self._ids)
        self.schedule(self._subscribe_callback, mid, [False] * len(filters))
        for topic_filter, _ in filters:
            self._filters.add(topic_filter)
            for topic, payload in self.retained.items():
                if matches(topic_filter, topic):
                    self.schedule(self.deliver, topic, encode(payload), True)
        return mid

    def unsubscribe(self, filters: Sequence[str]) -> int:
        mid = next(self._ids)
        self._filters -= set(filters)
        self.schedule(self._unsubscribe_callback, mid)
        return mid

    def deliver(self, topic: str, content: bytes, retain: bool) -> asyncio.Event:
        """Deliver a message and return an event for the end of its handlers."""
        mid = next(self._ids)
        self._unhandled[mid] = handled = asyncio.Event()
        self._message_callback(ReceivedMessage(topic, content, 1, retain, False, mid, 1))
        return handled

    def acknowledge(self, message: ReceivedMessage) -> None:
        self._unhandled.pop(message.mid).set()

    def abort(self) -> None:
        """Do nothing: a lost connection is a matter for the tests with a broker."""

    def publish_nowait(self, topic: str, content: bytes, *, retain: bool) -> None:
        payload = decode(content, "auto")
        is_looped = any(matches(topic_filter, topic) for topic_filter in self._filters)
        if topic != self._availability_topic:
            self.published.append((topic, payload))
            self.on_publish(topic, payload, is_looped)
        if retain:
            self.retained[topic] = payload
        if is_looped:
            self.deliver(topic, content, False)
        self.changed.set()

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
        if self._stopped or (qos == 0 and not self.connected):
            message = "no connection to the broker in memory"
            raise NotConnectedError(message)
        self.publish_nowait(topic, content, retain=retain)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.online.wait()
        except TimeoutError as error:
            message = f"{topic}: not acknowledged in {timeout_seconds:g} s"
            raise PublishTimeoutError(message) from error


class FakeMQTT(MQTTClient):
    """The client of a service, with a broker in memory: `service.mqtt = FakeMQTT(...)`.

    `published` and `retained` hold what the service has sent. Put the reply to a request into
    `replies`, by the topic of the request. A request without a reply fails at once.
    """

    connection_class: ClassVar[type[Connection]] = MemoryConnection
    _connection: MemoryConnection

    def __init__(self, service: str, topic_prefix: str) -> None:
        logger = structlog.stdlib.get_logger(service)
        super().__init__("memory", service=service, topic_prefix=topic_prefix, logger=logger)
        self._connection.on_publish = self._on_publish
        self.published, self.retained = self._connection.published, self._connection.retained
        self.replies: dict[str, dict[str, Any]] = {}

    @property
    def connected(self) -> bool:
        return super().connected

    @connected.setter
    def connected(self, connected: bool) -> None:
        self._connection.set_connected(connected)

    @property
    def thread_alive(self) -> bool:
        return self._connection.alive

    @thread_alive.setter
    def thread_alive(self, alive: bool) -> None:
        self._connection.alive = alive

    @property
    def disconnected(self) -> bool:
        return self._stopping

    @property
    def dead_letters(self) -> list[Any]:
        return self.payloads(f"{self._prefix}/errors/{self._service}")

    def payloads(self, topic: str) -> list[Any]:
        """Return what was published on `topic`, in order."""
        return [payload for published, payload in self.published if published == topic]

    async def deliver(self, topic: str, payload: Payload, *, retain: bool = False) -> None:
        """Deliver a message, encoded as `publish` does, and wait until it is handled.

        A handler that fails leaves a dead letter. `retain` marks a message that was retained.
        """
        self._connection._loop = asyncio.get_running_loop()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await self._connection.deliver(topic, encode(payload), retain).wait()

    async def wait_for(
        self, condition: Callable[[], bool], timeout_seconds: float | None = _PATIENCE_SECONDS
    ) -> None:
        """Return as soon as `condition` holds after a message or a change of the connection."""
        changed = self._connection.changed
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                changed.clear()
                await changed.wait()

    def _on_publish(self, topic: str, payload: Any, is_looped: bool) -> None:
        request_id = payload.get("request_id") if isinstance(payload, dict) else None
        waiting = self._requests.get(request_id) if isinstance(request_id, str) else None
        if waiting is None or waiting.done():
            return
        if topic in self.replies:
            waiting.set_result(self.replies[topic])
        elif not is_looped:
            waiting.set_exception(TimeoutError())
{% if cookiecutter.include_home_assistant %}


class FakeHomeAssistant:
    """Keeps states and helpers, and records every call of a service.

    Put the entities of a test into `states`: a call of a service changes no entity that is missing.
    `set_state` changes a state and lets `watch` yield it. `responses` holds the response of each
    service that has one, such as `weather.get_forecasts`.
    """

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.responses: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Condition()

    async def set_state(self, entity_id: str, state: str) -> None:
        async with self._changed:
            self.states[entity_id] = state
            self._changed.notify_all()

    async def watch(self, *entity_ids: str) -> AsyncGenerator[StateChange, None]:
        known: dict[str, str] = {}
        while True:
            for entity_id in entity_ids:
                previous, state = known.get(entity_id), self.states.get(entity_id)
                if state is not None and state != previous:
                    known[entity_id] = state
                    yield StateChange(
                        entity_id=entity_id, state=state, attributes={}, previous=previous
                    )
            async with self._changed:
                await self._changed.wait_for(
                    lambda: any(self.states.get(name) != known.get(name) for name in entity_ids)
                )

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            data = json.loads(request.content)
            service = request.url.path.removeprefix("/api/services/").replace("/", ".")
            self.calls.append((service, data))
            if "return_response" in request.url.params:
                if service not in self.responses:
                    return httpx.Response(400, json={"message": "Service has no response."})
                return httpx.Response(200, json={"service_response": self.responses[service]})
            value = data.get("value", data.get("option"))
            if service.endswith((".turn_on", ".turn_off")):
                value = service.rpartition("_")[2]
            if value is not None and data["entity_id"] in self.states:
                await self.set_state(data["entity_id"], str(value))
            return httpx.Response(200, json=[])
        entity_id = request.url.path.removeprefix("/api/states/")
        if entity_id not in self.states:
            return httpx.Response(404, json={"message": "Entity not found."})
        return httpx.Response(200, json={"entity_id": entity_id, "state": self.states[entity_id]})
{% endif %}
{% if cookiecutter.include_influxdb %}


class FakeInflux:
    """Stands in for the official client. `InfluxClient` checks points as usual.

    `points` holds what was written: measurement, fields, tags and, if it was set, time. `queries`
    holds each query with its parameters, and `rows` is the result of each one.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[dict[str, Any]] = []

    def write_api(self) -> "FakeInflux":
        return self

    def query_api(self) -> "FakeInflux":
        return self

    async def write(self, *, bucket: str, record: dict[str, Any]) -> bool:
        self.points.append(record)
        return True

    async def query(self, flux: str, params: dict[str, Any]) -> list[SimpleNamespace]:
        self.queries.append((flux, params))
        return [SimpleNamespace(records=[SimpleNamespace(values=row) for row in self.rows])]

    async def ping(self) -> bool:
        return True

    async def close(self) -> None:
        pass
{% endif %}
