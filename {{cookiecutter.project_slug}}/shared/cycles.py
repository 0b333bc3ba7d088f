"""Parts of a loop: a log of its failures, and a check whether its result has changed."""

import time
from collections.abc import Callable, Mapping
from traceback import walk_tb
from typing import Any

from structlog.stdlib import BoundLogger

from shared.errors import ExternalError
from shared.schemas import Message
from shared.timestamps import format_utc

SUMMARY_SECONDS = 300.0


class FailureLog:
    """Logs a failure in full once, repetitions as a summary every few minutes, and the recovery.

    An outage over many cycles would fill the log with the same traceback otherwise.
    """

    def __init__(
        self, logger: BoundLogger, work: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger.bind(work=work)
        self._clock = clock
        self._count = 0
        self._since = ""
        self._logged_at = 0.0
        self._known: set[tuple[type[BaseException], str, int]] = set()

    def failed(self, error: BaseException) -> None:
        if not self._count:
            self._since = format_utc()
        self._count += 1
        reason = f"{type(error).__name__}: {error}"
        failure = (type(error), *_origin(error))
        if failure not in self._known:
            self._known.add(failure)
            if isinstance(error, ExternalError):
                self._logger.warning("cycle_failed", error=reason)
            else:
                self._logger.error("cycle_failed", error=reason, exc_info=error)
        elif self._clock() - self._logged_at >= SUMMARY_SECONDS:
            self._logger.warning(
                "cycle_still_failing", error=reason, failures=self._count, since=self._since
            )
        else:
            return
        self._logged_at = self._clock()

    def succeeded(self) -> None:
        if self._count:
            self._logger.info("cycle_recovered", failures=self._count, since=self._since)
        self._count = 0
        self._known.clear()


def has_changed(
    old: Mapping[str, Any], new: Mapping[str, Any], delta: float | Mapping[str, float]
) -> bool:
    """Return whether a number differs by at least `delta`, or any other field differs.

    The fields of every message are ignored. A mapping holds a `delta` for each field.
    """
    for name in (old.keys() | new.keys()) - Message.model_fields.keys():
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, bool) or isinstance(after, bool):
            return True
        if not isinstance(before, int | float) or not isinstance(after, int | float):
            return True
        limit = delta.get(name, 0.0) if isinstance(delta, Mapping) else delta
        if abs(after - before) >= limit:
            return True
    return False


def _origin(error: BaseException) -> tuple[str, int]:
    """Return the file and the line that raised an error."""
    *_, (frame, line) = walk_tb(error.__traceback__)
    return frame.f_code.co_filename, line
