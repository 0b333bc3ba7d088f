"""SIGTERM and SIGINT: the first asks for an orderly stop, the second ends the process."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signal(stop: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` with the signal's name on the running loop; main thread only.

    A thread of its own watches, so that the second signal works even while the loop is blocked:
    Python runs its handlers on the main thread only, and the system may give a signal to any.
    """
    loop = asyncio.get_running_loop()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        asked = False
        while number := receiver.recv(1):
            if number[0] not in _NUMBERS:
                continue
            if asked:
                os._exit(128 + number[0])
            asked = True
            loop.call_soon_threadsafe(stop, signal.Signals(number[0]).name)

    def ignore(_number: int, _frame: FrameType | None) -> None:
        """A handler there must be, or the default would end the process at once."""

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    previous_descriptor = signal.set_wakeup_fd(sender.fileno())
    previous = {number: signal.signal(number, ignore) for number in _NUMBERS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_descriptor)
        # Not `close` alone: a forked child holds a copy of it.
        sender.shutdown(socket.SHUT_WR)
        watcher.join()
        sender.close()
        receiver.close()
