"""Availability and heartbeats of the other services."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shared.mqtt import MQTTClient
from shared.schemas import Availability, Heartbeat

# Longest wait for the retained message of a service.
_RETAINED_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """Last availability and last heartbeat of a service, None until one was received."""

    availability: Availability | None = None
    heartbeat: Heartbeat | None = None
    heartbeat_age_seconds: float | None = None

    @property
    def status(self) -> str:
        """Return `online`, `degraded`, `offline`, or `unknown` without an availability."""
        if self.availability is None:
            return "unknown"
        if self.availability.status == "online" and self.heartbeat is not None:
            return self.heartbeat.status
        return self.availability.status


class OtherServices:
    """Follows all services below a topic prefix, from its creation on."""

    def __init__(self, client: MQTTClient, topic_prefix: str) -> None:
        self._availability: dict[str, Availability] = {}
        self._heartbeats: dict[str, tuple[float, Heartbeat]] = {}
        self._changed = asyncio.Event()
        self._known_at: dict[str, float] = {}
        # QoS 0, because the broker would queue these messages while this service is stopped.
        client.subscribe(f"{topic_prefix}/+/availability", self._on_availability, qos=0)
        client.subscribe(f"{topic_prefix}/+/heartbeat", self._on_heartbeat, model=Heartbeat, qos=0)

    def names(self) -> list[str]:
        return sorted(self._availability.keys() | self._heartbeats.keys())

    def status(self, name: str) -> ServiceStatus:
        received_at, heartbeat = self._heartbeats.get(name, (None, None))
        return ServiceStatus(
            availability=self._availability.get(name),
            heartbeat=heartbeat,
            heartbeat_age_seconds=None if received_at is None else time.monotonic() - received_at,
        )

    async def wait_known(self, name: str) -> None:
        """Wait for the availability of a service, for 1 s after the first call at most."""
        now = time.monotonic()
        seconds = self._known_at.setdefault(name, now + _RETAINED_SECONDS) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                while name not in self._availability:
                    self._changed.clear()
                    await self._changed.wait()

    def _on_availability(self, topic: str, payload: Any) -> None:  # noqa: ANN401 - any JSON
        name = topic.split("/")[-2]
        if payload is None:
            # A cleared status: the service was removed.
            self._availability.pop(name, None)
            self._heartbeats.pop(name, None)
            return
        availability = Availability.model_validate(payload)
        before = self._availability.get(name)
        if before is not None and (before.status, availability.status) == ("offline", "online"):
            # The last heartbeat may be older than this start.
            self._heartbeats.pop(name, None)
        self._availability[name] = availability
        self._changed.set()

    def _on_heartbeat(self, topic: str, heartbeat: Heartbeat) -> None:
        self._heartbeats[topic.split("/")[-2]] = time.monotonic(), heartbeat
