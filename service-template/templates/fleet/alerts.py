"""Alerts by HTTP: grouped, and at most one request a minute."""

import time
from collections.abc import Iterable

import httpx
from pydantic import BaseModel
from schemas import ServiceRow
from structlog.stdlib import BoundLogger

from shared.state import StateFile

INTERVAL_SECONDS = 60.0
MAX_LINES = 20
_TIMEOUT_SECONDS = 10.0
_BROKER = "the broker"
_PROBLEM_STATES = {"degraded", "offline", "stale"}


class _Reported(BaseModel):
    """Services whose problem was reported, so that a restart does not report it again."""

    services: set[str] = set()


class Alerts:
    """One alert for each problem that lasts, one for its end, one for a new kind of letter."""

    def __init__(
        self, url: str, *, after_seconds: float, state: StateFile, logger: BoundLogger
    ) -> None:
        self._url, self._after_seconds = url, after_seconds
        self._state, self._logger = state, logger
        self._reported = state.load(_Reported).services
        self._began: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._recoveries: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._not_before = 0.0
        self.problem = ""

    def on_first_letter(self, kind: str, error: str) -> None:
        self._kinds[kind] = f"First dead letter of {kind}: {error[:200]}"

    def update(self, rows: Iterable[ServiceRow], *, connected: bool) -> None:
        """Collect the alerts that are due. While the broker is away, only it has a state."""
        states = {_BROKER: "online" if connected else "offline"}
        reasons: dict[str, list[str]] = {}
        for row in rows if connected else []:
            states[row.name], reasons[row.name] = row.state, row.reasons
        if connected:
            for known in (self._began, self._problems):
                for removed in known.keys() - states.keys():
                    del known[removed]
        now = time.monotonic()
        for name, state in states.items():
            if state in _PROBLEM_STATES:
                self._recoveries.pop(name, None)
                lasts_seconds = now - self._began.setdefault(name, now)
                if name not in self._reported and lasts_seconds >= self._after_seconds:
                    line = ": ".join([f"{name} is {state}", *reasons.get(name, [])[:1]])
                    self._problems.setdefault(name, line)
            else:
                self._began.pop(name, None)
                self._problems.pop(name, None)
                if name in self._reported:
                    self._recoveries.setdefault(name, f"{name} is {state} again")

    async def send(self) -> None:
        """Send all alerts that are due. After a failure they stay due, for a minute later."""
        problems, recoveries, kinds = map(dict, (self._problems, self._recoveries, self._kinds))
        lines = [*problems.values(), *kinds.values(), *recoveries.values()]
        if not lines or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + INTERVAL_SECONDS
        title = lines[0] if len(lines) == 1 else f"{len(lines)} changes of the services"
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"and {len(lines) - MAX_LINES} more"]
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
                content = {"title": title, "message": "\n".join(lines)}
                response = await client.post(self._url, json=content)
        except httpx.HTTPError as error:
            self._failed(type(error).__name__)
            return
        if not response.is_success:
            self._failed(f"status {response.status_code}")
            return
        self.problem = ""
        self._reported = (self._reported | problems.keys()) - recoveries.keys()
        for due, sent in (
            (self._problems, problems),
            (self._recoveries, recoveries),
            (self._kinds, kinds),
        ):
            for name in sent:
                due.pop(name, None)
        self._state.save(_Reported(services=self._reported))

    def _failed(self, reason: str) -> None:
        # The URL and its errors may hold a token.
        self.problem = f"alerts cannot be sent: {reason}"
        self._logger.warning("alert_not_sent", reason=reason)
