"""Recognise messages that arrive twice, as they may at QoS 1 (MQTT 3.1.1, section 4.3.2)."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class RecentIds:
    """The ids of the last `max_count` messages that are at most `max_age_seconds` old."""

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
        self._first_seen: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._first_seen)

    def seen(self, message_id: Hashable) -> bool:
        """Remember `message_id`; True when it is known already."""
        now = self._clock()
        oldest_allowed = now - self._max_age_seconds
        while self._first_seen and next(iter(self._first_seen.values())) < oldest_allowed:
            self._first_seen.popitem(last=False)
        if message_id in self._first_seen:
            return True
        self._first_seen[message_id] = now
        if len(self._first_seen) > self._max_count:
            self._first_seen.popitem(last=False)
        return False
