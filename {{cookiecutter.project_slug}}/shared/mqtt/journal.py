"""Recognize a message that ends the process, which the broker would redeliver forever."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

from shared.mqtt.connection import ReceivedMessage

_DEATHS_BEFORE_FATAL = 3
_MAX_FATAL = 100


class Journal:
    """Messages whose handlers run, on disk, so that the next process knows them.

    It exists only after a process that did not end in an orderly way, so that normal operation
    does not pay for it. It records redelivered and retained messages, because only these can have
    been there before.
    """

    def __init__(self, deaths: dict[str, int], save: Callable[[], None]) -> None:
        """Create a journal of `deaths` of the process by message, which `save` writes."""
        self._deaths = deaths
        self._save = save
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def record(self, topic_filter: str, message: ReceivedMessage) -> AsyncIterator[bool]:
        """Record a message while it is handled. Yield whether it is fatal.

        A message that was recorded at an earlier death is handled alone, because all messages in
        progress count at a death.
        """
        content = f"{topic_filter}\0{message.topic}\0".encode() + message.payload
        key = hashlib.blake2b(content, digest_size=16).hexdigest()
        if self._deaths.get(key, 0) >= _DEATHS_BEFORE_FATAL:
            yield True
            return
        async with self._alone if key in self._deaths else nullcontext():
            # The first death came before the journal.
            self._deaths[key] = self._deaths.get(key, 1) + 1
            self._save()
            try:
                yield False
            finally:
                self._deaths.pop(key, None)
                self._save()


def fatal(deaths: dict[str, int]) -> dict[str, int]:
    """Return the messages that stay fatal: a retained one comes with every start."""
    found = [item for item in deaths.items() if item[1] >= _DEATHS_BEFORE_FATAL]
    return dict(found[-_MAX_FATAL:])
