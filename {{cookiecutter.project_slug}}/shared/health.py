"""One model of health, which the heartbeat, the health file and the healthcheck read.

Healthy means that none of these is older than `max_age_seconds`:

- the event loop: the file is written by a task on it, so a blocked loop lets the file grow old;
- the connection to the broker: network thread running and connected;
- the success of a loop that waits with a timeout: it reports each one with `touch_healthcheck()`.

All ages come from the monotonic clock, so a clock that is set forward or back changes nothing.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from structlog.stdlib import BoundLogger


class BrokerLink(Protocol):
    """What health needs to know of the MQTT client."""

    @property
    def connected(self) -> bool: ...
    @property
    def thread_alive(self) -> bool: ...


@dataclass(frozen=True)
class HealthStatus:
    healthy: bool
    reasons: tuple[str, ...] = ()


class HealthMonitor:
    """Keeps the last sign of health of each part; used from the event loop only."""

    def __init__(
        self,
        path: Path,
        *,
        max_age_seconds: float,
        logger: BoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._max_age_seconds = max_age_seconds
        self._logger = logger
        self._clock = clock
        self._started = clock()
        self._link_seen: float | None = None
        self._last_success: float | None = None
        self._cycle_seconds: float | None = None
        self._written: float | None = None
        self._write_failed = False

    @property
    def tick_seconds(self) -> float:
        """How often to call `update`; far below the maximum age, and never idle for long."""
        return min(self._max_age_seconds / 20, 5.0)

    def record_success(self) -> None:
        self._last_success = self._clock()

    def expect_success_every(self, cycle_seconds: float) -> None:
        """From now on the last success counts; it may be older by the time between cycles."""
        self._cycle_seconds = cycle_seconds

    def status(self, link: BrokerLink) -> HealthStatus:
        now = self._clock()
        self._observe(link, now)
        reasons = []
        if not link.thread_alive:
            reasons.append("the MQTT network thread is not running")
        if self._link_seen is None:
            reasons.append("not connected to the broker yet")
        elif (age := now - self._link_seen) > self._max_age_seconds:
            reasons.append(f"no connection to the broker for {age:.0f} s")
        if (age := now - self._work_seen(now)) > self._max_age_seconds:
            reasons.append(f"no success for {age + (self._cycle_seconds or 0):.0f} s")
        return HealthStatus(healthy=not reasons, reasons=tuple(reasons))

    def update(self, link: BrokerLink) -> None:
        """Write the file if all is well; a failure to write is logged once, never raised."""
        if not self.status(link).healthy:
            return
        now = self._clock()
        # The oldest sign of health: the file's age then says when the first part went silent.
        as_of = min(now, self._link_seen or now, self._work_seen(now))
        if self._written is not None and as_of - self._written < self._max_age_seconds / 10:
            return
        try:
            self._write(as_of)
        except OSError as error:
            if not self._write_failed:
                self._logger.warning("health_file_not_written", path=self._path, error=error)
            self._write_failed = True
        else:
            self._written = as_of
            self._write_failed = False

    def forget_previous_run(self) -> None:
        """Remove the file of an earlier process, which would vouch for this one."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._logger.warning("health_file_not_removed", path=self._path, error=error)

    def _observe(self, link: BrokerLink, now: float) -> None:
        if link.connected and link.thread_alive:
            self._link_seen = now

    def _work_seen(self, now: float) -> float:
        if self._cycle_seconds is None:
            return now
        last = self._started if self._last_success is None else self._last_success
        return min(now, last + self._cycle_seconds)

    def _write(self, as_of: float) -> None:
        content = {"monotonic": as_of, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # No fsync: the file is worth nothing after a power cut, and a slow disk would stall us.
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        temporary.replace(self._path)
