"""Watchdog: a thread that ends the process when the event loop does not run any more.

Docker restarts a container whose process has ended, but not one that is merely unhealthy.
"""

import asyncio
import faulthandler
import json
import os
import threading
import time

from shared.debugger import is_debugging
from shared.timestamps import format_utc

_STDERR = 2
_MIN_LOOK_SECONDS = 1.0
_MAX_LOOK_SECONDS = 5.0
# The thread of faulthandler cannot look twice, so its limit leaves time to a suspended process.
_HELD_GIL_GRACE_SECONDS = 30.0


class Watchdog:
    """Ends the process with code 70 when the loop is blocked for `max_age_seconds`.

    Two looks in a row must find the loop blocked, because the first one after SIGCONT always does.
    The last line on stderr is JSON, followed by the stacks of all threads. While a debugger is
    attached, nothing ends.
    """

    def __init__(self, service: str, max_age_seconds: float) -> None:
        self._service = service
        self._max_age_seconds = max_age_seconds
        self._look_seconds = min(
            max(max_age_seconds / 20, _MIN_LOOK_SECONDS), _MAX_LOOK_SECONDS, max_age_seconds / 4
        )
        self._stopped = threading.Event()
        self._ran_at = 0.0

    def start(self) -> None:
        """Watch the running event loop of this thread."""
        self._ran_at = time.monotonic()
        loop, thread_id = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(
            target=self._watch, args=[loop, thread_id], name="watchdog", daemon=True
        ).start()

    def stop(self) -> None:
        """End the watch. May be called twice, or without `start()`."""
        self._stopped.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        was_late = False
        while True:
            is_paused = is_debugging(thread_id)
            if is_paused:
                faulthandler.cancel_dump_traceback_later()
            else:
                self._guard_against_a_held_gil()
            if self._stopped.wait(self._look_seconds):
                break
            age = time.monotonic() - self._ran_at
            is_late = age > self._max_age_seconds and not is_paused
            if is_late and was_late and not is_debugging(thread_id):
                self._end(age)
            was_late = is_late
            try:
                loop.call_soon_threadsafe(self._record)
            except RuntimeError:
                # The loop is closed.
                break
        faulthandler.cancel_dump_traceback_later()

    def _record(self) -> None:
        self._ran_at = time.monotonic()

    def _guard_against_a_held_gil(self) -> None:
        """Let faulthandler end the process with code 1 if this thread cannot run either."""
        timeout_seconds = 2 * self._max_age_seconds + _HELD_GIL_GRACE_SECONDS
        faulthandler.dump_traceback_later(timeout_seconds, exit=True, file=_STDERR)

    def _end(self, age: float) -> None:
        line = {
            "event": "event_loop_blocked",
            "level": "critical",
            "service": self._service,
            "timestamp": format_utc(),
            "blocked_seconds": round(age, 1),
        }
        # The log may be what blocks, so write without it.
        os.write(_STDERR, f"{json.dumps(line)}\n".encode())
        faulthandler.dump_traceback(_STDERR)
        os._exit(os.EX_SOFTWARE)
