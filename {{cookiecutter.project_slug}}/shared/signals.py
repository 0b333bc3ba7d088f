"""SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the process."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` with the signal's name on the running loop; main thread only.

    The handlers are Python's and not the loop's, so that the second signal works even while
    the loop is blocked.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        loop.call_soon_threadsafe(stop, signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
