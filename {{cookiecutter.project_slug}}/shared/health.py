"""Health of a service, for the heartbeat, the health file and the container health check.

A service is healthy if none of these health timestamps is older than `max_age_seconds`. A loop
gets its interval on top:

- Event loop: a task writes the health file, so the file gets old while the loop is blocked.
  `shared/watchdog.py` ends a process whose loop is blocked for longer.
- Connection: the network thread runs and the client is connected.
- Cycle of each loop: `every()` or `touch_healthcheck()` reports each success.

All ages come from the monotonic clock, because the system clock may be set at any time.
The health check of the container reads the file, and accepts it from a running process only.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from structlog.stdlib import BoundLogger

from shared.timestamps import format_utc

# The loop that run() is itself. A loop of every() has the name of a function.
_RUN = "run()"


class BrokerConnection(Protocol):
    """Part of the MQTT client that health depends on."""

    @property
    def connected(self) -> bool: ...
    @property
    def thread_alive(self) -> bool: ...


@dataclass(frozen=True)
class HealthStatus:
    healthy: bool
    reasons: tuple[str, ...] = ()


class HealthMonitor:
    """Health timestamps of all parts. Belongs to the event loop."""

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
        self._last_connected: float | None = None
        self._last_success: dict[str, float] = {}
        self._cycle_seconds: dict[str, float] = {}
        self._written: float | None = None
        self._write_failed = False

    @property
    def tick_seconds(self) -> float:
        """Interval of calls to `update`, far below the maximum age."""
        return min(self._max_age_seconds / 20, 5.0)

    def record_success(self, work: str = _RUN) -> None:
        self._last_success[work] = self._clock()

    def expect_success_every(self, cycle_seconds: float | None, work: str = _RUN) -> None:
        """Require a success of this work in every cycle from now on, or no more with None."""
        if cycle_seconds is None:
            self._cycle_seconds.pop(work, None)
            self._last_success.pop(work, None)
        else:
            self._cycle_seconds[work] = cycle_seconds
            self._last_success.setdefault(work, self._clock())

    @contextmanager
    def expect_loop(self, cycle_seconds: float, work: str) -> Iterator[str]:
        """Require a success in every cycle while the loop runs. Yield the name of the loop.

        A second loop of the same work gets a number, because each has its own successes.
        """
        names = (f"{work} {number}" if number > 1 else work for number in count(1))
        name = next(name for name in names if name not in self._cycle_seconds)
        self.expect_success_every(cycle_seconds, name)
        try:
            yield name
        finally:
            self.expect_success_every(None, name)

    def status(
        self, connection: BrokerConnection, max_disconnected_seconds: float | None = None
    ) -> HealthStatus:
        now = self._clock()
        max_disconnected = min(self._max_age_seconds, max_disconnected_seconds or math.inf)
        self._observe(connection, now)
        reasons = []
        if not connection.thread_alive:
            reasons.append("the MQTT network thread is not running")
        if self._last_connected is None:
            reasons.append("not connected to the broker yet")
        elif (age := now - self._last_connected) > max_disconnected:
            reasons.append(f"no connection to the broker for {age:.0f} s")
        for work, cycle_seconds in self._cycle_seconds.items():
            if (age := now - self._last_success[work]) > self._max_age_seconds + cycle_seconds:
                reasons.append(f"no success of {work} for {age:.0f} s")
        return HealthStatus(healthy=not reasons, reasons=tuple(reasons))

    def update(self, connection: BrokerConnection) -> None:
        """Write the health file if the service is healthy. A failed write is logged once."""
        if not self.status(connection).healthy:
            return
        now = self._clock()
        # Write the oldest timestamp, so that the age of the file is that of the worst part.
        as_of = min(now, self._last_connected or now, self._last_cycle(now))
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

    def _observe(self, connection: BrokerConnection, now: float) -> None:
        if connection.connected and connection.thread_alive:
            self._last_connected = now

    def _last_cycle(self, now: float) -> float:
        return min(
            (self._last_success[work] + cycle for work, cycle in self._cycle_seconds.items()),
            default=now,
        )

    def _write(self, as_of: float) -> None:
        content = {"pid": os.getpid(), "monotonic": as_of, "time": format_utc()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Skip fsync: the file has no value after a power cut, and a slow disk would block the loop.
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        temporary.replace(self._path)
