"""State of all services, and the messages seen lately."""

import asyncio
import json
import statistics
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import BaseModel, ValidationError
from schemas import SeenMessage, ServiceRow, State

from shared.mqtt.topics import matches
from shared.schemas import Availability, Heartbeat

MISSING_HEARTBEATS = 3
MAX_SERVICES = 1000
MAX_TOPICS = 2000
MAX_MESSAGES = 1000
MAX_SHOWN_BYTES = 4096
MAX_DECODED_BYTES = 65536
HISTORY_LENGTH = 60


@dataclass(eq=False, slots=True)
class _Service:
    row: ServiceRow
    change: int
    availability: Availability | None = None
    heartbeat: Heartbeat | None = None
    seen_at: float = 0.0
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=5))


class Fleet:
    """State of the services below a topic prefix, from their messages on the broker.

    `change` counts the changes, so that each reader gets those that it has not seen.
    """

    def __init__(self, topic_prefix: str, heartbeat_seconds: float) -> None:
        self._prefix, self._heartbeat_seconds = topic_prefix, heartbeat_seconds
        self._services: dict[str, _Service] = {}
        self._removed_at = 0
        self._latest: OrderedDict[str, SeenMessage] = OrderedDict()
        self._messages: deque[SeenMessage] = deque(maxlen=MAX_MESSAGES)
        self._changed = asyncio.Event()
        self._connected_at = 0.0
        self.change = 1
        self.connected = self.closed = False

    # Readers

    def rows(self, since: int = 0) -> list[ServiceRow]:
        """Return the services that changed after the change `since`, by name."""
        found = [item.row for item in self._services.values() if item.change > since]
        return sorted(found, key=lambda row: row.name)

    def row(self, name: str) -> ServiceRow | None:
        return self._services[name].row if name in self._services else None

    def is_full(self, since: int) -> bool:
        """Return whether the changes after `since` are not enough: a service is gone."""
        return since <= self._removed_at

    def latest(self, topic_filter: str) -> list[SeenMessage]:
        """Return the last message of each topic that matches."""
        return [self._latest[name] for name in sorted(self._latest) if matches(topic_filter, name)]

    def trace(self, trace_id: str) -> list[SeenMessage]:
        """Return the messages seen lately with a trace id, oldest first."""
        return [message for message in self._messages if message.trace_id == trace_id]

    async def wait_changed(self, since: int) -> None:
        """Wait for a change after `since`, or for the end."""
        while self.change == since and not self.closed:
            await self._changed.wait()

    # Changes

    def touch(self) -> None:
        """Wake the readers."""
        self.change += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """End all readers."""
        self.closed = True
        self.touch()

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take a message of any topic. Dead letters come through `remember`."""
        levels = topic.removeprefix(f"{self._prefix}/").split("/")
        if levels[0] == "errors":
            return
        match levels:
            case [name, "availability"]:
                self._on_availability(name, payload)
                self._keep_latest(topic, payload)
            case [name, "heartbeat"]:
                self._on_heartbeat(name, payload)
                self._keep_latest(topic, payload)
            case _:
                self.remember(topic, payload)

    def remember(self, topic: str, payload: bytes) -> None:
        """Keep a message for the trace of its work."""
        self._messages.append(self._keep_latest(topic, payload))

    def tick(self, *, connected: bool) -> None:
        """Find silent services. No service counts as silent while the broker is away."""
        if connected != self.connected:
            self.connected, self._connected_at = connected, time.monotonic()
            self.touch()
        for service in list(self._services.values()) if connected else []:
            self._update(service)

    def _keep_latest(self, topic: str, payload: bytes) -> SeenMessage:
        message = SeenMessage(
            topic=topic,
            payload=payload[:MAX_SHOWN_BYTES].decode(errors="replace"),
            size=len(payload),
            trace_id=_trace_id(payload),
            received_at=datetime.now(UTC),
        )
        self._latest[topic] = message
        self._latest.move_to_end(topic)
        if len(self._latest) > MAX_TOPICS:
            self._latest.popitem(last=False)
        return message

    def _on_availability(self, name: str, payload: bytes) -> None:
        if not payload:
            # A cleared status: the service was removed.
            if self._services.pop(name, None):
                self._removed_at = self.change
                self.touch()
            return
        availability = _parse(Availability, payload)
        if availability is None or (service := self._get(name)) is None:
            return
        if availability.status == "offline":
            service.row.last_seen = availability.timestamp or service.row.last_seen
        elif availability != service.availability:
            # A new birth message. The broker repeats the retained one on each connection.
            service.heartbeat, service.seen_at = None, time.monotonic()
            service.row.last_seen = availability.timestamp
        service.availability = availability
        self._update(service)

    def _on_heartbeat(self, name: str, payload: bytes) -> None:
        heartbeat = _parse(Heartbeat, payload)
        if heartbeat is None or (service := self._get(name)) is None:
            return
        now = time.monotonic()
        if service.heartbeat is not None:
            service.gaps.append(now - service.seen_at)
        service.heartbeat, service.seen_at = heartbeat, now
        row = service.row
        row.last_seen = datetime.now(UTC)
        row.uptime_seconds, row.memory_mb = heartbeat.uptime_seconds, heartbeat.memory_mb
        row.version = heartbeat.version and heartbeat.version[:50]
        self._update(service, has_changed=True)
        row.history = [*row.history[1 - HISTORY_LENGTH :], (heartbeat.memory_mb, row.state)]

    def _get(self, name: str) -> _Service | None:
        if name not in self._services:
            if len(self._services) >= MAX_SERVICES:
                return None
            row = ServiceRow(name=name, state="offline", since=datetime.now(UTC))
            self.touch()
            self._services[name] = _Service(row, self.change)
        return self._services[name]

    def _update(self, service: _Service, *, has_changed: bool = False) -> None:
        row = service.row
        state, reasons = self._judge(service)
        if state != row.state:
            row.since = datetime.now(UTC)
        if has_changed or (state, reasons) != (row.state, row.reasons):
            row.state, row.reasons = state, reasons
            service.change = self.change + 1
            self.touch()

    def _judge(self, service: _Service) -> tuple[State, list[str]]:
        availability, heartbeat = service.availability, service.heartbeat
        if availability is not None and availability.status == "offline":
            return "offline", [availability.reason] if availability.reason else []
        # Another service may have a longer interval than the settings of this one say.
        interval = max([self._heartbeat_seconds, *self._usual_gap(service)])
        silent_seconds = time.monotonic() - max(service.seen_at, self._connected_at)
        if interval and silent_seconds > MISSING_HEARTBEATS * interval:
            return "stale", [f"no heartbeat for {MISSING_HEARTBEATS} intervals of {interval:.0f} s"]
        if heartbeat is not None and heartbeat.status != "online":
            return "degraded", heartbeat.reasons or [heartbeat.status]
        return "online", []

    @staticmethod
    def _usual_gap(service: _Service) -> list[float]:
        return [statistics.median(service.gaps)] if service.gaps else []


def _parse[M: BaseModel](model: type[M], payload: bytes) -> M | None:
    # Any program may publish there, and one that sends something else is not a service.
    try:
        return model.model_validate_json(payload)
    except ValidationError:
        return None


def _trace_id(payload: bytes) -> str | None:
    if len(payload) > MAX_DECODED_BYTES or not payload.startswith(b"{"):
        return None
    try:
        trace_id = json.loads(payload).get("trace_id")
    except (ValueError, RecursionError):
        return None
    # A lone surrogate, which is not printable, could not be sent to the page.
    return trace_id if isinstance(trace_id, str) and trace_id.isprintable() else None
