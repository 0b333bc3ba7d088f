"""Recognize messages that arrive twice (MQTT 3.1.1, section 4.3.2)."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Literal


def message_id(request_id: str | None, trace_id: str | None, content: bytes) -> str | None:
    """Return the id of a message: its request id, or its trace id with a hash of its content.

    Many messages may share one trace id, but a redelivered message has the same content.
    """
    if request_id or not trace_id:
        return request_id or None
    return f"{trace_id} {hashlib.blake2b(content, digest_size=16).hexdigest()}"


class Recent[V]:
    """The last `max_count` values by id, none of them older than `max_age_seconds`."""

    def __init__(
        self,
        max_count: int = 1000,
        max_age_seconds: float = 600.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_count = max_count
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, message_id: Hashable) -> V | None:
        oldest_allowed = self._clock() - self._max_age_seconds
        while self._entries and next(iter(self._entries.values()))[0] < oldest_allowed:
            self._entries.popitem(last=False)
        entry = self._entries.get(message_id)
        return None if entry is None else entry[1]

    def add(self, message_id: Hashable, value: V) -> None:
        """Add a new id. The oldest id is removed when there are too many."""
        self._entries[message_id] = self._clock(), value
        if len(self._entries) > self._max_count:
            self._entries.popitem(last=False)

    def forget(self, message_id: Hashable) -> None:
        self._entries.pop(message_id, None)


class RecentIds(Recent[Literal[True]]):
    """Recent ids without values."""

    def seen(self, message_id: Hashable) -> bool:
        """Add `message_id` and return whether it was known already."""
        if self.get(message_id):
            return True
        self.add(message_id, True)
        return False
